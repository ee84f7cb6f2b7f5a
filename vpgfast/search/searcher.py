"""A model that makes vectors and grounds: what an index is made and asked with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vpgfast.cache import encoded
from vpgfast.checkpoint import Checkpoint, build_model, load_checkpoint, settings_of
from vpgfast.config import TrainConfig, flatten
from vpgfast.data.types import BatchNeeds, Paragraph
from vpgfast.encoders.base import Encoded, Encoder
from vpgfast.errors import ConfigError
from vpgfast.ground.grounding import Grounding, ground
from vpgfast.models.embed import check_finds_videos, embed_clips, embed_texts
from vpgfast.models.method import Method
from vpgfast.models.registry import get_method
from vpgfast.run_encoder import encoder_of


@dataclass
class Searcher:
    """A model that is ready to make vectors and to ground.

    Attributes:
        checkpoint: its file's content.
        config: settings of its run.
        model: on ``device``, in evaluation mode.
        needs: what it asks of a batch.
        device: where it is.
        encoder_spec: where the encoder of its features is, if not where it was.
    """

    checkpoint: Checkpoint
    config: TrainConfig
    model: Method
    needs: BatchNeeds
    device: torch.device
    encoder_spec: str | None = None

    @classmethod
    def load(cls, path: Path, settings: Sequence[str], encoder: str | None = None) -> Searcher:
        """From a checkpoint and settings of its run that are changed, and a spec for where its encoder is now.

        Raises:
            CheckpointError, ConfigError: as for ``evaluate``; or the method has no retrieval branch.
        """
        checkpoint = load_checkpoint(path)
        config = settings_of(checkpoint, path, settings)
        check_finds_videos(checkpoint.method)
        device = _device(config.accelerator)
        model = build_model(checkpoint, config.model, path).to(device)
        return cls(checkpoint, config, model, get_method(config.method).needs(config.model), device, encoder)

    def changed_settings(self) -> list[str]:
        """What of the model and the data is set otherwise than in the checkpoint's run: arguments with whole paths."""
        run = settings_of(self.checkpoint, Path("of the index"), [])
        before, now = (flatten({"model": asdict(one.model), "data": asdict(one.data)}) for one in (run, self.config))
        return [f"--{key}={_as_argument(value)}" for key, value in now.items() if value != before[key]]

    @cached_property
    def encoder(self) -> Encoder:
        """Made when the first video comes. Raises as :func:`vpgfast.run_encoder.encoder_of`."""
        return encoder_of(self.checkpoint, self.encoder_spec, self.device)

    def encode(self, video: Path) -> Encoded:
        """Clip features of a video file, from the cache where it was seen before.

        Raises:
            VideoError: it can't be read.
        """
        return encoded(self.encoder, video, cache=self.config.data.cache)

    def embed_videos(self, features: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [B, E] of length 1 from B videos' clips [T_b, d_v]."""
        return embed_clips(self.model, features, self.needs, self.device)

    def embed_query(self, sentences: Sequence[str]) -> np.ndarray:
        """float32 [1, E] of length 1; the query's sentences make one paragraph."""
        paragraph = Paragraph("query", 1.0, tuple(sentences))  # its length in seconds is not known, and not read
        vectors, width = self.checkpoint.word_vectors, self.checkpoint.feature_dim
        return embed_texts(self.model, [paragraph], vectors, self.needs, width, self.device)

    def probe(self) -> list[list[float]]:
        """What the model makes of fixed inputs, E numbers of each: two videos, short and long, and a paragraph.

        Another model, or settings that change vectors, make something else.
        """
        random = np.random.default_rng(0)
        videos = [random.standard_normal((clips, self.checkpoint.feature_dim)) for clips in (8, 300)]
        known = " ".join(self.checkpoint.word_vectors.words[2:12])
        paragraph = self.embed_query([f"A person opens a door {known}.", "Then they walk in and sit down."])
        rows = np.concatenate((self.embed_videos([video.astype(np.float32) for video in videos]), paragraph))
        return [[round(value, 6) for value in row] for row in rows.tolist()]

    def ground(self, features: np.ndarray, duration: float, sentences: Sequence[str], spans: int) -> Grounding:
        """When each sentence happens in a video."""
        return ground(self.model, self.config, self.checkpoint.word_vectors, features, duration, sentences, spans)


def _device(accelerator: str) -> torch.device:
    """As Lightning Fabric chooses, whose import is 1.4 of the 3.2 s of CPU that search would take to start."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if accelerator == "cpu" or (accelerator == "auto" and found is None):
        return torch.device("cpu")
    if found is not None and accelerator in ("auto", "gpu", found.type):
        return found
    here = f"cpu and {found.type}" if found else "only cpu"
    raise ConfigError(f"accelerator is {accelerator!r}, but torch sees {here} here; choose with --accelerator")


def _as_argument(value: Any) -> str:
    """The value of a setting as a command line has it, wherever it is given."""
    if isinstance(value, Path):
        return str(value.absolute())
    return value if isinstance(value, str) else json.dumps(value)
