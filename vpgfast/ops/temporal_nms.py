"""Non-maximum suppression of scored time intervals."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import check_floating, check_same_device, check_shape
from ._registry import define, float32_under_autocast
from .temporal_iou import check_intervals, plain_iou


def temporal_nms(spans: Tensor, scores: Tensor, threshold: float, top_k: int | None = None) -> Tensor:
    """The best-scored spans that do not overlap a better one too much, in falling order of score.

    A span is kept if its IoU with every span kept before it is ``<= threshold`` (2D-TAN's rule). Equal scores keep the
    order of the list. A score of ``-inf`` or NaN, or an end that is NaN, marks a place that holds no span: it is never
    kept and suppresses nothing. An IoU that is no number (of two infinite spans) counts as too large.

    Args:
        spans: floating [..., N, 2], start <= end, in any one unit.
        scores: floating [..., N].
        threshold: largest IoU with a kept span, from 0 to 1.
        top_k: how many to keep at most; ``None`` for N.

    Returns:
        int64 [..., top_k] positions in the list, ``-1`` where fewer are kept. Not differentiable.

    Raises:
        ValueError: wrong shape, dtype, device, threshold or ``top_k``.
        RuntimeError: a span whose end lies before its start (on CUDA: a device-side assertion).
    """
    check_floating("spans", spans)
    check_floating("scores", scores)
    check_shape("spans", spans, ("...", "N", 2))
    check_same_device("scores", scores, "spans", spans)
    if scores.shape != spans.shape[:-1]:
        raise ValueError(f"scores has shape {list(scores.shape)}; it must be {list(spans.shape[:-1])}, one a span")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must be from 0 to 1")
    N = spans.shape[-2]
    top_k = N if top_k is None else top_k
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}; it must be 0 or more")
    lead = spans.shape[:-2]
    dtype = torch.promote_types(spans.dtype, scores.dtype)
    flat = spans.detach().to(dtype).reshape(lead.numel(), N, 2), scores.detach().to(dtype).reshape(lead.numel(), N)
    return torch.ops.vpgfast.temporal_nms(*flat, threshold, top_k).reshape(*lead, top_k)


def _reference(spans: Tensor, scores: Tensor, threshold: float, top_k: int) -> Tensor:
    check_intervals("temporal_nms", "spans", spans)
    L = scores.shape[0]
    kept = torch.full((L, top_k), -1, dtype=torch.int64, device=spans.device)
    wide = spans.double() if spans.dtype == torch.float64 else spans.float()
    threshold = torch.tensor(threshold, dtype=wide.dtype).item()  # compared in the dtype of the IoU
    for row in range(L):
        present = torch.where(scores[row].isnan() | spans[row].isnan().any(-1), -torch.inf, scores[row])
        order = torch.sort(present, descending=True, stable=True)
        left = order.indices[order.values > -torch.inf]
        for k in range(top_k):
            if left.numel() == 0:
                break
            best = left[0]
            kept[row, k] = best
            iou = plain_iou(wide[row, best], wide[row, left], generalized=False)
            left = left[1:][iou[1:] <= threshold]
    return kept


define(
    "temporal_nms(Tensor spans, Tensor scores, float threshold, int top_k) -> Tensor",
    reference=_reference,
    fake=lambda spans, scores, threshold, top_k: scores.new_empty(scores.shape[0], top_k, dtype=torch.int64),
)
float32_under_autocast("temporal_nms")
