"""temporal_contrast_spans against the field's loop over window lengths, and against a loop over lengths in PyTorch.

The field's loop is that of TFVTG's localizer, restated: box filters of some lengths, all windows in one list, a loop of
suppression. It is exact if it tries every length, which is what is timed; with the strides that it is published with it
has to find nothing better than ours.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vpgfast.ops import temporal_contrast_spans

from .measure import Provider, measure


def similarity(B: int, M: int, T: int) -> Tensor:
    """Curves as frames' similarities to a sentence look: slow hills and a noise on top."""
    noise = torch.randn(B, M, T, generator=torch.Generator().manual_seed(0))
    width = T // 50 * 2 + 1
    hills = torch.nn.functional.avg_pool1d(noise, width, 1, width // 2, count_include_pad=False) * width**0.5
    return 0.25 + 0.05 * hills + 0.01 * torch.randn(B, M, T, generator=torch.Generator().manual_seed(1))


def packed(spans: Tensor, scores: Tensor, T: int) -> Tensor:
    return torch.cat([(spans / T).flatten(), scores.flatten().to(torch.float32)])


def field(curves: Tensor, stride: int, longest: int, top_k: int, threshold: float) -> tuple[Tensor, Tensor]:
    """The field's way, a curve at a time."""
    B, M, T = curves.shape
    spans, scores = torch.full((B, M, top_k, 2), -1), torch.full((B, M, top_k), -torch.inf)
    for b in range(B):
        for m in range(M):
            row = curves[b, m]
            windows, values = [], []
            for length in range(stride, longest + 1, stride):
                inside = torch.nn.functional.conv1d(row.view(1, 1, T), torch.ones(1, 1, length))[0, 0]
                outside = (row.sum() - inside) / max(T - length, 1)
                start = torch.arange(len(inside))
                windows.append(torch.stack([start, start + length], 1))
                values.append(inside / length - outside if length < T else torch.zeros(1))
            ranks = torch.cat(values).argsort(descending=True, stable=True)
            ranked, value = torch.cat(windows)[ranks], torch.cat(values)[ranks]
            suppressed = torch.zeros(len(ranked), dtype=torch.bool)
            for i in range(len(ranked) - 1):
                if suppressed[i]:
                    continue
                start, end = ranked[i + 1 :].unbind(1)
                shared = (end.clamp(max=ranked[i, 1]) - start.clamp(min=ranked[i, 0])).clamp(0)
                joined = torch.maximum(end, ranked[i, 1]) - torch.minimum(start, ranked[i, 0])
                suppressed[i + 1 :] |= shared / joined > threshold
            kept = ~suppressed
            found = ranked[kept][:top_k]
            spans[b, m, : len(found)], scores[b, m, : len(found)] = found, value[kept][:top_k]
    return spans, scores


def best_of_length(sums: Tensor, length: int, kept: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Of all windows of a length that overlap none of the kept ones too much, the best contrast and where it starts."""
    T = sums.shape[-1] - 1
    rise = sums[..., length:] - sums[..., : T + 1 - length]
    for k in range(kept.shape[2]):
        start = torch.arange(T + 1 - length)
        other_start, other_end = kept[:, :, k, :1], kept[:, :, k, 1:]
        shared = (torch.minimum(start + length, other_end) - torch.maximum(start, other_start)).clamp(0)
        rise = rise.masked_fill(shared / (length + (other_end - other_start) - shared) > threshold, -torch.inf)
    value, start = rise.max(-1)
    return value * (T / max(length * (T - length), 1)), start


def length_by_length(curves: Tensor, longest: int, top_k: int, threshold: float, best=best_of_length):
    """All curves at once, a step for every length and window kept: the best plain PyTorch that we found."""
    B, M, _ = curves.shape
    wide = curves.double()
    sums = torch.nn.functional.pad((wide - wide.mean(-1, keepdim=True)).cumsum(-1), (1, 0))
    spans, scores = torch.zeros(B, M, 0, 2, dtype=torch.int64), torch.zeros(B, M, 0, dtype=torch.float64)
    for _ in range(top_k):
        score, window = torch.full((B, M), -torch.inf, dtype=torch.float64), torch.zeros(B, M, 2, dtype=torch.int64)
        for length in range(1, longest + 1):
            value, start = best(sums, length, spans, threshold)
            better = value > score
            score = torch.where(better, value, score)
            window = torch.where(better[..., None], torch.stack([start, start + length], -1), window)
        spans, scores = torch.cat([spans, window[:, :, None]], 2), torch.cat([scores, score[..., None]], 2)
    return spans, scores


@pytest.mark.parametrize(
    ("B", "M", "T", "longest", "top_k"), [(4, 4, 200, 200, 5), (1, 2, 2000, 2000, 5), (1, 1, 100_000, 20_000, 1)]
)
def test_temporal_contrast_spans(B: int, M: int, T: int, longest: int, top_k: int, record) -> None:
    curves, threshold = similarity(B, M, T), 0.5
    compiled = torch.compile(best_of_length, dynamic=True)
    providers = [
        Provider("by length", lambda c: length_by_length(c, longest, top_k, threshold)),
        Provider("by length, compiled", lambda c: length_by_length(c, longest, top_k, threshold, compiled)),
        Provider(
            "vpgfast",
            lambda c: temporal_contrast_spans(c, None, 1, longest, top_k, threshold),
            is_ours=True,
        ),
    ]
    if (
        T <= 200
    ):  # beyond, the loop of suppression takes minutes, and then the list of windows more memory than there is
        every_length = Provider("every length", lambda c: field(c, 1, longest, top_k, threshold), is_fields=True)
        providers.insert(0, every_length)
    if T <= 2000:
        published = field(curves, max(5, longest // 40), longest, 1, threshold)[1]
        assert (published <= temporal_contrast_spans(curves, None, 1, longest)[1] + 1e-4).all()  # float32 sums
    shape = f"B={B} M={M} T={T} up to {longest} top_k={top_k}"
    floors = {"forward": 4 * curves.numel()}
    # Less than a clip of T, and more than sums in float32 round.
    record(
        measure(
            "temporal_contrast_spans",
            shape,
            providers,
            [curves],
            floor_bytes=floors,
            tolerance=min(1e-3, 0.2 / T),
            packed=lambda spans, scores: packed(spans, scores, T),
        )
    )
