"""What launchers need: the tensor's device made current, and what kind of GPU it is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from triton.runtime import driver

from vpgfast.ops._registry import interpreted


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device; on the CPU it interprets (``TRITON_INTERPRET=1``)."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def architecture() -> int:
    """80 for Ampere, 90 for Hopper and so on: of the GPU that the next launch is for."""
    return 90 if interpreted() else int(driver.active.get_current_target().arch)
