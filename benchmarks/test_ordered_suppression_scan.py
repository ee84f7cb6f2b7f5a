"""ordered_suppression_scan against DMR-JRG's form on the features, and against the recurrence on one number a cell.

The first case starts from the features [B, M, D, T, T], as the method does; ours forms z = w . F with one product. The
others start from z: there the kernel itself is compared.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vpgfast.ops import ordered_suppression_scan

from .measure import Provider, measure


def paper(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The field's way: features times 1 minus the maps before, expanded over the channels, through the whole layer."""
    maps: list[Tensor] = []
    left = torch.ones_like(features[:, 0, :1])
    for m in range(features.shape[1]):
        suppressed = features[:, m] * left.expand_as(features[:, m])
        logits = torch.nn.functional.linear(suppressed.permute(0, 2, 3, 1), weight[None], bias[None])
        maps.append(torch.sigmoid(logits[..., 0]))
        left = left - maps[-1][:, None]
    return torch.stack(maps, 1)


def loop(z: Tensor, bias: Tensor) -> Tensor:
    maps: list[Tensor] = []
    left = torch.ones_like(z[:, 0])
    for m in range(z.shape[1]):
        maps.append(torch.sigmoid(left * z[:, m] + bias))
        left = left - maps[-1]
    return torch.stack(maps, 1)


def products(features: Tensor, weight: Tensor) -> Tensor:
    """z = w . F, in the form that is fastest here, forward and backward: a product of batches."""
    B, M, D, T, _ = features.shape
    return torch.bmm(weight.expand(B * M, 1, D), features.reshape(B * M, D, T * T)).view(B, M, T, T)


@pytest.mark.parametrize(("B", "M", "D", "T"), [(4, 8, 512, 32), (4, 8, 512, 16)])
def test_from_features(B: int, M: int, D: int, T: int, device: torch.device, record) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(B, M, D, T, T, generator=generator).to(device)
    weight, bias = (torch.randn(D, generator=generator) / D**0.5).to(device), torch.zeros((), device=device)

    def ours(f: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return ordered_suppression_scan(products(f, w), b)

    compiled_paper = torch.compile(paper)
    compiled_loop = torch.compile(lambda f, w, b: loop(products(f, w), b))
    providers = [
        Provider("paper's form", paper, is_fields=True),
        Provider("paper's form, compiled", compiled_paper),
        Provider("z first, loop", lambda f, w, b: loop(products(f, w), b)),
        Provider("z first, compiled", compiled_loop),
        Provider("vpgfast", ours, is_ours=True),
        Provider("vpgfast, compiled", torch.compile(ours), is_ours=True),
    ]
    read = 4 * features.numel()  # the features are read once; backward reads them again and writes their gradient
    floors = {"forward": read, "forward+backward": 3 * read}
    shape = f"F: B={B} M={M} D={D} T={T}"
    record(measure("ordered_suppression_scan", shape, providers, [features, weight, bias], floor_bytes=floors))


@pytest.mark.parametrize(("B", "M", "T"), [(4, 8, 32), (16, 8, 32), (16, 8, 64)])
def test_from_z(B: int, M: int, T: int, device: torch.device, record) -> None:
    z = torch.randn(B, M, T, T, generator=torch.Generator().manual_seed(0)).to(device)
    bias = torch.zeros((), device=device)
    providers = [
        Provider("loop", loop),
        Provider("loop, compiled", torch.compile(loop)),
        Provider("vpgfast", ordered_suppression_scan, is_ours=True),
    ]
    size = 4 * z.numel()
    floors = {"forward": 2 * size, "forward+backward": 6 * size}  # z and P; then dP, z and P again, and dz
    record(measure("ordered_suppression_scan", f"z: B={B} M={M} T={T}", providers, [z, bias], floor_bytes=floors))
