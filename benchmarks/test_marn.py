"""A training step of MARN, and its proposal module alone, against the field's form with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, Paragraph
from vpgfast.models.marn import MARN, MARNConfig

from .field_marn import FieldMARN
from .measure import Provider, measure

FEATURE_DIM, WORD_DIM, VOCABULARY, WORDS = 4096, 300, 8000, 20
CONFIGS = {
    "Charades-STA": MARNConfig(),
    "ActivityNet": MARNConfig(max_clips=128, scales=list(range(2, 129, 2)), scale_stride="quarter", reduction=32),
}


class Step(nn.Module):
    """One of several ways to compute something from a model's weights and a batch."""

    def __init__(self, model: MARN) -> None:
        super().__init__()
        self.model, self.field = model, FieldMARN(model)

    def forward(self, way: str, batch: Batch) -> Tensor:
        if way == "ours":
            return self.model.loss(batch)["loss"]
        if way == "field":
            return self.field.loss(batch)
        branch, video = self.model.proposals, batch.video.transpose(1, 2)
        if way == "our proposals":
            return self.model.representation(branch.reduce(video), branch.grid)
        return branch.grid.to_list(self.field.proposals(branch, self.field.maps[0], video))


def make_step(data: str, B: int, device: torch.device) -> tuple[Step, Batch]:
    """A model of the paper's size with random weights, and a random batch."""
    words = ["<pad>", "<unk>", *map(str, range(VOCABULARY - 2))]
    numbers = np.random.default_rng(0).standard_normal((VOCABULARY, WORD_DIM), dtype=np.float32)
    torch.manual_seed(0)
    config = CONFIGS[data]
    model = MARN(config, FEATURE_DIM, WordVectors(words, numbers, "random")).to(device)
    T = config.max_clips
    mask = torch.ones(B, 1, WORDS, dtype=torch.bool)
    batch = Batch(
        paragraphs=[Paragraph(str(b), 60.0, ("",)) for b in range(B)],
        video=torch.randn(B, T, FEATURE_DIM),
        video_mask=torch.ones(B, T, dtype=torch.bool),
        words=torch.randint(2, VOCABULARY, mask.shape),
        word_mask=mask,
        sentence_mask=torch.ones(B, 1, dtype=torch.bool),
        durations=torch.full((B,), 60.0, dtype=torch.float64),
    )
    return Step(model), batch.to(device)


@pytest.mark.parametrize(("data", "B"), [("Charades-STA", 16), ("ActivityNet", 4)])
@pytest.mark.parametrize("part", ["step", "proposals"])
def test_marn(data: str, B: int, part: str, device: torch.device, record) -> None:
    step, batch = make_step(data, B, device)
    model, config = step.model, step.model.config
    # What a training step changes; the features of the clips take no gradient.
    trained = dict(model.proposals.reduce.named_parameters(prefix="model.proposals.reduce"))
    trained |= dict(model.representation.named_parameters(prefix="model.representation"))
    if part == "step":
        trained = {f"model.{name}": p for name, p in model.named_parameters()}

    def provider(name: str, way: str, **roles: bool) -> Provider:
        def run(*weights: Tensor) -> Tensor:
            return functional_call(step, dict(zip(trained, weights, strict=True)), (way, batch))

        return Provider(name, run, **roles)

    ways = ("field", "ours") if part == "step" else ("field's proposals", "our proposals")
    providers = [provider("dense matrix", ways[0], is_fields=True), provider("vpgfast", ways[1], is_ours=True)]
    T, D, P, N = config.max_clips, config.dim, len(model.proposals.grid), config.samples
    C = model.proposals.reduce.out_channels
    reduce, sample = 2 * B * T * C * FEATURE_DIM * config.conv_kernel, 2 * B * N * D * C * T
    forward = reduce + sample
    if part == "step":  # both branches, the attention's products, and the decoder twice
        decoder = 2 * B * WORDS * (4 * D * (2 * D + WORD_DIM) + D * VOCABULARY)
        forward = 2 * (reduce + sample + decoder) + 2 * B * D * D * (P + T)
    weights = 4 * sum(p.numel() for p in trained.values())
    features = 4 * batch.video.numel()
    record(
        measure(
            "marn" if part == "step" else "marn proposals",
            f"{data} B={B} d_v={FEATURE_DIM} T={T} P={P}",
            providers,
            [p.detach() for p in trained.values()],
            floor_bytes={"forward": features + weights, "forward+backward": 2 * (features + weights) + weights},
            # Backward: by the weights and by what lies before, but for the first convolution, whose input is data.
            floor_flops={"forward": forward, "forward+backward": 3 * forward - reduce * (2 if part == "step" else 1)},
            # The attention's gradients nearly cancel: with AVX2 the dense form's are 0.9 % off those in float64.
            tolerance=1e-2,
            whole_step=True,
        )
    )
