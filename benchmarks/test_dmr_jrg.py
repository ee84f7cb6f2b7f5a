"""A training step of DMR-JRG against the field's form and the best plain PyTorch, with the same weights and draws.

The optimiser is left out: it is the same for all. So is dropout, whose masks would differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from vpgfast.data.types import Batch
from vpgfast.models import dmr_jrg, moment_map
from vpgfast.models.dmr_jrg import DMRJRG, DMRJRGConfig
from vpgfast.models.layers import FeedForward, Linear
from vpgfast.nn import TemporalMapConv2d
from vpgfast.ops.temporal_map_conv2d_cells import at_cells, on_map

from .field_dmr_jrg import FieldDMRJRG
from .field_siamgtr import PlainFeedForward
from .measure import Provider, measure
from .paragraphs import FEATURE_DIM, random_batch, random_vectors
from .test_ordered_suppression_scan import loop
from .test_temporal_iou_map import broadcast
from .test_temporal_map_conv2d import ProductATap
from .test_temporal_map_max_pool import rows_of_maximum

VOCABULARY = 8000


def plain_scan(z: Tensor, bias: Tensor, there: Tensor, reverse: bool) -> Tensor:
    """The suppression of Eq. 18-19 on one number a cell, all paragraphs at once, which must be of the same length."""
    return loop(z.flip(1), bias).flip(1) if reverse else loop(z, bias)


def plain_bce(logits: Tensor, spans: Tensor, mask: Tensor, min_iou: float, max_iou: float) -> Tensor:
    """Eq. 20-21 from logits, against a map of labels."""
    target = ((broadcast(spans, logits.shape[-1]) - min_iou) / (max_iou - min_iou)).clamp(0, 1)
    total = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), weight=mask.float(), reduction="sum")
    return total / (mask.sum() * logits.shape[0] * logits.shape[1])


def reached(layers: TemporalMapConv2d, number: int) -> Tensor:
    """Bool [T', T'], the cells that count in front of layer ``number``."""
    cells, size = layers.get_buffer(f"cells{number}"), layers.sizes[number]
    return torch.zeros(size**2, dtype=torch.bool, device=cells.device).index_fill(0, cells, True).view(size, size)


def convolutions(self: TemporalMapConv2d, x: Tensor) -> Tensor:
    """2D-TAN's stack as whole convolutions of maps and masks: one copy into a map, one out of it."""
    T, cells = self.sizes[0], self.get_buffer("cells0")
    maps = on_map(x, cells, T)
    for layer, (conv, padding) in enumerate(zip(self.convs, self.paddings, strict=True)):
        assert isinstance(conv, nn.Conv2d)
        maps = F.conv2d(maps, conv.weight, conv.bias, padding=padding).relu() * reached(self, layer + 1)
    return at_cells(maps, cells)


def products_of_cells(self: TemporalMapConv2d, x: Tensor) -> Tensor:
    """2D-TAN's stack as a product a tap of the cells that count, and only these are kept from layer to layer."""
    x = x.transpose(0, 1)
    for layer, (conv, padding) in enumerate(zip(self.convs, self.paddings, strict=True)):
        assert isinstance(conv, nn.Conv2d)
        if not hasattr(conv, "products"):
            mask = reached(self, layer)
            conv.products = ProductATap(mask, reached(self, layer + 1), conv.kernel_size[0], padding, self.normalize)
            place = mask.flatten().cumsum(0) - 1  # of a cell among those that are kept
            conv.products.taps = [(r, s, row, place[source]) for r, s, row, source in conv.products.taps]
        x = conv.products.listed(x, conv.weight, conv.bias)
    return x.transpose(0, 1)


