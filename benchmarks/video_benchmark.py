"""How fast videos are read: ``python -m benchmarks.video_benchmark [--seconds 30] [--rounds 5]``.

Makes a 1080p film (H.264, 30 frames a second, three B-frames, a key frame every 250 frames at most: x264's defaults but
for its speed), reads two frames a second of it in several ways that take turns, stores a row in
``benchmarks/results/video/<device>.json`` and writes the table in ``docs/videos.md`` from all stored rows.

What is read is checked first: the reader's frames are those that decoding every frame gives, bit for bit.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from tqdm import tqdm

from vpgfast.video import Picture, Video, torchcodec_backend

from .measure import ROOT, commit, device_name
from .search_benchmark import replace

WIDTH, HEIGHT, RATE, FPS = 1920, 1080, 30, 2
STEP = RATE // FPS
PAGE = ROOT / "docs" / "videos.md"
BEGIN, END = "<!-- written by `python -m benchmarks.video_benchmark` -->", "<!-- /video_benchmark -->"


def make(path: Path, seconds: int) -> None:
    """A camera that pans over a texture with detail of all sizes, and shapes that move on their own."""
    rng = np.random.default_rng(0)
    high, wide = HEIGHT + 400, WIDTH + 800
    texture = np.full((high, wide, 3), 128, np.float32)
    for cell in (2, 4, 8, 16, 32, 64, 128):
        noise = np.clip(rng.standard_normal((high // cell + 2, wide // cell + 2, 3)) * 40 + 128, 0, 255).astype(
            np.uint8
        )
        layer = av.VideoFrame.from_ndarray(noise, "rgb24").reformat(wide, high, interpolation="BICUBIC").to_ndarray()
        texture += (layer.astype(np.float32) - 128) * (cell / 64) ** 0.5
    canvas = np.clip(texture, 0, 255).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE, options={"preset": "fast", "bf": "3", "g": "250"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in tqdm(range(seconds * RATE), desc="making the film", unit="frame", leave=False, disable=None):
            x, y = int(400 + 390 * np.sin(i / 70)), int(200 + 190 * np.sin(i / 47))
            picture = canvas[y : y + HEIGHT, x : x + WIDTH].copy()
            for j in range(6):
                left = int(WIDTH * (0.5 + 0.4 * np.sin(i / (20 + 7 * j) + j)))
                top = int(HEIGHT * (0.5 + 0.4 * np.cos(i / (25 + 5 * j) + 2 * j)))
                picture[max(0, top - 80) : top + 80, max(0, left - 80) : left + 80] = (40 * j, 255 - 40 * j, 90)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def ours(path: Path, picture: Picture, backend: Any = "pyav") -> list[np.ndarray]:
    return [frame for chunk in Video(path, backend=backend).frames(FPS, picture) for frame in chunk.pixels]


def pyav_every(path: Path, convert_all: bool) -> list[np.ndarray]:
    """Read all, keep every n-th; all are made RGB, or only those that are kept."""
    kept = []
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(container.decode(video=0)):
            if convert_all or number % STEP == 0:
                pixels = frame.to_ndarray(format="rgb24")
                if number % STEP == 0:
                    kept.append(pixels)
    return kept


def decode_only(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for _ in container.decode(video=0):
            pass
    return []


def opencv_every(path: Path) -> list[np.ndarray]:
    import cv2

    video, kept, number = cv2.VideoCapture(str(path)), [], 0
    while True:
        read, pixels = video.read()
        if not read:
            return kept
        if number % STEP == 0:
            kept.append(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
        number += 1


def ffmpeg_pipe(path: Path) -> list[np.ndarray]:
    """As HERO's extractors: the ffmpeg program scales and samples, raw frames come through a pipe."""
    high, wide = 224, 224 * WIDTH // HEIGHT
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-vf", f"fps={FPS},scale={wide}:{high}"]
    done = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:"], stdout=subprocess.PIPE, check=True
    )
    return list(np.frombuffer(done.stdout, np.uint8).reshape(-1, high, wide, 3))


