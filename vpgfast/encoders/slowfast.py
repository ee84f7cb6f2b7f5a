"""SlowFast R50 8x8, trained on Kinetics-400: 32 frames become 2,304 numbers.

Source: Feichtenhofer et al. 2019, *SlowFast Networks for Video Recognition*; weights of
https://github.com/facebookresearch/SlowFast (``SLOWFAST_8x8_R50.pkl``) and of
https://github.com/facebookresearch/pytorchvideo (``SLOWFAST_8x8_R50.pyth``).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpgfast.encoders.base import Encoder
from vpgfast.encoders.rate_clips import RateClips
from vpgfast.encoders.sampling import Sampling, Tail
from vpgfast.encoders.video_clips import VideoClips
from vpgfast.encoders.weights import find_file, hash_weights, load_into, read_arrays, read_tensors
from vpgfast.errors import ConfigError
from vpgfast.video import Picture

WHERE = (
    "that is SLOWFAST_8x8_R50.pkl of https://github.com/facebookresearch/SlowFast (MODEL_ZOO.md), or "
    "SLOWFAST_8x8_R50.pyth of https://github.com/facebookresearch/pytorchvideo (docs, model zoo)"
)
FRAMES = 32
"""Frames of the fast pathway; the slow one has 8 of them."""
ALPHA = 4
"""Frames of the fast pathway to one of the slow one."""
MEAN, STD = 0.45, 0.225
"""Of every colour, of pixels in [0, 1]."""

# --- network

_BLOCKS = (3, 4, 6, 3)
_INNER = (64, 128, 256, 512)
_STRIDE = (1, 2, 2, 2)
_TIME = ((1, 1, 3, 3), (3, 3, 3, 3))
"""Size in time of each stage's first convolutions: slow, fast."""
_BETA = 8  # the fast pathway has an eighth of the slow one's channels
_FUSED = 2  # times its channels are what the fast pathway hands over


