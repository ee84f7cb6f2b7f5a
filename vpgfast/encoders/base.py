"""What every encoder is: a spec that names it, what it does to a video, and an identity that its features carry.

A *spec* is ``family:weights[,option=value...]``, such as ``clip:models/clip-vit-base-patch32,fps=2`` or ``objects``.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vpgfast.encoders.identity import Identity
from vpgfast.encoders.presets import PRESETS
from vpgfast.encoders.sampling import Sampling
from vpgfast.encoders.specs import ENCODERS, format_spec, parse_spec, read_options
from vpgfast.encoders.video_clips import VideoClips
from vpgfast.errors import ConfigError
from vpgfast.video import Picture


@dataclass(frozen=True)
class Encoded:
    """What an encoder makes of a video.

    Attributes:
        features: float32 [T, dim].
        times: float64 [T, 2], where each row begins and ends, seconds.
        duration: of the video, seconds.
        problems: what is odd about the file, a line each.
    """

    features: np.ndarray
    times: np.ndarray
    duration: float
    problems: tuple[str, ...] = ()


class Encoder(ABC):
    """Turns videos into rows of features and, where it has a text tower, sentences into the same space.

    A family is a subclass with ``Options``, ``__init__(weights, options)`` and :meth:`encode_clips`.
    """

    family: ClassVar[str]
    """Its name in :data:`ENCODERS`."""
    Options: ClassVar[type]
    """Frozen dataclass of its options, every one with a default and a line in the docstring."""
    files: ClassVar[tuple[str, ...]] = ()
    """Options that name files: what they hold is part of :attr:`sha256`, where they lie is no part of the settings."""
    has_text: ClassVar[bool] = False
    """Whether :meth:`encode_text` works."""

    dim: int
    """Width of a row."""
    sampling: Sampling
    picture: Picture
    batch: int = 8
    """Windows that go through the network at a time."""
    network: nn.Module | None = None
    weights: str | None
    """What stood behind the colon of the spec, as an absolute path where it is one."""
    sha256: str | None = None
    """Hash of the weights; ``None`` for a family without."""
    options: Any
    device: torch.device = torch.device("cpu")

    @abstractmethod
    def __init__(self, weights: str | None, options: Any) -> None:
        """Args: what stands behind the colon of the spec; an instance of ``Options``.

        Raises:
            ConfigError: the weights are missing or not of this network, or an option is wrong.
        """

    @abstractmethod
    def encode_clips(self, clips: Tensor) -> Tensor:
        """uint8 [B, F, H, W, 3] on the encoder's device -> float32 [B, rows, dim]; called without gradients."""

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """float32 [M, dim] of M sentences, comparable with rows by cosine.

        Raises:
            ConfigError: the family has no text tower.
        """
        able = ", ".join(name for name in ENCODERS if get_encoder(name).has_text)
        raise ConfigError(f"encoder {self.family} reads no text; these do: {able}")

    def to(self, device: torch.device | str) -> Encoder:
        """Move the network; returns the encoder itself."""
        self.device = torch.device(device)
        if self.network is not None:
            self.network.to(self.device)
        return self

    def clips(self, path: str | Path, stream: int | None = None, strict: bool = False) -> VideoClips:
        """The windows of a video, not read yet."""
        return VideoClips(Path(path), self.sampling, self.picture, self.batch, stream, strict)

    def finish(self, rows: np.ndarray, times: np.ndarray, duration: float) -> tuple[np.ndarray, np.ndarray]:
        """What becomes of the rows [T, dim] and times [T, 2] of a whole video, for families that need all of it."""
        return rows, times

    @torch.inference_mode()
    def encode(self, video: VideoClips | str | Path, progress: Callable[[float | None], None] | None = None) -> Encoded:
        """Features of one video, in memory that does not grow with its length (its features apart).

        Args:
            video: not read yet.
            progress: is told the share in [0, 1] that is done, or ``None`` where that is not known, after every batch.

        Raises:
            VideoError: it can't be read; names the file.
        """
        source = video if isinstance(video, VideoClips) else self.clips(video)
        rows = []
        for batch in source:
            rows.append(self.encode_batch(batch))
            if progress is not None:
                progress(source.done)
        return self.encoded(rows, source)

    @torch.inference_mode()
    def encode_batch(self, batch: np.ndarray) -> np.ndarray:
        """[B * rows, dim] of uint8 [B, F, H, W, 3] windows, in the precision of the network."""
        on_gpu = self.device.type == "cuda"  # where TF32 would make features differ from a CPU's in the third digit
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if on_gpu else nullcontext():
            found = self.encode_clips(torch.from_numpy(batch).to(self.device, non_blocking=True))
        return found.reshape(-1, found.shape[-1]).cpu().numpy()

    def encoded(self, rows: Sequence[np.ndarray], source: VideoClips) -> Encoded:
        """Put together what :meth:`encode_batch` made of a source that has been read to its end."""
        features, times = self.finish(np.concatenate(rows), source.times, source.duration)
        return Encoded(np.ascontiguousarray(features, np.float32), times, source.duration, source.problems)

    def settings(self) -> dict[str, Any]:
        """Everything but the weights that decides what the features are, as JSON can hold it."""
        options = dataclasses.asdict(self.options)
        return {
            "options": {name: value for name, value in options.items() if name not in self.files},
            "sampling": _changed(self.sampling),
            "picture": _changed(self.picture),
        }

    def identity(self) -> Identity:
        """What features carry, so that others can be made the same way."""
        spec = format_spec(self.family, self.weights, _changed(self.options))
        settings = json.loads(json.dumps(self.settings()))  # as it will be read again: lists for tuples
        return Identity(spec, self.family, self.sha256, self.dim, settings)


def _changed(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their defaults: what a later version adds does not change them."""
    found = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value != field.default:
            found[field.name] = value
    return found


def get_encoder(family: str) -> type[Encoder]:
    """The class of a family. Raises ``KeyError`` for an unknown name."""
    module, _, attribute = ENCODERS[family].partition(":")
    return getattr(import_module(module), attribute)


def load_encoder(spec: str, preset: str | None = None, device: torch.device | str = "cpu") -> Encoder:
    """The encoder that a spec names, ready to use.

    Args:
        spec: see the module.
        preset: name of published settings (:data:`~vpgfast.encoders.presets.PRESETS`); options of the spec come after.
        device: where its network goes.

    Raises:
        ConfigError: the spec, the preset or an option is wrong, or the weights are missing or of another network.
    """
    family, weights, given = parse_spec(spec)
    chosen: dict[str, Any] = {}
    if preset is not None:
        if preset not in PRESETS:
            close = difflib.get_close_matches(preset, PRESETS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(PRESETS)}"
            raise ConfigError(f"--preset {preset}: is not known ({hint})")
        if PRESETS[preset].family != family:
            raise ConfigError(f"--preset {preset}: is of encoder {PRESETS[preset].family}, not of {family}")
        chosen |= PRESETS[preset].options
    kind = get_encoder(family)
    return kind(weights, read_options(kind.Options, given, f"encoder {spec!r}", chosen)).to(device)
