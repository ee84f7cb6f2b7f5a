"""anchor_cross_attention in Triton. See ``vpgfast/ops/anchor_cross_attention.py`` for what it computes.

Numbers of 16 bits are widened to float32 and multiplied as TF32, which holds them exactly.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from vpgfast.ops._checks import accumulate_dtype
from vpgfast.ops.anchor_cross_attention import empty_grad, empty_out

from ._launch import compute_dtype, on_device

QUERIES = 16
SLOTS = 8
"""Groups of videos that sum the gradient of a shared ``k_pos`` by themselves."""


@triton.jit
def _rows(pointer, s0, s1, s2, b, h, first, count, width, ROWS: tl.constexpr, WIDTH: tl.constexpr,
          COMPUTE: tl.constexpr):  # fmt: skip
    """Rows ``first`` onward of one head, [ROWS, WIDTH]; zero beyond the tensor."""
    row, column = first + tl.arange(0, ROWS).to(tl.int64), tl.arange(0, WIDTH)
    inside = (row < count)[:, None] & (column < width)[None, :]
    address = pointer + b * s0 + h * s1 + row[:, None] * s2 + column[None, :]
    return tl.load(address, mask=inside, other=0.0).to(COMPUTE)


@triton.jit
def _store_rows(pointer, s0, s1, s2, b, h, first, count, width, value, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row, column = first + tl.arange(0, ROWS).to(tl.int64), tl.arange(0, WIDTH)
    inside = (row < count)[:, None] & (column < width)[None, :]
    address = pointer + b * s0 + h * s1 + row[:, None] * s2 + column[None, :]
    tl.store(address, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _logits(q_content, q_pos, k_content, k_pos, key_mask, b, first, T, SCALE: tl.constexpr, HAS_MASK: tl.constexpr,
            CLIPS: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Of a block of queries with a block of clips, -inf where a clip takes no part."""
    logits = tl.dot(q_content, tl.trans(k_content), input_precision=PRECISION, out_dtype=COMPUTE)
    logits += tl.dot(q_pos, tl.trans(k_pos), input_precision=PRECISION, out_dtype=COMPUTE)
    t = first + tl.arange(0, CLIPS).to(tl.int64)
    keep = t < T
    if HAS_MASK:
        keep = keep & (tl.load(key_mask + b * T + t, mask=keep, other=0) != 0)
    return tl.where(keep[None, :], logits * SCALE, float("-inf"))


@triton.jit
def _inside(intervals, b, query, Q, first, CLIPS: tl.constexpr):
    """Whether a clip lies in a query's interval, [queries, CLIPS]."""
    t = (first + tl.arange(0, CLIPS)).to(tl.float64)
    at = intervals + (b * Q + query) * 2
    start = tl.load(at, mask=query < Q, other=0)
    end = tl.load(at + 1, mask=query < Q, other=-1)
    return (start[:, None] <= t[None, :]) & (t[None, :] <= end[:, None])


