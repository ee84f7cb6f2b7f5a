"""A training step of SiamGTR against the field's form and the best plain PyTorch, with the same weights.

The optimiser is left out: it is the same for all. So is dropout, whose masks would differ.
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from vpgfast.data.types import Batch
from vpgfast.models import siamgtr
from vpgfast.models.siamgtr import SiamGTR, SiamGTRConfig
from vpgfast.models.siamgtr_training import Insertions, draw_insertions

from . import field_siamgtr
from .field_siamgtr import FieldSiamGTR, plain
from .measure import Provider, measure
from .paragraphs import FEATURE_DIM, random_batch, random_vectors

VOCABULARY, SENTENCES = 2000, 4


class Step(nn.Module):
    """One of several ways to compute the loss of a model and a batch."""

    def __init__(self, model: SiamGTR) -> None:
        super().__init__()
        self.model, self.plain = model, plain(model)
        self.ways = {
            "one paragraph after another": FieldSiamGTR(model).loss,
            "batched": lambda batch: self.plain.loss(batch)["loss"],
            "batched, compiled": torch.compile(lambda batch: self.plain.loss(batch)["loss"]),
            "vpgfast": lambda batch: model.loss(batch)["loss"],
        }

    def forward(self, way: str, batch: Batch) -> Tensor:
        return self.ways[way](batch)


def make_step(B: int, device: torch.device) -> tuple[Step, Batch]:
    """A model of the paper's size with random weights, and a random batch of paragraphs of four sentences."""
    torch.manual_seed(0)
    config = SiamGTRConfig(dropout=0)
    model = SiamGTR(config, FEATURE_DIM, random_vectors(VOCABULARY)).to(device)
    return Step(model), random_batch(B, SENTENCES, config.max_clips, VOCABULARY).to(device)


@pytest.mark.parametrize("B", [4, 32])  # the paper's is 32
def test_siamgtr(B: int, device: torch.device, eager_only: bool, record) -> None:
    step, batch = make_step(B, device)
    names = [name for name, _ in step.model.named_parameters()]
    drawn = draw_insertions(batch, step.model.config)

    def same_draws(*_: object) -> Insertions:
        return drawn

    def provider(way: str) -> Provider:
        where = "plain" if way.startswith("batched") else "model"

        def run(*weights: Tensor) -> Tensor:
            with (
                mock.patch.object(siamgtr, "draw_insertions", same_draws),
                mock.patch.object(field_siamgtr, "draw_insertions", same_draws),
            ):
                named = {f"{where}.{name}": weight for name, weight in zip(names, weights, strict=True)}
                return functional_call(step, named, (way, batch))

        return Provider(way, run, is_ours=way == "vpgfast", is_fields=way == "one paragraph after another")

    config = step.model.config
    T, D, K = config.max_clips, config.dim, config.layers
    rows = 2 * B * T  # clips of both branches
    encoder = K * (2 * rows * D * (6 * D + 2 * config.feed_forward) + 4 * rows * T * D)
    project = 2 * B * T * FEATURE_DIM * D
    forward = encoder + project
    parameters = [p.detach() for p in step.model.parameters()]
    weights, features = 4 * sum(p.numel() for p in parameters), 4 * batch.video.numel()
    record(
        measure(
            "siamgtr",
            f"ActivityNet B={B} d_v={FEATURE_DIM} T={T} D={D} M={SENTENCES}",
            [provider(way) for way in step.ways if not (eager_only and way.endswith("compiled"))],
            parameters,
            floor_bytes={"forward": features + weights, "forward+backward": 2 * (features + weights) + weights},
            # The video encoder's products; backward by the weights and by what lies before, but for the features.
            floor_flops={"forward": forward, "forward+backward": 3 * forward - project},
            tolerance=3e-3,
            whole_step=True,
        )
    )