class ConvBN(nn.Module):
    """Convolution and batch normalisation."""

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        padding = (size[0] // 2, size[1] // 2, size[2] // 2)
        self.conv = nn.Conv3d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Bottleneck(nn.Module):
    """Convolutions over time (a), over space (b) and of size 1 (c) beside a shortcut (skip)."""

    def __init__(self, inputs: int, inner: int, outputs: int, time: int, stride: int) -> None:
        super().__init__()
        self.a = ConvBN(inputs, inner, (time, 1, 1), (1, 1, 1))
        self.b = ConvBN(inner, inner, (1, 3, 3), (1, stride, stride))
        self.c = ConvBN(inner, outputs, (1, 1, 1), (1, 1, 1))
        self.skip = ConvBN(inputs, outputs, (1, 1, 1), (1, stride, stride)) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(F.relu(self.b(F.relu(self.a(x)))))
        return F.relu(y + (x if self.skip is None else self.skip(x)))


class SlowFastNetwork(nn.Module):
    """Two ResNet-50, of which the fast one hands over to the slow one before each stage; without the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleList([ConvBN(3, 64, (1, 7, 7), (1, 2, 2)), ConvBN(3, 64 // _BETA, (5, 7, 7), (1, 2, 2))])
        self.fuse, self.stages = nn.ModuleList(), nn.ModuleList()
        width = 64  # of the slow pathway, before what is handed over
        for stage, (blocks, inner) in enumerate(zip(_BLOCKS, _INNER, strict=True)):
            fast = width // _BETA
            self.fuse.append(ConvBN(fast, _FUSED * fast, (7, 1, 1), (ALPHA, 1, 1)))
            paths = nn.ModuleList()
            for path, (inputs, shrink) in enumerate(((width + _FUSED * fast, 1), (fast, _BETA))):
                sizes = [inputs] + [4 * inner // shrink] * blocks
                strides = [_STRIDE[stage]] + [1] * (blocks - 1)
                path_blocks = [
                    Bottleneck(sizes[i], inner // shrink, sizes[i + 1], _TIME[path][stage], strides[i])
                    for i in range(blocks)
                ]
                paths.append(nn.Sequential(*path_blocks))
            self.stages.append(paths)
            width = 4 * inner

    def forward(self, clips: Tensor) -> Tensor:
        """[B, 3, 32, H, W], normalised -> [B, 2304]: 2,048 numbers of the slow and 256 of the fast pathway."""
        frames = clips.shape[2]
        chosen = torch.linspace(0, frames - 1, frames // ALPHA, device=clips.device).long()
        slow, fast = (
            F.max_pool3d(F.relu(stem(x)), (1, 3, 3), (1, 2, 2), (0, 1, 1))
            for stem, x in zip(self.stems, (clips[:, :, chosen], clips), strict=True)
        )
        for fuse, paths in zip(self.fuse, self.stages, strict=True):
            assert isinstance(paths, nn.ModuleList)
            slow, fast = paths[0](torch.cat((slow, F.relu(fuse(fast))), dim=1)), paths[1](fast)
        return torch.cat([_pooled(x) for x in (slow, fast)], dim=1)


def _pooled(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B, C]: the mean over windows of 7 x 7, which is all of a picture of 224 x 224."""
    size = (x.shape[2], min(7, x.shape[3]), min(7, x.shape[4]))
    return F.avg_pool3d(x, size, stride=1).mean(dim=(2, 3, 4))


# --- this network's names -> published ones


def pyslowfast(where: list[str], kind: str, part: str) -> str:
    """The name in PySlowFast's own checkpoints of ``a.b.conv.weight``: ``where`` is [a, b], then conv, weight."""
    match where:
        case ["stems", path]:
            return f"s1.pathway{path}_stem.{kind}.{part}"
        case ["fuse", stage]:
            return f"s{int(stage) + 1}_fuse.{'conv_f2s' if kind == 'conv' else 'bn'}.{part}"
    _, stage, path, block, layer = where
    layer = "branch1" if layer == "skip" else f"branch2.{layer}"
    return f"s{int(stage) + 2}.pathway{path}_res{block}.{layer}{'' if kind == 'conv' else '_bn'}.{part}"


def pytorchvideo(where: list[str], kind: str, part: str) -> str:
    """The same in pytorchvideo's."""
    kind = {"conv": "conv", "bn": "norm"}[kind]
    match where:
        case ["stems", path]:
            return f"blocks.0.multipathway_blocks.{path}.{kind}.{part}"
        case ["fuse", stage]:
            return f"blocks.{stage}.multipathway_fusion.{kind if kind == 'norm' else 'conv_fast_to_slow'}.{part}"
    _, stage, path, block, layer = where
    layer = f"branch1_{kind}" if layer == "skip" else f"branch2.{kind}_{layer}"
    return f"blocks.{int(stage) + 1}.multipathway_blocks.{path}.res_blocks.{block}.{layer}.{part}"


def caffe2(where: list[str], kind: str, part: str) -> str:
    """The same in Caffe2's blobs; ``t_`` is the fast pathway."""
    if kind == "conv":
        end = "_w"
    else:
        end = "_bn_" + {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}.get(part, part)
    match where:
        case ["stems", path]:
            return ("t_" if path == "1" else "") + ("conv1" if kind == "conv" else "res_conv1") + end
        case ["fuse", "0"]:
            return f"t_pool1_subsample{end}"
        case ["fuse", stage]:
            return f"t_res{int(stage) + 1}_{_BLOCKS[int(stage) - 1] - 1}_branch2c_bn_subsample{end}"
    _, stage, path, block, layer = where
    layer = "branch1" if layer == "skip" else f"branch2{layer}"
    return f"{'t_' if path == '1' else ''}res{int(stage) + 2}_{block}_{layer}{end}"


def read_weights(path: Path, network: SlowFastNetwork) -> dict[str, Tensor]:
    """Weights by this network's names, whichever of the three layouts the file has; what is left over by its own."""
    if path.suffix == ".pkl":
        arrays = read_arrays(path)
        # Beside the layers: momenta of training, counters, the classifier.
        layer = re.compile(r"(t_)?(res_?\w|conv1|pool1|nonlocal)(?!.*momentum)")
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if layer.match(name)}
        layout = caffe2
    else:
        tensors = read_tensors(path)
        layout = pytorchvideo if any(name.startswith("blocks.") for name in tensors) else pyslowfast
    for name, own in network.state_dict().items():
        *where, kind, part = name.split(".")
        found = tensors.pop(layout(where, kind, part), None)
        if found is not None:
            tensors[name] = found.reshape([*found.shape, *[1] * (own.ndim - found.ndim)])
    return tensors


