"""temporal_nms against the Python loop of the field's evaluators and against a whole IoU matrix in PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vpgfast.ops import temporal_nms

from .measure import Provider, measure


def loop_per_sentence(spans: Tensor, scores: Tensor, threshold: float, top_k: int) -> Tensor:
    """The field's way: sort, then one pass of tensor operations for every span that still stands."""
    kept = torch.full((len(spans), top_k), -1, device=spans.device)
    for row in range(len(spans)):
        order = scores[row].sort(descending=True, stable=True).indices
        ranked = spans[row, order]
        suppressed = torch.zeros(len(ranked), dtype=torch.bool, device=spans.device)
        for i in range(len(ranked) - 1):
            if suppressed[i]:
                continue
            start, end = ranked[i + 1 :].unbind(-1)
            shared = (torch.min(end, ranked[i, 1]) - torch.max(start, ranked[i, 0])).clamp(0)
            joined = torch.max(end, ranked[i, 1]) - torch.min(start, ranked[i, 0])
            suppressed[i + 1 :] |= shared / joined > threshold
        left = order[~suppressed][:top_k]
        kept[row, : len(left)] = left
    return kept


def iou_matrix(spans: Tensor, scores: Tensor, threshold: float, top_k: int) -> Tensor:
    """All sentences at once, one step a kept span: the best plain PyTorch that we found."""
    L = len(spans)
    rows = torch.arange(L, device=spans.device)
    alive = scores.clone()
    kept = torch.full((L, top_k), -1, device=spans.device)
    for k in range(top_k):
        value, best = alive.max(1)
        kept[:, k] = torch.where(value > -torch.inf, best, -1)
        chosen = spans[rows, best][:, None]
        shared = (torch.min(spans[..., 1], chosen[..., 1]) - torch.max(spans[..., 0], chosen[..., 0])).clamp(0)
        joined = torch.max(spans[..., 1], chosen[..., 1]) - torch.min(spans[..., 0], chosen[..., 0])
        alive = alive.masked_fill(shared / joined > threshold, -torch.inf)
        alive[rows, best] = -torch.inf
    return kept


@pytest.mark.parametrize(("L", "N", "top_k"), [(32, 1104, 5), (64, 136, 5), (8, 8256, 100)])
def test_temporal_nms(L: int, N: int, top_k: int, device: torch.device, record) -> None:
    generator = torch.Generator().manual_seed(0)
    spans = torch.rand(L, N, 2, generator=generator).sort(-1).values.to(device)
    scores = torch.randn(L, N, generator=generator).to(device)
    providers = [
        Provider("loop a sentence", lambda a, s: loop_per_sentence(a, s, 0.5, top_k), is_fields=True),
        Provider("IoU step by step", lambda a, s: iou_matrix(a, s, 0.5, top_k)),
        Provider("vpgfast", lambda a, s: temporal_nms(a, s, 0.5, top_k), is_ours=True),
    ]
    floors = {"forward": 4 * L * N * 3}
    record(measure("temporal_nms", f"L={L} N={N} top_k={top_k}", providers, [spans, scores], floor_bytes=floors))
