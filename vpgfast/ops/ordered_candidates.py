"""One candidate a sentence of a paragraph, in order, that together score most."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._checks import FLOATING, accumulate_dtype, check_floating, check_mask, check_same_device, check_shape
from ._registry import define, differentiable, float32_under_autocast
from .ordered_spans import Overlap, check_order
from .temporal_iou import check_intervals


def ordered_candidates(
    spans: Tensor,
    scores: Tensor,
    overlap: Overlap = "none",
    sentence_mask: Tensor | None = None,
    skip_penalty: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One of each sentence's scored spans, in the order of the sentences, so that the sum of scores is the largest.

    :func:`ordered_spans` for methods that rank proposals: the optimum is exact, by dynamic programming over the
    candidates' ends, O(B M P log P) time (with ``skip_penalty`` up to O(B M (M + log P) P)).

    Args:
        spans: [B, M, P, 2], start <= end, floating or int64, in any one unit.
        scores: floating [B, M, P]. A place whose score, start or end is not finite holds no candidate.
        overlap: ``"none"``: a span begins where the one before ends, or later. ``"starts"``: only starts do not fall;
            spans may overlap.
        sentence_mask: bool [B, M], false where a paragraph has no such sentence: it gets no span and costs nothing.
        skip_penalty: what leaving a sentence without a span costs, 0 or more; ``None``: every sentence has one.

    Returns:
        chosen int64 [B, M], positions in the lists, -1 for none; and the sum of scores less the penalties, [B], in the
        dtype of ``scores`` (float32 for 16 bits), differentiable by ``scores``. Where no choice satisfies all, every
        position is -1 and the sum is -inf.

        Of several optima, from the last sentence to the first: the one in which the spans up to this sentence all end
        (by starts: begin) first; of those, one in which this sentence has a span; of those, the shortest span; of
        those, the first in the list. Equal is what float64 holds as equal, summed from the first sentence on.

    Raises:
        ValueError: wrong shape, dtype, device, overlap or penalty.
        RuntimeError: a span whose end lies before its start (on CUDA: a device-side assertion).
    """
    check_shape("spans", spans, ("B", "M", "P", 2))
    if spans.dtype not in (*FLOATING, torch.int64):
        raise ValueError(f"spans has dtype {spans.dtype}; it must be float32, float64, bfloat16, float16 or int64")
    B, M, P, _ = spans.shape
    check_floating("scores", scores)
    check_shape("scores", scores, (B, M, P))
    check_same_device("scores", scores, "spans", spans)
    check_mask("sentence_mask", sentence_mask, (B, M), "spans", spans)
    penalty = check_order(overlap, skip_penalty)
    present = torch.ones(B, M, dtype=torch.bool, device=scores.device) if sentence_mask is None else sentence_mask
    total, chosen = torch.ops.vpgfast.ordered_candidates(
        spans.detach().double(), scores.double(), present, overlap == "starts", penalty
    )
    return chosen, total.to(accumulate_dtype(scores.dtype))


def _reference(
    spans: Tensor, scores: Tensor, present: Tensor, by_starts: bool, penalty: float
) -> tuple[Tensor, Tensor]:
    check_intervals("ordered_candidates", "spans", spans)
    B, M = present.shape
    chosen = torch.full((B, M), -1, dtype=torch.int64)
    total = torch.zeros(B, dtype=torch.float64)
    for b in range(B):
        positions, total[b] = _plain(spans[b].tolist(), scores[b].tolist(), present[b].tolist(), by_starts, penalty)
        chosen[b] = torch.tensor(positions, dtype=torch.int64)
    return total.to(scores.device), chosen.to(scores.device)


def _plain(
    spans: list[list[list[float]]], scores: list[list[float]], present: list[bool], by_starts: bool, penalty: float
) -> tuple[list[int], float]:
    """The choice and the sum of one paragraph.

    ``best[x]``: the largest sum of the sentences so far, all of whose spans end (by starts: begin) at ``x`` or before,
    at every x where it rises, in order; a pair of the sum and how the last sentence comes to it.
    """
    best: dict[float, float] = {-math.inf: 0.0}
    choices: list[dict[float, int]] = []
    for m in range(len(present)):
        if not present[m]:
            choices.append({})
            continue
        # Value, minus length and minus position: the largest of these is the one to choose.
        found: dict[float, tuple[float, float, int]] = {}
        for i, ((start, end), score) in enumerate(zip(spans[m], scores[m], strict=True)):
            if not all(map(math.isfinite, (start, end, score))):
                continue
            before = [value for x, value in best.items() if x <= start]
            if before:
                x, other = (start, -end) if by_starts else (end, start)
                found[x] = max(found.get(x, (-math.inf, 0.0, 0)), (before[-1] + score, other, -i))
        new: dict[float, float] = {}
        choice: dict[float, int] = {}
        highest = -math.inf
        for x in sorted({*best, *found}):
            value, _, minus_i = found.get(x, (-math.inf, 0.0, 1))
            without = best.get(x, -math.inf) - penalty
            if max(value, without) > highest:
                highest = new[x] = max(value, without)
                choice[x] = -minus_i if value >= without else -1
        best = new
        choices.append(choice)
    if not best:
        return [-1] * len(present), -math.inf
    total = list(best.values())[-1]
    chosen = [-1] * len(present)
    x = math.inf
    for m in reversed(range(len(present))):
        if present[m]:
            x = max(y for y in choices[m] if y <= x)
            chosen[m] = choices[m][x]
            if chosen[m] >= 0:
                x = spans[m][chosen[m]][0]
    return chosen, total


define(
    "ordered_candidates(Tensor spans, Tensor scores, Tensor present, bool by_starts, float penalty)"
    " -> (Tensor, Tensor)",
    reference=_reference,
    fake=lambda spans, scores, present, *_: (
        scores.new_empty(present.shape[0]),
        scores.new_empty(present.shape, dtype=torch.int64),
    ),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.P = inputs[1].shape[2]


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[None, Tensor, None, None, None]:
    """One for every candidate chosen: the choice itself has no gradient."""
    (chosen,) = ctx.saved_tensors
    is_chosen = torch.arange(ctx.P, device=chosen.device) == chosen[..., None]
    return None, torch.where(is_chosen, grad[:, None, None], 0), None, None, None


differentiable("ordered_candidates", _backward, _save)
float32_under_autocast("ordered_candidates")