# --- encoder


@dataclass(frozen=True)
class SlowFastOptions:
    """How SlowFast looks at a video.

    Attributes:
        fps: frames a second that are looked at; none takes every frame of the file.
        window: frames that a row spans; 32 of them go through the network.
        stride: frames from the start of a row to that of the next.
        tail: what becomes of the frames after the last whole window: drop, pad, back or cycle.
        size: shorter side of the picture and its middle that is cut out, in pixels; 224 or more.
        spread: how the 32 frames lie. window: evenly from the window's first frame to its last. hero: as HERO's
            extractor, over 64 * rate / fps frames of the window, ``rate`` being the file's own, rounded down, and none
            beyond the last; and there are no more rows than duration * fps / stride, rounded up.
    """

    fps: float | None = 30.0
    window: int = 64
    stride: int = 64
    tail: Tail = "pad"
    size: int = 256
    spread: Literal["window", "hero"] = "window"


def windows(options: SlowFastOptions) -> Sampling:
    """Which frames make which rows. Raises :class:`ConfigError` for options that can't be."""
    if options.spread == "hero" and options.fps is None:
        raise ConfigError("encoder slowfast: spread=hero needs option fps (30 is HERO's)")
    return Sampling(options.fps, options.window, options.stride, frames=FRAMES, tail=options.tail)


class SlowFast(Encoder):
    """Means over space and time of what both pathways end with, after ReLU: 2,048 numbers (slow), then 256 (fast).

    They are what the published classifier takes, from 0 up and not normalised. Of pictures above 224 x 224 they are the
    mean over the windows of 7 x 7 of the last layer for each of which the published network has class scores.
    """

    family = "slowfast"
    Options = SlowFastOptions

    def __init__(self, weights: str | None, options: SlowFastOptions) -> None:
        if options.size < 224:
            raise ConfigError(f"encoder slowfast: option size must be 224 or more, got {options.size}")
        self.sampling = windows(options)
        self.picture = Picture(short_side=options.size, crop=(options.size, options.size))
        self.batch = 4
        path = find_file(weights, self.family, WHERE)
        network = SlowFastNetwork()
        load_into(network, read_weights(path, network), path, ignore=("head.", "blocks.6."))
        self.network = network.eval().requires_grad_(False)
        self.weights, self.options, self.sha256, self.dim = str(path.resolve()), options, hash_weights(path), 2304

    def clips(self, path: str | Path, stream: int | None = None, strict: bool = False) -> VideoClips:
        """The windows of a video, not read yet."""
        kind = RateClips if self.options.spread == "hero" else VideoClips
        return kind(Path(path), self.sampling, self.picture, self.batch, stream, strict)

    def encode_clips(self, clips: Tensor) -> Tensor:
        """uint8 [B, 32, size, size, 3] -> float32 [B, 1, 2304]."""
        assert self.network is not None
        return self.network(((clips.float() / 255 - MEAN) / STD).permute(0, 4, 1, 2, 3))[:, None]

    def finish(self, rows: np.ndarray, times: np.ndarray, duration: float) -> tuple[np.ndarray, np.ndarray]:
        """HERO's extractor makes no row that begins where the duration ends."""
        if self.options.spread == "hero":
            assert self.options.fps is not None
            most = max(1, math.ceil(duration * self.options.fps / self.options.stride - 1e-6))
            return rows[:most], times[:most]
        return rows, times
