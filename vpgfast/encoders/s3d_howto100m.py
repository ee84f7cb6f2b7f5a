"""S3D-G trained on the narrations of HowTo100M (MIL-NCE), with its text tower: videos and sentences in one space.

Source: Miech et al. 2020, *End-to-End Learning of Visual Representations from Uncurated Instructional Videos*; Xie et
al. 2018, *Rethinking Spatiotemporal Feature Learning* (S3D-G); weights of
https://github.com/antoine77340/S3D_HowTo100M (``s3d_howto100m.pth`` and ``s3d_dict.npy``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpgfast.encoders.base import Encoder
from vpgfast.encoders.inception import BLOCKS, DIM, Widths
from vpgfast.encoders.sampling import Sampling, Tail
from vpgfast.encoders.weights import find_file, hash_weights, load_into, read_tensors
from vpgfast.errors import ConfigError
from vpgfast.files import reading
from vpgfast.video import Picture

WHERE = "that is s3d_howto100m.pth of https://github.com/antoine77340/S3D_HowTo100M"
DICTIONARY = "s3d_dict.npy"
JOINT = 512
"""Width of the space that videos and sentences share."""
WORDS = 16
"""Words of a sentence that are read."""

# --- network; its names are the published ones


class Conv(nn.Module):
    """Convolution, batch normalisation, ReLU; separable: first over space, then over time, each with both."""

    def __init__(
        self, inputs: int, outputs: int, size: tuple[int, int, int] = (1, 1, 1), separable: bool = False
    ) -> None:
        super().__init__()
        if separable:
            self.conv1 = nn.Conv3d(inputs, outputs, (1, 3, 3), padding=(0, 1, 1), bias=False)
            self.conv2 = nn.Conv3d(outputs, outputs, (3, 1, 1), padding=(1, 0, 0), bias=False)
            self.bn2 = nn.BatchNorm3d(outputs)
        else:
            padding = (size[0] // 2, size[1] // 2, size[2] // 2)
            self.conv1 = nn.Conv3d(inputs, outputs, size, padding=padding, bias=False)
        self.bn1 = nn.BatchNorm3d(outputs)
        self.separable = separable

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x))) if self.separable else x


class Gate(nn.Module):
    """Scales every channel by a number in (0, 1) that is read off all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean(dim=(2, 3, 4))).sigmoid()[:, :, None, None, None]


class Mixed(nn.Module):
    """An Inception block, see :class:`Widths`, with separable convolutions and a gate on each branch."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.conv_b0 = Conv(widths.inputs, widths.b0)
        self.conv_b1_a = Conv(widths.inputs, widths.b1a)
        self.conv_b1_b = Conv(widths.b1a, widths.b1b, separable=True)
        self.conv_b2_a = Conv(widths.inputs, widths.b2a)
        self.conv_b2_b = Conv(widths.b2a, widths.b2b, separable=True)
        self.conv_b3_b = Conv(widths.inputs, widths.b3)
        self.gating_b0, self.gating_b1 = Gate(widths.b0), Gate(widths.b1b)
        self.gating_b2, self.gating_b3 = Gate(widths.b2b), Gate(widths.b3)

    def forward(self, x: Tensor) -> Tensor:
        branches = (
            self.gating_b0(self.conv_b0(x)),
            self.gating_b1(self.conv_b1_b(self.conv_b1_a(x))),
            self.gating_b2(self.conv_b2_b(self.conv_b2_a(x))),
            self.gating_b3(self.conv_b3_b(F.max_pool3d(x, 3, stride=1, padding=1))),
        )
        return torch.cat(branches, dim=1)


def max_pool(x: Tensor, size: tuple[int, int, int], step: tuple[int, int, int]) -> Tensor:
    """Max pooling of numbers that are 0 or more as the published network has it.

    ``size - step`` zeros are added, the odd one at the end, whatever the length: TensorFlow's "same" padding for
    lengths that ``step`` divides, and not for others.
    """
    pads: list[int] = []
    for k, s in zip(size, step, strict=True):
        pads = [(k - s) // 2, k - s - (k - s) // 2, *pads]  # F.pad wants the last dimension first
    return F.max_pool3d(F.pad(x, pads), size, step, ceil_mode=True)


class TextTower(nn.Module):
    """Two layers on word vectors and a maximum over the words between them."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.word_embd = nn.Embedding(words, 300)
        self.fc1 = nn.Linear(300, 2048)
        self.fc2 = nn.Linear(2048, JOINT)

    def forward(self, words: Tensor) -> Tensor:
        """int64 [M, 16], 0 where there is no word (which counts like a word) -> [M, 512]."""
        return self.fc2(F.relu(self.fc1(self.word_embd(words))).amax(dim=1))