@triton.jit(do_not_specialize=["H", "Q", "T", "d", "e", "f"])
def _forward(q_content, q_pos, k_content, k_pos, v, key_mask, intervals, out, centroid, mass, weights,
             qc0, qc1, qc2, qp0, qp1, qp2, kc0, kc1, kc2, kp0, kp1, kp2, v0, v1, v2, o0, o1, o2,
             H, Q, T, d, e, f, SCALE: tl.constexpr, HAS_MASK: tl.constexpr, HAS_INTERVALS: tl.constexpr,
             NEED_WEIGHTS: tl.constexpr, QUERIES: tl.constexpr, CLIPS: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
             F: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1).to(tl.int64) * QUERIES
    b, h = head // H, head % H
    query = first + tl.arange(0, QUERIES).to(tl.int64)
    qc = _rows(q_content, qc0, qc1, qc2, b, h, first, Q, d, QUERIES, D, COMPUTE)
    qp = _rows(q_pos, qp0, qp1, qp2, b, h, first, Q, e, QUERIES, E, COMPUTE)
    largest = tl.full([QUERIES], float("-inf"), COMPUTE)
    total = tl.zeros([QUERIES], COMPUTE)
    position = tl.zeros([QUERIES], COMPUTE)
    within = tl.zeros([QUERIES], COMPUTE)
    sums = tl.zeros([QUERIES, F], COMPUTE)
    for t in range(0, T, CLIPS):
        kc = _rows(k_content, kc0, kc1, kc2, b, h, t, T, d, CLIPS, D, COMPUTE)
        kp = _rows(k_pos, kp0, kp1, kp2, b, h, t, T, e, CLIPS, E, COMPUTE)
        logits = _logits(qc, qp, kc, kp, key_mask, b, t, T, SCALE, HAS_MASK, CLIPS, COMPUTE, PRECISION)
        new = tl.maximum(largest, tl.max(logits, 1))
        shift = tl.where(new == float("-inf"), 0.0, new)
        rescale = tl.exp(largest - shift)
        p = tl.exp(logits - shift[:, None])
        largest = new
        total = total * rescale + tl.sum(p, 1)
        clip = (t + tl.arange(0, CLIPS)).to(COMPUTE)
        position = position * rescale + tl.sum(p * clip[None, :], 1)
        if HAS_INTERVALS:
            within = within * rescale + tl.sum(tl.where(_inside(intervals, b, query, Q, t, CLIPS), p, 0.0), 1)
        value = _rows(v, v0, v1, v2, b, h, t, T, f, CLIPS, F, COMPUTE)
        sums = sums * rescale[:, None] + tl.dot(p, value, input_precision=PRECISION, out_dtype=COMPUTE)
    inverse = tl.where(total == 0.0, 0.0, 1.0 / tl.where(total == 0.0, 1.0, total))
    _store_rows(out, o0, o1, o2, b, h, first, Q, f, sums * inverse[:, None], QUERIES, F)
    tl.store(centroid + head * Q + query, position * inverse, mask=query < Q)
    if HAS_INTERVALS:
        tl.store(mass + head * Q + query, within * inverse, mask=query < Q)
    if NEED_WEIGHTS:
        rows = Q.to(tl.int64) * T
        shift = tl.where(largest == float("-inf"), 0.0, largest)
        for t in range(0, T, CLIPS):
            kc = _rows(k_content, kc0, kc1, kc2, b, h, t, T, d, CLIPS, D, COMPUTE)
            kp = _rows(k_pos, kp0, kp1, kp2, b, h, t, T, e, CLIPS, E, COMPUTE)
            logits = _logits(qc, qp, kc, kp, key_mask, b, t, T, SCALE, HAS_MASK, CLIPS, COMPUTE, PRECISION)
            p = tl.exp(logits - shift[:, None]) * inverse[:, None]
            _store_rows(weights + t, H * rows, rows, T, b, h, first, Q, T - t, p, QUERIES, CLIPS)


@triton.jit
def _by_weight(grad_out, value, grad_centroid, grad_mass, grad_weights, intervals, b, h, query, t, H, Q, T,
               HAS_INTERVALS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, CLIPS: tl.constexpr, COMPUTE: tl.constexpr,
               PRECISION: tl.constexpr):  # fmt: skip
    """Derivative by the attention of a block of queries to a block of clips."""
    by = tl.dot(grad_out, tl.trans(value), input_precision=PRECISION, out_dtype=COMPUTE)
    clip = t + tl.arange(0, CLIPS).to(tl.int64)
    valid = query < Q
    slope = tl.load(grad_centroid + b * Q + query, mask=valid, other=0.0) / H.to(COMPUTE)
    by += slope[:, None] * clip.to(COMPUTE)[None, :]
    if HAS_INTERVALS:
        step = tl.load(grad_mass + b * Q + query, mask=valid, other=0.0) / H.to(COMPUTE)
        by += tl.where(_inside(intervals, b, query, Q, t, CLIPS), step[:, None], 0.0)
    if HAS_WEIGHTS:
        at = grad_weights + ((b * H + h) * Q + query[:, None]) * T + clip[None, :]
        by += tl.load(at, mask=valid[:, None] & (clip < T)[None, :], other=0.0).to(COMPUTE)
    return by


