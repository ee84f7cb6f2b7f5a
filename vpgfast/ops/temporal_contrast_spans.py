"""The windows of a curve that stand out most: the largest mean inside minus mean outside."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._checks import accumulate_dtype, check_floating, check_mask, check_same_device, check_shape
from ._registry import define, differentiable, float32_under_autocast
from .ordered_spans import check_lengths


def temporal_contrast_spans(
    curves: Tensor,
    mask: Tensor | None = None,
    min_length: int = 1,
    max_length: int | None = None,
    top_k: int = 1,
    threshold: float = 0.5,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``top_k`` windows of each curve of the highest mean inside minus mean outside, after non-maximum suppression.

    Exact over every window. Memory grows with T alone; time does with how many windows are nearly as good as the best
    one, and not with their number.

    A window is kept if its IoU with every window kept before it is ``<= threshold`` and it is not one of them (the
    rule of :func:`temporal_nms`). Equal scores: the earlier start, then the shorter window.

    The contrast of training-free grounding: TFVTG (Zheng et al., ECCV 2024, "static score") tries windows of some
    lengths.

    Args:
        curves: floating [B, M, T], a value for every clip, of M sentences.
        mask: bool [B, T], false where a video has no such clip. No window holds it, and it is not outside of one
            either; so it is with a clip whose value is not finite.
        min_length: clips of a window, at least; 1 or more.
        max_length: clips of a window, at most; ``None`` for any number.
        top_k: how many windows.
        threshold: largest IoU of two windows kept, from 0 to 1.
        weights: floating [B, T], the durations of clips of unequal length: means and IoU are weighted by them, lengths
            count clips. A clip whose weight is not finite and above 0 counts as masked. Not differentiable.

    Returns:
        spans int64 [B, M, top_k, 2], first clip and the clip after the last, in falling order of score, (-1, -1) where
        there are fewer; and their scores, [B, M, top_k], ``-inf`` there, in the dtype of ``curves`` (float32 for 16
        bits), differentiable by ``curves``.

        The window that holds every usable clip has nothing outside. Its score is 0: it is chosen only where no other
        window stands out.

    Raises:
        ValueError: wrong shape, dtype, device, length, threshold or ``top_k``.
    """
    check_floating("curves", curves)
    check_shape("curves", curves, ("B", "M", "T"))
    B, _, T = curves.shape
    check_mask("mask", mask, (B, T), "curves", curves)
    if weights is not None:
        check_floating("weights", weights)
        check_shape("weights", weights, (B, T))
        check_same_device("weights", weights, "curves", curves)
        weights = weights.detach().double()
    check_lengths(min_length, max_length)
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}; it must be 0 or more")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must be from 0 to 1")
    longest = T if max_length is None else max_length
    scores, spans, _ = torch.ops.vpgfast.temporal_contrast_spans(
        curves, mask, weights, min_length, longest, top_k, threshold
    )
    return spans, scores.to(accumulate_dtype(curves.dtype))


def usable_weights(curves: Tensor, mask: Tensor | None, weights: Tensor | None) -> Tensor:
    """What each clip weighs, float64 [B, M, T]; 0 for one that counts nowhere."""
    usable = curves.isfinite()
    if mask is not None:
        usable = usable & mask[:, None]
    if weights is None:
        return usable.double()
    usable = usable & (weights.isfinite() & (weights > 0))[:, None]
    return torch.where(usable, weights[:, None], 0.0)


