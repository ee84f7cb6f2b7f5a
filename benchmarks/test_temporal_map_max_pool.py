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
    pytest.param((16, 512, 32), id="DMR-JRG"),
    pytest.param((32, 512, 16), id="Charades"),
    pytest.param((8, 512, 64), id="ActivityNet"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_temporal_map_max_pool(shape: tuple[int, int, int], device: torch.device, record) -> None:
    B, C, T = shape
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    providers = [
        Provider("stacked MaxPool1d", stacked_max_pool1d, is_fields=True),
        Provider("plain", rows_of_maximum),
        Provider("plain, compiled", torch.compile(rows_of_maximum)),
        Provider("vpgfast", temporal_map_max_pool, is_ours=True),
    ]
    written = 4 * B * C * T * T
    # Backward must read the upper half of dy, after forward has written the map.
    floors = {"forward": written, "forward+backward": written * 1.5}
    record(measure("temporal_map_max_pool", f"B={B} C={C} T={T}", providers, [x], floor_bytes=floors))


def suffix_maxima(x: Tensor, spans: Tensor) -> Tensor:
    """Plain PyTorch for a list: a sparse table of maxima over 1, 2, 4, ... clips, then the larger of two that cover."""
    T = x.shape[2]
    table = [x]
    while 2 ** len(table) <= T:
        before, half = table[-1], 2 ** (len(table) - 1)
        table.append(torch.cat([torch.maximum(before[..., :-half], before[..., half:]), before[..., -half:]], -1))
    first, last = spans.unbind(1)
    level = (last - first + 1).double().log2().floor().long()
    stacked = torch.stack(table)
    return torch.maximum(stacked[level, :, :, first], stacked[level, :, :, last + 1 - 2**level]).movedim(0, 2)


@pytest.mark.parametrize(("B", "C", "T", "P"), [(8, 512, 64, 1104), (2, 64, 4096, 20000)])
def test_listed_spans(B: int, C: int, T: int, P: int, device: torch.device, record) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, C, T, generator=generator).to(device)
    spans = torch.randint(0, T, (P, 2), generator=generator).sort(-1).values.to(device)
    compiled = torch.compile(suffix_maxima)
    providers = [
        Provider("sparse table", lambda x: suffix_maxima(x, spans)),
        Provider("sparse table, compiled", lambda x: compiled(x, spans)),
        Provider("vpgfast", lambda x: temporal_map_max_pool(x, spans), is_ours=True),
    ]
    if T <= 64:  # the whole map, of which the listed cells are taken
        first, last = spans.unbind(1)
        providers.insert(1, Provider("whole map, indexed", lambda x: rows_of_maximum(x)[:, :, first, last]))
    written = 4 * B * C * P
    floors = {"forward": written, "forward+backward": 2 * written}
    record(measure("temporal_map_max_pool", f"B={B} C={C} T={T} P={P}", providers, [x], floor_bytes=floors))
