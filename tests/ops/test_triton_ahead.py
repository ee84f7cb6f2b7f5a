"""Every Triton kernel compiles, as it is launched, for GPUs that are not there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from vpgfast.ops import OPS

MOST_SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes that a block may have

MOST_STACK = 2048  # bytes a thread; one that holds its blocks there, not in registers, has many more


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("architecture", list(MOST_SHARED))
def test_kernels_compile(architecture: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.ops.triton_ahead", str(architecture)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    kernels = [json.loads(line) for line in run.stdout.splitlines()]
    assert {kernel["op"] for kernel in kernels} >= {
        name for name, op in OPS.items() if op.triton and "cells" not in name
    }
    assert "_combine" in {kernel["kernel"] for kernel in kernels if kernel["asserts"]}  # of inverted intervals
    for kernel in kernels:
        assert kernel["shared"] <= MOST_SHARED[architecture], kernel
        assert kernel["registers"] * kernel["threads"] <= 65536, kernel
        assert kernel["stack"] <= MOST_STACK, kernel
