"""Paragraphs and videos as vectors of length 1, by a method that has a retrieval branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vpgfast.data.batches import make_batch, prepare, stack_clips
from vpgfast.data.text import WordVectors
from vpgfast.data.types import BatchNeeds, Paragraph
from vpgfast.errors import ConfigError, EmbeddingError
from vpgfast.models.method import RetrievalMethod
from vpgfast.models.registry import METHODS, get_method


def finds_videos(method: str) -> bool:
    """Whether the method of this name has a retrieval branch."""
    return issubclass(get_method(method), RetrievalMethod)


def check_finds_videos(method: str) -> None:
    """Raises :class:`ConfigError` for a method without a retrieval branch; names those that have one."""
    if not finds_videos(method):
        able = ", ".join(name for name in METHODS if finds_videos(name)) or "none of the methods here"
        raise ConfigError(
            f"method {method!r} grounds sentences in a given video and can't find the video (it has no retrieval "
            f"branch); train one that can: {able}"
        )


@torch.no_grad()
def embed_clips(model: Any, features: Sequence[np.ndarray], needs: BatchNeeds, device: torch.device) -> np.ndarray:
    """Vectors of B videos, float32 [B, E], from their [T_b, d_v] clip features.

    Args:
        model: a :class:`RetrievalMethod` in evaluation mode on ``device``, or what Fabric made of one.

    Raises:
        EmbeddingError: a vector is not finite, or zero.
    """
    video, mask = stack_clips(features, needs)
    return _of_length_1(model.embed_videos(video.to(device), mask.to(device)), "videos")


@torch.no_grad()
def embed_texts(
    model: Any,
    paragraphs: Sequence[Paragraph],
    vectors: WordVectors,
    needs: BatchNeeds,
    feature_dim: int,
    device: torch.device,
) -> np.ndarray:
    """Vectors of B paragraphs, float32 [B, E].

    A paragraph that the method takes in pieces (or sentence by sentence) gets the mean of their vectors, weighted by
    their sentences.

    Args:
        model: as for :func:`embed_clips`.
        vectors: the model's vocabulary.
        feature_dim: width d_v of its clip features (a batch has to hold some, which are not read).

    Raises:
        EmbeddingError: a vector is not finite, or zero.
    """
    pieces = [prepare([paragraph], needs, training=False) for paragraph in paragraphs]
    items = [piece for parts in pieces for piece in parts]
    nothing = np.zeros((1, feature_dim), np.float32)
    batch = make_batch(items, [nothing] * len(items), vectors, needs, training=False)
    found = _of_length_1(model.embed_paragraphs(batch.to(device)), "paragraphs")
    if len(items) == len(paragraphs):
        return found
    weighted = found * np.array([[len(piece.sentences)] for piece in items], np.float32)
    starts = np.cumsum([0, *(len(parts) for parts in pieces[:-1])])
    return _of_length_1(torch.from_numpy(np.add.reduceat(weighted, starts)), "paragraphs")


def _of_length_1(vectors: Tensor, what: str) -> np.ndarray:
    """float32 [B, E] on the CPU, of length 1 whatever the precision of the device left of it.

    Raises:
        EmbeddingError: one has no direction.
    """
    vectors = vectors.detach().to("cpu", torch.float32)
    length = vectors.norm(dim=-1, keepdim=True)
    if not (torch.isfinite(length).all() and (length > 0).all()):
        raise EmbeddingError(
            f"vectors of {what} are not finite, or zero: the features are damaged (are values huge?), or the training "
            "of the model has diverged"
        )
    return (vectors / length).numpy()
