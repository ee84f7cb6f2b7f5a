"""What the tests of all methods start from: a small vocabulary, and models that hide no mistake."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import nn

from vpgfast.data.text import WordVectors

Model = TypeVar("Model", bound=nn.Module)


def word_vectors(size: int = 20, dim: int = 5) -> WordVectors:
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
