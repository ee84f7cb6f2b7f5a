"""anchor_embedding against the sines and cosines of DETR-style code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vpgfast.ops import anchor_embedding

from .measure import Provider, measure


def detr(anchors: Tensor, D: int) -> Tensor:
    """The field's way: one coordinate after the other, sines and cosines of every second channel stacked."""
    i = torch.arange(D // 2, dtype=anchors.dtype, device=anchors.device)
    dim_t = 10000 ** (2 * (i // 2) / (D // 2))
    parts = []
    for x in anchors.unbind(-1):
        angle = x[..., None] * 2 * math.pi / dim_t
        parts.append(torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2))
    return torch.cat(parts, -1)


@pytest.mark.parametrize(("B", "Q", "D"), [(32, 6, 256), (32, 300, 256)])
def test_anchor_embedding(B: int, Q: int, D: int, device: torch.device, record) -> None:
    anchors = torch.rand(B, Q, 2, generator=torch.Generator().manual_seed(0)).to(device)
    compiled = torch.compile(detr)
    providers = [
        Provider("DETR's", lambda a: detr(a, D), is_fields=True),
        Provider("DETR's, compiled", lambda a: compiled(a, D)),
        Provider("vpgfast", lambda a: anchor_embedding(a, D), is_ours=True),
    ]
    written = 4 * B * Q * D
    floors = {"forward": written, "forward+backward": 2 * written}
    record(measure("anchor_embedding", f"B={B} Q={Q} D={D}", providers, [anchors], floor_bytes=floors))