@triton.jit(do_not_specialize=["H", "Q", "T", "d", "e", "f"])
def _backward_queries(grad_out, grad_centroid, grad_mass, grad_weights, q_content, q_pos, k_content, k_pos, v,
                      key_mask, intervals, by_q_content, by_q_pos, log_sum, mean,
                      g0, g1, g2, qc0, qc1, qc2, qp0, qp1, qp2, kc0, kc1, kc2, kp0, kp1, kp2, v0, v1, v2,
                      bqc0, bqc1, bqc2, bqp0, bqp1, bqp2, H, Q, T, d, e, f, SCALE: tl.constexpr,
                      HAS_MASK: tl.constexpr, HAS_INTERVALS: tl.constexpr, HAS_WEIGHTS: tl.constexpr,
                      QUERIES: tl.constexpr, CLIPS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, F: tl.constexpr,
                      COMPUTE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Gradients of a block of queries; leaves what the keys' gradients need of each query: log sum exp and mean."""
    head = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1).to(tl.int64) * QUERIES
    b, h = head // H, head % H
    query = first + tl.arange(0, QUERIES).to(tl.int64)
    qc = _rows(q_content, qc0, qc1, qc2, b, h, first, Q, d, QUERIES, D, COMPUTE)
    qp = _rows(q_pos, qp0, qp1, qp2, b, h, first, Q, e, QUERIES, E, COMPUTE)
    grad = _rows(grad_out, g0, g1, g2, b, h, first, Q, f, QUERIES, F, COMPUTE)
    largest = tl.full([QUERIES], float("-inf"), COMPUTE)
    total = tl.zeros([QUERIES], COMPUTE)
    weighted = tl.zeros([QUERIES], COMPUTE)
    for t in range(0, T, CLIPS):
        kc = _rows(k_content, kc0, kc1, kc2, b, h, t, T, d, CLIPS, D, COMPUTE)
        kp = _rows(k_pos, kp0, kp1, kp2, b, h, t, T, e, CLIPS, E, COMPUTE)
        logits = _logits(qc, qp, kc, kp, key_mask, b, t, T, SCALE, HAS_MASK, CLIPS, COMPUTE, PRECISION)
        new = tl.maximum(largest, tl.max(logits, 1))
        shift = tl.where(new == float("-inf"), 0.0, new)
        rescale = tl.exp(largest - shift)
        p = tl.exp(logits - shift[:, None])
        largest = new
        value = _rows(v, v0, v1, v2, b, h, t, T, f, CLIPS, F, COMPUTE)
        by = _by_weight(grad, value, grad_centroid, grad_mass, grad_weights, intervals, b, h, query, t, H, Q, T,
                        HAS_INTERVALS, HAS_WEIGHTS, CLIPS, COMPUTE, PRECISION)  # fmt: skip
        total = total * rescale + tl.sum(p, 1)
        weighted = weighted * rescale + tl.sum(p * by, 1)
    empty = total == 0.0
    some = tl.where(empty, 1.0, total)
    # Where no clip takes part every logit is -inf: any finite number makes their attention 0.
    of_query = tl.where(empty, 0.0, largest + tl.log(some))
    average = weighted / some
    tl.store(log_sum + head * Q + query, of_query, mask=query < Q)
    tl.store(mean + head * Q + query, average, mask=query < Q)
    by_content = tl.zeros([QUERIES, D], COMPUTE)
    by_pos = tl.zeros([QUERIES, E], COMPUTE)
    for t in range(0, T, CLIPS):
        kc = _rows(k_content, kc0, kc1, kc2, b, h, t, T, d, CLIPS, D, COMPUTE)
        kp = _rows(k_pos, kp0, kp1, kp2, b, h, t, T, e, CLIPS, E, COMPUTE)
        logits = _logits(qc, qp, kc, kp, key_mask, b, t, T, SCALE, HAS_MASK, CLIPS, COMPUTE, PRECISION)
        value = _rows(v, v0, v1, v2, b, h, t, T, f, CLIPS, F, COMPUTE)
        by = _by_weight(grad, value, grad_centroid, grad_mass, grad_weights, intervals, b, h, query, t, H, Q, T,
                        HAS_INTERVALS, HAS_WEIGHTS, CLIPS, COMPUTE, PRECISION)  # fmt: skip
        by_logit = tl.exp(logits - of_query[:, None]) * (by - average[:, None]) * SCALE
        by_content += tl.dot(by_logit, kc, input_precision=PRECISION, out_dtype=COMPUTE)
        by_pos += tl.dot(by_logit, kp, input_precision=PRECISION, out_dtype=COMPUTE)
    _store_rows(by_q_content, bqc0, bqc1, bqc2, b, h, first, Q, d, by_content, QUERIES, D)
    _store_rows(by_q_pos, bqp0, bqp1, bqp2, b, h, first, Q, e, by_pos, QUERIES, E)


