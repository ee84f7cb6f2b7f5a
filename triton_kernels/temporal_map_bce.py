"""temporal_map_bce in Triton. See ``vpgfast/ops/temporal_map_bce.py`` for what it computes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._intervals import cell_iou
from ._launch import compute_dtype, on_device

BLOCK = 1024


@triton.jit
def _place(T, BLOCK: tl.constexpr):
    """Map of this block and its part of it. One axis for all blocks: the others end at 65,535."""
    parts = tl.cdiv(T.to(tl.int64) * T, BLOCK)
    return tl.program_id(0) // parts, tl.program_id(0) % parts


@triton.jit
def _cells(spans, mask, sentences, row, part, M, T, mask_B, mask_M, MIN_IOU: tl.constexpr, SCALE: tl.constexpr,
           HAS_SENTENCES: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Positions of a block's cells in their map, whether they are on it, whether they count, and their targets."""
    size = T.to(tl.int64)
    cell = part * BLOCK + tl.arange(0, BLOCK)
    i, j = cell // size, cell % size
    inside = cell < size * size
    b, m = row // M, row % M
    plane = tl.where(mask_B == 1, 0, b) * mask_M + tl.where(mask_M == 1, 0, m)
    counts = inside & (j >= i) & (tl.load(mask + plane * size * size + cell, mask=inside, other=0) != 0)
    if HAS_SENTENCES:
        counts = counts & (tl.load(sentences + row) != 0)
    target = (cell_iou(spans, row, i, j, T, COMPUTE) - MIN_IOU) * SCALE
    return cell, inside, counts, tl.minimum(tl.maximum(target, 0.0), 1.0)


@triton.jit(do_not_specialize=["M", "T", "mask_B", "mask_M"])
def _forward(logits, spans, mask, sentences, sums, counted, M, T, mask_B, mask_M,
             MIN_IOU: tl.constexpr, SCALE: tl.constexpr, HAS_SENTENCES: tl.constexpr,
             COMPUTE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, part = _place(T, BLOCK)
    cell, inside, counts, target = _cells(spans, mask, sentences, row, part, M, T, mask_B, mask_M, MIN_IOU, SCALE,
                                          HAS_SENTENCES, COMPUTE, BLOCK)  # fmt: skip
    z = tl.load(logits + row * T * T + cell, mask=inside, other=0).to(COMPUTE)
    loss = tl.where(z < 0, 0.0, z) - z * target + tl.log(1.0 + tl.exp(-tl.abs(z)))
    tl.store(sums + tl.program_id(0), tl.sum(tl.where(counts, loss, 0.0)))
    tl.store(counted + tl.program_id(0), tl.sum(counts.to(tl.int32)))


@triton.jit(do_not_specialize=["M", "T", "mask_B", "mask_M"])
def _backward(grad_loss, logits, spans, mask, sentences, count, grad, M, T, mask_B, mask_M,
              MIN_IOU: tl.constexpr, SCALE: tl.constexpr, HAS_SENTENCES: tl.constexpr,
             COMPUTE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, part = _place(T, BLOCK)
    cell, inside, counts, target = _cells(spans, mask, sentences, row, part, M, T, mask_B, mask_M, MIN_IOU, SCALE,
                                          HAS_SENTENCES, COMPUTE, BLOCK)  # fmt: skip
    z = tl.load(logits + row * T * T + cell, mask=inside, other=0).to(COMPUTE)
    y = tl.exp(-tl.abs(z))
    p = tl.where(z < 0, y, 1.0) / (1.0 + y)
    factor = tl.load(grad_loss).to(COMPUTE) / tl.maximum(tl.load(count), 1).to(COMPUTE)
    value = tl.where(counts, (p - target) * factor, 0.0)
    tl.store(grad + row * T * T + cell, value.to(grad.dtype.element_ty), mask=inside)


def _arguments(mask: Tensor, sentence_mask: Tensor | None) -> tuple[Tensor, Tensor, bool]:
    """Masks as bytes; where there is no sentence mask any pointer will do in its place."""
    mask = mask.contiguous().view(torch.uint8)
    if sentence_mask is None:
        return mask, mask, False
    return mask, sentence_mask.contiguous().view(torch.uint8), True


def forward(
    logits: Tensor, spans: Tensor, mask: Tensor, sentence_mask: Tensor | None, min_iou: float, max_iou: float
) -> tuple[Tensor, Tensor]:
    B, M, T, _ = logits.shape
    if logits.numel() == 0:
        return logits.new_zeros(()), logits.new_zeros((), dtype=torch.int64)
    logits, spans = logits.contiguous(), spans.contiguous()
    masks = _arguments(mask, sentence_mask)
    grid = (B * M * triton.cdiv(T * T, BLOCK),)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    sums = torch.empty(grid, dtype=wide, device=logits.device)
    counted = torch.empty(grid, dtype=torch.int32, device=logits.device)
    with on_device(logits):
        _forward[grid](logits, spans, *masks[:2], sums, counted, M, T, *mask.shape[:2], min_iou,
                       1 / (max_iou - min_iou), masks[2], compute_dtype(logits), BLOCK)  # fmt: skip
    count = counted.sum(dtype=torch.int64)
    return (sums.sum(dtype=torch.float64) / count.clamp(min=1)).to(logits.dtype), count


def backward(
    grad_loss: Tensor,
    logits: Tensor,
    spans: Tensor,
    mask: Tensor,
    sentence_mask: Tensor | None,
    min_iou: float,
    max_iou: float,
    count: Tensor,
) -> Tensor:
    B, M, T, _ = logits.shape
    logits, spans = logits.contiguous(), spans.contiguous()
    grad = torch.empty_like(logits)
    if logits.numel():
        masks = _arguments(mask, sentence_mask)
        with on_device(logits):
            _backward[(B * M * triton.cdiv(T * T, BLOCK),)](
                grad_loss.contiguous(), logits, spans, *masks[:2], count, grad, M, T, *mask.shape[:2], min_iou,
                1 / (max_iou - min_iou), masks[2], compute_dtype(logits), BLOCK)  # fmt: skip
    return grad
