"""A training step of SeqPAN beside the same one compiled by torch.

Nothing of it is an op of ours, and the field's own code, in TensorFlow, writes the equations alike. The optimiser is
left out: it is the same for both. Dropout and the labels' noise are off, so that both give the same loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vpgfast.data.text import NUM_CHARS
from vpgfast.data.types import Batch
from vpgfast.models.seqpan import SeqPAN, SeqPANConfig

from .measure import Provider, measure
from .paragraphs import WORDS, random_batch, random_vectors

FEATURE_DIM, VOCABULARY = 1024, 1300  # I3D on Charades-STA


class Step(nn.Module):
    """One of several ways to compute the loss of a model and a batch."""

    def __init__(self, model: SeqPAN) -> None:
        super().__init__()
        self.model = model
        self.compiled = torch.compile(lambda batch: model.loss(batch)["loss"])

    def forward(self, way: str, batch: Batch) -> Tensor:
        if way == "compiled":
            return self.compiled(batch)
        return self.model.loss(batch)["loss"]


def make_step(B: int, device: torch.device) -> tuple[Step, Batch]:
    """A model of the paper's size with random weights, and a random batch."""
    torch.manual_seed(0)
    model = SeqPAN(SeqPANConfig(), FEATURE_DIM, random_vectors(VOCABULARY)).to(device).eval()
    batch = random_batch(B, 1, model.config.max_clips, VOCABULARY)
    batch.video = torch.randn(B, model.config.max_clips, FEATURE_DIM)
    batch.chars = torch.randint(1, NUM_CHARS, (B, 1, WORDS, 10))
    batch.spans = torch.rand(B, 1, 2, dtype=torch.float64).sort(-1)[0] * batch.durations[:, None, None]
    return Step(model), batch.to(device)


def test_seqpan(device: torch.device, eager_only: bool, record) -> None:
    B = 16
    step, batch = make_step(B, device)
    trained = {f"model.{name}": p for name, p in step.model.named_parameters()}

    def provider(way: str) -> Provider:
        def run(*weights: Tensor) -> Tensor:
            return functional_call(step, dict(zip(trained, weights, strict=True)), (way, batch))

        return Provider(way, run, is_ours=way == "vpgfast")

    T, D = batch.video.shape[1], step.model.config.dim
    matrices = [p for name, p in trained.items() if p.dim() > 1 and "words" not in name and "chars" not in name]
    products = 2 * B * T * sum(p.numel() for p in matrices)  # once for each clip; what words need is little
    weights, features = 4 * sum(p.numel() for p in trained.values()), 4 * batch.video.numel()
    record(
        measure(
            "seqpan",
            f"Charades-STA B={B} d_v={FEATURE_DIM} T={T} D={D}",
            [provider(way) for way in (("vpgfast",) if eager_only else ("compiled", "vpgfast"))],
            [p.detach() for p in trained.values()],
            floor_bytes={"forward": features + weights, "forward+backward": 2 * (features + weights) + weights},
            floor_flops={"forward": products, "forward+backward": 3 * products},
            tolerance=1e-3,
            whole_step=True,
        )
    )
