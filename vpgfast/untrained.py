"""Models that nobody trained: ``similarity`` on an encoder, where a command takes a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vpgfast.cache import cache_folder
from vpgfast.checkpoint import Checkpoint, save_checkpoint
from vpgfast.data.text import WordVectors
from vpgfast.data.types import FeatureReader
from vpgfast.encoders.identity import Identity
from vpgfast.encoders.specs import ENCODERS
from vpgfast.errors import CheckpointError, ConfigError

METHOD = "similarity"
NO_WORDS = WordVectors(["<pad>", "<unk>"], np.zeros((2, 1), np.float32), "none")
"""The vocabulary of a method that reads sentences as they were written."""


def is_untrained(given: Path) -> bool:
    """Whether a command's CHECKPOINT is an encoder's spec, or the name of the method, and no file or folder."""
    return not given.exists() and (str(given) == METHOD or str(given).partition(":")[0].partition(",")[0] in ENCODERS)


def checkpoint_of(given: Path, features: FeatureReader | None = None) -> Checkpoint:
    """The method on the encoder that a spec names, or on the one that made some features (none yet: of no width)."""
    spec = None if str(given) == METHOD else str(given)
    if features is None:
        return _checkpoint(spec, 0, "none", None)
    return _checkpoint(spec, features.dim, features.source, features.encoder)


def as_checkpoint(given: Path) -> Path:
    """A command's CHECKPOINT as a file or folder: itself, or for a spec a file in the cache that holds the method.

    Raises:
        ConfigError, CheckpointError: the spec is wrong, its weights are missing, or it reads no text.
    """
    if not is_untrained(given):
        return given
    if str(given) == METHOD:
        raise CheckpointError(f"{METHOD}: name its encoder by a spec in place of the method (objects, clip:FOLDER)")
    from vpgfast.encoders.base import load_encoder  # and PyAV with it, which trained models do without

    encoder = load_encoder(str(given))
    if not encoder.has_text:
        raise ConfigError(f"encoder {given}: reads no text, so it answers nothing untrained; objects and clip do")
    identity = encoder.identity()
    path = cache_folder() / "untrained" / f"{identity.family}-{identity.key[:16]}.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"cache folder {path.parent}: {error.strerror}; name another by the environment's VPGFAST_CACHE"
        ) from None
    save_checkpoint(path, _checkpoint(identity.spec, encoder.dim, identity.spec, identity))
    return path


def _checkpoint(spec: str | None, dim: int, source: str, identity: Identity | None) -> Checkpoint:
    return Checkpoint(
        method=METHOD,
        settings={"method": METHOD, "model": {"encoder": spec}},
        feature_dim=dim,
        feature_source=source,
        encoder=identity,
        corpus="none",
        word_vectors=NO_WORDS,
        weights={"place": torch.empty(0)},
        epoch=0,
        score=float("nan"),
    )
