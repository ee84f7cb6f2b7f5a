"""What the tests of all methods start from: a small vocabulary, and models that hide no mistake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, Paragraph

Model = TypeVar("Model", bound=nn.Module)
VOCABULARY = 20


def word_vectors(size: int = VOCABULARY, dim: int = 5) -> WordVectors:
    vectors = np.random.default_rng(0).normal(size=(size, dim)).astype(np.float32)
    vectors[0] = 0
    return WordVectors(["<pad>", "<unk>"] + [f"word{i}" for i in range(size - 2)], vectors, "random")


def with_random_weights(model: Model, scale: float, dtype: torch.dtype = torch.float64) -> Model:
    """The model with all of its parameters random: no zero biases and no unit scales that could hide a mistake."""
    generator = torch.Generator().manual_seed(1)
    model = model.to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def counted() -> WordVectors:
    """Word vectors of a corpus in which four words have been counted."""
    counts = np.zeros(VOCABULARY, np.int64)
    counts[[3, 7, 4, 12]] = [5, 9, 2, 2]
    return replace(word_vectors(), content_counts=counts)


def mask_of(*counts: int) -> Tensor:
    """Of rows that hold so many."""
    return torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)


def ids_of(changes: dict[str, object]) -> str:
    """A test's name for settings that are not the default ones."""
    return ",".join(f"{key}={value}" for key, value in changes.items()) or "default"


def paragraph_batch(
    sentences: Sequence[int],
    video: tuple[int, int],
    seed: int = 0,
    videos: Sequence[str] | None = None,
    labelled: Sequence[bool] | None = None,
) -> Batch:
    """Random paragraphs of that many sentences of 1 to 5 words, each of its own video of T clips of width d.

    Args:
        sentences: of each paragraph.
        video: T and d.
        seed: of the content.
        videos: their names.
        labelled: which paragraphs have spans; None: none, and no spans either.
    """
    generator = torch.Generator().manual_seed(seed)
    B, M = len(sentences), max(sentences)
    there = mask_of(*sentences)
    lengths = torch.randint(1, 6, (B, M, 1), generator=generator) * there.unsqueeze(2)
    lengths[0, 0] = 5
    word_mask = torch.arange(5) < lengths
    items = zip(videos or [f"v{b}" for b in range(B)], sentences, range(1, B + 1), strict=True)
    batch = Batch(
        paragraphs=[Paragraph(name, 10.0 * place, ("a",) * count) for name, count, place in items],
        video=torch.randn(B, *video, generator=generator, dtype=torch.float64),
        video_mask=torch.ones(B, video[0], dtype=torch.bool),
        words=torch.randint(1, VOCABULARY, word_mask.shape, generator=generator) * word_mask,
        word_mask=word_mask,
        sentence_mask=there,
        durations=10.0 * torch.arange(1, B + 1, dtype=torch.float64),
    )
    if labelled is not None:
        batch.labelled = torch.tensor(labelled)
        spans = torch.rand(B, M, 2, generator=generator, dtype=torch.float64).sort(-1).values
        batch.spans = spans * there.unsqueeze(2) * batch.labelled[:, None, None]
    return batch
