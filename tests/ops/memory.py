"""Peak memory and time of the stages of a computation, measured in a process of its own.

A computation is a generator function at the top of a test file: its first ``yield`` ends the preparation, each further
one ends a stage.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's counters of memory")


@dataclass(frozen=True)
class Stage:
    """Seconds that a stage took, and the peak of memory by its end beyond what the preparation left, in MiB."""

    peak: float
    seconds: float


def stages(computation: Callable[[], Iterator[None]]) -> list[Stage]:
    """What each stage of ``computation`` took, on two threads; all of it runs, checks after the last stage too."""
    command = [sys.executable, "-m", __name__, computation.__module__, computation.__name__]
    top = Path(__file__).parents[len(__name__.split(".")) - 1]
    result = subprocess.run(command, cwd=top, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [Stage(*numbers) for numbers in json.loads(result.stdout)]


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _measure(computation: Iterator[None]) -> list[tuple[float, float]]:
    next(computation)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, start = _status("VmRSS"), time.perf_counter()
    taken = []
    for _ in computation:
        end = time.perf_counter()
        taken.append((_status("VmHWM") - before, end - start))
        start = time.perf_counter()
    return taken


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(json.dumps(_measure(getattr(importlib.import_module(sys.argv[1]), sys.argv[2])())))
