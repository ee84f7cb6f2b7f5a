"""Overlap of intervals in Triton; the same formulas as ``csrc/common/intervals.h``."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def interval_iou(start_a, end_a, start_b, end_b):
    """IoU, 0 where both intervals are empty."""
    shared = tl.minimum(end_a, end_b) - tl.maximum(start_a, start_b)
    shared = tl.where(shared < 0, 0.0, shared)
    joined = (end_a - start_a) + (end_b - start_b) - shared
    return tl.where(joined <= 0, 0.0, shared / tl.where(joined <= 0, 1.0, joined))


@triton.jit
def cell_iou(span, row, i, j, T, COMPUTE: tl.constexpr):
    """IoU of span ``row`` with cells (i, j) of a map of T clips, as fractions of the duration."""
    start = tl.load(span + 2 * row).to(COMPUTE)
    end = tl.load(span + 2 * row + 1).to(COMPUTE)
    tl.device_assert(end >= start, "vpgfast: an interval's end must not lie before its start")
    size = T.to(COMPUTE)
    return interval_iou(i.to(COMPUTE) / size, (j + 1).to(COMPUTE) / size, start, end)