def ways() -> dict[str, Callable[[Path], list[np.ndarray]]]:
    """By name; those whose library or program is not here are left out."""
    small = Picture(short_side=224, crop=(224, 224))
    found: dict[str, Callable[[Path], list[np.ndarray]]] = {
        "vpgfast, 224 x 224": lambda path: ours(path, small),
        "vpgfast, 1920 x 1080": lambda path: ours(path, Picture()),
        "PyAV, every frame read": lambda path: pyav_every(path, convert_all=True),
        "PyAV, kept frames converted": lambda path: pyav_every(path, convert_all=False),
        "decoder alone (PyAV), nothing converted": decode_only,
    }
    if version("opencv-python-headless"):
        found["OpenCV, every frame read"] = opencv_every
    if shutil.which("ffmpeg"):
        found["ffmpeg through a pipe, 398 x 224"] = ffmpeg_pipe
    if torchcodec_backend.why_not() is None:
        found["vpgfast on torchcodec, 1920 x 1080"] = lambda path: ours(path, Picture(), "torchcodec")
    return found


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def has_avx512() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512f" in cpuinfo.read_text()


def run(seconds: int, rounds: int, folder: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "film.mp4"
        make(path, seconds)
        every = pyav_every(path, convert_all=False)
        assert len(every) == seconds * FPS
        for a, b in zip(every, ours(path, Picture()), strict=True):
            np.testing.assert_array_equal(a, b)
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways()}
        for _ in tqdm(range(rounds), desc="reading", unit="round", leave=False, disable=None):
            for name, way in ways().items():
                wall, cpu = time.perf_counter(), cpu_seconds()
                count = len(way(path))
                took[name].append((time.perf_counter() - wall, cpu_seconds() - cpu))
                assert count in (0, len(every)), f"{name}: {count} frames"
        megabits = 8 * path.stat().st_size / seconds / 1e6
    return {
        "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "avx512": has_avx512(),
        "load": os.getloadavg()[0],
        "commit": commit(),
        "versions": {"ffmpeg in av": str(getattr(av, "ffmpeg_version_info", "")), **{
            name: version(name) for name in ("av", "opencv-python-headless", "torch", "torchcodec")}},
        "film": {"seconds": seconds, "frames": seconds * RATE, "megabits_per_second": megabits},
        "ways": {
            name: {
                "wall_s": statistics.median(wall for wall, _ in times),
                "best_wall_s": min(wall for wall, _ in times),
                "cpu_s": statistics.median(cpu for _, cpu in times),
            }
            for name, times in took.items()
        },
    }  # fmt: skip


def store(row: dict[str, Any]) -> Path:
    """Put a device's row into its file, in place of the earlier one."""
    folder = Path(os.environ.get("VPGFAST_BENCHMARK_RESULTS", ROOT / "benchmarks" / "results")) / "video"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^a-z0-9]+", "-", row["device"].lower()).strip("-") + ".json")
    replace(path, json.dumps(row, indent=1) + "\n")
    return path


def table(row: dict[str, Any]) -> str:
    """Of one device, as Markdown."""
    film, decoder = row["film"], row["ways"]["decoder alone (PyAV), nothing converted"]
    versions = ", ".join(f"{name} {found}" for name, found in row["versions"].items() if found)
    lines = [
        f"{row['device']} ({'with' if row['avx512'] else 'without'} AVX-512), a load of {row['load']:.1f} when it "
        f"ended; {versions}; commit {row['commit']}. {film['seconds']} s, {film['megabits_per_second']:.1f} Mbit/s:",
        "",
        "| way | seconds | at best | CPU seconds | frames of the file a second | over the decoder alone |",
        "|---|---|---|---|---|---|",
    ]
    for name, took in sorted(row["ways"].items(), key=lambda item: item[1]["wall_s"]):
        lines.append(
            f"| {name} | {took['wall_s']:.2f} | {took['best_wall_s']:.2f} | {took['cpu_s']:.2f} | "
            f"{film['frames'] / took['wall_s']:.0f} | {decoder['wall_s'] / took['wall_s']:.2f}x |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.video_benchmark",
        description="Frames a second at 2 fps of a 1080p film, beside reading every frame with PyAV and OpenCV.",
    )
    parser.add_argument("--seconds", type=int, default=30, help="length of the film (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is taken (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to make the film; default: the system's temporary folder")
    arguments = parser.parse_args()
    path = store(run(arguments.seconds, arguments.rounds, arguments.folder))
    tables = [table(json.loads(file.read_text())) for file in sorted(path.parent.glob("*.json"))]
    print("\n\n".join(tables))
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} has no lines {BEGIN} and {END} to write the table between")
    replace(PAGE, f"{before}{BEGIN}\n" + "\n\n".join(tables) + f"\n{END}{after}")
    print(f"stored in {path}; table written to {PAGE}")


if __name__ == "__main__":
    main()
