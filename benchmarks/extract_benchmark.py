"""How fast ``objects`` looks at videos: ``python -m benchmarks.extract_benchmark [--videos 6] [--rounds 3]``.

Frames a second of the network alone, by threads and frames at a time, and of the command ``extract`` with and without
processes that read. Stores a row in ``benchmarks/results/extract/<device>.json`` and writes the table in
``docs/encoders.md`` from all stored rows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vpgfast.encoders.base import load_encoder

from .measure import ROOT, commit, device_name
from .search_benchmark import replace
from .video_benchmark import has_avx512, make, version

PAGE = ROOT / "docs" / "encoders.md"
BEGIN, END = "<!-- written by `python -m benchmarks.extract_benchmark` -->", "<!-- /extract_benchmark -->"
FRAMES = 96


def network(threads: int, batch: int, pooled: bool) -> float:
    """Frames a second through the network: batches one after the other on torch's threads, or one a thread."""
    encoder = load_encoder("objects")
    pixels = np.random.default_rng(0).integers(0, 256, (FRAMES, 1, 224, 224, 3), np.uint8)
    batches = np.split(pixels, FRAMES // batch)
    torch.set_num_threads(1 if pooled else threads)
    encoder.encode_batch(batches[0])
    began = time.perf_counter()
    if pooled:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(encoder.encode_batch, batches))
    else:
        for one in batches:
            encoder.encode_batch(one)
    return FRAMES / (time.perf_counter() - began)


def extract(videos: Path, folder: Path, readers: int) -> float:
    """Seconds that the command takes for a folder of videos."""
    output = folder / f"{time.monotonic_ns()}.h5"
    command = [sys.executable, "-m", "vpgfast.extract", str(videos), "--encoder", "objects", "-o", str(output)]
    began = time.perf_counter()
    subprocess.run([*command, "--readers", str(readers)], check=True, capture_output=True)
    return time.perf_counter() - began


def run(count: int, seconds: int, rounds: int) -> dict[str, Any]:
    threads = torch.get_num_threads()
    nets: dict[str, list[float]] = {}
    commands: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "videos").mkdir()
        make(folder / "videos" / "0.mp4", seconds)
        for number in range(1, count):
            os.link(folder / "videos" / "0.mp4", folder / "videos" / f"{number}.mp4")
        for _ in tqdm(range(rounds), desc="measuring", unit="round", leave=False, disable=None):
            for batch in (1, 4, 16):
                nets.setdefault(f"{batch} at a time, on all of torch's threads", []).append(
                    network(threads, batch, False)
                )
                nets.setdefault(f"{batch} at a time, a batch a thread", []).append(network(threads, batch, True))
            for readers in (0, 1, 2):
                commands.setdefault(f"--readers {readers}", []).append(extract(folder / "videos", folder, readers))
    torch.set_num_threads(threads)
    return {
        "device": device_name(torch.device("cpu")),
        "threads": threads,
        "avx512": has_avx512(),
        "load": os.getloadavg()[0],
        "commit": commit(),
        "versions": {name: version(name) for name in ("av", "torch", "numpy")},
        "videos": {"count": count, "seconds": seconds, "size": "1920x1080"},
        "network_frames_a_second": {name: statistics.median(values) for name, values in nets.items()},
        "extract_seconds": {name: statistics.median(values) for name, values in commands.items()},
    }


def table(row: dict[str, Any]) -> str:
    """A row as it stands in the page."""
    videos = row["videos"]
    total = videos["count"] * videos["seconds"]
    versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
    simd = "with AVX-512" if row["avx512"] else "without AVX-512"
    films = f"{videos['count']} films of {videos['seconds']} s, {videos['size']}"
    lines = [
        f"{row['device']} ({simd}), a load of {row['load']:.1f} when it ended; {versions}; commit {row['commit']}:",
        "",
        "| `objects`, network alone, 224 x 224 | frames a second |",
        "|---|---|",
        *(f"| {name} | {value:.0f} |" for name, value in row["network_frames_a_second"].items()),
        "",
        f"| `extract`, {films}, start-up included | seconds | x real time |",
        "|---|---|---|",
        *(f"| {name} | {value:.1f} | {total / value:.0f} |" for name, value in row["extract_seconds"].items()),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=20, help="of each (default 20)")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    row = run(arguments.videos, arguments.seconds, arguments.rounds)
    folder = Path(os.environ.get("VPGFAST_BENCHMARK_RESULTS", ROOT / "benchmarks" / "results")) / "extract"
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", row["device"].lower()).strip("-")
    replace(folder / f"{name}.json", json.dumps(row, indent=1) + "\n")
    rows = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    tables = "\n\n".join(map(table, rows))
    replace(PAGE, f"{before}{BEGIN}\n{tables}\n{END}{rest.split(END)[1]}")
    print(table(row))


if __name__ == "__main__":
    main()
