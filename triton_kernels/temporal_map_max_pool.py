"""temporal_map_max_pool in Triton. See ``vpgfast/ops/temporal_map_max_pool.py`` for what it computes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import compute_dtype, on_device, whole_row


@triton.jit(do_not_specialize=["channels", "T"])
def _forward(x, out, channels, T, COMPUTE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr):
    """A tile of channels x columns, from the last row up: out[i, j] = max(x[i], out[i + 1, j])."""
    c = (tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    j = (tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T))[None, :]
    inside = (c < channels) & (j < T)
    largest = tl.zeros((BLOCK_C, BLOCK_T), dtype=COMPUTE)
    for step in range(T):
        i = T - 1 - step
        value = tl.load(x + c * T + i, mask=c < channels, other=0).to(COMPUTE)
        value = tl.broadcast_to(value, (BLOCK_C, BLOCK_T))
        above = tl.maximum(largest, value, propagate_nan=tl.PropagateNan.ALL)
        largest = tl.where(j == i, value, tl.where(j > i, above, largest))
        tl.store(out + (c * T + i) * T + j, tl.where(j >= i, largest, 0.0).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["channels", "T"])
def _backward(grad, x, grad_x, channels, T, COMPUTE: tl.constexpr, BLOCK_T: tl.constexpr):
    """One channel, from the first row down: clip i takes the gradient of the columns before the first that beats it."""
    c = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK_T)
    inside = j < T
    values = tl.load(x + c * T + j, mask=inside, other=0).to(COMPUTE)
    pending = tl.zeros((BLOCK_T,), dtype=COMPUTE)
    for i in range(T):
        own = tl.load(x + c * T + i).to(COMPUTE)
        pending += tl.load(grad + (c * T + i) * T + j, mask=inside & (j >= i), other=0).to(COMPUTE)
        beaten = (j > i) & inside & ((values > own) | (values != values))
        next_larger = tl.min(tl.where(beaten, j, T))
        won = (j >= i) & (j < next_larger)
        tl.store(grad_x + c * T + i, tl.sum(tl.where(won, pending, 0.0)).to(grad_x.dtype.element_ty))
        pending = tl.where(won, 0.0, pending)


def forward(x: Tensor) -> Tensor:
    B, C, T = x.shape
    x = x.contiguous()
    out = torch.empty(B, C, T, T, dtype=x.dtype, device=x.device)
    if out.numel():
        block_t = min(64, max(16, triton.next_power_of_2(T)))
        block_c = 256 // block_t
        grid = (triton.cdiv(B * C, block_c), triton.cdiv(T, block_t))
        with on_device(x):
            _forward[grid](x, out, B * C, T, COMPUTE=compute_dtype(x), BLOCK_C=block_c, BLOCK_T=block_t)
    return out


def backward(grad: Tensor, x: Tensor) -> Tensor:
    B, C, T = x.shape
    grad, x = grad.contiguous(), x.contiguous()
    grad_x = torch.empty_like(x)
    if x.numel():
        with on_device(x):
            _backward[(B * C,)](grad, x, grad_x, B * C, T, COMPUTE=compute_dtype(x), BLOCK_T=whole_row(T))
    return grad_x
