"""The interface that every method implements, and the registry that finds one by name.

Training, evaluation and grounding know methods through this file alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, BatchNeeds, Prediction
from vpgfast.errors import ConfigError

METHODS = {
    "seqpan": "vpgfast.models.seqpan:SeqPAN",
    "marn": "vpgfast.models.marn:MARN",
    "wsra": "vpgfast.models.wsra:WSRA",
    "siamgtr": "vpgfast.models.siamgtr:SiamGTR",
    "dmr_jrg": "vpgfast.models.dmr_jrg:DMRJRG",
}
"""Name of each method -> where its class is; imported only when asked for."""


@dataclass  # or jsonargparse would not see dataclasses in those of the methods
class MethodConfig:
    """What the settings of all methods share: checks that name the method and the setting."""

    method: ClassVar[str]

    def require(self, names: str, must: str, holds: Callable[[Any], bool]) -> None:
        """Refuse settings (``names``, separated by spaces) for which ``holds`` is false; ``must`` says it in words.

        Raises:
            ConfigError: one does not hold.
        """
        for name in names.split():
            if not holds(getattr(self, name)):
                raise ConfigError(f"{self.method}: {name} must {must}, got {getattr(self, name)}")

    def require_weights(self) -> None:
        """Refuse negative weights of losses, the settings that end in ``_weight``."""
        weights = " ".join(name for name in vars(self) if name.endswith("_weight"))
        self.require(weights, "be 0 or more", lambda value: value >= 0)


class Method(nn.Module, ABC):
    """A grounding method: a config dataclass, what it needs of a batch, a loss and a prediction."""

    name: ClassVar[str]
    """Its name in :data:`METHODS`, in configs and in checkpoints."""
    Config: ClassVar[type[MethodConfig]]
    """Dataclass of its settings, every one with a default."""
    config: Any

    @staticmethod
    @abstractmethod
    def needs(config: Any) -> BatchNeeds:
        """What a batch must hold for a method with this config."""

    @abstractmethod
    def __init__(self, config: Any, feature_dim: int, word_vectors: WordVectors) -> None:
        """Args: its ``Config``; width d_v of the clip features; the vocabulary with its vectors [V, d_w]."""
        super().__init__()

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars to log; ``"loss"`` is the one to minimise."""

    @abstractmethod
    def predict(self, batch: Batch, top_n: int = 10) -> Prediction:
        """The ``top_n`` best spans of each sentence."""

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


def get_method(name: str) -> type[Method]:
    """The class of a method. Raises ``KeyError`` for an unknown name."""
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(module), attribute)