@contextmanager
def plain(by_taps: bool) -> Iterator[None]:
    """In here DMR-JRG's loss uses plain PyTorch in the place of our ops."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(moment_map, "temporal_map_max_pool", rows_of_maximum))
        on_cells = products_of_cells if by_taps else convolutions
        stack.enter_context(mock.patch.object(TemporalMapConv2d, "on_cells", on_cells))
        stack.enter_context(mock.patch.object(FeedForward, "forward", PlainFeedForward.forward))
        stack.enter_context(mock.patch.object(Linear, "forward", nn.Linear.forward))
        stack.enter_context(mock.patch.object(dmr_jrg, "ordered_suppression_scan", plain_scan))
        stack.enter_context(mock.patch.object(dmr_jrg, "temporal_map_bce", plain_bce))
        yield


class Step(nn.Module):
    """One of several ways to compute the loss of a model and a batch."""

    def __init__(self, model: DMRJRG) -> None:
        super().__init__()
        self.model = model
        compiled = torch.compile(lambda batch: model.loss(batch)["loss"])
        self.ways: dict[str, Callable[[Batch], Tensor]] = {
            "field's form": self.in_plain(FieldDMRJRG(model).loss, by_taps=False),
            "plain": self.in_plain(lambda batch: model.loss(batch)["loss"], by_taps=False),
            "plain, cells that count": self.in_plain(lambda batch: model.loss(batch)["loss"], by_taps=True),
            "plain, compiled": self.in_plain(compiled, by_taps=False),
            "vpgfast": lambda batch: model.loss(batch)["loss"],
        }

    @staticmethod
    def in_plain(loss: Callable[[Batch], Tensor], by_taps: bool) -> Callable[[Batch], Tensor]:
        def run(batch: Batch) -> Tensor:
            with plain(by_taps):
                return loss(batch)

        return run

    def forward(self, way: str, batch: Batch) -> Tensor:
        return self.ways[way](batch)


def make_step(B: int, M: int, device: torch.device, **settings: Any) -> tuple[Step, Batch]:
    """A model of the paper's size with random weights, and a random batch of paragraphs of M sentences."""
    torch.manual_seed(0)
    config = DMRJRGConfig(dropout=0, **settings)
    model = DMRJRG(config, FEATURE_DIM, random_vectors(VOCABULARY)).to(device)
    return Step(model), random_batch(B, M, config.max_clips, VOCABULARY).to(device)


# B, M sentences, K segments. In the small one a step of the field's form takes seconds, in the others half a minute and
# more.
@pytest.mark.parametrize(
    ("data", "B", "M", "K"),
    [("Charades-STA", 2, 2, 16), ("ActivityNet", 4, 8, 32), ("ActivityNet", 16, 8, 32)],
)
def test_dmr_jrg(data: str, B: int, M: int, K: int, device: torch.device, eager_only: bool, record) -> None:
    step, batch = make_step(B, M, device, segments=K)
    config, drawn = step.model.config, step.model.draw(batch)
    parameters = [p for p in step.model.parameters() if p.requires_grad]
    names = [name for name, p in step.named_parameters() if p.requires_grad]

    def provider(way: str) -> Provider:
        def run(*weights: Tensor) -> Tensor:
            with mock.patch.object(DMRJRG, "draw", return_value=drawn):
                return functional_call(step, dict(zip(names, weights, strict=True)), (way, batch))

        return Provider(way, run, is_ours=way == "vpgfast", is_fields=way == "field's form")

    ways = [way for way in step.ways if not (eager_only and way.endswith("compiled"))]
    if B == 16:  # a step of plain PyTorch takes minutes, and the fastest way needs about 36 GiB
        ways = ["field's form", "plain", "vpgfast"]
    # TAN's products on the moments alone, by the fastest way known (F(4x4, 5x5): 64 products for 16 cells).
    D, N = config.dim, B * M
    tiles = F.max_pool2d(torch.ones(1, K, K).triu(), 4).sum()
    forward = config.tan_layers * 2 * 64 * float(tiles) * N * D * D
    maps, weights = 4 * N * D * K * K, 4 * sum(p.numel() for p in parameters)
    record(
        measure(
            "dmr_jrg",
            f"{data} B={B} M={M} K={K} D={D}",
            [provider(way) for way in ways],
            [p.detach() for p in parameters],
            # Each layer of TAN writes its map; backward reads it again and writes its gradient.
            floor_bytes={
                "forward": config.tan_layers * maps + weights,
                "forward+backward": 3 * (config.tan_layers * maps + weights),
            },
            floor_flops={"forward": forward, "forward+backward": 3 * forward},
            # Where a ReLU's input is nearly zero, rounding decides whether its gradient passes: four layers of that.
            tolerance=1e-2,
            whole_step=True,
        )
    )