class S3DNetwork(nn.Module):
    """S3D-G whose first layer sees blocks of 2 x 2 x 2 pixels as channels."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.conv1 = Conv(24, 64, (2, 4, 4))
        self.conv_2b = Conv(64, 64)
        self.conv_2c = Conv(64, 192, separable=True)
        self.gating = Gate(192)
        for name, widths in BLOCKS.items():
            self.add_module(f"mixed_{name}", Mixed(widths))
        self.fc = nn.Linear(DIM, JOINT)
        self.text_module = TextTower(words)

    def forward(self, clips: Tensor) -> Tensor:
        """[B, 3, T, H, W] in [0, 1], sizes even -> [B, 1024], means over the output of the last block."""
        batch, channels, t, h, w = clips.shape
        blocks = clips.reshape(batch, channels, t // 2, 2, h // 2, 2, w // 2, 2).permute(0, 3, 5, 7, 1, 2, 4, 6)
        # The kernel of 2 x 4 x 4 is padded on both sides, which gives one output too many in front.
        x = self.conv1(blocks.reshape(batch, 8 * channels, t // 2, h // 2, w // 2))[:, :, 1:, 1:, 1:]
        x = self.conv_2b(max_pool(x, (1, 3, 3), (1, 2, 2)))
        x = max_pool(self.gating(self.conv_2c(x)), (1, 3, 3), (1, 2, 2))
        for name in BLOCKS:
            if name == "4b":
                x = max_pool(x, (3, 3, 3), (2, 2, 2))
            if name == "5b":
                x = max_pool(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(f"mixed_{name}")(x)
        return x.mean(dim=(2, 3, 4))


# --- encoder


@dataclass(frozen=True)
class S3DHowTo100MOptions:
    """How MIL-NCE's S3D looks at a video.

    Attributes:
        output: video_embedding, 512 numbers of either sign in the space that sentences are in; mixed_5c, 1,024 numbers
            from 0 up, the means over the last block.
        fps: frames a second that are looked at; none takes every frame of the file. 10 in training.
        window: frames that make a row, an even number; 32 in training, its authors find 16 fine too.
        stride: frames from the start of a row to that of the next.
        tail: what becomes of the frames after the last whole window: drop, pad, back or cycle.
        size: shorter side of the picture and its middle that is cut out, in pixels, even; 200 to 256 are its authors'.
        dictionary: the words, ``s3d_dict.npy``; none looks for it beside the weights. Needed for sentences alone.
    """

    output: Literal["video_embedding", "mixed_5c"] = "video_embedding"
    fps: float | None = 10.0
    window: int = 32
    stride: int = 16
    tail: Tail = "pad"
    size: int = 224
    dictionary: str | None = None


def windows(options: S3DHowTo100MOptions) -> Sampling:
    """Which frames make which rows. Raises :class:`ConfigError` for options that can't be."""
    for name in ("window", "size"):
        if getattr(options, name) % 2 or getattr(options, name) < 2:
            raise ConfigError(f"encoder s3d_howto100m: option {name} must be even, got {getattr(options, name)}")
    return Sampling(options.fps, options.window, options.stride, tail=options.tail)


