"""What the benchmarks share: the device, the recording of rows, and the options of ``pytest benchmarks``.

With ``--full`` rows go to ``benchmarks/results/<device>.json``, each test's as soon as it is done, one a line,
replacing earlier ones of the same op, provider, mode, shape and dtype. ``VPGFAST_BENCHMARK_RESULTS`` names another
folder.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("VPGFAST_CPU_CAPABILITY") == "v3":  # then torch and its libraries are to use no more than we do
    os.environ |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}

import torch

from .measure import SECONDS_PER_CASE, Row, instruction_set
from .plan import locked, write
from .session import BenchmarkSession, result_file

# What torch.compile has made for one instruction set is wrong, and may crash, under another; its cache does not know.
CACHE = Path(tempfile.gettempdir()) / f"vpgfast-benchmarks-inductor-{instruction_set()}"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE))

KEY = ("op", "provider", "mode", "shape", "dtype")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks")
    group.addoption(
        "--full",
        action="store_true",
        help="measure every shape and store the rows; goes on where a run of the same commit was killed "
        "(without: the first shape of each op, and nothing is stored)",
    )
    group.addoption("--again", action="store_true", help="with --full: measure anew what a killed run has measured")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("full", False):
        SECONDS_PER_CASE["cpu"] = 0.5  # medians of five rounds at least, as ever
    config.pluginmanager.register(BenchmarkSession(config), "benchmarks-session")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


@pytest.fixture
def eager_only(request: pytest.FixtureRequest) -> bool:
    """Whether a whole training step is left uncompiled: that takes minutes, which only ``--full`` has."""
    return not request.config.getoption("full", False)


@pytest.fixture(autouse=True)
def compiled_anew() -> None:
    """So that a compiled peer does not fall back to eager where earlier tests have used up its recompilations."""
    torch.compiler.reset()


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[list[Row]], None]:
    """Call with a list of :class:`benchmarks.measure.Row`."""

    def keep(rows: list[Row]) -> None:
        measured = [json.loads(json.dumps(row.as_dict())) for row in rows]
        if request.config.getoption("full", False):
            store(measured)
        request.node.user_properties.append(("rows", measured))  # of its report, which also leaves another process

    return keep


def store(rows: list[dict[str, Any]]) -> None:
    """Merge rows into the result file of their device."""
    for name in sorted({row["device"] for row in rows}):
        path = result_file(name)
        with locked(path):
            merged = {
                tuple(row[k] for k in KEY): row for row in (json.loads(path.read_text()) if path.exists() else [])
            }
            merged |= {tuple(row[k] for k in KEY): row for row in rows if row["device"] == name}
            ordered = [json.dumps(row) for _, row in sorted(merged.items())]
            write(path, "[\n" + ",\n".join(ordered) + "\n]\n")
