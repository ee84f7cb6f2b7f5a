"""What the tests of SiamGTR start from: small models and batches."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from small import with_random_weights, word_vectors
from torch import Tensor

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, Paragraph
from vpgfast.models.siamgtr import SiamGTR, SiamGTRConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "siamgtr"
T, D, FEATURE_DIM, VOCABULARY = 11, 8, 6, 20


def small(**changes) -> SiamGTRConfig:
    settings = {"max_clips": T, "dim": D, "heads": 2, "layers": 2, "feed_forward": 12, "dropout": 0.0, "concepts": 6}
    return SiamGTRConfig(**{**settings, **changes})


def counted() -> WordVectors:
    counts = np.zeros(VOCABULARY, np.int64)
    counts[[3, 7, 4, 12]] = [5, 9, 2, 2]
    return replace(word_vectors(VOCABULARY), content_counts=counts)


def make_model(scale: float = 0.5, **changes) -> SiamGTR:
    return with_random_weights(SiamGTR(small(**changes), FEATURE_DIM, counted()), scale)


def with_settings(model: SiamGTR, **changes) -> SiamGTR:
    """The same weights with other settings of the loss."""
    other = copy(model)
    other.config = replace(model.config, **changes)
    return other


def random_batch(sentences=(3, 1, 4), seed: int = 0, labelled=None, videos=None) -> Batch:
    """Paragraphs of that many sentences of 1 to 5 words; ``labelled`` says which have spans."""
    generator = torch.Generator().manual_seed(seed)
    B, M = len(sentences), max(sentences)
    there = torch.arange(M) < torch.tensor(sentences).unsqueeze(1)
    lengths = torch.randint(1, 6, (B, M, 1), generator=generator) * there.unsqueeze(2)
    lengths[0, 0] = 5
    word_mask = torch.arange(5) < lengths
    names = videos or [f"v{b}" for b in range(B)]
    items = zip(names, sentences, range(1, B + 1), strict=True)
    spans = torch.rand(B, M, 2, generator=generator).sort(-1).values * there.unsqueeze(2)
    known = None if labelled is None else torch.tensor(labelled)
    return Batch(
        paragraphs=[Paragraph(name, 10.0 * place, ("a",) * count) for name, count, place in items],
        video=torch.randn(B, T, FEATURE_DIM, generator=generator, dtype=torch.float64),
        video_mask=torch.ones(B, T, dtype=torch.bool),
        words=torch.randint(1, VOCABULARY, word_mask.shape, generator=generator) * word_mask,
        word_mask=word_mask,
        sentence_mask=there,
        durations=10.0 * torch.arange(1, B + 1, dtype=torch.float64),
        labelled=known,
        spans=None if known is None else spans.double() * known[:, None, None],
    )


def backward(model: SiamGTR, loss: Tensor) -> list[torch.nn.Parameter]:
    model.zero_grad()
    loss.backward()
    return list(model.parameters())