class S3DHowTo100M(Encoder):
    """A row is not normalised: its authors compare it with a sentence by the dot product (cosine works as well)."""

    family = "s3d_howto100m"
    Options = S3DHowTo100MOptions
    files = ("dictionary",)
    has_text = True

    def __init__(self, weights: str | None, options: S3DHowTo100MOptions) -> None:
        self.sampling = windows(options)
        self.picture = Picture(short_side=options.size, crop=(options.size, options.size))
        self.batch = max(1, 128 // options.window)
        path = find_file(weights, self.family, WHERE)
        tensors = read_tensors(path)
        embedding = tensors.get("text_module.word_embd.weight", torch.empty(1, 300))
        network = S3DNetwork(len(embedding))
        load_into(network, tensors, path)
        self.network = network.eval().requires_grad_(False)
        self.weights, self.options = str(path.resolve()), options
        self.dim = JOINT if options.output == "video_embedding" else DIM
        self._dictionary = Path(options.dictionary).expanduser() if options.dictionary else path.with_name(DICTIONARY)
        self._numbers: dict[str, int] | None = None
        self.sha256 = hash_weights(path)

    def encode_clips(self, clips: Tensor) -> Tensor:
        """uint8 [B, F, size, size, 3] -> float32 [B, 1, dim]."""
        assert isinstance(self.network, S3DNetwork)
        means = self.network((clips.float() / 255).permute(0, 4, 1, 2, 3))
        return (self.network.fc(means) if self.options.output == "video_embedding" else means)[:, None]

    @torch.inference_mode()
    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """float32 [M, 512] of M sentences; of each the first 16 words that the dictionary has.

        Raises:
            ConfigError: the dictionary is missing or another one, or ``output`` is no space of sentences.
        """
        assert isinstance(self.network, S3DNetwork)
        if self.options.output != "video_embedding":
            raise ConfigError(
                f"encoder {self.family}: output={self.options.output} is not the space that sentences are in; "
                f"output=video_embedding is"
            )
        if self._numbers is None:
            self._numbers = read_dictionary(self._dictionary, len(self.network.text_module.word_embd.weight))
        numbers = torch.zeros(len(sentences), WORDS, dtype=torch.int64)
        for row, sentence in zip(numbers, sentences, strict=True):
            known = [self._numbers[word] for word in split_words(sentence) if word in self._numbers][:WORDS]
            row[: len(known)] = torch.tensor(known, dtype=torch.int64)
        return self.network.text_module(numbers.to(self.device))


def split_words(sentence: str) -> list[str]:
    """Runs of letters, digits, underscores and apostrophes, in lower case."""
    return re.findall(r"[\w']+", sentence.lower())


def read_dictionary(path: Path, rows: int) -> dict[str, int]:
    """The number of each word, from 1 on; 0 is no word.

    Raises:
        ConfigError: the file is missing, no array of strings, or of more words than the ``rows`` of the weights.
    """
    if not path.is_file():
        raise ConfigError(
            f"encoder s3d_howto100m: no dictionary {path}, without which it reads no text; give it as "
            f"dictionary=FILE; that is {DICTIONARY} of https://github.com/antoine77340/S3D_HowTo100M"
        )
    what = f"encoder s3d_howto100m: {path} is no array of strings"
    with reading(lambda error: ConfigError(f"{what} in NumPy's format ({' '.join(str(error).split())})")):
        words = np.load(path, allow_pickle=False)
    if not isinstance(words, np.ndarray) or words.ndim != 1 or words.dtype.kind != "U":
        raise ConfigError(f"encoder s3d_howto100m: {path} is no array of strings")
    if len(words) > rows:
        raise ConfigError(f"encoder s3d_howto100m: {path} has {len(words)} words, the weights have vectors of {rows}")
    return {str(word): number for number, word in enumerate(words, start=1) if number < rows}
