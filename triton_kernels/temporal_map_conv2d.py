"""temporal_map_conv2d in Triton. See ``vpgfast/ops/temporal_map_conv2d.py`` for what it computes.

An implicit matrix product: a block of rows (listed cell, video) times a block of output channels, summed over the taps
and the input channels. A tap that no row of the block finds valid is skipped. Maps are channels-last inside. The list
of cells stays on the device, padded with -1; blocks past its end leave at once: the host never waits for a mask.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vpgfast.ops import OPS
from vpgfast.ops.temporal_map_conv2d import out_size, valid_taps

from ._launch import on_device

BLOCK = 128  # of rows and of channels of a block of results
BYTES_SUMMED = 128  # of a row or column of its factors at a time: more would not fit into shared memory
WARPS = 8


@triton.jit
def _rows(cells, first, B, listed, BLOCK: tl.constexpr):
    """Cell and video of a block of rows; videos lie next to each other, so that a block sees few cells."""
    row = first + tl.arange(0, BLOCK).to(tl.int64)
    inside = row < listed * B
    cell = tl.load(cells + row // B, mask=inside, other=-1)
    return cell, row % B, cell >= 0


@triton.jit
def _tap(mask, cell, listed, tap, T, OUT_T, K, PADDING, HAS_MASK: tl.constexpr):
    """Where a tap of every row lies in the input, and whether something valid is there."""
    i = cell // OUT_T + tap // K - PADDING
    j = cell % OUT_T + tap % K - PADDING
    valid = listed & (i >= 0) & (j >= 0) & (i < T) & (j < T)
    place = tl.where(valid, i * T + j, 0)
    if HAS_MASK:
        valid = valid & (tl.load(mask + place, mask=valid, other=0) != 0)
    return place, valid


@triton.jit(do_not_specialize=["B", "C", "D", "T", "OUT_T", "listed", "K", "PADDING"])
def _forward(x, weight, bias, mask, cells, scale, out, B, C, D, T, OUT_T, listed, K, PADDING,
             HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SCALE: tl.constexpr, RELU: tl.constexpr,
             PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    cell, video, exists = _rows(cells, first, B, listed, ROWS)
    if tl.sum(exists.to(tl.int32)) > 0:
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for tap in range(0, K * K):
            place, valid = _tap(mask, cell, exists, tap, T, OUT_T, K, PADDING, HAS_MASK)
            if tl.sum(valid.to(tl.int32)) > 0:
                row = (video * T * T + place) * C
                for start in range(0, C, CHANNELS):
                    channel = start + tl.arange(0, CHANNELS)
                    a = tl.load(x + row[:, None] + channel[None, :], mask=valid[:, None] & (channel < C)[None, :],
                                other=0)  # fmt: skip
                    w = tl.load(weight + (tap * C + channel[:, None].to(tl.int64)) * D + column[None, :],
                                mask=(channel < C)[:, None] & (column < D)[None, :], other=0)  # fmt: skip
                    sums = tl.dot(a, w, sums, input_precision=PRECISION)
        if HAS_BIAS:
            sums += tl.load(bias + column, mask=column < D, other=0).to(tl.float32)[None, :]
        if RELU:
            sums = tl.where(sums < 0, 0.0, sums)
        if HAS_SCALE:
            sums *= tl.load(scale + cell, mask=exists, other=0)[:, None]
        place = (video * OUT_T * OUT_T + tl.where(exists, cell, 0)) * D
        tl.store(out + place[:, None] + column[None, :], sums.to(out.dtype.element_ty),
                 mask=exists[:, None] & (column < D)[None, :])  # fmt: skip


@triton.jit(do_not_specialize=["B", "C", "D", "T", "OUT_T", "listed", "K", "PADDING"])
def _backward_weight(grad, x, mask, cells, count, grad_weight, B, C, D, T, OUT_T, listed, K, PADDING,
                     HAS_MASK: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                     CHANNELS: tl.constexpr):  # fmt: skip
    """One tap's gradient between a block of output channels and one of input channels: a sum over all rows."""
    tap = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    sums = tl.zeros((COLUMNS, CHANNELS), dtype=tl.float32)
    rows = tl.load(count) * B
    for first in range(0, rows, ROWS):
        cell, video, exists = _rows(cells, first, B, listed, ROWS)
        place, valid = _tap(mask, cell, exists, tap, T, OUT_T, K, PADDING, HAS_MASK)
        if tl.sum(valid.to(tl.int32)) > 0:
            result = (video * OUT_T * OUT_T + tl.where(valid, cell, 0)) * D
            g = tl.load(grad + result[None, :] + column[:, None], mask=valid[None, :] & (column < D)[:, None], other=0)
            a = tl.load(x + ((video * T * T + place) * C)[:, None] + channel[None, :],
                        mask=valid[:, None] & (channel < C)[None, :], other=0)  # fmt: skip
            sums = tl.dot(g, a, sums, input_precision=PRECISION)
    place = (tap * D + column[:, None].to(tl.int64)) * C + channel[None, :]
    tl.store(grad_weight + place, sums.to(grad_weight.dtype.element_ty),
             mask=(column < D)[:, None] & (channel < C)[None, :])  # fmt: skip


def _operand(tensor: Tensor) -> Tensor:
    """The interpreter computes 16-bit products wrongly: there they are formed of float32 copies."""
    return tensor if tensor.is_cuda else tensor.float()


