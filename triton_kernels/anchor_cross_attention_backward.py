"""The kernels of anchor_cross_attention's gradients; they are launched in ``anchor_cross_attention.py``.

Where a head has one block of queries and few clips one program computes all its gradients. Else a first launch sums up
what every query needs of all clips; one goes over the clips for the queries' gradients, and one over the queries for
the clips'.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_blocks import grown, head_rows, inside, interval_of, logits_of, store_head_rows


@triton.jit
def _by_weight(grad_out, value, slope, step, start, end, grad_weights, b, h, query, t, H, Q, T,
               HAS_INTERVALS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, CLIPS: tl.constexpr,
               PRECISION: tl.constexpr):  # fmt: skip
    """Derivative by the attention of a block of queries to a block of clips."""
    by = tl.dot(grad_out, tl.trans(value), input_precision=PRECISION)
    clip = t + tl.arange(0, CLIPS)
    by += slope[:, None] * clip.to(tl.float32)[None, :]
    if HAS_INTERVALS:
        by += tl.where(inside(start, end, t, CLIPS), step[:, None], 0.0)
    if HAS_WEIGHTS:
        at = grad_weights + ((b * H + h) * Q + query[:, None]) * T + clip[None, :]
        by += tl.load(at, mask=(query < Q)[:, None] & (clip < T)[None, :], other=0.0).to(tl.float32)
    return by


@triton.jit
def _of_queries(grad_centroid, grad_mass, b, query, H, Q, HAS_INTERVALS: tl.constexpr):
    """What the statistics' gradients add to that of one head's attention: a clip's position, and being inside."""
    slope = tl.load(grad_centroid + b * Q + query, mask=query < Q, other=0.0) / H
    step = slope
    if HAS_INTERVALS:
        step = tl.load(grad_mass + b * Q + query, mask=query < Q, other=0.0) / H
    return slope, step


