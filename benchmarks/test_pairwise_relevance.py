"""pairwise_relevance against the concatenation that WSRA writes, and against broadcasting over [N, M, H]."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vpgfast.ops import pairwise_relevance

from .measure import Provider, measure


def broadcast(a: Tensor, b: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return ((a[:, None] + b).relu() @ w + bias).sigmoid()


def by_query(a: Tensor, b: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    """Without the whole [N, M, H] at once: [N, H] a query."""
    return torch.stack([((a + query).relu() @ w + bias).sigmoid() for query in b], 1)


@pytest.mark.parametrize(
    ("N", "M", "H"),
    [
        pytest.param(42 * 32, 42, 512, id="Charades"),
        pytest.param(42 * 6, 42, 512, id="DiDeMo"),
        pytest.param(4096, 128, 512, id="larger"),
    ],
)
def test_pairwise_relevance(N: int, M: int, H: int, device: torch.device, record) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, H, generator=generator).to(device) for rows in (N, M))
    w, bias = (torch.randn(H, generator=generator) / H**0.5).to(device), torch.zeros((), device=device)
    providers = [
        Provider("broadcast", broadcast, is_fields=True),
        Provider("broadcast, compiled", torch.compile(broadcast)),
        Provider("query by query", by_query),
        Provider("vpgfast", pairwise_relevance, is_ours=True),
    ]
    bytes_moved = 4 * (a.numel() + b.numel() + N * M)
    # Each of N M H terms is a sum, a maximum, a product and a sum; backward compares and adds, for a and for b.
    terms = N * M * H
    record(
        measure(
            "pairwise_relevance",
            f"N={N} M={M} H={H}",
            providers,
            [a, b, w, bias],
            floor_bytes={"forward": bytes_moved, "forward+backward": 3 * bytes_moved},
            floor_flops={"forward": 4 * terms, "forward+backward": 8 * terms},
            tolerance=1e-3,  # sums of thousands of terms of either sign
        )
    )
