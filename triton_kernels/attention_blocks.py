"""What the kernels of anchor_cross_attention do with one block of queries or clips."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def head_rows(pointer, s0, s1, s2, b, h, first, count, ROWS: tl.constexpr, width: tl.constexpr, WIDTH: tl.constexpr):
    """Rows ``first`` onward of one head, float32 [ROWS, WIDTH]; zero beyond the tensor."""
    row, column = first + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    at = pointer + b * s0 + h * s1 + row.to(tl.int64)[:, None] * s2 + column[None, :]
    return tl.load(at, mask=(row < count)[:, None] & (column < width)[None, :], other=0.0).to(tl.float32)


@triton.jit
def store_head_rows(pointer, s0, s1, s2, b, h, first, count, value, ROWS: tl.constexpr, width: tl.constexpr,
                    WIDTH: tl.constexpr):  # fmt: skip
    row, column = first + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    at = pointer + b * s0 + h * s1 + row.to(tl.int64)[:, None] * s2 + column[None, :]
    tl.store(at, value.to(pointer.dtype.element_ty), mask=(row < count)[:, None] & (column < width)[None, :])


@triton.jit
def logits_of(q_content, q_pos, k_content, k_pos, key_mask, b, first, T, SCALE: tl.constexpr, HAS_MASK: tl.constexpr,
              CLIPS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Of a block of queries with a block of clips, -inf where a clip takes no part."""
    logits = tl.dot(q_content, tl.trans(k_content), input_precision=PRECISION)
    logits = tl.dot(q_pos, tl.trans(k_pos), logits, input_precision=PRECISION)
    t = first + tl.arange(0, CLIPS)
    keep = t < T
    if HAS_MASK:
        keep = keep & (tl.load(key_mask + b * T + t, mask=keep, other=0) != 0)
    return tl.where(keep[None, :], logits * SCALE, float("-inf"))


@triton.jit
def interval_of(intervals, b, query, Q, HAS_INTERVALS: tl.constexpr):
    """First and last clip position of a block of queries; none inside beyond the last query."""
    start, end = tl.zeros_like(query).to(tl.float64), tl.zeros_like(query).to(tl.float64) - 1
    if HAS_INTERVALS:
        at = intervals + (b * Q + query) * 2
        start, end = tl.load(at, mask=query < Q, other=0), tl.load(at + 1, mask=query < Q, other=-1)
    return start, end


@triton.jit
def inside(start, end, first, CLIPS: tl.constexpr):
    """Whether a clip lies in a query's interval, [queries, CLIPS]."""
    t = (first + tl.arange(0, CLIPS)).to(tl.float64)
    return (start[:, None] <= t[None, :]) & (t[None, :] <= end[:, None])


@triton.jit
def grown(largest, logits):
    """The new largest logit of each query, what older sums shrink by, and exp(logits) in its units."""
    new = tl.maximum(largest, tl.max(logits, 1))
    shift = tl.where(new == float("-inf"), 0.0, new)
    return new, tl.exp(largest - shift), tl.exp(logits - shift[:, None])
