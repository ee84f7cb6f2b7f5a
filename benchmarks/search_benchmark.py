"""Time, memory and recall of the search index: ``python -m benchmarks.search_benchmark [--videos 10000 ...]``.

Makes indexes of simulated vectors, searches them exactly and with FAISS, stores a row a size in
``benchmarks/results/search/<device>.json`` and writes the table in ``docs/search.md`` from all stored rows. Every step
runs in a process of its own, so that its memory is its own.

A simulated vector is normal noise whose variance falls as 1 / i over the E directions of a random basis, as that of
learned vectors roughly does (a few dozen directions hold most of it), brought to length 1. A query is a video's vector
plus such noise 1.2 times as long, so that its product with that vector is about 0.64.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vpgfast.search.index import VideoIndex
from vpgfast.search.shards import SHARD, VideoEntry

from .measure import ROOT, commit, device_name

SIZES = (10_000, 100_000, 1_000_000)
WIDTH, QUERIES, TOP = 256, 200, 10
PAGE = ROOT / "docs" / "search.md"
BEGIN, END = "<!-- written by `python -m benchmarks.search_benchmark` -->", "<!-- /search_benchmark -->"


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def noise(seed: int | tuple[int, int], count: int) -> np.ndarray:
    """float32 [count, WIDTH] of length 1."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, WIDTH), np.float32))
    spread = np.arange(1, WIDTH + 1, dtype=np.float32) ** -0.5
    return unit((np.random.default_rng(seed).standard_normal((count, WIDTH), np.float32) * spread) @ basis)


def simulated(videos: int) -> Iterator[np.ndarray]:
    """Vectors of ``videos`` videos, a shard at a time."""
    for start in range(0, videos, SHARD):
        yield noise((1, start), min(SHARD, videos - start))


def simulated_queries(index: VideoIndex, seed: int) -> tuple[np.ndarray, list[str]]:
    """Queries, and the name of the video that each was made from."""
    rng = np.random.default_rng(seed)
    places = sorted((int(rng.integers(len(index.shards))), int(rng.integers(1 << 30))) for _ in range(QUERIES))
    vectors, names = [], []
    for number, draw in places:
        shard = index.shards[number]
        vectors.append(index.vectors(shard)[draw % shard.videos])
        names.append(index.videos(shard)[draw % shard.videos].video_id)
    return unit(np.stack(vectors) + 1.2 * noise((seed, 1), QUERIES)), names


@contextmanager
def own_memory(row: dict[str, Any]) -> Iterator[None]:
    """Note the most MiB of the process's own (not of mapped files, which the system drops at need) beyond the start."""

    def now() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 2**10

    before = most = now()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, now())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        row["peak_mib"] = max(most, now()) - before


def write(folder: Path, videos: int) -> dict[str, Any]:
    """Fill an index; making the vectors is not counted."""
    row: dict[str, Any] = {"seconds": 0.0}
    model = folder / "model"
    model.write_bytes(b"none")
    index = VideoIndex.create(folder / "index", WIDTH, model, "simulated", {"source": "simulated", "width": 1})
    source = {"kind": "hdf5", "path": "/data/features.h5", "key": "{video_id}"}
    with own_memory(row), index.changing():
        number = 0
        for vectors in simulated(videos):
            entries = [VideoEntry(f"video_{number + i:08d}", 60.0, source) for i in range(len(vectors))]
            number += len(vectors)
            start = time.perf_counter()
            index.add(vectors, entries)
            row["seconds"] += time.perf_counter() - start
    row["disk_mib"] = sum(path.stat().st_size for path in index.folder.iterdir()) / 2**20
    return row


def build(folder: Path, videos: int) -> dict[str, Any]:
    """Let FAISS make its index; measuring its recall, on other queries than :func:`search` asks, is included."""
    row: dict[str, Any] = {}
    index = VideoIndex.open(folder / "index")
    with own_memory(row), index.changing():
        start = time.perf_counter()
        index.build_faiss(queries=simulated_queries(index, seed=2)[0])
        row["seconds"] = time.perf_counter() - start
    assert index.faiss is not None
    return row | {
        "disk_mib": index.faiss["bytes"] / 2**20,
        **{key: index.faiss[key] for key in ("lists", "nprobe", "bytes_per_video")},
        "recall_at_build": index.faiss["recall"],
    }


