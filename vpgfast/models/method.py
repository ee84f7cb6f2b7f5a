"""The interface that every method implements: training, evaluation and grounding know methods through it alone.

Methods are found by name in :mod:`vpgfast.models.registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, BatchNeeds, FeatureReader, Prediction
from vpgfast.models.candidates import Candidates
from vpgfast.models.configs.base import MethodConfig
from vpgfast.nn.constants import ModuleWithConstants


class Method(ModuleWithConstants, ABC):
    """A grounding method: a config dataclass, what it needs of a batch, a loss and a prediction."""

    name: ClassVar[str]
    """Its name in :data:`vpgfast.models.registry.METHODS`, in configs and in checkpoints."""
    Config: ClassVar[type[MethodConfig]]
    """Dataclass of its settings, every one with a default."""
    config: Any
    usual_clips: int = 0
    """How many clips the features of a training video have, the median; 0 where that is not known."""

    @staticmethod
    @abstractmethod
    def needs(config: Any) -> BatchNeeds:
        """What a batch must hold for a method with this config."""

    @abstractmethod
    def __init__(self, config: Any, feature_dim: int, word_vectors: WordVectors) -> None:
        """Args: its ``Config``; width d_v of the clip features; the vocabulary with its vectors [V, d_w]."""
        if torch.empty(0).is_meta:
            raise ValueError(
                f"{self.name} can't be made on the meta device, where its vocabulary has no values; methods are small: "
                "make it on the CPU"
            )
        super().__init__()

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars to log; ``"loss"`` is the one to minimise."""

    @abstractmethod
    def predict(self, batch: Batch, top_n: int = 10) -> Prediction:
        """The ``top_n`` best spans of each sentence."""

    def at_random(self, batch: Batch, top_n: int, generator: torch.Generator) -> Prediction | None:
        """The spans that it would choose among, ranked at random and suppressed as it does; the network is not asked.
        ``None``: it has no such list.

        Args:
            generator: of the order, on the CPU.
        """
        return None

    def true_labels(self, batch: Batch) -> Tensor | None:
        """What :attr:`vpgfast.data.types.Prediction.labels` should be, int64 [B, M, T]; ``None``: it has none, or the
        batch holds no spans."""
        return None

    def candidates(self, batch: Batch, count: int) -> Candidates | None:
        """The ``count`` best spans of single sentences, [B, P, 2] in seconds, P <= ``count``, with scores that can be
        compared between parts of one video, as logarithms; ``None``: it has no such scores.
        """
        return None

    def read_with(self, features: FeatureReader) -> None:
        """Told whose features it will see, before it predicts; for methods that read sentences as their encoder does.

        Raises:
            ConfigError: it can't.
        """

    def check_weights(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """Refuse weights from ``path`` that were trained beside something else than what this model was given.

        Raises:
            CheckpointError: they were; says what to give instead.
        """


class RetrievalMethod(Method):
    """A method that also finds the video that a paragraph describes: both become vectors of length 1, compared by
    their product."""

    @abstractmethod
    def embed_videos(self, video: Tensor, video_mask: Tensor) -> Tensor:
        """Clips [B, T, d_v] (float32, brought to `needs`) and bool [B, T] -> float32 [B, E] of length 1."""

    @abstractmethod
    def embed_paragraphs(self, batch: Batch) -> Tensor:
        """The texts of a batch (its video is not read) -> float32 [B, E] of length 1."""
