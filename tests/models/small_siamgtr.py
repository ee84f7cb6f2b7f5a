"""What the tests of SiamGTR start from: small models and batches."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import torch
from small import counted, paragraph_batch, with_random_weights
from torch import Tensor

from vpgfast.data.types import Batch
from vpgfast.models.siamgtr import SiamGTR, SiamGTRConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "siamgtr"
T, D, FEATURE_DIM = 11, 8, 6


def small(**changes) -> SiamGTRConfig:
    settings = {"max_clips": T, "dim": D, "heads": 2, "layers": 2, "feed_forward": 12, "dropout": 0.0, "concepts": 6}
    return SiamGTRConfig(**{**settings, **changes})


def make_model(scale: float = 0.5, **changes) -> SiamGTR:
    return with_random_weights(SiamGTR(small(**changes), FEATURE_DIM, counted()), scale)


def with_settings(model: SiamGTR, **changes) -> SiamGTR:
    """The same weights with other settings of the loss."""
    other = copy(model)
    other.config = replace(model.config, **changes)
    return other


def random_batch(sentences=(3, 1, 4), seed: int = 0, labelled=None, videos=None) -> Batch:
    """Paragraphs of that many sentences of 1 to 5 words; ``labelled`` says which have spans."""
    return paragraph_batch(sentences, (T, FEATURE_DIM), seed, videos, labelled)


def backward(model: SiamGTR, loss: Tensor) -> list[torch.nn.Parameter]:
    model.zero_grad()
    loss.backward()
    return list(model.parameters())
