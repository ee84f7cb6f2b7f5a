"""Compiles every Triton kernel for a GPU that need not be there: ``python -m tests.ops.triton_ahead 90``.

The launchers run on CPU tensors, and each launch compiles instead. Prints a JSON line a kernel: op, kernel, dtype,
registers, bytes of spills and of shared memory, threads, whether it holds an assertion. Needs Triton without its
interpreter, and no device.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from vpgfast.ops import OPS, dense_anchor_mask


class NoDevice:
    """What Triton's launcher asks of a driver before it compiles."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


@contextmanager
def compiling(architecture: int, launched: list[tuple[str, Any]]) -> Iterator[None]:
    """Launches compile for ``architecture`` and go no further; ``launched`` gets each kernel's name and itself."""

    def launcher(self: JITFunction, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **settings: Any) -> None:
            kernel = self.run(*args, grid=grid, warmup=True, **settings)
            launched.append((self.fn.__name__, kernel))

        return launch

    before = JITFunction.__getitem__
    driver.set_active(NoDevice(architecture))
    JITFunction.__getitem__ = launcher
    try:
        yield
    finally:
        JITFunction.__getitem__ = before


def calls(dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Every op that has a Triton kernel, at a paper's shape and at an odd one. The numbers don't matter."""

    def heads(B: int, N: int, H: int, width: int) -> Tensor:
        return torch.zeros(B, N, H * width, dtype=dtype).view(B, N, H, width).transpose(1, 2)

    odd = dtype != torch.float32  # one dtype will do
    shapes = (32, 8, 5, 256, 32, 32, 32), (3, 2, 19, 130, 20, 4, 33)
    if not odd:
        shapes = shapes[0], (2, 8, 16, 8192, 32, 32, 32), (8, 8, 40, 256, 64, 64, 64)
    for B, H, Q, T, d, e, f in shapes:
        inputs = heads(B, Q, H, d), heads(B, Q, H, e), heads(B, T, H, d), heads(1, T, H, e), heads(B, T, H, f)
        masks = torch.ones(B, T, dtype=torch.bool), torch.zeros(B, Q, 2, dtype=torch.float64)
        yield "anchor_cross_attention", (*inputs, *masks, True)
        by_stats = torch.zeros(B, Q), torch.zeros(B, Q)
        if (B == 32) == odd:  # one of both will do
            optional = torch.zeros(0, dtype=dtype), *inputs, None, None
        else:
            optional = torch.zeros(B, H, Q, T, dtype=dtype), *inputs, *masks
        yield "anchor_cross_attention_backward", (heads(B, Q, H, f), *by_stats, *optional)
    for B, C, D, T, k, padding in ((16, 512, 512, 8, 3, 1), (2, 17, 33, 9, 5, 2))[: 1 + odd]:
        x, weight, bias = (
            torch.zeros(B, C, T, T, dtype=dtype),
            torch.zeros(D, C, k, k, dtype=dtype),
            torch.zeros(D, dtype=dtype),
        )
        out, mask = torch.zeros(B, D, T, T, dtype=dtype), dense_anchor_mask(T)
        yield "temporal_map_conv2d", (x, weight, bias, mask, mask, padding, True, True)
        yield "temporal_map_conv2d_backward", (out, x, weight, out, mask, mask, padding, True, True, True, True)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, and bytes of its stack: what spilled lies there."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        shown = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", shown)
    assert found is not None, shown
    return {"registers": int(found[1]), "stack": int(found[2])}


def compile_all(architecture: int) -> Iterator[dict[str, Any]]:
    """A dictionary a kernel that was compiled, each once."""
    for dtype in (torch.float32, torch.bfloat16):
        known = set()
        for op, args in calls(dtype):
            launched: list[tuple[str, Any]] = []
            with compiling(architecture, launched):
                OPS[op].launch_triton(*args)
            for name, kernel in launched:
                if (name, kernel.hash) not in known:
                    known.add((name, kernel.hash))
                    yield {
                        "op": op, "kernel": name, "dtype": str(dtype).removeprefix("torch."),
                        "architecture": architecture, **resources(kernel.asm["cubin"]),
                        "shared": kernel.metadata.shared,
                        "asserts": "assertfail" in kernel.asm["ptx"], "threads": 32 * kernel.metadata.num_warps,
                    }  # fmt: skip


if __name__ == "__main__":
    for row in compile_all(int(sys.argv[1])):
        print(json.dumps(row), flush=True)
