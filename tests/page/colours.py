"""An encoder that sees red, green and blue, and reads those words; and films of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from video_files import write

from vpgfast.encoders.base import Encoder
from vpgfast.encoders.sampling import Sampling
from vpgfast.video import Picture

WORDS = ("red", "green", "blue")
PLACE = "colours:Colours"
"""In the registry of encoders."""


@dataclass(frozen=True)
class Options:
    """Options: none."""


class Colours(Encoder):
    """Rows: the mean colour of a frame, three numbers and a fourth for what is none of them."""

    family, Options, has_text, dim, batch = "colours", Options, True, 4, 4
    looks = 0
    """Batches that were looked at, of all instances."""

    def __init__(self, weights: str | None, options: Options) -> None:
        self.weights, self.options = weights, options
        self.sampling, self.picture = Sampling(4.0), Picture(size=(8, 8))

    def encode_clips(self, clips: Tensor) -> Tensor:
        Colours.looks += 1
        mean = clips.float().mean(dim=(1, 2, 3)) / 255
        return torch.cat((mean, torch.full((len(mean), 1), 0.05)), dim=1)[:, None]

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        rows = [[float(word in sentence.lower()) for word in WORDS] for sentence in sentences]
        return torch.tensor([[*row, float(sum(row) == 0)] for row in rows])


def film(path: Path, colours: Sequence[str], seconds: float = 2.0, rate: int = 10, **settings: Any) -> Path:
    """A film that shows one colour after the other."""
    frames = []
    for colour in colours:
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[..., WORDS.index(colour)] = 220
        frames += [picture] * round(seconds * rate)
    return write(path, frames, rate=rate, **({"g": "10"} | settings if settings.get("codec") is None else settings))