def search(folder: Path, exact: bool) -> dict[str, Any]:
    """Single queries, as a user asks them; the first one opens the files."""
    row: dict[str, Any] = {}
    queries, own = simulated_queries(VideoIndex.open(folder / "index"), seed=3)
    times, found = [], []
    with own_memory(row):
        index = VideoIndex.open(folder / "index")
        for query in queries:
            start = time.perf_counter()
            (videos,) = index.search(query[None], TOP, exact=exact)
            times.append(1e3 * (time.perf_counter() - start))
            found.append([one.video.video_id for one in videos])
    true = [[one.video.video_id for one in videos] for videos in index.search(queries, TOP, exact=True)]
    marks = np.percentile(times[1:], [20, 50, 80]).tolist()
    return row | {
        "first_ms": times[0],
        **dict(zip(("p20_ms", "p50_ms", "p80_ms"), marks, strict=True)),
        "recall": float(np.mean([len(set(a) & set(b)) / TOP for a, b in zip(found, true, strict=True)])),
        "own_video_in_top": float(np.mean([name in videos for name, videos in zip(own, found, strict=True)])),
    }


STEPS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "write": write,
    "build_faiss": build,
    "exact": lambda folder, videos: search(folder, exact=True),
    "faiss": lambda folder, videos: search(folder, exact=False),
}


def run(videos: int, parent: Path | None) -> dict[str, Any]:
    """All steps at one size, each in a process of its own."""
    device = torch.device("cpu")
    row: dict[str, Any] = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "videos": videos,
        "width": WIDTH,
    }
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        for step in tqdm(STEPS, desc=f"{videos} videos", unit="step", leave=False, disable=None):
            command = [sys.executable, "-m", "benchmarks.search_benchmark", "--step", step, folder, str(videos)]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            row[step] = json.loads(done.stdout.splitlines()[-1])
    return row


def store(row: dict[str, Any]) -> Path:
    """Put a row into its device's file, in place of an earlier one of that size."""
    folder = Path(os.environ.get("VPGFAST_BENCHMARK_RESULTS", ROOT / "benchmarks" / "results")) / "search"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^a-z0-9]+", "-", row["device"].lower()).strip("-") + ".json")
    rows = {old["videos"]: old for old in (json.loads(path.read_text()) if path.exists() else [])} | {
        row["videos"]: row
    }
    replace(path, "[\n" + ",\n".join(json.dumps(rows[videos]) for videos in sorted(rows)) + "\n]\n")
    return path


def replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def table(rows: list[dict[str, Any]]) -> str:
    """Of one device, as Markdown."""
    lines = [
        f"{rows[0]['device']}, {rows[0]['threads']} threads, width {rows[0]['width']}, measured at "
        f"{', '.join(sorted({row['commit'] for row in rows}))}:",
        "",
        "| videos | | build | on disk | memory to build | a query | first query | memory | recall@10 | own video |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for kind, made, name in (("exact", "write", "exact"), ("faiss", "build_faiss", "FAISS")):
            asked, built = row[kind], row[made]
            lines.append(
                f"| {row['videos']:,} | {name} | {built['seconds']:.1f} s | {built['disk_mib']:.0f} MiB | "
                f"{built['peak_mib']:.0f} MiB | {asked['p50_ms']:.1f} ms | {asked['first_ms']:.0f} ms | "
                f"{asked['peak_mib']:.0f} MiB | {100 * asked['recall']:.1f}% | "
                f"{100 * asked['own_video_in_top']:.1f}% |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search_benchmark",
        description="Build and query time, memory and recall of search, over simulated vectors, exact and with FAISS.",
        epilog="A million videos take 2 GiB of disk while it runs.",
    )
    parser.add_argument("--videos", type=int, nargs="+", default=SIZES, help="sizes (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to make the indexes; default: the system's temporary folder")
    parser.add_argument("--step", nargs=3, metavar=("STEP", "FOLDER", "VIDEOS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step, folder, videos = arguments.step
        print(json.dumps(STEPS[step](Path(folder), int(videos))))
        return
    for videos in arguments.videos:
        path = store(run(videos, arguments.folder))
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