@triton.jit(do_not_specialize=["B", "per_slot", "H", "Q", "T", "d", "e", "f"])
def _backward_keys(grad_out, grad_centroid, grad_mass, grad_weights, q_content, q_pos, k_content, k_pos, v,
                   key_mask, intervals, log_sum, mean, by_k_content, by_k_pos, by_v,
                   g0, g1, g2, qc0, qc1, qc2, qp0, qp1, qp2, kc0, kc1, kc2, kp0, kp1, kp2, v0, v1, v2,
                   bkc0, bkc1, bkc2, bkp0, bkp1, bkp2, bv0, bv1, bv2, B, per_slot, H, Q, T, d, e, f,
                   SCALE: tl.constexpr, HAS_MASK: tl.constexpr, HAS_INTERVALS: tl.constexpr,
                   HAS_WEIGHTS: tl.constexpr, QUERIES: tl.constexpr, CLIPS: tl.constexpr, D: tl.constexpr,
                   E: tl.constexpr, F: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Gradients of a block of clips, video by video of a slot; that of the positions is summed over the slot."""
    t = tl.program_id(0).to(tl.int64) * CLIPS
    h, slot = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    by_pos = tl.zeros([CLIPS, E], COMPUTE)
    for b in range(slot * per_slot, tl.minimum(B, (slot + 1) * per_slot)):
        kc = _rows(k_content, kc0, kc1, kc2, b, h, t, T, d, CLIPS, D, COMPUTE)
        kp = _rows(k_pos, kp0, kp1, kp2, b, h, t, T, e, CLIPS, E, COMPUTE)
        value = _rows(v, v0, v1, v2, b, h, t, T, f, CLIPS, F, COMPUTE)
        by_content = tl.zeros([CLIPS, D], COMPUTE)
        by_value = tl.zeros([CLIPS, F], COMPUTE)
        for first in range(0, Q, QUERIES):
            query = first + tl.arange(0, QUERIES).to(tl.int64)
            qc = _rows(q_content, qc0, qc1, qc2, b, h, first, Q, d, QUERIES, D, COMPUTE)
            qp = _rows(q_pos, qp0, qp1, qp2, b, h, first, Q, e, QUERIES, E, COMPUTE)
            grad = _rows(grad_out, g0, g1, g2, b, h, first, Q, f, QUERIES, F, COMPUTE)
            logits = _logits(qc, qp, kc, kp, key_mask, b, t, T, SCALE, HAS_MASK, CLIPS, COMPUTE, PRECISION)
            at = (b * H + h) * Q + query
            # Beyond the last query: attention 0.
            p = tl.exp(logits - tl.load(log_sum + at, mask=query < Q, other=float("inf"))[:, None])
            by = _by_weight(grad, value, grad_centroid, grad_mass, grad_weights, intervals, b, h, query, t, H, Q, T,
                            HAS_INTERVALS, HAS_WEIGHTS, CLIPS, COMPUTE, PRECISION)  # fmt: skip
            by_logit = p * (by - tl.load(mean + at, mask=query < Q, other=0.0)[:, None]) * SCALE
            by_value += tl.dot(tl.trans(p), grad, input_precision=PRECISION, out_dtype=COMPUTE)
            by_content += tl.dot(tl.trans(by_logit), qc, input_precision=PRECISION, out_dtype=COMPUTE)
            by_pos += tl.dot(tl.trans(by_logit), qp, input_precision=PRECISION, out_dtype=COMPUTE)
        _store_rows(by_k_content, bkc0, bkc1, bkc2, b, h, t, T, d, by_content, CLIPS, D)
        _store_rows(by_v, bv0, bv1, bv2, b, h, t, T, f, by_value, CLIPS, F)
    _store_rows(by_k_pos, bkp0, bkp1, bkp2, slot, h, t, T, e, by_pos, CLIPS, E)


def _whole_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    """Of videos, heads and rows; one tensor for the whole batch stays where it is from video to video."""
    return [s for t in tensors for s in ((0 if t.shape[0] == 1 else t.stride(0)), t.stride(1), t.stride(2))]


def _settings(q_content: Tensor, q_pos: Tensor, v: Tensor) -> dict[str, object]:
    width = [max(16, triton.next_power_of_2(t.shape[3])) for t in (q_content, q_pos, v)]
    if sum(width) > 1024:
        raise ValueError(
            f"a head has {q_content.shape[3]} + {q_pos.shape[3]} channels and values of {v.shape[3]}; the Triton "
            "kernel takes about 1024 in all, use the 'cuda' backend"
        )
    tf32 = v.element_size() == 2 or (v.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32)
    return {
        "SCALE": 1 / math.sqrt(q_content.shape[3] + q_pos.shape[3]),
        "QUERIES": QUERIES,
        "CLIPS": 64 if sum(width) <= 512 and v.dtype != torch.float64 else 16,
        "D": width[0],
        "E": width[1],
        "F": width[2],
        "COMPUTE": compute_dtype(v),
        "PRECISION": "tf32" if tf32 else "ieee",
    }


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
    inputs = [_whole_rows(t) for t in (q_content, q_pos, k_content, k_pos, v)]
    accumulate = accumulate_dtype(v.dtype)
    out = empty_out(q_content, v)
    centroid = v.new_empty(B, H, Q, dtype=accumulate)
    mass = torch.empty_like(centroid) if intervals is not None else centroid.new_empty(0)
    weights = v.new_empty((B, H, Q, T) if need_weights else 0)
    if B * H * Q:
        with on_device(v):
            _forward[(B * H, triton.cdiv(Q, QUERIES))](
                *inputs, key_mask if key_mask is None else key_mask.contiguous().view(torch.uint8),
                intervals if intervals is None else intervals.contiguous(), out, centroid, mass, weights,
                *_strides(*inputs), out.stride(0), out.stride(1), out.stride(2), H, Q, T, d, e, f,
                HAS_MASK=key_mask is not None, HAS_INTERVALS=intervals is not None, NEED_WEIGHTS=need_weights,
                **_settings(q_content, q_pos, v),
            )  # fmt: skip
    return out, centroid.mean(1), mass.mean(1) if intervals is not None else mass, weights


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
    by_input = [empty_grad(t) for t in (q_content, q_pos, k_content, k_pos, v)]
    by_q_content, by_q_pos, by_k_content, by_k_pos, by_v = by_input
    inputs = [_whole_rows(t) for t in (q_content, q_pos, k_content, k_pos, v)]
    shared = k_pos.shape[0] != B
    slots = min(B, SLOTS) if shared else B
    accumulate = accumulate_dtype(v.dtype)
    partial = v.new_empty(slots, H, T, e, dtype=accumulate) if shared else by_k_pos
    log_sum, mean = (v.new_empty(B, H, Q, dtype=accumulate) for _ in range(2))
    grad_out = _whole_rows(grad_out)
    given = (
        grad_out, grad_centroid.contiguous(), grad_mass.contiguous(), grad_weights.contiguous(), *inputs,
        key_mask if key_mask is None else key_mask.contiguous().view(torch.uint8),
        intervals if intervals is None else intervals.contiguous(),
    )  # fmt: skip
    flags = {"HAS_MASK": key_mask is not None, "HAS_INTERVALS": intervals is not None}
    flags |= {"HAS_WEIGHTS": grad_weights.numel() > 0, **_settings(q_content, q_pos, v)}  # type: ignore[dict-item]
    with on_device(v):
        if B * H * Q:
            _backward_queries[(B * H, triton.cdiv(Q, QUERIES))](
                *given, by_q_content, by_q_pos, log_sum, mean, *_strides(grad_out, *inputs),
                *_strides(by_q_content, by_q_pos), H, Q, T, d, e, f, **flags,
            )  # fmt: skip
        if B * H * T:
            _backward_keys[(triton.cdiv(T, flags["CLIPS"]), H, slots)](
                *given, log_sum, mean, by_k_content, partial, by_v, *_strides(grad_out, *inputs),
                *_strides(by_k_content, partial, by_v), B, triton.cdiv(B, slots), H, Q, T, d, e, f, **flags,
            )  # fmt: skip
    if shared:
        by_k_pos.copy_(partial.sum(0, keepdim=True))
    return by_q_content, by_q_pos, by_k_content, by_k_pos, by_v
