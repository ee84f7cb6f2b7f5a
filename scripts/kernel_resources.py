"""What the compilers make of every kernel for CUDA, without a GPU: writes the tables of docs/cuda.md.

    .venv/bin/python scripts/kernel_resources.py

Compiles csrc/cuda for Ampere, Hopper and Blackwell (some minutes) and the Triton kernels (tests/ops/triton_ahead.py),
and reads registers, spills, shared memory and what the machine code loads, stores and divides by. Needs nvcc,
c++filt and triton. The rows are stored in benchmarks/results/cuda/kernel_resources.json.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import triton
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "_build"))

from extensions import NVCC_FLAGS, PYTHON_TARGET, ROOT, TORCH_TARGET, find_nvcc, find_torch

ARCHITECTURES = (80, 90, 100)
PAGE, STORED = ROOT / "docs" / "cuda.md", ROOT / "benchmarks" / "results" / "cuda" / "kernel_resources.json"
BEGIN, END = "<!-- written by scripts/kernel_resources.py -->", "<!-- /written -->"
# In SASS: 16-byte accesses, products of tensor cores, divisions of 64-bit integers, double precision.
CODE = {
    "loads of 16 bytes": r"\bLDG\.E(\.\w+)*\.128",
    "stores of 16 bytes": r"\bSTG\.E(\.\w+)*\.128",
    "64-bit divisions": r"\bI2F\.(U64|S64)",
    "double": r"\bD(FMA|ADD|MUL|SETP)\b",
}


CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"  # it comes with Triton


def run(*command: str | Path, given: str | None = None) -> str:
    return subprocess.run(list(map(str, command)), input=given, capture_output=True, text=True, check=True).stdout


def kernels_of(source: Path, architecture: int) -> list[dict[str, Any]]:
    """A row for each kernel of a file: the most that one of its instantiations takes."""
    nvcc, torch = find_nvcc(), find_torch()
    assert nvcc is not None, "nvcc was not found"
    assert torch is not None, "torch was not found"
    include = [ROOT / "csrc", torch / "include", sysconfig.get_paths()["include"]]
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        run(
            nvcc, *NVCC_FLAGS, f"-arch=sm_{architecture}", "-cubin", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
            f"-DPy_LIMITED_API={PYTHON_TARGET}", "-DVPGFAST_MODULE=_C_cuda", *(f"-I{path}" for path in include),
            source, "-o", cubin,
        )  # fmt: skip
        usage = run(CUOBJDUMP, "-res-usage", cubin)
        code = run(CUOBJDUMP, "-sass", cubin)
    found = re.findall(r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    bodies = dict(re.findall(r"Function : (\S+)(.*?)(?=Function : |\Z)", code, re.S))
    names = run("c++filt", given="\n".join(name for name, *_ in found)).splitlines()
    rows: dict[str, dict[str, Any]] = {}
    for (mangled, *numbers), name in zip(found, names, strict=True):
        whole = re.sub(r"\(anonymous namespace\)::|<unnamed>::|vpgfast::(\w+_cuda::)?|^void ", "", name).split("(")[0]
        kernel = whole.partition("<")[0]
        row = rows.setdefault(kernel, {"file": source.name, "kernel": kernel, "architecture": architecture})
        of_one = dict(zip(("registers", "stack", "shared"), map(int, numbers), strict=True))
        of_float = "double" not in whole
        of_one |= {what: len(re.findall(text, bodies[mangled])) if of_float else 0 for what, text in CODE.items()}
        for what, number in of_one.items():
            row[what] = max(row.get(what, 0), number)
    return list(rows.values())


def triton_kernels(architecture: int) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.ops.triton_ahead", str(architecture)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for line in shown.splitlines():
        kernel = json.loads(line)
        key = kernel["op"].removesuffix("_backward"), kernel["kernel"]
        row = rows.setdefault(key, {"file": f"{key[0]}.py", "kernel": key[1], "architecture": architecture})
        for what in ("registers", "stack", "shared"):
            row[what] = max(row.get(what, 0), kernel[what])
    return list(rows.values())


def table(rows: list[dict[str, Any]]) -> str:
    by_kernel: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_kernel.setdefault((row["file"], row["kernel"]), {})[row["architecture"]] = row
    columns = [f"sm_{a}: registers, stack" for a in ARCHITECTURES]
    lines = [
        "| file | kernel | " + " | ".join([*columns, "shared memory", *CODE]) + " |",
        "|---" * (3 + len(columns) + len(CODE)) + "|",
    ]
    for (file, kernel), of in sorted(by_kernel.items()):
        shown = of[90]
        cells = [f"{of[a]['registers']}, {of[a]['stack']}" if a in of else "not used" for a in ARCHITECTURES]
        cells += [str(shown["shared"]), *(str(shown.get(what, "")) for what in CODE)]
        lines.append(f"| `{file}` | `{kernel}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    jobs = [(source, architecture) for source in sources for architecture in ARCHITECTURES]
    rows = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda job: kernels_of(*job), jobs)
        for some in tqdm(found, "compiling", len(jobs), disable=None):
            rows += some
    for architecture in ARCHITECTURES:
        rows += triton_kernels(architecture)
    STORED.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{after}")


if __name__ == "__main__":
    main()
