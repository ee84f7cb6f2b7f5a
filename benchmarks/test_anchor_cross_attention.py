"""anchor_cross_attention with both statistics against concatenation, separate products and SDPA.

All compute the output, the centroid and the mass: that is what SiamGTR's losses need of every decoder layer.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vpgfast.ops import anchor_cross_attention

from .measure import Provider, measure


def joined(out: Tensor, centroid: Tensor, mass: Tensor) -> Tensor:
    return torch.cat([out.flatten(), centroid.flatten(), mass.flatten()])


def statistics(weights: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    average = weights.mean(1)
    return average @ torch.arange(weights.shape[3], dtype=weights.dtype, device=weights.device), (average * inside).sum(
        -1
    )


def concatenated(
    q_content: Tensor, q_pos: Tensor, k_content: Tensor, k_pos: Tensor, v: Tensor, inside: Tensor
) -> Tensor:
    """The field's way: content and position concatenated per head, then ``nn.MultiheadAttention`` with weights."""
    q = torch.cat([q_content, q_pos], -1)
    k = torch.cat([k_content, k_pos.expand(k_content.shape[0], -1, -1, -1)], -1)
    weights = (q / math.sqrt(q.shape[-1]) @ k.mT).softmax(-1)
    return joined(weights @ v, *statistics(weights, inside))


def separate(q_content: Tensor, q_pos: Tensor, k_content: Tensor, k_pos: Tensor, v: Tensor, inside: Tensor) -> Tensor:
    scale = 1 / math.sqrt(q_content.shape[-1] + q_pos.shape[-1])
    weights = ((q_content @ k_content.mT + q_pos @ k_pos.mT) * scale).softmax(-1)
    return joined(weights @ v, *statistics(weights, inside))


def sdpa(q_content: Tensor, q_pos: Tensor, k_content: Tensor, k_pos: Tensor, v: Tensor, inside: Tensor) -> Tensor:
    """Fused attention; the statistics are further columns of the values: clip positions, and what is inside."""
    B, H, f = *q_content.shape[:2], v.shape[3]
    q = torch.cat([q_content, q_pos], -1)
    k = torch.cat([k_content, k_pos.expand(B, -1, -1, -1)], -1)
    position = torch.arange(v.shape[2], dtype=v.dtype, device=v.device)[:, None].expand(B, H, -1, 1)
    columns = inside.mT[:, None].expand(-1, H, -1, -1).to(v.dtype)
    full = F.scaled_dot_product_attention(q, k, torch.cat([v, position, columns], -1))
    mass = full[..., f + 1 :].diagonal(dim1=2, dim2=3)
    return joined(full[..., :f], full[..., f].mean(1), mass.mean(1))


SHAPES = [
    pytest.param((32, 8, 5, 256, 32), id="SiamGTR"),
    # What our SiamGTR calls: each head of a query is a query to the memory as it is, and no key is projected.
    pytest.param((32, 1, 40, 256, 256), id="SiamGTR-wide"),
    pytest.param((16, 8, 5, 512, 32), id="SiamGTR-TACoS"),
    pytest.param((8, 8, 100, 256, 32), id="DETR-queries"),
    pytest.param((2, 8, 16, 8192, 32), id="long"),
]


@pytest.mark.parametrize("shared", [True, False], ids=["one-k_pos", "k_pos-each"])
@pytest.mark.parametrize("shape", SHAPES)
def test_anchor_cross_attention(shape: tuple[int, ...], shared: bool, device: torch.device, record) -> None:
    B, H, Q, T, d = shape
    generator = torch.Generator().manual_seed(0)

    def heads(batch: int, rows: int) -> Tensor:
        """As a projection gives them: [B, N, H * d], seen as [B, H, N, d]."""
        return torch.randn(batch, rows, H * d, generator=generator).to(device).view(batch, rows, H, d).transpose(1, 2)

    inputs = [heads(B, Q), heads(B, Q), heads(B, T), heads(1 if shared else B, T), heads(B, T)]
    intervals = (torch.rand(B, Q, 2, generator=generator) * T).sort(-1).values.to(device)
    t = torch.arange(T, device=device)
    inside = (intervals[..., :1] <= t) & (t <= intervals[..., 1:])

    def ours(*tensors: Tensor) -> Tensor:
        out, stats = anchor_cross_attention(*tensors, intervals=intervals)
        assert stats.mass is not None
        return joined(out, stats.centroid, stats.mass)

    compiled = torch.compile(separate)
    providers = [
        Provider("separate products", lambda *tensors: separate(*tensors, inside)),
        Provider("separate, compiled", lambda *tensors: compiled(*tensors, inside)),
        Provider("concatenated", lambda *tensors: concatenated(*tensors, inside), is_fields=True),
        Provider("SDPA", lambda *tensors: sdpa(*tensors, inside)),
        Provider("vpgfast", ours, is_ours=True),
    ]
    keys = 4 * sum(t.numel() for t in inputs[2:])
    queries = 4 * sum(t.numel() for t in (*inputs[:2], inputs[0]))
    products = 2 * B * H * Q * T * d
    # Backward reads the same again and writes a gradient for each: it needs the logits anew, and five products.
    record(
        measure(
            "anchor_cross_attention",
            f"B={B} H={H} Q={Q} T={T} d={d}" + (" one k_pos" if shared else ""),
            providers,
            inputs,
            floor_bytes={"forward": keys + queries, "forward+backward": 3 * (keys + queries)},
            floor_flops={"forward": 3 * products, "forward+backward": 11 * products},
        )
    )
