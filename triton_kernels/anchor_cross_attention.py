"""anchor_cross_attention in Triton. See ``vpgfast/ops/anchor_cross_attention.py`` for what it computes.

A program takes a block of queries of one head and a share of the clips. Shares are combined in a second launch, where
there are several: that keeps a GPU busy with few heads and many clips. Nothing depends on the order in which programs
run. Numbers of 16 bits are widened to float32 and multiplied as TF32, which holds them exactly; float32 is multiplied
as TF32 where torch's own products may be (``torch.backends.cuda.matmul.allow_tf32``), else in three TF32 products that
together keep float32's digits.

float64 runs on the reference, and so do wide heads (SiamGTR's, which are as wide as the memory): beside their rows the
attention matrix is small, and what is left are large matrix products, for cuBLAS.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vpgfast.ops import OPS
from vpgfast.ops.anchor_cross_attention import empty_grad, empty_out

from ._launch import architecture, on_device
from .anchor_cross_attention_backward import _backward_keys, _backward_queries, _backward_stats, _backward_together
from .attention_blocks import grown, head_rows, inside, interval_of, logits_of, store_head_rows

QUERIES = 16
CLIPS = 64
WIDEST = 256
"""Channels of content, position and value in all. Kernels for 768 spilled their registers."""
PROGRAMS = 1024
"""That keep every GPU busy: with fewer blocks of queries the clips are shared out."""
SHARES = 32
"""Of the clips of a head, at most."""
TOGETHER = 512
"""Clips of a head with one block of queries, up to which one program computes all its gradients."""
FEWEST_TOGETHER = 64
"""Heads of all videos from which on that keeps a GPU busy."""


@triton.jit(do_not_specialize=["H", "Q", "T", "share"])
def _forward(q_content, q_pos, k_content, k_pos, v, key_mask, intervals, sums_of, stats_of,
             qc0, qc1, qc2, qp0, qp1, qp2, kc0, kc1, kc2, kp0, kp1, kp2, v0, v1, v2, s0, s1, s2,
             heads, H, Q, T, share, d: tl.constexpr, e: tl.constexpr, f: tl.constexpr, D: tl.constexpr,
             E: tl.constexpr, F: tl.constexpr, SCALE: tl.constexpr, HAS_MASK: tl.constexpr,
             HAS_INTERVALS: tl.constexpr, QUERIES: tl.constexpr, CLIPS: tl.constexpr,
             PRECISION: tl.constexpr):  # fmt: skip
    """Sums over one share of the clips, in units of exp(its largest logit): of v (``sums_of`` [shares, B, H, Q, f]);
    and ``stats_of`` [4, shares, B * H, Q]: the largest logit, the sum of all, of positions, of what is inside."""
    head, part = tl.program_id(0).to(tl.int64), tl.program_id(2)
    first = tl.program_id(1) * QUERIES
    b, h = head // H, head % H
    query = first + tl.arange(0, QUERIES)
    qc = head_rows(q_content, qc0, qc1, qc2, b, h, first, Q, QUERIES, d, D)
    qp = head_rows(q_pos, qp0, qp1, qp2, b, h, first, Q, QUERIES, e, E)
    start, end = interval_of(intervals, b, query, Q, HAS_INTERVALS)
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total, position = tl.zeros([QUERIES], tl.float32), tl.zeros([QUERIES], tl.float32)
    within = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, F], tl.float32)
    for t in range(part * share, tl.minimum(T, (part + 1) * share), CLIPS):
        kc = head_rows(k_content, kc0, kc1, kc2, b, h, t, T, CLIPS, d, D)
        kp = head_rows(k_pos, kp0, kp1, kp2, b, h, t, T, CLIPS, e, E)
        value = head_rows(v, v0, v1, v2, b, h, t, T, CLIPS, f, F)
        logits = logits_of(qc, qp, kc, kp, key_mask, b, t, T, SCALE, HAS_MASK, CLIPS, PRECISION)
        largest, rescale, p = grown(largest, logits)
        total = total * rescale + tl.sum(p, 1)
        clip = (t + tl.arange(0, CLIPS)).to(tl.float32)
        position = position * rescale + tl.sum(p * clip[None, :], 1)
        if HAS_INTERVALS:
            within = within * rescale + tl.sum(tl.where(inside(start, end, t, CLIPS), p, 0.0), 1)
        sums = tl.dot(p, value, sums * rescale[:, None], input_precision=PRECISION)
    store_head_rows(sums_of + part * heads * Q * f, s0, s1, s2, b, h, first, Q, sums, QUERIES, f, F)
    at = stats_of + (part * heads + head) * Q + query
    each = tl.num_programs(2) * heads * Q
    tl.store(at, largest, mask=query < Q)
    tl.store(at + each, total, mask=query < Q)
    tl.store(at + 2 * each, position, mask=query < Q)
    tl.store(at + 3 * each, within, mask=query < Q)


@triton.jit(do_not_specialize=["H", "Q", "shares"], debug=True)  # for its assertion
def _combine(sums_of, stats_of, intervals, out, statistics, log_sum, s0, s1, s2, o0, o1, o2, heads, H, Q, shares,
             f: tl.constexpr, F: tl.constexpr, HAS_INTERVALS: tl.constexpr, SHARES: tl.constexpr,
             QUERIES: tl.constexpr):  # fmt: skip
    """All shares of a block of queries: their output, ``statistics`` [2, B * H, Q] (centroid, mass), log sum exp."""
    head = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * QUERIES
    b, h = head // H, head % H
    query, part = first + tl.arange(0, QUERIES), tl.arange(0, SHARES)
    if HAS_INTERVALS:
        start, end = interval_of(intervals, b, query, Q, HAS_INTERVALS)
        tl.device_assert((query >= Q) | ~(end < start), "vpgfast: an interval's end must not lie before its start")
    valid = (part < shares)[:, None] & (query < Q)[None, :]
    at = stats_of + (part[:, None] * heads + head) * Q + query[None, :]
    each = shares * heads * Q
    largest = tl.load(at, mask=valid, other=float("-inf"))
    most = tl.max(largest, 0)
    shift = tl.where(most == float("-inf"), 0.0, most)
    weight = tl.exp(largest - shift[None, :])
    total = tl.sum(weight * tl.load(at + each, mask=valid, other=0.0), 0)
    position = tl.sum(weight * tl.load(at + 2 * each, mask=valid, other=0.0), 0)
    within = tl.sum(weight * tl.load(at + 3 * each, mask=valid, other=0.0), 0)
    empty = total == 0.0
    inverse = tl.where(empty, 0.0, 1.0 / tl.where(empty, 1.0, total))
    tl.store(statistics + head * Q + query, position * inverse, mask=query < Q)
    tl.store(statistics + (heads + head) * Q + query, within * inverse, mask=query < Q)
    # Where no clip takes part every logit is -inf: any finite number makes their attention 0.
    tl.store(log_sum + head * Q + query, tl.where(empty, 0.0, most + tl.log(tl.where(empty, 1.0, total))),
             mask=query < Q)  # fmt: skip
    sums = tl.zeros([QUERIES, F], tl.float32)
    for k in range(0, shares):
        own = tl.load(stats_of + (k * heads + head) * Q + query, mask=query < Q, other=float("-inf"))
        share = head_rows(sums_of + k * heads * Q * f, s0, s1, s2, b, h, first, Q, QUERIES, f, F)
        sums += share * tl.exp(own - shift)[:, None]
    store_head_rows(out, o0, o1, o2, b, h, first, Q, sums * inverse[:, None], QUERIES, f, F)


@triton.jit(do_not_specialize=["H", "Q", "T"])
def _weights(q_content, q_pos, k_content, k_pos, key_mask, log_sum, weights,
             qc0, qc1, qc2, qp0, qp1, qp2, kc0, kc1, kc2, kp0, kp1, kp2, H, Q, T, d: tl.constexpr, e: tl.constexpr,
             D: tl.constexpr, E: tl.constexpr, SCALE: tl.constexpr, HAS_MASK: tl.constexpr, QUERIES: tl.constexpr,
             CLIPS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The attention itself, of a block of queries to a block of clips."""
    head, t = tl.program_id(0).to(tl.int64), tl.program_id(2) * CLIPS
    first = tl.program_id(1) * QUERIES
    b, h = head // H, head % H
    query, clip = first + tl.arange(0, QUERIES), t + tl.arange(0, CLIPS)
    qc = head_rows(q_content, qc0, qc1, qc2, b, h, first, Q, QUERIES, d, D)
    qp = head_rows(q_pos, qp0, qp1, qp2, b, h, first, Q, QUERIES, e, E)
    kc = head_rows(k_content, kc0, kc1, kc2, b, h, t, T, CLIPS, d, D)
    kp = head_rows(k_pos, kp0, kp1, kp2, b, h, t, T, CLIPS, e, E)
    logits = logits_of(qc, qp, kc, kp, key_mask, b, t, T, SCALE, HAS_MASK, CLIPS, PRECISION)
    p = tl.exp(logits - tl.load(log_sum + head * Q + query, mask=query < Q, other=0.0)[:, None])
    at = weights + (head * Q + query[:, None]) * T + clip[None, :]
    tl.store(at, p.to(weights.dtype.element_ty), mask=(query < Q)[:, None] & (clip < T)[None, :])


