"""temporal_map_max_pool against the stacked MaxPool1d of 2D-TAN and DMR-JRG, and against the best plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vpgfast.ops import temporal_map_max_pool

from .measure import Provider, measure


def stacked_max_pool1d(x: Tensor) -> Tensor:
    """The field's way: one MaxPool1d more a length, its result assigned to a diagonal of the map."""
    B, C, T = x.shape
    out = x.new_zeros(B, C, T, T)
    pooled = x
    for offset in range(T):
        if offset > 0:
            pooled = torch.nn.functional.max_pool1d(pooled, 2, stride=1)
        starts = torch.arange(T - offset, device=x.device)
        out[:, :, starts, starts + offset] = pooled
    return out


def rows_of_maximum(x: Tensor) -> Tensor:
    """The best plain PyTorch that we found: each row from the one below it, stacked once."""
    T = x.shape[2]
    rows = [x[:, :, T - 1 :]]
    for i in range(T - 2, -1, -1):
        first = x[:, :, i : i + 1]
        rows.append(torch.cat([first, torch.maximum(first, rows[-1])], dim=2))
    return torch.stack([torch.nn.functional.pad(row, (T - row.shape[2], 0)) for row in reversed(rows)], dim=2)


SHAPES = [
    pytest.param((32, 512, 16), id="Charades"),
    pytest.param((16, 512, 32), id="DMR-JRG"),
    pytest.param((8, 512, 64), id="ActivityNet"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_temporal_map_max_pool(shape: tuple[int, int, int], device: torch.device, record) -> None:
    B, C, T = shape
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    providers = [
        Provider("stacked MaxPool1d", stacked_max_pool1d),
        Provider("plain", rows_of_maximum),
        Provider("plain, compiled", torch.compile(rows_of_maximum)),
        Provider("vpgfast", temporal_map_max_pool, is_ours=True),
    ]
    written = 4 * B * C * T * T
    # Backward must read the upper half of dy, after forward has written the map.
    floors = {"forward": written, "forward+backward": written * 1.5}
    record(measure("temporal_map_max_pool", f"B={B} C={C} T={T}", providers, [x], floor_bytes=floors))
