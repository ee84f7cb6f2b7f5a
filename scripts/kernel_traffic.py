"""The memory traffic of the CUDA C++ kernels, counted by the emulator (tests/cuda_emulator) on a CPU.

    .venv/bin/python scripts/kernel_traffic.py [--check]

Runs each op's first benchmark shape, forward and backward, and counts for every launch what its warps ask for. The rows
are stored in benchmarks/results/cuda/kernel_traffic.json, the table goes into docs/cuda.md. Some minutes. With --check
nothing is written: the exit status is 1 if an op moves more, or touches more lines, than is stored (5% more).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE, STORED = ROOT / "docs" / "cuda.md", ROOT / "benchmarks" / "results" / "cuda" / "kernel_traffic.json"
BEGIN, END = "<!-- written by scripts/kernel_traffic.py -->", "<!-- /traffic -->"
COPIED = ("_build", "benchmarks", "csrc", "tests", "triton_kernels", "vpgfast", "pyproject.toml")
# Bytes a second of the main memory, from NVIDIA's data sheets (A100 80 GB SXM, H100 SXM).
BANDWIDTH = {"A100": 2.039e12, "H100": 3.35e12}
TRITON = ("conv2d", "anchor_cross_attention")  # their kernels are Triton's, which the emulator does not run
# The scan's first shape begins with torch's product of features.
CASES = {"ordered_suppression_scan": ["-k", "from_z"]}
WORSE = 1.05
# Tensors begin where lines do, as torch's allocator for GPUs has it.
ALIGNED = """
#include <cstdlib>
extern "C" int posix_memalign(void** at, size_t alignment, size_t bytes) {
  const size_t line = alignment > 512 ? alignment : 512;
  *at = std::aligned_alloc(line, (bytes + line - 1) / line * line);
  return *at == nullptr;
}
"""
# Runs inside the copy: ours alone, once in each mode, with a mark in the file of launches where a case begins.
DRIVER = """
import json, os, sys
import pytest, torch
import benchmarks.measure as measuring

def measure(op, shape, providers, inputs, *, floor_bytes, **_):
    for mode, floor in floor_bytes.items():
        leaves = [t.detach().requires_grad_(mode != "forward" and t.is_floating_point()) for t in inputs]
        ours = next(p for p in providers if p.is_ours)
        with open(os.environ["VPGFAST_EMULATOR_TRAFFIC"], "a") as file:
            file.write(json.dumps({"op": op, "shape": shape, "mode": mode, "floor": floor}) + "\\n")
        out = ours.function(*leaves)
        if any(t.requires_grad for t in leaves):
            torch.autograd.grad(out, [t for t in leaves if t.requires_grad], torch.ones_like(out))
    return []

measuring.measure = measure
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-x", *sys.argv[1:]]))
"""


def counted() -> list[dict[str, Any]]:
    """A row for every launch, with its op, shape, mode and the op's floor in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        copy, log = Path(folder, "tree"), Path(folder, "launches.jsonl")
        copy.mkdir()
        for name in COPIED:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
        for library in copy.glob("vpgfast/_C*.so"):
            library.unlink()
        environment = os.environ | {
            "VPGFAST_EMULATOR_CACHE": str(ROOT / "build" / "cuda_emulator"), "VPGFAST_EMULATOR_TRAFFIC": str(log),
            "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default",
        }  # fmt: skip
        build = [sys.executable, "tests/cuda_emulator/build.py", ".", "plain", "vpgfast/_C.abi3.so"]
        subprocess.run(build, cwd=copy, env=environment, check=True)
        aligned = Path(folder, "aligned.so")
        compiler = [os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-shared", "-fPIC", "-x", "c++", "-"]
        subprocess.run([*compiler, "-o", str(aligned)], input=ALIGNED, text=True, check=True)
        environment["LD_PRELOAD"] = str(aligned)
        files = sorted(
            file for file in (copy / "benchmarks").glob("test_*.py")
            if (ROOT / "vpgfast" / "ops" / f"{file.stem.removeprefix('test_')}.py").exists()
            and not any(name in file.stem for name in TRITON)
        )  # fmt: skip
        for file in files:
            op = file.stem.removeprefix("test_")
            print(op, flush=True)
            command = [sys.executable, "-W", "ignore", "-c", DRIVER, f"benchmarks/{file.name}", *CASES.get(op, [])]
            subprocess.run(command, cwd=copy, env=environment, check=True, stdout=subprocess.DEVNULL)
        rows, case = [], {}
        for line in map(json.loads, log.read_text().splitlines()):
            if "op" in line:
                case = line
            else:
                rows.append(case | line)
        return rows


def by_case(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    cases: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault((row["op"], row["shape"], row["mode"]), []).append(row)
    return cases


def moved(launches: list[dict[str, Any]]) -> int:
    """Bytes: every sector that a launch reads or writes, once."""
    return sum(row["bytes_read_once"] + row["bytes_written_once"] for row in launches)


def lines_over_fewest(launches: list[dict[str, Any]]) -> float:
    """Lines of 128 bytes that requests touch, over the fewest for as many requests and bytes."""
    counts = [row[what] for row in launches for what in ("loads", "stores", "atomics")]
    return sum(c["lines"] for c in counts) / sum(max(c["requests"], c["bytes"] / 128) for c in counts)


def table(rows: list[dict[str, Any]]) -> str:
    heads = ["op", "shape", "mode", "launches: blocks of each", "MiB moved", "over the floor", "lines over the fewest"]
    heads += ["passes over the fewest", *(f"{gpu}: estimated, us" for gpu in BANDWIDTH)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (op, shape, mode), launches in sorted(by_case(rows).items()):
        passes, least = (sum(row["shared"][key] for row in launches) for key in ("passes", "least_passes"))
        grids = [row["grid"] for row in launches]
        cells = [
            f"`{op}`", shape, mode, ", ".join(str(x * y * z) for x, y, z in grids), f"{moved(launches) / 2**20:.2f}",
            f"{moved(launches) / launches[0]['floor']:.2f}x", f"{lines_over_fewest(launches):.2f}x",
            f"{passes / least:.2f}x" if least else "",
            *(f"{1e6 * moved(launches) / bandwidth:.1f}" for bandwidth in BANDWIDTH.values()),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def worse(rows: list[dict[str, Any]], stored: list[dict[str, Any]]) -> list[str]:
    """What has become worse than it is stored."""
    before, found = by_case(stored), []
    for case, launches in by_case(rows).items():
        for what, count in (("moves", moved), ("touches lines", lines_over_fewest)):
            if case in before and count(launches) > WORSE * count(before[case]):
                found.append(f"{' '.join(case)}: {what} {count(launches):g}, before {count(before[case]):g}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say what has become worse")
    check = parser.parse_args().check
    rows = counted()
    if check:
        found = worse(rows, json.loads(STORED.read_text()))
        print("\n".join(found) or "nothing has become worse")
        return int(bool(found))
    STORED.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{rest.partition(END)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