def _whole_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    """Of videos, heads and rows; one tensor for the whole batch stays where it is from video to video."""
    return [s for t in tensors for s in ((0 if t.shape[0] == 1 else t.stride(0)), t.stride(1), t.stride(2))]


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def _runs_here(v: Tensor, *widths: int) -> bool:
    """Whether there is a kernel: not for float64, nor for wide heads."""
    return v.dtype != torch.float64 and sum(max(16, triton.next_power_of_2(width)) for width in widths) <= WIDEST


def _settings(
    q_content: Tensor, q_pos: Tensor, v: Tensor, key_mask: Tensor | None, intervals: Tensor | None
) -> dict[str, Any]:
    d, e, f = (t.shape[3] for t in (q_content, q_pos, v))
    D, E, F = (max(16, triton.next_power_of_2(width)) for width in (d, e, f))
    tf32 = v.element_size() == 2 or torch.backends.cuda.matmul.allow_tf32
    narrow = D + E + F <= 96  # larger blocks of heads wider than 32 channels do not fit into the registers
    return {
        "d": d, "e": e, "f": f, "D": D, "E": E, "F": F,
        "SCALE": 1 / math.sqrt(d + e),
        "HAS_MASK": key_mask is not None,
        "HAS_INTERVALS": intervals is not None,
        "QUERIES": QUERIES,
        "CLIPS": CLIPS if narrow else CLIPS // 2,
        "num_warps": 4 if narrow else 8,
        "PRECISION": "tf32" if tf32 else "tf32x3",
    }  # fmt: skip


