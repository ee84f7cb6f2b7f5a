"""Weights of encoders: found, named by a hash, and read without executing anything that is in them."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vpgfast.errors import ConfigError

_HASHED = (".safetensors", ".bin", ".json", ".txt", ".model", ".npy", ".pt", ".pth")
_CHUNK = 1 << 20


def hash_weights(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file, or of the names and contents of the model files in a folder."""
    total = hashlib.sha256()
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in _HASHED and f.is_file())
    for file in files:
        if file != path:
            total.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                total.update(chunk)
    return total.hexdigest()


def hash_all(*paths: Path) -> str:
    """SHA-256 (hexadecimal) of several files or folders."""
    return hashlib.sha256("".join(map(hash_weights, paths)).encode()).hexdigest()


def find_file(weights: str | None, family: str, what: str) -> Path:
    """The weights' file of a spec.

    Args:
        weights: what stands behind the colon of the spec.
        family: the encoder's name.
        what: the file's usual name and where its authors publish it, for the message.

    Raises:
        ConfigError: nothing is given, or no file is there.
    """
    if not weights:
        raise ConfigError(f"encoder {family}: needs its weights' file, as in --encoder {family}:FILE; {what}")
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ConfigError(f"encoder {family}: no file {path}; give it as --encoder {family}:FILE; {what}")
    return path


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict of a ``.safetensors`` file or of one that ``torch.save`` wrote, by its dotted names.

    A state dict inside a dict, under ``state_dict``, ``model_state`` or ``model``, is taken out.

    Raises:
        ConfigError: the file is damaged, or would execute code or holds something else than tensors.
    """
    where = f"weights {path}"
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{where}: damaged, or no safetensors file ({error})") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{where}: holds more than tensors, which loading would have to execute; only plain state dicts are read"
        ) from None
    except Exception as error:  # of what is no file of torch.save, its reader raises anything
        raise ConfigError(f"{where}: damaged, or no file of torch.save ({_one_line(error)})") from None
    for name in ("state_dict", "model_state", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"{where}: holds no state dict (a {type(content).__name__})")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _one_line(error: Exception) -> str:
    """What an error of a library says, in one line and not at length."""
    return " ".join(str(error).split())[:120] or type(error).__name__


class _ArraysOnly(pickle.Unpickler):
    """Admits what a pickle of dicts, strings, numbers and numpy arrays needs, and nothing else."""

    allowed: ClassVar = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a pickle as Caffe2 models have it: ``{"blobs": {name: array}}``, or ``{name: array}``.

    Raises:
        ConfigError: the file is damaged, or asks for anything but arrays (nothing of it is executed then).
    """
    where = f"weights {path}"
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{where}: no pickle of arrays alone (found {_one_line(error)}); it was not executed"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        raise ConfigError(f"{where}: damaged, or no pickle ({_one_line(error)})") from None
    content = content.get("blobs", content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: holds a {type(content).__name__}, not arrays by name")
    arrays = {str(name): value for name, value in content.items() if isinstance(value, np.ndarray)}
    if any(value.dtype.kind not in "fiu" for value in arrays.values()):
        raise ConfigError(f"{where}: holds arrays that are no numbers")
    return arrays


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, ignore: tuple[str, ...] = ()) -> None:
    """Put weights into a network, all of them.

    Args:
        network: its names are those of ``tensors``.
        tensors: by name; counters of batch normalisation may be missing.
        path: of the file, for messages.
        ignore: beginnings of names in the file that the network has no use for (a classifier's).

    Raises:
        ConfigError: a weight is missing, too much, or of another shape; names the first.
    """
    own = network.state_dict()
    left = {name for name in tensors if name not in own and not name.startswith(ignore)}
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    if missing:
        raise ConfigError(f"weights {path}: {len(missing)} of {len(own)} are missing, {missing[0]!r} first")
    if left:
        raise ConfigError(f"weights {path}: {len(left)} are of another network, {min(left)!r} first")
    for name, value in own.items():
        if name in tensors and tensors[name].shape != value.shape:
            found = tuple(tensors[name].shape)
            raise ConfigError(f"weights {path}: {name!r} is {found}, this network has {tuple(value.shape)}")
    network.load_state_dict({name: tensors.get(name, value) for name, value in own.items()})
