"""The spans of a paragraph's sentences, in order, that together gain most."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ._checks import accumulate_dtype, check_floating, check_mask, check_shape
from ._registry import define, differentiable, float32_under_autocast

Overlap = Literal["none", "starts"]


def ordered_spans(
    gains: Tensor,
    min_length: int = 1,
    max_length: int | None = None,
    overlap: Overlap = "none",
    sentence_mask: Tensor | None = None,
    mask: Tensor | None = None,
    skip_penalty: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One span a sentence, in the order of the sentences, so that the sum of all gains inside is the largest there is.

    The optimum is exact, by dynamic programming: O(B M T) time, whatever the lengths. A sentence gains
    ``gains[b, m, t]`` for every clip t of its span; subtract a level from a similarity curve, and clips below it count
    against a span.

    Args:
        gains: floating [B, M, T], of either sign. A value that is not finite is a clip that no span of that sentence
            holds.
        min_length: clips of a span, at least; 1 or more.
        max_length: clips of a span, at most; ``None`` for any number.
        overlap: ``"none"``: a span begins where the one before ends, or later. ``"starts"``: only starts do not fall;
            spans may overlap.
        sentence_mask: bool [B, M], false where a paragraph has no such sentence: it gets no span and costs nothing.
        mask: bool [B, T], false where a video has no such clip: no span holds it.
        skip_penalty: what leaving a sentence without a span costs, 0 or more; ``None``: every sentence has one.

    Returns:
        spans int64 [B, M, 2], first clip and the clip after the last, (-1, -1) for none; and the sum of gains less the
        penalties, [B], in the dtype of ``gains`` (float32 for 16 bits), differentiable by ``gains``. Where no choice
        satisfies all, every span is (-1, -1) and the sum is -inf.

        Of several optima, from the last sentence to the first: the one in which the spans up to this sentence all end
        (by starts: begin) first, at 0 where there are none; of those, one in which this sentence has a span; of those,
        the shortest span. Equal is what float64 holds as equal: sums run over the clips from the first on (on CUDA in
        another order).

    Raises:
        ValueError: wrong shape, dtype, device, length, overlap or penalty.
    """
    check_floating("gains", gains)
    check_shape("gains", gains, ("B", "M", "T"))
    B, M, T = gains.shape
    check_mask("sentence_mask", sentence_mask, (B, M), "gains", gains)
    check_mask("mask", mask, (B, T), "gains", gains)
    check_lengths(min_length, max_length)
    penalty = check_order(overlap, skip_penalty)
    if mask is not None:
        gains = gains.masked_fill(~mask[:, None], -torch.inf)
    present = torch.ones(B, M, dtype=torch.bool, device=gains.device) if sentence_mask is None else sentence_mask
    longest = T if max_length is None else max_length
    total, spans = torch.ops.vpgfast.ordered_spans(gains, present, min_length, longest, overlap == "starts", penalty)
    return spans, total.to(accumulate_dtype(gains.dtype))


def check_lengths(min_length: int, max_length: int | None) -> None:
    if min_length < 1:
        raise ValueError(f"min_length is {min_length}; it must be 1 or more")
    if max_length is not None and max_length < min_length:
        raise ValueError(f"max_length is {max_length}; it must be min_length ({min_length}) or more")


def check_order(overlap: str, skip_penalty: float | None) -> float:
    """The penalty as a number: infinite where no sentence may be skipped."""
    if overlap not in ("none", "starts"):
        raise ValueError(f"overlap is {overlap!r}; it must be 'none' or 'starts'")
    if skip_penalty is not None and not 0 <= skip_penalty < math.inf:
        raise ValueError(f"skip_penalty is {skip_penalty}; it must be 0 or more, or None")
    return math.inf if skip_penalty is None else float(skip_penalty)


def _reference(
    gains: Tensor, present: Tensor, min_length: int, max_length: int, by_starts: bool, penalty: float
) -> tuple[Tensor, Tensor]:
    B, M, T = gains.shape
    spans = torch.full((B, M, 2), -1, dtype=torch.int64)
    total = torch.zeros(B, dtype=torch.float64)
    for b in range(B):
        rows = gains[b].to("cpu", torch.float64)
        chosen, total[b] = _plain(rows, present[b].tolist(), min_length, min(max_length, T), by_starts, penalty)
        for m, span in enumerate(chosen):
            spans[b, m, 0], spans[b, m, 1] = span
    return total.to(gains.device), spans.to(gains.device)


def _plain(
    gains: Tensor, present: list[bool], min_length: int, max_length: int, by_starts: bool, penalty: float
) -> tuple[list[tuple[int, int]], float]:
    """The spans and the sum of one paragraph, by the plainest form of the dynamic programme: O(M T max_length).

    ``best[p]``: the largest sum of the sentences so far, all of whose spans end (by starts: begin) at ``p`` or before.
    """
    M, T = gains.shape
    nothing = [(-1, -1)] * M
    best = [0.0] * (T + 1)
    choices: list[list[tuple[int, int] | Literal["before"] | None]] = []
    for m in range(M):
        if not present[m]:
            choices.append([None] * (T + 1))
            continue
        finite = gains[m].isfinite()
        sums = [0.0, *torch.where(finite, gains[m], 0).cumsum(-1).tolist()]
        holes = [0, *(~finite).cumsum(-1).tolist()]
        new, choice = [-math.inf] * (T + 1), list[tuple[int, int] | Literal["before"] | None](["before"] * (T + 1))
        for p in range(T + 1):
            largest = -math.inf
            for length in range(min_length, max_length + 1):
                start, end = (p, p + length) if by_starts else (p - length, p)
                if start < 0 or end > T or holes[end] > holes[start]:
                    continue
                # What the other end adds is the same for all; compared without it, as kernels do, equals are equal.
                key = sums[end] if by_starts else best[start] - sums[start]
                if key > largest:
                    largest, choice[p] = key, (start, end)
                    new[p] = best[start] + (sums[end] - sums[start]) if by_starts else key + sums[end]
            if best[p] - penalty > new[p]:
                new[p], choice[p] = best[p] - penalty, None
            if p > 0 and new[p - 1] >= new[p]:
                new[p], choice[p] = new[p - 1], "before"
        best = new
        choices.append(choice)
    if best[T] == -math.inf:
        return nothing, best[T]
    chosen = nothing
    p = T
    for m in reversed(range(M)):
        while (choice_here := choices[m][p]) == "before":
            p -= 1
        if choice_here is not None:
            chosen[m] = choice_here
            p = choice_here[0]
    return chosen, best[T]


define(
    "ordered_spans(Tensor gains, Tensor present, int min_length, int max_length, bool by_starts, float penalty)"
    " -> (Tensor, Tensor)",
    reference=_reference,
    fake=lambda gains, present, *_: (
        gains.new_empty(gains.shape[0], dtype=torch.float64),
        gains.new_empty(*gains.shape[:2], 2, dtype=torch.int64),
    ),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    gains = inputs[0]
    ctx.save_for_backward(output[1])
    ctx.T, ctx.dtype = gains.shape[2], gains.dtype


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None, None]:
    """One for every clip of a span: the choice itself has no gradient."""
    (spans,) = ctx.saved_tensors
    clips = torch.arange(ctx.T, device=spans.device)
    inside = (clips >= spans[..., :1]) & (clips < spans[..., 1:])
    return torch.where(inside, grad[:, None, None], 0).to(ctx.dtype), None, None, None, None, None


differentiable("ordered_spans", _backward, _save)
float32_under_autocast("ordered_spans")