def _channels_last(x: Tensor) -> Tensor:
    return _operand(x.permute(0, 2, 3, 1).contiguous())


def _list_cells(mask: Tensor | None, T: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The cells of a mask in reading order, then -1; and how many there are. All on the device."""
    if mask is None:
        cells = torch.arange(T * T, device=like.device)
        return cells, torch.full((), T * T, device=like.device)
    flat = mask.flatten()
    return torch.nonzero_static(flat, size=T * T, fill_value=-1).flatten(), flat.sum()


def _bytes(mask: Tensor | None, like: Tensor) -> tuple[Tensor, bool]:
    """Any pointer will do where there is no mask."""
    return (like, False) if mask is None else (mask.contiguous().view(torch.uint8), True)


def _precision(tensor: Tensor) -> str:
    return "tf32" if tensor.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _block(size: int, largest: int) -> int:
    return min(largest, max(16, triton.next_power_of_2(size)))


def _scale(in_mask: Tensor | None, x: Tensor, k: int, padding: int) -> Tensor:
    everywhere = torch.ones(x.shape[2:], dtype=torch.bool, device=x.device)
    count = valid_taps(everywhere if in_mask is None else in_mask, k, padding)
    return torch.where(count > 0, 1 / count.clamp(min=1).float(), 0).contiguous()


def _convolve(
    x: Tensor, kernel: Tensor, bias: Tensor | None, in_mask: Tensor | None, out_mask: Tensor | None, T: int,
    padding: int, relu: bool, scale: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """x [B, H, H, C] and kernel [k, k, C, D], both contiguous, to [B, D, T, T]."""
    B, H, _, C = x.shape
    k, D = kernel.shape[0], kernel.shape[3]
    out = torch.zeros(B, T, T, D, dtype=dtype, device=x.device)
    if out.numel():
        cells, _ = _list_cells(out_mask, T, x)
        mask, has_mask = _bytes(in_mask, x)
        rows, columns = _block(T * T * B, BLOCK), _block(D, BLOCK)
        with on_device(x):
            _forward[(triton.cdiv(T * T * B, rows), triton.cdiv(D, columns))](
                x, kernel, x if bias is None else bias, mask, cells, x if scale is None else scale, out, B, C, D, H, T,
                T * T, k, padding, bias is not None, has_mask, scale is not None, relu, _precision(x), rows, columns,
                _block(C, BYTES_SUMMED // x.element_size()), num_warps=WARPS)  # fmt: skip
    return out.permute(0, 3, 1, 2).contiguous()


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_mask: Tensor | None,
    out_mask: Tensor | None,
    padding: int,
    relu: bool,
    normalize: bool,
) -> Tensor:
    if x.dtype == torch.float64:  # no float64 products on every device
        return OPS["temporal_map_conv2d"].reference(x, weight, bias, in_mask, out_mask, padding, relu, normalize)
    k = weight.shape[2]
    scale = _scale(in_mask, x, k, padding) if normalize else None
    kernel = _operand(weight.permute(2, 3, 1, 0).contiguous())
    bias = None if bias is None else _operand(bias.contiguous())
    T = out_size(x.shape[2], k, padding)
    return _convolve(_channels_last(x), kernel, bias, in_mask, out_mask, T, padding, relu, scale, x.dtype)


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    out: Tensor | None,
    in_mask: Tensor | None,
    out_mask: Tensor | None,
    padding: int,
    normalize: bool,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if x.dtype == torch.float64:
        return OPS["temporal_map_conv2d_backward"].reference(
            grad, x, weight, out, in_mask, out_mask, padding, normalize, needs_x, needs_weight, needs_bias
        )
    B, C, H = x.shape[:3]
    D, k, T = weight.shape[0], weight.shape[2], grad.shape[2]
    if out is not None:  # of a ReLU
        grad = torch.where(out <= 0, 0, grad)
    if normalize:
        grad = (grad * _scale(in_mask, x, k, padding)).to(x.dtype)
    if out_mask is not None:
        grad = torch.where(out_mask, grad, 0)
    results = _channels_last(grad)

    grad_x, grad_weight, grad_bias = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if needs_x:  # the same convolution of the gradient, kernel reversed, masks exchanged
        kernel = _operand(weight.flip(2, 3).permute(2, 3, 0, 1).contiguous())
        grad_x = _convolve(results, kernel, None, out_mask, in_mask, H, k - 1 - padding, False, None, x.dtype)
    if needs_weight:
        by_tap = torch.zeros(k, k, D, C, dtype=weight.dtype, device=x.device)
        if by_tap.numel() and grad.numel():
            cells, count = _list_cells(out_mask, T, x)
            mask, has_mask = _bytes(in_mask, x)
            columns, channels = _block(D, BLOCK), _block(C, BLOCK)
            with on_device(x):
                _backward_weight[(k * k, triton.cdiv(D, columns), triton.cdiv(C, channels))](
                    results, _channels_last(x), mask, cells, count, by_tap, B, C, D, H, T, T * T, k, padding, has_mask,
                    _precision(x), _block(T * T * B, BYTES_SUMMED // results.element_size()), columns, channels,
                    num_warps=WARPS)  # fmt: skip
        grad_weight = by_tap.permute(2, 3, 0, 1).contiguous()
    if needs_bias:
        grad_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(x.dtype)
    return grad_x, grad_weight, grad_bias
