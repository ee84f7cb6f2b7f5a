"""Checkpoints: a model file that holds all that grounding needs, and a training state to resume from.

``best.safetensors`` is the model: weights, method, settings, feature width and source, vocabulary and word vectors.
``training_state.pt`` is the run: weights, optimiser, random generators, epoch, history. Both are written whole or not
at all.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from vpgfast.config import TrainConfig, from_dict
from vpgfast.data.text import WordVectors
from vpgfast.encoders.identity import Identity
from vpgfast.errors import CheckpointError
from vpgfast.files import MODEL_FILE, SHARED_MODEL_FILE, kind_of, reading, write_file
from vpgfast.models.method import Method
from vpgfast.models.registry import METHODS, get_method

_FORMAT = "1"
_WEIGHTS = "weights."  # prefix of the model's own tensors in the file
_VECTORS = "word_vectors"


@dataclass
class Checkpoint:
    """A trained model and everything that is needed to use it.

    Attributes:
        method: its name in the registry.
        settings: of the run that made it, as :func:`vpgfast.config.to_dict` gives them.
        feature_dim: width d_v of the clip features it takes.
        feature_source: what those features are.
        encoder: what made them, where that is known.
        corpus: name of the corpus it was trained on.
        word_vectors: its vocabulary.
        weights: the model's state dict.
        epoch: epochs trained when it was saved.
        score: its validation score.
        clips: how many clips the features of a training video have, the median; 0 if that is not known.
    """

    method: str
    settings: dict[str, Any]
    feature_dim: int
    feature_source: str
    encoder: Identity | None
    corpus: str
    word_vectors: WordVectors
    weights: dict[str, Tensor]
    epoch: int
    score: float
    clips: int = 0


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a model file. Raises :class:`CheckpointError` as :func:`write_file`."""
    tensors = {_WEIGHTS + name: value.detach().cpu().contiguous().clone() for name, value in checkpoint.weights.items()}
    tensors[_VECTORS] = torch.from_numpy(checkpoint.word_vectors.vectors)
    metadata = {
        "format": _FORMAT,
        "method": checkpoint.method,
        "settings": json.dumps(checkpoint.settings),
        "feature_dim": str(checkpoint.feature_dim),
        "feature_source": checkpoint.feature_source,
        "encoder": checkpoint.encoder.to_json() if checkpoint.encoder else "",
        "corpus": checkpoint.corpus,
        "words": json.dumps(checkpoint.word_vectors.words),
        "word_source": checkpoint.word_vectors.source,
        "epoch": str(checkpoint.epoch),
        "score": repr(checkpoint.score),
        "clips": str(checkpoint.clips),
    }
    write_file(path, to_safetensors(tensors, metadata))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a model file, or the one in a run's folder or in one that was made to be shared.

    Raises:
        CheckpointError: there is none, it is damaged, or it was not written by this package.
    """
    if path.is_dir():
        shared = path / SHARED_MODEL_FILE
        path = shared if shared.is_file() and not (path / MODEL_FILE).is_file() else path / MODEL_FILE
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: no such file; give a .safetensors file or a run's folder")
    try:
        path.open("rb").close()  # safetensors calls whatever keeps a file from being opened "no such file"
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: can't be opened ({error.strerror})") from None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        kind = kind_of(path)
        what = f"is {kind}, no safetensors file" if kind else f"damaged, or no safetensors file ({error})"
        raise CheckpointError(f"checkpoint {path}: {what}") from None
    if metadata.get("format") != _FORMAT or _VECTORS not in tensors:
        raise CheckpointError(f"checkpoint {path}: not a vpgfast checkpoint of format {_FORMAT}")
    vectors = tensors.pop(_VECTORS).numpy()
    try:
        return Checkpoint(
            method=metadata["method"],
            settings=json.loads(metadata["settings"]),
            feature_dim=int(metadata["feature_dim"]),
            feature_source=metadata["feature_source"],
            encoder=Identity.from_json(metadata["encoder"]) if metadata.get("encoder") else None,
            corpus=metadata["corpus"],
            word_vectors=WordVectors(json.loads(metadata["words"]), vectors, metadata["word_source"]),
            weights={name.removeprefix(_WEIGHTS): value for name, value in tensors.items()},
            epoch=int(metadata["epoch"]),
            score=float(metadata["score"]),
            clips=int(metadata.get("clips", 0)),
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: its description is damaged ({error!r})") from None


def build_model(checkpoint: Checkpoint, config: Any, path: Path) -> Method:
    """The trained model, in evaluation mode.

    Args:
        checkpoint: as loaded.
        config: the method's own config.
        path: of the checkpoint, for messages.

    Raises:
        CheckpointError: the method is unknown here, or the weights are not those of a model that ``config`` makes.
    """
    if checkpoint.method not in METHODS:
        raise CheckpointError(
            f"checkpoint {path}: made by method {checkpoint.method!r}, known here are {', '.join(METHODS)}"
        )
    model = get_method(checkpoint.method)(config, checkpoint.feature_dim, checkpoint.word_vectors)
    load_weights(model, checkpoint.weights, path)
    model.usual_clips = checkpoint.clips
    return model.eval()


def settings_of(checkpoint: Checkpoint, path: Path, argv: Sequence[str]) -> TrainConfig:
    """The settings of the run that made a checkpoint, changed by ``argv``.

    Raises:
        CheckpointError: ``argv`` asks for another method than the checkpoint's.
        ConfigError: as :func:`vpgfast.config.parse_train`.
    """
    if checkpoint.method not in METHODS:
        raise CheckpointError(
            f"checkpoint {path}: made by method {checkpoint.method!r}, known here are {', '.join(METHODS)}"
        )
    asked = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    asked.add_argument("--method", default=checkpoint.method)
    method = asked.parse_known_args(argv)[0].method
    if method != checkpoint.method:
        raise CheckpointError(f"checkpoint {path}: made by method {checkpoint.method!r}, not by {method!r}")
    config = from_dict(checkpoint.settings, f"checkpoint {path}", argv, "python -m vpgfast.evaluate")
    return replace(config, output=None)


def load_weights(model: Method, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put weights into a model; raises :class:`CheckpointError` naming what doesn't fit."""
    model.check_weights(weights, path)
    own = model.state_dict()
    # Scales of older checkpoints are scalars.
    weights = {name: value.reshape(1) if value.dim() == 0 and name in own else value for name, value in weights.items()}
    for name, value in own.items():
        if name not in weights:
            raise CheckpointError(f"checkpoint {path}: has no weight {name!r} of {model.name} with these settings")
        if weights[name].shape != value.shape:
            shapes = f"{tuple(weights[name].shape)}, these settings of {model.name} make it {tuple(value.shape)}"
            raise CheckpointError(f"checkpoint {path}: weight {name!r} is {shapes}")
    for name in weights:
        if name not in own:
            raise CheckpointError(f"checkpoint {path}: its weight {name!r} is none of {model.name} with these settings")
    model.load_state_dict(weights)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training state (tensors, numbers, strings, lists, dicts). Raises as :func:`write_file`."""
    buffer = io.BytesIO()  # torch's own file writer hides a full disk in a RuntimeError
    torch.save(dict(state), buffer)
    write_file(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state, to the CPU. Raises :class:`CheckpointError` if it is damaged."""

    def say(error: Exception) -> CheckpointError:
        reason = str(error).split("\n")[0]
        return CheckpointError(f"training state {path}: damaged ({reason}); start anew with --overwrite")

    # Of a damaged file torch warns of protocols that it does not know before it says what is wrong.
    with reading(say), warnings.catch_warnings(action="ignore"):
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or "epoch" not in state:
        raise CheckpointError(f"training state {path}: not a vpgfast training state; start anew with --overwrite")
    return state


def random_state() -> dict[str, Any]:
    """The state of every random generator that a run uses: python, numpy, torch, and CUDA where there is one."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 (the global one, in case a library draws from it)
    return {
        "python": random.getstate(),
        "numpy": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            **{name: numpy_state[name] for name in ("has_gauss", "gauss")},
            "pos": numpy_state["state"]["pos"],
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """The inverse of :func:`random_state`."""
    random.setstate(state["python"])
    numpy_state = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        {
            "bit_generator": "MT19937",
            "state": {"key": numpy_state["key"].numpy().astype(np.uint32), "pos": numpy_state["pos"]},
            "has_gauss": numpy_state["has_gauss"],
            "gauss": numpy_state["gauss"],
        }
    )
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