@triton.jit(do_not_specialize=["H", "Q", "T", "share"])
def _backward_stats(grad_out, grad_centroid, grad_mass, grad_weights, q_content, q_pos, k_content, k_pos, v,
                    key_mask, intervals, stats_of,
                    g0, g1, g2, qc0, qc1, qc2, qp0, qp1, qp2, kc0, kc1, kc2, kp0, kp1, kp2, v0, v1, v2,
                    heads, H, Q, T, share, d: tl.constexpr, e: tl.constexpr, f: tl.constexpr, D: tl.constexpr,
                    E: tl.constexpr, F: tl.constexpr, SCALE: tl.constexpr, HAS_MASK: tl.constexpr,
                    HAS_INTERVALS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, QUERIES: tl.constexpr,
                    CLIPS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """``stats_of`` [3, shares, B * H, Q] of one share of the clips: the largest logit and, in units of its exp, the sum
    of the attention and that of the attention times the derivative by it."""
    head, part = tl.program_id(0).to(tl.int64), tl.program_id(2)
    first = tl.program_id(1) * QUERIES
    b, h = head // H, head % H
    query = first + tl.arange(0, QUERIES)
    qc = head_rows(q_content, qc0, qc1, qc2, b, h, first, Q, QUERIES, d, D)
    qp = head_rows(q_pos, qp0, qp1, qp2, b, h, first, Q, QUERIES, e, E)
    grad = head_rows(grad_out, g0, g1, g2, b, h, first, Q, QUERIES, f, F)
    start, end = interval_of(intervals, b, query, Q, HAS_INTERVALS)
    slope, step = _of_queries(grad_centroid, grad_mass, b, query, H, Q, HAS_INTERVALS)
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total, weighted = tl.zeros([QUERIES], tl.float32), tl.zeros([QUERIES], tl.float32)
    for t in range(part * share, tl.minimum(T, (part + 1) * share), CLIPS):
        kc = head_rows(k_content, kc0, kc1, kc2, b, h, t, T, CLIPS, d, D)
        kp = head_rows(k_pos, kp0, kp1, kp2, b, h, t, T, CLIPS, e, E)
        value = head_rows(v, v0, v1, v2, b, h, t, T, CLIPS, f, F)
        logits = logits_of(qc, qp, kc, kp, key_mask, b, t, T, SCALE, HAS_MASK, CLIPS, PRECISION)
        by = _by_weight(grad, value, slope, step, start, end, grad_weights, b, h, query, t, H, Q, T, HAS_INTERVALS,
                        HAS_WEIGHTS, CLIPS, PRECISION)  # fmt: skip
        largest, rescale, p = grown(largest, logits)
        total = total * rescale + tl.sum(p, 1)
        weighted = weighted * rescale + tl.sum(p * by, 1)
    at = stats_of + (part * heads + head) * Q + query
    each = tl.num_programs(2) * heads * Q
    tl.store(at, largest, mask=query < Q)
    tl.store(at + each, total, mask=query < Q)
    tl.store(at + 2 * each, weighted, mask=query < Q)


@triton.jit
def _of_all_shares(stats_of, head, heads, query, Q, shares, SHARES: tl.constexpr):
    """Log sum exp of a block of queries over all shares, and the mean of the derivative by the attention."""
    part = tl.arange(0, SHARES)
    valid = (part < shares)[:, None] & (query < Q)[None, :]
    at = stats_of + (part[:, None] * heads + head) * Q + query[None, :]
    each = shares * heads * Q
    largest = tl.load(at, mask=valid, other=float("-inf"))
    most = tl.max(largest, 0)
    weight = tl.exp(largest - tl.where(most == float("-inf"), 0.0, most)[None, :])
    total = tl.sum(weight * tl.load(at + each, mask=valid, other=0.0), 0)
    weighted = tl.sum(weight * tl.load(at + 2 * each, mask=valid, other=0.0), 0)
    empty = total == 0.0
    some = tl.where(empty, 1.0, total)
    # Where no clip takes part every logit is -inf: any finite number makes their attention 0.
    return tl.where(empty, 0.0, most + tl.log(some)), weighted / some


@triton.jit(do_not_specialize=["H", "Q", "T", "share"])
def _backward_queries(grad_out, grad_centroid, grad_mass, grad_weights, q_content, q_pos, k_content, k_pos, v,
                      key_mask, intervals, stats_of, sums_of,
                      g0, g1, g2, qc0, qc1, qc2, qp0, qp1, qp2, kc0, kc1, kc2, kp0, kp1, kp2, v0, v1, v2,
                      heads, H, Q, T, share, d: tl.constexpr, e: tl.constexpr, f: tl.constexpr, D: tl.constexpr,
                      E: tl.constexpr, F: tl.constexpr, SCALE: tl.constexpr, HAS_MASK: tl.constexpr,
                      HAS_INTERVALS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, QUERIES: tl.constexpr,
                      CLIPS: tl.constexpr, PRECISION: tl.constexpr, SHARES: tl.constexpr):  # fmt: skip
    """What one share of the clips adds to the gradients of the queries: ``sums_of`` [shares, B * H, Q, d + e]."""
    head, part = tl.program_id(0).to(tl.int64), tl.program_id(2)
    first = tl.program_id(1) * QUERIES
    b, h = head // H, head % H
    query = first + tl.arange(0, QUERIES)
    qc = head_rows(q_content, qc0, qc1, qc2, b, h, first, Q, QUERIES, d, D)
    qp = head_rows(q_pos, qp0, qp1, qp2, b, h, first, Q, QUERIES, e, E)
    grad = head_rows(grad_out, g0, g1, g2, b, h, first, Q, QUERIES, f, F)
    start, end = interval_of(intervals, b, query, Q, HAS_INTERVALS)
    slope, step = _of_queries(grad_centroid, grad_mass, b, query, H, Q, HAS_INTERVALS)
    log_sum, mean = _of_all_shares(stats_of, head, heads, query, Q, tl.num_programs(2), SHARES)
    by_content, by_pos = tl.zeros([QUERIES, D], tl.float32), tl.zeros([QUERIES, E], tl.float32)
    for t in range(part * share, tl.minimum(T, (part + 1) * share), CLIPS):
        kc = head_rows(k_content, kc0, kc1, kc2, b, h, t, T, CLIPS, d, D)
        kp = head_rows(k_pos, kp0, kp1, kp2, b, h, t, T, CLIPS, e, E)
        value = head_rows(v, v0, v1, v2, b, h, t, T, CLIPS, f, F)
        logits = logits_of(qc, qp, kc, kp, key_mask, b, t, T, SCALE, HAS_MASK, CLIPS, PRECISION)
        by = _by_weight(grad, value, slope, step, start, end, grad_weights, b, h, query, t, H, Q, T, HAS_INTERVALS,
                        HAS_WEIGHTS, CLIPS, PRECISION)  # fmt: skip
        by_logit = tl.exp(logits - log_sum[:, None]) * (by - mean[:, None]) * SCALE
        by_content = tl.dot(by_logit, kc, by_content, input_precision=PRECISION)
        by_pos = tl.dot(by_logit, kp, by_pos, input_precision=PRECISION)
    at = sums_of + (part * heads + head) * Q * (d + e)
    store_head_rows(at, 0, 0, d + e, 0, 0, first, Q, by_content, QUERIES, d, D)
    store_head_rows(at + d, 0, 0, d + e, 0, 0, first, Q, by_pos, QUERIES, e, E)


@triton.jit(do_not_specialize=["B", "per_slot", "H", "Q", "T", "shares"])
def _backward_keys(grad_out, grad_centroid, grad_mass, grad_weights, q_content, q_pos, k_content, k_pos, v,
                   key_mask, intervals, stats_of, by_k_content, by_k_pos, by_v,
                   g0, g1, g2, qc0, qc1, qc2, qp0, qp1, qp2, kc0, kc1, kc2, kp0, kp1, kp2, v0, v1, v2,
                   bkc0, bkc1, bkc2, bkp0, bkp1, bkp2, bv0, bv1, bv2, B, per_slot, heads, H, Q, T, shares,
                   d: tl.constexpr, e: tl.constexpr, f: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
                   F: tl.constexpr, SCALE: tl.constexpr, HAS_MASK: tl.constexpr, HAS_INTERVALS: tl.constexpr,
                   HAS_WEIGHTS: tl.constexpr, QUERIES: tl.constexpr, CLIPS: tl.constexpr, PRECISION: tl.constexpr,
                   SHARES: tl.constexpr):  # fmt: skip
    """Gradients of a block of clips, video by video of a slot; that of the positions is summed over the slot."""
    t = tl.program_id(0) * CLIPS
    h, slot = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    by_pos = tl.zeros([CLIPS, E], tl.float32)
    for b in range(slot * per_slot, tl.minimum(B, (slot + 1) * per_slot)):
        kc = head_rows(k_content, kc0, kc1, kc2, b, h, t, T, CLIPS, d, D)
        kp = head_rows(k_pos, kp0, kp1, kp2, b, h, t, T, CLIPS, e, E)
        value = head_rows(v, v0, v1, v2, b, h, t, T, CLIPS, f, F)
        by_content, by_value = tl.zeros([CLIPS, D], tl.float32), tl.zeros([CLIPS, F], tl.float32)
        for first in range(0, Q, QUERIES):
            query = first + tl.arange(0, QUERIES)
            qc = head_rows(q_content, qc0, qc1, qc2, b, h, first, Q, QUERIES, d, D)
            qp = head_rows(q_pos, qp0, qp1, qp2, b, h, first, Q, QUERIES, e, E)
            grad = head_rows(grad_out, g0, g1, g2, b, h, first, Q, QUERIES, f, F)
            start, end = interval_of(intervals, b, query, Q, HAS_INTERVALS)
            slope, step = _of_queries(grad_centroid, grad_mass, b, query, H, Q, HAS_INTERVALS)
            log_sum, mean = _of_all_shares(stats_of, b * H + h, heads, query, Q, shares, SHARES)
            logits = logits_of(qc, qp, kc, kp, key_mask, b, t, T, SCALE, HAS_MASK, CLIPS, PRECISION)
            p = tl.where((query < Q)[:, None], tl.exp(logits - log_sum[:, None]), 0.0)
            by = _by_weight(grad, value, slope, step, start, end, grad_weights, b, h, query, t, H, Q, T, HAS_INTERVALS,
                            HAS_WEIGHTS, CLIPS, PRECISION)  # fmt: skip
            by_logit = p * (by - mean[:, None]) * SCALE
            by_value = tl.dot(tl.trans(p), grad, by_value, input_precision=PRECISION)
            by_content = tl.dot(tl.trans(by_logit), qc, by_content, input_precision=PRECISION)
            by_pos = tl.dot(tl.trans(by_logit), qp, by_pos, input_precision=PRECISION)
        store_head_rows(by_k_content, bkc0, bkc1, bkc2, b, h, t, T, by_content, CLIPS, d, D)
        store_head_rows(by_v, bv0, bv1, bv2, b, h, t, T, by_value, CLIPS, f, F)
    store_head_rows(by_k_pos, bkp0, bkp1, bkp2, slot, h, t, T, by_pos, CLIPS, e, E)


@triton.jit(do_not_specialize=["H", "Q", "T"])
def _backward_together(grad_out, grad_centroid, grad_mass, grad_weights, q_content, q_pos, k_content, k_pos, v,
                       key_mask, intervals, by_q_content, by_q_pos, by_k_content, by_k_pos, by_v,
                       g0, g1, g2, qc0, qc1, qc2, qp0, qp1, qp2, kc0, kc1, kc2, kp0, kp1, kp2, v0, v1, v2,
                       bqc0, bqc1, bqc2, bqp0, bqp1, bqp2, bkc0, bkc1, bkc2, bkp0, bkp1, bkp2, bv0, bv1, bv2, H, Q, T,
                       d: tl.constexpr, e: tl.constexpr, f: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
                       F: tl.constexpr, SCALE: tl.constexpr, HAS_MASK: tl.constexpr, HAS_INTERVALS: tl.constexpr,
                       HAS_WEIGHTS: tl.constexpr, QUERIES: tl.constexpr, CLIPS: tl.constexpr,
                       PRECISION: tl.constexpr):  # fmt: skip
    """All gradients of a head that has one block of queries: over the clips once for the sums of ``_backward_stats``,
    and once more, while they lie in the cache, for what ``_backward_queries`` and ``_backward_keys`` compute."""
    head = tl.program_id(0).to(tl.int64)
    b, h = head // H, head % H
    query = tl.arange(0, QUERIES)
    qc = head_rows(q_content, qc0, qc1, qc2, b, h, 0, Q, QUERIES, d, D)
    qp = head_rows(q_pos, qp0, qp1, qp2, b, h, 0, Q, QUERIES, e, E)
    grad = head_rows(grad_out, g0, g1, g2, b, h, 0, Q, QUERIES, f, F)
    start, end = interval_of(intervals, b, query, Q, HAS_INTERVALS)
    slope, step = _of_queries(grad_centroid, grad_mass, b, query, H, Q, HAS_INTERVALS)
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total, weighted = tl.zeros([QUERIES], tl.float32), tl.zeros([QUERIES], tl.float32)
    for t in range(0, T, CLIPS):
        kc = head_rows(k_content, kc0, kc1, kc2, b, h, t, T, CLIPS, d, D)
        kp = head_rows(k_pos, kp0, kp1, kp2, b, h, t, T, CLIPS, e, E)
        value = head_rows(v, v0, v1, v2, b, h, t, T, CLIPS, f, F)
        logits = logits_of(qc, qp, kc, kp, key_mask, b, t, T, SCALE, HAS_MASK, CLIPS, PRECISION)
        by = _by_weight(grad, value, slope, step, start, end, grad_weights, b, h, query, t, H, Q, T, HAS_INTERVALS,
                        HAS_WEIGHTS, CLIPS, PRECISION)  # fmt: skip
        largest, rescale, p = grown(largest, logits)
        total = total * rescale + tl.sum(p, 1)
        weighted = weighted * rescale + tl.sum(p * by, 1)
    # Where no clip takes part every logit is -inf: any finite numbers make their attention 0.
    empty = total == 0.0
    some = tl.where(empty, 1.0, total)
    log_sum, mean = tl.where(empty, 0.0, largest + tl.log(some)), weighted / some
    by_content, by_pos = tl.zeros([QUERIES, D], tl.float32), tl.zeros([QUERIES, E], tl.float32)
    for t in range(0, T, CLIPS):
        kc = head_rows(k_content, kc0, kc1, kc2, b, h, t, T, CLIPS, d, D)
        kp = head_rows(k_pos, kp0, kp1, kp2, b, h, t, T, CLIPS, e, E)
        value = head_rows(v, v0, v1, v2, b, h, t, T, CLIPS, f, F)
        logits = logits_of(qc, qp, kc, kp, key_mask, b, t, T, SCALE, HAS_MASK, CLIPS, PRECISION)
        by = _by_weight(grad, value, slope, step, start, end, grad_weights, b, h, query, t, H, Q, T, HAS_INTERVALS,
                        HAS_WEIGHTS, CLIPS, PRECISION)  # fmt: skip
        p = tl.where((query < Q)[:, None], tl.exp(logits - log_sum[:, None]), 0.0)
        by_logit = p * (by - mean[:, None]) * SCALE
        by_content = tl.dot(by_logit, kc, by_content, input_precision=PRECISION)
        by_pos = tl.dot(by_logit, kp, by_pos, input_precision=PRECISION)
        turned = tl.trans(by_logit)
        by_value = tl.dot(tl.trans(p), grad, input_precision=PRECISION)
        by_content_of_clips = tl.dot(turned, qc, input_precision=PRECISION)
        by_pos_of_clips = tl.dot(turned, qp, input_precision=PRECISION)
        store_head_rows(by_v, bv0, bv1, bv2, b, h, t, T, by_value, CLIPS, f, F)
        store_head_rows(by_k_content, bkc0, bkc1, bkc2, b, h, t, T, by_content_of_clips, CLIPS, d, D)
        store_head_rows(by_k_pos, bkp0, bkp1, bkp2, b, h, t, T, by_pos_of_clips, CLIPS, e, E)
    store_head_rows(by_q_content, bqc0, bqc1, bqc2, b, h, 0, Q, by_content, QUERIES, d, D)
    store_head_rows(by_q_pos, bqp0, bqp1, bqp2, b, h, 0, Q, by_pos, QUERIES, e, E)
