"""What every launcher needs: the tensor's device made current, block sizes, the dtype to compute in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device; on the CPU it interprets (``TRITON_INTERPRET=1``)."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def compute_dtype(tensor: Tensor) -> tl.dtype:
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def whole_row(T: int, limit: int = 4096) -> int:
    """Block size that holds a row of T clips. Raises ``ValueError`` past what a block can hold."""
    if limit < T:
        raise ValueError(f"T is {T}; the Triton kernel takes at most {limit} clips, use the 'cuda' backend")
    return max(16, triton.next_power_of_2(T))
