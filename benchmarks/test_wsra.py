"""A training step of WSRA against the field's form and the best plain PyTorch, with the same weights.

The optimiser is left out: it is the same for all.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, Paragraph
from vpgfast.models.wsra import WSRA, WSRAConfig

from .field_wsra import FieldWSRA, broadcast, tiled
from .measure import Provider, measure

FEATURE_DIM, WORD_DIM, VOCABULARY, WORDS = 1024, 300, 1300, 10


class Step(nn.Module):
    """One of several ways to compute the loss of a model and a batch."""

    def __init__(self, model: WSRA) -> None:
        super().__init__()
        self.model = model
        plain = FieldWSRA(model, broadcast)
        self.ways = {
            "tiled concatenation": FieldWSRA(model, tiled).loss,
            "broadcast": plain.loss,
            "broadcast, compiled": torch.compile(plain.loss),
            "vpgfast": lambda batch: model.loss(batch)["loss"],
        }

    def forward(self, way: str, batch: Batch) -> Tensor:
        return self.ways[way](batch)


def make_step(B: int, device: torch.device) -> tuple[Step, Batch]:
    """A model of the paper's size with random weights, and a random batch of B sentences of B videos."""
    words = ["<pad>", "<unk>", *map(str, range(VOCABULARY - 2))]
    numbers = np.random.default_rng(0).standard_normal((VOCABULARY, WORD_DIM), dtype=np.float32)
    torch.manual_seed(0)
    config = WSRAConfig()
    model = WSRA(config, FEATURE_DIM, WordVectors(words, numbers, "random")).to(device)
    for phi in (model.phi_video, model.phi_snippet):
        # Fresh weights give nearly the same score to all pairs, and gradients of which nothing but rounding is left.
        torch.nn.init.normal_(phi.out.weight, std=0.2)
    mask = torch.ones(B, 1, WORDS, dtype=torch.bool)
    batch = Batch(
        paragraphs=[Paragraph(str(b), 30.0, ("",)) for b in range(B)],
        video=torch.randn(B, config.max_clips, FEATURE_DIM),
        video_mask=torch.ones(B, config.max_clips, dtype=torch.bool),
        words=torch.randint(1, VOCABULARY, mask.shape),
        word_mask=mask,
        sentence_mask=torch.ones(B, 1, dtype=torch.bool),
        durations=torch.full((B,), 30.0, dtype=torch.float64),
    )
    batch.words[0, 0, 0] = 1  # an unknown word, whose vector is trained
    return Step(model), batch.to(device)


@pytest.mark.parametrize("B", [16, 42])  # the paper's is 42
def test_wsra(B: int, device: torch.device, eager_only: bool, record) -> None:
    step, batch = make_step(B, device)
    trained = {f"model.{name}": p for name, p in step.model.named_parameters()}

    def provider(way: str) -> Provider:
        def run(*weights: Tensor) -> Tensor:
            return functional_call(step, dict(zip(trained, weights, strict=True)), (way, batch))

        return Provider(way, run, is_ours=way == "vpgfast", is_fields=way == "tiled concatenation")

    T, H = batch.video.shape[1], step.model.config.hidden
    products = 2 * 2 * B * T * FEATURE_DIM * H  # both phi's first layer on every clip
    pairs = 4 * B * T * B * H  # a sum, a maximum, a product and a sum for each clip, query and hidden unit
    weights, features = 4 * sum(p.numel() for p in trained.values()), 4 * batch.video.numel()
    record(
        measure(
            "wsra",
            f"Charades-STA B={B} d_v={FEATURE_DIM} T={T} H={H}",
            [provider(way) for way in step.ways if not (eager_only and way.endswith("compiled"))],
            [p.detach() for p in trained.values()],
            floor_bytes={"forward": features + weights, "forward+backward": 2 * (features + weights) + weights},
            # Backward by the weights alone: the clips' features are data.
            floor_flops={"forward": products + pairs, "forward+backward": 2 * (products + pairs)},
            # A hidden unit at 0 is on or off by the last bit of a sum, and gradients of random clips cancel: one such
            # unit shows. In float64 tests/models/test_wsra.py finds all ways equal to eight digits.
            tolerance=3e-3,
            whole_step=True,
        )
    )