def _reference(
    curves: Tensor,
    mask: Tensor | None,
    weights: Tensor | None,
    min_length: int,
    max_length: int,
    top_k: int,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    B, M, T = curves.shape
    scores = torch.full((B, M, top_k), -torch.inf, dtype=torch.float64, device=curves.device)
    spans = torch.full((B, M, top_k, 2), -1, dtype=torch.int64, device=curves.device)
    looked_at = torch.zeros(B, M, dtype=torch.int64, device=curves.device)
    weight = usable_weights(curves, mask, weights)
    for b in range(B):
        for m in range(M):
            row = _Curve(curves[b, m].double(), weight[b, m])
            kept: list[tuple[int, int]] = []
            while len(kept) < top_k:
                score, start, end = row.best(min_length, min(max_length, T), kept, threshold)
                if score == -math.inf:
                    break
                scores[b, m, len(kept)] = score
                spans[b, m, len(kept)] = torch.tensor((start, end))
                kept.append((start, end))
            looked_at[b, m] = T * (min(max_length, T) - min_length + 1)
    return scores, spans, looked_at


class _Curve:
    """One curve's prefix sums: of weights, D, and of weighted values, arranged so that their differences are contrasts.

    With n = D[T] and P the prefix sum of weight times value, E = n P - P[T] D; then (E[e] - E[s]) / (A (n - A)), with
    A = D[e] - D[s], is the mean inside minus the mean outside. Whole numbers give whole numbers: equals are equal.
    """

    def __init__(self, values: Tensor, weight: Tensor) -> None:
        usable = weight > 0
        level = values[usable][:1]  # sums of differences from one of the values are smaller, and 0 for a constant curve
        values = torch.where(usable, values - (level if level.numel() else 0.0), 0.0)
        self.T = values.shape[0]
        self.D = torch.nn.functional.pad(weight.cumsum(0), (1, 0))
        P = torch.nn.functional.pad((weight * values).cumsum(0), (1, 0))
        self.E = self.D[-1] * P - P[-1] * self.D
        self.unusable = torch.nn.functional.pad((~usable).cumsum(0), (1, 0))

    def best(
        self, min_length: int, max_length: int, kept: list[tuple[int, int]], threshold: float
    ) -> tuple[float, int, int]:
        """Score, start and end of the best window that is far enough from the kept ones; a score of -inf for none."""
        best, best_start, best_end = -math.inf, self.T + 1, self.T + 1
        for length in range(min_length, max_length + 1):
            start = torch.arange(self.T - length + 1, device=self.D.device)
            end = start + length
            allowed = self.unusable[end] == self.unusable[start]
            for other in kept:
                allowed &= (self._iou(start, end, *other) <= threshold) & ((start != other[0]) | (end != other[1]))
            A = self.D[end] - self.D[start]
            spread = A * (self.D[-1] - A)
            score = torch.where(spread > 0, (self.E[end] - self.E[start]) / torch.where(spread > 0, spread, 1.0), 0.0)
            score = torch.where(allowed, score, -torch.inf)
            first = int(score.argmax())  # any of the largest
            first = int((score == score[first]).nonzero()[0])
            found = float(score[first])
            if found > best or (found == best and first < best_start):  # of equal starts the shorter one came before
                best, best_start, best_end = found, first, first + length
        return best, best_start, best_end

    def _iou(self, start: Tensor, end: Tensor, other_start: int, other_end: int) -> Tensor:
        shared = (self.D[end.clamp(max=other_end)] - self.D[start.clamp(min=other_start)]).clamp(min=0)
        joined = (self.D[end] - self.D[start]) + (self.D[other_end] - self.D[other_start]) - shared
        return torch.where(joined > 0, shared / torch.where(joined > 0, joined, 1.0), 0.0)


define(
    "temporal_contrast_spans(Tensor curves, Tensor? mask, Tensor? weights, int min_length, int max_length, int top_k,"
    " float threshold) -> (Tensor, Tensor, Tensor)",
    reference=_reference,
    fake=lambda curves, mask, weights, min_length, max_length, top_k, threshold: (
        curves.new_empty(*curves.shape[:2], top_k, dtype=torch.float64),
        curves.new_empty(*curves.shape[:2], top_k, 2, dtype=torch.int64),
        curves.new_empty(curves.shape[:2], dtype=torch.int64),
    ),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    curves, mask, weights = inputs[:3]
    ctx.save_for_backward(curves, mask, weights, output[1])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
    """Of a mean inside by a clip inside, its share of the weight; of the mean outside likewise."""
    curves, mask, weights, spans = ctx.saved_tensors
    weight = usable_weights(curves, mask, weights)
    n = weight.sum(-1, keepdim=True)
    clips = torch.arange(curves.shape[2], device=curves.device)
    total = torch.zeros_like(weight)
    for k in range(spans.shape[2]):
        start, end = spans[:, :, k, :1], spans[:, :, k, 1:]
        inside = (clips >= start) & (clips < end)
        A = torch.where(inside, weight, 0.0).sum(-1, keepdim=True)
        outside = n - A
        has_both = (A > 0) & (outside > 0)
        share = torch.where(inside, 1 / torch.where(has_both, A, 1.0), -1 / torch.where(has_both, outside, 1.0))
        total += torch.where(has_both, share * weight * grad[:, :, k, None], 0.0)
    return total.to(curves.dtype), None, None, None, None, None, None


differentiable("temporal_contrast_spans", _backward, _save)
float32_under_autocast("temporal_contrast_spans")
