"""temporal_map_conv2d against 2D-TAN's convolution and mask, and against the best plain PyTorch.

Layers of 2D-TAN's stacks as they are, in small batches where the full convolution takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vpgfast.ops import dense_anchor_mask, sparse_anchor_mask, temporal_map_conv2d, temporal_map_masks

from .measure import Provider, measure

C = 512


def convolution_and_mask(in_mask: Tensor, out_mask: Tensor, k: int, padding: int) -> Callable[..., Tensor]:
    """2D-TAN's layer; the mask's weights, which it computes at every call, are made beforehand.

    It also fills cells that no valid result needs: the weights leave them out here, so that all give the same.
    """
    ones = torch.ones(1, 1, k, k, device=in_mask.device)
    count = torch.nn.functional.conv2d(in_mask[None, None].float(), ones, padding=padding)
    masked_weight = torch.where((count > 0) & out_mask, 1 / count, 0)
    return lambda x, weight, bias: torch.nn.functional.conv2d(x, weight, bias, padding=padding).relu() * masked_weight


class ProductATap:
    """The best plain PyTorch that we found: a gather and a matrix product a tap, of the cells that count."""

    def __init__(self, in_mask: Tensor, out_mask: Tensor, k: int, padding: int, normalize: bool = True) -> None:
        T, out_T = in_mask.shape[0], out_mask.shape[0]
        cells = out_mask.nonzero()
        self.taps = []
        count = torch.zeros(len(cells), device=in_mask.device)
        for r in range(k):
            for s in range(k):
                i, j = cells[:, 0] + r - padding, cells[:, 1] + s - padding
                inside = (i >= 0) & (j >= 0) & (i < T) & (j < T)
                valid = inside & in_mask[i.clamp(0, T - 1), j.clamp(0, T - 1)]
                count += valid
                self.taps.append((r, s, valid.nonzero()[:, 0], (i * T + j)[valid]))
        self.scale = torch.where(count > 0, 1 / count if normalize else torch.ones_like(count), 0)[:, None, None]
        self.places, self.out_T = cells[:, 0] * out_T + cells[:, 1], out_T

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        listed = self.listed(x.flatten(2).permute(2, 0, 1).contiguous(), weight, bias)
        out = x.new_zeros(self.out_T**2, x.shape[0], weight.shape[0]).index_copy(0, self.places, listed)
        return out.permute(1, 2, 0).unflatten(2, (self.out_T, self.out_T))

    def listed(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The cells of a map [T * T, B, C] -> those of the result that are computed, [P', B, D]."""
        kernel = weight.permute(2, 3, 1, 0).contiguous()
        sums = bias.expand(len(self.places), rows.shape[1], -1).contiguous()
        for r, s, row, source in self.taps:
            sums.index_add_(0, row, rows[source] @ kernel[r, s])
        return sums.relu() * self.scale


CHARADES = (dense_anchor_mask(16), [5] * 8, [16] + [0] * 7)
DENSE = (dense_anchor_mask(32), [9] * 4, [16, 0, 0, 0])
ACTIVITYNET = (sparse_anchor_mask(64), [9] * 4, [16, 0, 0, 0])
ACTIVITYNET_K5 = (sparse_anchor_mask(64), [5] * 8, [16] + [0] * 7)
CASES = [
    pytest.param("T=16 K5L8", CHARADES, 7, 16, id="Charades-last"),
    pytest.param("T=16 K5L8", CHARADES, 4, 4, id="Charades-middle"),
    pytest.param("T=32 K9L4", DENSE, 3, 2, id="dense-32-last"),
    pytest.param("T=64 K5L8", ACTIVITYNET_K5, 7, 2, id="sparse-64-last"),
    pytest.param("T=64 K9L4", ACTIVITYNET, 3, 1, id="ActivityNet-last"),
]


@pytest.mark.parametrize(("name", "stack", "layer", "B"), CASES)
def test_temporal_map_conv2d(
    name: str, stack: tuple[Tensor, list[int], list[int]], layer: int, B: int, device: torch.device, record
) -> None:
    in_mask, out_mask = (m.to(device) for m in temporal_map_masks(*stack)[layer])
    k, padding, T, out_T = stack[1][layer], stack[2][layer], in_mask.shape[0], out_mask.shape[0]
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(B, C, T, T, generator=generator).relu() * in_mask.cpu()).to(device)
    weight = (torch.randn(C, C, k, k, generator=generator) / (C * k * k) ** 0.5).to(device)
    # No sum near zero, where rounding would decide whether the ReLU passes its gradient.
    bias = torch.tensor([8.0, -8.0]).repeat(C // 2).to(device)

    full = convolution_and_mask(in_mask, out_mask, k, padding)
    by_tap = ProductATap(in_mask, out_mask, k, padding)
    providers = [
        Provider("conv2d + mask", full, is_fields=True),
        Provider("conv2d + mask, compiled", torch.compile(full)),
        Provider("plain", by_tap),
        Provider(
            "vpgfast",
            lambda *t: temporal_map_conv2d(*t, in_mask, out_mask, padding, "relu", normalize=True),
            is_ours=True,
        ),
    ]
    if k == 5:  # with 81 taps the compiler takes minutes
        providers.insert(3, Provider("plain, compiled", torch.compile(by_tap)))
    tiles = torch.nn.functional.max_pool2d(out_mask[None].float(), 4, ceil_mode=True).sum()
    # No convolution that we know of needs fewer products in float32 than F(4x4, 5x5) on the tiles that count.
    flops = 2 * 64 * ((k + 2) // 4) ** 2 * float(tiles) * B * C * C
    moved = 4 * (B * C * (int(in_mask.sum()) + out_T * out_T) + weight.numel())
    record(
        measure(
            "temporal_map_conv2d",
            f"B={B} C=D={C} {name} layer {layer + 1}",
            providers,
            [x, weight, bias],
            floor_bytes={"forward": moved, "forward+backward": 3 * moved},
            floor_flops={"forward": flops, "forward+backward": 3 * flops},
        )
    )
