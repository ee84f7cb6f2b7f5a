"""``pixels``: what the blob of each colour looks like and how it moves, straight from the pixels.

Made for ``moving_shapes``, whose shapes differ in colour; on natural video it says little more than where which colours
move. See :mod:`vpgfast.data.pixels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vpgfast.data.pixels import PixelFeatures, even_times
from vpgfast.encoders.base import Encoder
from vpgfast.encoders.sampling import Sampling
from vpgfast.errors import ConfigError


@dataclass(frozen=True)
class PixelsOptions:
    """Options of ``pixels``.

    Attributes:
        size: frames are scaled to ``size`` x ``size`` pixels.
        fps: frames looked at a second.
        clips_per_second: rows a second.
        motion: keep only what movement and change alone show, as optical flow does.
    """

    size: int = 64
    fps: float = 8.0
    clips_per_second: float = 2.0
    motion: bool = False

    def __post_init__(self) -> None:
        for name in ("size", "fps", "clips_per_second"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"encoder pixels: {name} must be above 0, got {getattr(self, name):g}")


class Pixels(Encoder):
    """See the module. Rows: float32 [T, 144] (65 of motion), ``T = round(duration * clips_per_second)``, at least 1."""

    family = "pixels"
    Options = PixelsOptions
    batch = 64

    def __init__(self, weights: str | None, options: PixelsOptions) -> None:
        if weights is not None:
            raise ConfigError(f"encoder pixels: takes no weights, found {weights!r}")
        self.weights, self.options = None, options
        self.features = PixelFeatures(options.size, options.fps, options.clips_per_second, options.motion)
        self.dim = self.features.dim
        self.sampling, self.picture = Sampling(options.fps), self.features.picture

    def settings(self) -> dict[str, Any]:
        """Also that what changes belongs to the frame before: features that were made otherwise tell other times."""
        return {**super().settings(), "changes": "until the next frame"}

    def encode_clips(self, clips: Tensor) -> Tensor:
        return torch.from_numpy(self.features.measure(clips.flatten(0, 1).cpu().numpy()))[:, None]

    def finish(self, rows: np.ndarray, times: np.ndarray, duration: float) -> tuple[np.ndarray, np.ndarray]:
        features = self.features.clips(rows, duration)
        return features, even_times(len(features), duration)