def _shares(T: int, blocks: int, clips: int) -> tuple[int, int]:
    """Shares of the clips for so many blocks of queries, and the clips of one."""
    wanted = min(SHARES, triton.cdiv(PROGRAMS, blocks), max(1, triton.cdiv(T, clips)))
    share = max(1, triton.cdiv(triton.cdiv(T, clips), wanted)) * clips
    return max(1, triton.cdiv(T, share)), share


def forward(
    q_content: Tensor,
    q_pos: Tensor,
    k_content: Tensor,
    k_pos: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    intervals: Tensor | None,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, H, Q, d = q_content.shape
    T, e, f = v.shape[2], q_pos.shape[3], v.shape[3]
    if not _runs_here(v, d, e, f):
        return OPS["anchor_cross_attention"].reference(
            q_content, q_pos, k_content, k_pos, v, key_mask, intervals, need_weights
        )
    inputs = [_whole_rows(t) for t in (q_content, q_pos, k_content, k_pos, v)]
    out = empty_out(q_content, v)
    weights = v.new_empty((B, H, Q, T) if need_weights else 0)
    statistics = v.new_empty(2, B, H, Q, dtype=torch.float32)
    if B * H * Q:
        settings, mask = _settings(q_content, q_pos, v, key_mask, intervals), _bytes(key_mask)
        blocks = B * H, triton.cdiv(Q, QUERIES)
        shares, share = _shares(T, blocks[0] * blocks[1], settings["CLIPS"])
        sums = v.new_empty(shares, B, H, Q, f, dtype=torch.float32)
        stats = v.new_empty(4, shares, B, H, Q, dtype=torch.float32)
        log_sum = v.new_empty(B, H, Q, dtype=torch.float32)
        with on_device(v):
            intervals = intervals if intervals is None else intervals.contiguous()
            _forward[(*blocks, shares)](
                *inputs, mask, intervals, sums, stats,
                *_strides(*inputs), *_strides(sums[0]), B * H, H, Q, T, share, **settings,
            )  # fmt: skip
            _combine[blocks](
                sums, stats, intervals, out, statistics, log_sum, *_strides(sums[0], out), B * H, H, Q, shares, f=f,
                F=settings["F"], HAS_INTERVALS=settings["HAS_INTERVALS"], SHARES=triton.next_power_of_2(shares),
                QUERIES=QUERIES, sanitize_overflow=False,
            )  # fmt: skip
            if need_weights and T:
                of_queries = {k: w for k, w in settings.items() if k not in ("f", "F", "HAS_INTERVALS")}
                _weights[(*blocks, triton.cdiv(T, settings["CLIPS"]))](
                    *inputs[:4], mask, log_sum, weights, *_strides(*inputs[:4]), H, Q, T, **of_queries
                )
    centroid, mass = statistics.mean(2)
    # Two outputs of an op may not share their memory.
    return out, centroid.clone(), mass.clone() if intervals is not None else mass.new_empty(0), weights


def backward(
    grad_out: Tensor,
    grad_centroid: Tensor,
    grad_mass: Tensor,
    grad_weights: Tensor,
    q_content: Tensor,
    q_pos: Tensor,
    k_content: Tensor,
    k_pos: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    intervals: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, H, Q, d = q_content.shape
    T, e, f = v.shape[2], q_pos.shape[3], v.shape[3]
    tensors = q_content, q_pos, k_content, k_pos, v
    if not _runs_here(v, d, e, f):
        return OPS["anchor_cross_attention_backward"].reference(
            grad_out, grad_centroid, grad_mass, grad_weights, *tensors, key_mask, intervals
        )
    by_q_content, by_q_pos, by_k_content, by_k_pos, by_v = (empty_grad(t) for t in tensors)
    inputs = [_whole_rows(t) for t in (grad_out, *tensors)]
    settings = _settings(q_content, q_pos, v, key_mask, intervals) | {"HAS_WEIGHTS": grad_weights.numel() > 0}
    given = (
        inputs[0], grad_centroid.contiguous(), grad_mass.contiguous(), grad_weights.contiguous(), *inputs[1:],
        _bytes(key_mask), intervals if intervals is None else intervals.contiguous(),
    )  # fmt: skip
    few = 0 < Q <= QUERIES and 0 < T <= TOGETHER
    # Compiled for Ampere the kernel holds little in registers.
    if few and B * H >= FEWEST_TOGETHER and architecture() >= 90:
        by_video = by_k_pos if k_pos.shape[0] == B else v.new_empty(B, H, T, e, dtype=torch.float32)
        grads = by_q_content, by_q_pos, by_k_content, by_video, by_v
        with on_device(v):
            _backward_together[(B * H,)](*given, *grads, *_strides(*inputs, *grads), H, Q, T, **settings)
        if by_video is not by_k_pos:
            by_k_pos.copy_(by_video.sum(0, keepdim=True))
        return by_q_content, by_q_pos, by_k_content, by_k_pos, by_v
    blocks = B * H, triton.cdiv(Q, QUERIES)
    shares, share = _shares(T, max(1, blocks[0] * blocks[1]), settings["CLIPS"])
    stats = v.new_empty(3, shares, B, H, Q, dtype=torch.float32)
    sums = v.new_empty(shares, B, H, Q, d + e, dtype=torch.float32)
    # One k_pos for all: its gradient is summed over groups of videos in the kernel, and over the groups behind it.
    shared = k_pos.shape[0] != B
    tiles = triton.cdiv(T, settings["CLIPS"])
    slots = min(B, max(1, triton.cdiv(PROGRAMS, max(1, tiles * H)))) if shared else B
    by_slot = v.new_empty(slots, H, T, e, dtype=torch.float32) if shared else by_k_pos
    given = *given, stats
    of_shares = {"SHARES": triton.next_power_of_2(shares)}
    with on_device(v):
        if B * H * Q:
            sizes = *_strides(*inputs), B * H, H, Q, T, share
            _backward_stats[(*blocks, shares)](*given, *sizes, **settings)
            _backward_queries[(*blocks, shares)](*given, sums, *sizes, **settings, **of_shares)
        if B * H * T:
            _backward_keys[(tiles, H, slots)](
                *given, by_k_content, by_slot, by_v, *_strides(*inputs, by_k_content, by_slot, by_v), B,
                triton.cdiv(B, slots), B * H, H, Q, T, shares, **settings, **of_shares,
            )  # fmt: skip
    for grad, part in zip((by_q_content, by_q_pos), sums.split([d, e], -1), strict=True):
        grad.copy_(part.sum(0))
    if shared:
        by_k_pos.copy_(by_slot.sum(0, keepdim=True))
    return by_q_content, by_q_pos, by_k_content, by_k_pos, by_v
