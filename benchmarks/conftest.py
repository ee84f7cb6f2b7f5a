"""Stores the rows that benchmarks measure, each test's as soon as it is done, and prints them as a table at the end.

Rows go to ``benchmarks/results/<device>.json``, one a line, replacing earlier ones of the same op, provider, mode,
shape and dtype. ``VPGFAST_BENCHMARK_RESULTS`` names another folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("VPGFAST_CPU_CAPABILITY") == "v3":  # then torch and its libraries are to use no more than we do
    os.environ |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}

import torch

from .measure import Row, instruction_set

# What torch.compile has made for one instruction set is wrong, and may crash, under another; its cache does not know.
CACHE = Path(tempfile.gettempdir()) / f"vpgfast-benchmarks-inductor-{instruction_set()}"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE))

KEY = ("op", "provider", "mode", "shape", "dtype")
_rows: list[dict[str, Any]] = []
_files: set[Path] = set()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def compiled_anew() -> None:
    """So that a compiled peer does not fall back to eager where earlier tests have used up its recompilations."""
    torch.compiler.reset()


@pytest.fixture
def record() -> Any:
    """Call with a list of :class:`benchmarks.measure.Row`."""

    def keep(rows: list[Row]) -> None:
        measured = [row.as_dict() for row in rows]
        _rows.extend(measured)
        _files.update(store(measured))

    return keep


def results_folder() -> Path:
    return Path(os.environ.get("VPGFAST_BENCHMARK_RESULTS", Path(__file__).parent / "results"))


def store(rows: list[dict[str, Any]]) -> list[Path]:
    """Merge rows into the result file of their device. Returns the files written."""
    written = []
    for name in sorted({row["device"] for row in rows}):
        path = results_folder() / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may measure for one file.
        with open(Path(tempfile.gettempdir()) / f"vpgfast-{path.stem}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            merged = {
                tuple(row[k] for k in KEY): row for row in (json.loads(path.read_text()) if path.exists() else [])
            }
            merged |= {tuple(row[k] for k in KEY): row for row in rows if row["device"] == name}
            ordered = [json.dumps(row) for _, row in sorted(merged.items())]
            temporary = path.with_suffix(".tmp")
            temporary.write_text("[\n" + ",\n".join(ordered) + "\n]\n")
            os.replace(temporary, path)
        written.append(path)
    return written


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _rows:
        return
    write = terminalreporter.write_line
    for name in sorted({row["device"] for row in _rows}):
        write("")
        write(f"{name}, torch {_rows[0]['torch']}, commit {_rows[0]['commit']}; ratio = best peer / this, both medians")
        write(
            f"{'op':24} {'shape':34} {'mode':17} {'provider':22} {'ms':>9} {'ratio':>7} {'of floor':>9} {'peak MiB':>9}"
        )
        before = None
        for row in (row for row in _rows if row["device"] == name):
            case = (row["op"], row["shape"], row["mode"])
            shown = case if case != before else ("", "", "")
            before = case
            peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}"
            write(
                f"{shown[0]:24} {shown[1]:34} {shown[2]:17} {row['provider']:22} {row['p50_ms']:9.3f} "
                f"{row['ratio']:6.1f}x {100 * row['share_of_floor']:8.1f}% "
                f"{peak:>9}"
            )
    for path in sorted(_files):
        write(f"stored in {path}")
