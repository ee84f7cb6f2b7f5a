"""temporal_iou_map against 2D-TAN's per-sentence NumPy targets and against broadcast PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vpgfast.ops import temporal_iou_map

from .measure import Provider, measure


def numpy_per_sentence(spans: Tensor, T: int) -> Tensor:
    """The field's way: in the data set's ``__getitem__``, a map a sentence, in NumPy."""
    starts, ends = np.arange(T) / T, np.arange(1, T + 1) / T
    upper = np.triu(np.ones((T, T), dtype=bool))
    maps = []
    for start, end in spans.reshape(-1, 2).cpu().numpy():
        shared = np.minimum(ends[None], end) - np.maximum(starts[:, None], start)
        joined = np.maximum(ends[None], end) - np.minimum(starts[:, None], start)
        maps.append(np.where(upper, np.clip(shared, 0, None) / joined, 0).astype(np.float32))
    return torch.from_numpy(np.stack(maps)).reshape(*spans.shape[:2], T, T).to(spans.device)


def broadcast(spans: Tensor, T: int) -> Tensor:
    starts = torch.arange(T, device=spans.device)[:, None] / T
    ends = torch.arange(1, T + 1, device=spans.device)[None] / T
    start, end = spans[..., 0, None, None], spans[..., 1, None, None]
    shared = (torch.minimum(ends, end) - torch.maximum(starts, start)).clamp(min=0)
    joined = (ends - starts) + (end - start) - shared
    return (shared / joined).triu()


@pytest.mark.parametrize(("B", "M", "T"), [(32, 8, 64), (32, 8, 16), (8, 8, 128)])
def test_temporal_iou_map(B: int, M: int, T: int, device: torch.device, record) -> None:
    spans = torch.rand(B, M, 2, generator=torch.Generator().manual_seed(0)).sort(-1).values.to(device)
    compiled = torch.compile(broadcast)
    providers = [
        Provider("NumPy, a map a sentence", lambda s: numpy_per_sentence(s, T), is_fields=True),
        Provider("broadcast", lambda s: broadcast(s, T)),
        Provider("broadcast, compiled", lambda s: compiled(s, T)),
        Provider("vpgfast", lambda s: temporal_iou_map(s, T), is_ours=True),
    ]
    floors = {"forward": 4 * B * M * T * T}
    record(measure("temporal_iou_map", f"B={B} M={M} T={T}", providers, [spans], floor_bytes=floors))
