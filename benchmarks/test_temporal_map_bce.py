"""temporal_map_bce against 2D-TAN's loss on a target map, with targets as given and as computed from spans."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vpgfast.ops import sparse_anchor_mask, temporal_map_bce

from .measure import Provider, measure
from .test_temporal_iou_map import broadcast


def target_map(logits: Tensor, spans: Tensor, mask: Tensor) -> Tensor:
    """The field's way: target map, sigmoid, binary cross-entropy of the whole map, mask, mean."""
    target = ((broadcast(spans, logits.shape[-1]) - 0.5) / 0.5).clamp(0, 1)
    probability = torch.sigmoid(logits) * mask
    each = F.binary_cross_entropy(probability, target, reduction="none") * mask
    return each.sum() / (mask.sum() * logits.shape[0] * logits.shape[1])


def with_logits(logits: Tensor, spans: Tensor, mask: Tensor) -> Tensor:
    """The best plain PyTorch that we found: the same from logits, on the whole map, weighted by the mask."""
    target = ((broadcast(spans, logits.shape[-1]) - 0.5) / 0.5).clamp(0, 1)
    total = F.binary_cross_entropy_with_logits(logits, target, weight=mask, reduction="sum")
    return total / (mask.sum() * logits.shape[0] * logits.shape[1])


@pytest.mark.parametrize(
    ("B", "M", "T", "layers"),
    [(32, 8, 64, (16, 8, 8)), (32, 8, 16, (16,)), (4, 8, 128, (16, 8, 8, 8))],
    ids=["ActivityNet", "Charades", "TACoS"],
)
def test_temporal_map_bce(B: int, M: int, T: int, layers: tuple[int, ...], device: torch.device, record) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, M, T, T, generator=generator).to(device)
    spans = torch.rand(B, M, 2, generator=generator).sort(-1).values.to(device)
    mask = sparse_anchor_mask(T, layers).to(device)
    weight = mask.float()
    compiled = torch.compile(with_logits)
    providers = [
        Provider("target map", lambda z: target_map(z, spans, weight), is_fields=True),
        Provider("with logits", lambda z: with_logits(z, spans, weight)),
        Provider("with logits, compiled", lambda z: compiled(z, spans, weight)),
        Provider("vpgfast", lambda z: temporal_map_bce(z, spans, mask), is_ours=True),
    ]
    read = 4 * B * M * T * T
    floors = {"forward": read, "forward+backward": 3 * read}
    record(measure("temporal_map_bce", f"B={B} M={M} T={T}", providers, [logits], floor_bytes=floors))
