"""temporal_iou against the NumPy loop of the field's evaluators and against broadcast PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vpgfast.ops import temporal_iou

from .measure import Provider, measure


def numpy_loop(a: Tensor, b: Tensor) -> Tensor:
    """The field's evaluators: for each sentence, its ranked spans against its ground truth."""
    result = []
    for predicted, true in zip(a.cpu().numpy(), b.cpu().numpy(), strict=True):
        predicted, true = predicted[:, None], true[None]
        shared = np.minimum(predicted[..., 1], true[..., 1]) - np.maximum(predicted[..., 0], true[..., 0])
        joined = np.maximum(predicted[..., 1], true[..., 1]) - np.minimum(predicted[..., 0], true[..., 0])
        result.append(np.where(shared > 0, shared / joined, 0))
    return torch.from_numpy(np.stack(result)).to(a.device)


def broadcast(a: Tensor, b: Tensor) -> Tensor:
    a, b = a[:, :, None], b[:, None]
    shared = (torch.minimum(a[..., 1], b[..., 1]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    joined = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - shared
    return shared / joined


@pytest.mark.parametrize(
    ("L", "N", "M"), [(3720, 10, 1), (64, 1024, 8), (1, 4096, 512)], ids=["evaluation", "training", "large"]
)
def test_temporal_iou(L: int, N: int, M: int, device: torch.device, record) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = ((torch.rand(L, n, 2, generator=generator).cumsum(-1)).to(device) for n in (N, M))
    peers = [Provider("broadcast", broadcast), Provider("broadcast, compiled", torch.compile(broadcast))]
    ours = Provider("vpgfast", temporal_iou, is_ours=True)
    shape = f"L={L} N={N} M={M}"
    moved = 4 * L * (N * M + 2 * N + 2 * M)
    forward = [Provider("NumPy loop", numpy_loop, is_fields=True), *peers, ours]
    record(measure("temporal_iou", shape, forward, [a, b], floor_bytes={"forward": moved}))
    both = {"forward+backward": 2 * moved}  # NumPy has no gradient
    record(measure("temporal_iou", shape, [*peers, ours], [a, b], floor_bytes=both))
