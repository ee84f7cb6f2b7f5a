"""C3D trained on Sports1M: 16 frames become 4,096 numbers.

Source: Tran et al. 2015, *Learning Spatiotemporal Features with 3D Convolutional Networks*; weights of
https://github.com/DavideA/c3d-pytorch (``c3d.pickle``) and of https://github.com/open-mmlab/mmaction2
(``c3d_sports1m_pretrain_20201016-dcc47ddc.pth``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpgfast.encoders.base import Encoder
from vpgfast.encoders.sampling import Sampling, Tail
from vpgfast.encoders.weights import find_file, hash_all, hash_weights, load_into, read_tensors
from vpgfast.errors import ConfigError
from vpgfast.video import Picture

WHERE = (
    "that is c3d.pickle of https://github.com/DavideA/c3d-pytorch, or c3d_sports1m_pretrain_20201016-dcc47ddc.pth of "
    "https://github.com/open-mmlab/mmaction2 (configs/recognition/c3d)"
)
FRAMES = 16
"""Frames that the network takes, 112 x 112 each."""

_CONVOLUTIONS = (
    ("conv1", 3, 64),
    ("conv2", 64, 128),
    ("conv3a", 128, 256),
    ("conv3b", 256, 256),
    ("conv4a", 256, 512),
    ("conv4b", 512, 512),
    ("conv5a", 512, 512),
    ("conv5b", 512, 512),
)
_POOLED = {"conv1": (1, 2, 2)} | dict.fromkeys(("conv2", "conv3b", "conv4b", "conv5b"), (2, 2, 2))
"""Convolutions that max pooling follows, with its size and step."""

PICTURES = {
    "c3d_pytorch": Picture(size=(112, 200), crop=(112, 112)),
    "mmaction2": Picture(short_side=128, crop=(112, 112)),
}
MEANS = {"c3d_pytorch": (0.0, 0.0, 0.0), "mmaction2": (104.0, 117.0, 128.0)}
"""What is taken off R, G, B. mmaction2's are a BGR mean; its configuration takes them off RGB, and so is it here."""


class C3DNetwork(nn.Module):
    """Eight 3 x 3 x 3 convolutions, five poolings, two wide layers; without the classifier behind them."""

    def __init__(self) -> None:
        super().__init__()
        for name, inputs, outputs in _CONVOLUTIONS:
            self.add_module(name, nn.Conv3d(inputs, outputs, 3, padding=1))
        self.fc6 = nn.Linear(8192, 4096)
        self.fc7 = nn.Linear(4096, 4096)

    def forward(self, clips: Tensor, layer: str = "fc7") -> Tensor:
        """[B, 3, 16, 112, 112], pixels as the weights want them -> [B, 4096], ``layer`` after ReLU."""
        x = clips
        for name, _, _ in _CONVOLUTIONS:
            x = F.relu(self.get_submodule(name)(x))
            if name in _POOLED:
                # 7 x 7 becomes 4 x 4 at the end: 512 * 4 * 4 = 8192.
                x = F.max_pool3d(x, _POOLED[name], padding=(0, 1, 1) if name == "conv5b" else 0)
        x = F.relu(self.fc6(x.flatten(1)))
        return x if layer == "fc6" else F.relu(self.fc7(x))


@dataclass(frozen=True)
class C3DOptions:
    """How C3D looks at a video.

    Attributes:
        layer: whose numbers are the features: the first (fc6) or second (fc7) wide layer, after ReLU.
        fps: frames a second that are looked at; none takes every frame of the file.
        window: frames that a row spans; 16 of them, spread evenly, go through the network.
        stride: frames from the start of a row to that of the next.
        tail: what becomes of the frames after the last whole window: drop, pad, back or cycle.
        pixels: as whose weights have them. c3d_pytorch: squeezed to 112 x 200 (height x width), the middle 112 columns,
            RGB from 0 to 255. mmaction2: shorter side 128, middle cut out, less 104, 117, 128. layout: of the two, the
            one that the names in the file belong to.
        pca: HDF5 file with ``x_mean`` and ``U``, such as ActivityNet's PCA_activitynet_v1-3.hdf5; none for no PCA.
        components: how many numbers PCA leaves.
    """

    layer: Literal["fc6", "fc7"] = "fc6"
    fps: float | None = None
    window: int = 16
    stride: int = 8
    tail: Tail = "drop"
    pixels: Literal["layout", "c3d_pytorch", "mmaction2"] = "layout"
    pca: str | None = None
    components: int = 500


def windows(options: C3DOptions) -> Sampling:
    """Which frames make which rows. Raises :class:`ConfigError` for options that can't be."""
    if options.components < 1:
        raise ConfigError(f"encoder c3d: option components must be 1 or more, got {options.components}")
    return Sampling(options.fps, options.window, options.stride, frames=FRAMES, tail=options.tail)


class C3D(Encoder):
    """fc6 or fc7 after ReLU, 4,096 numbers from 0 up a row; or their first principal components, of either sign.

    Rows are as the network gives them, not normalised. Two layouts of the same weights are read: c3d-pytorch's and
    mmaction2's, which differ in names and in what the pixels are.
    """

    family = "c3d"
    Options = C3DOptions
    files = ("pca",)

    def __init__(self, weights: str | None, options: C3DOptions) -> None:
        self.sampling = windows(options)
        path = find_file(weights, self.family, WHERE)
        published = read_tensors(path)
        network = C3DNetwork()
        load_into(
            network, {rename(name): value for name, value in published.items()}, path, ignore=("fc8.", "cls_head.")
        )
        self.network = network.eval().requires_grad_(False)
        self.weights, self.options, self.sha256, self.dim = str(path.resolve()), options, hash_weights(path), 4096
        layout = "mmaction2" if any(name.endswith("conv1a.conv.weight") for name in published) else "c3d_pytorch"
        pixels = layout if options.pixels == "layout" else options.pixels
        self.picture = PICTURES[pixels]
        self.mean = torch.tensor(MEANS[pixels])
        self.pca: tuple[Tensor, Tensor] | None = None
        if options.pca is not None:
            file = Path(options.pca).expanduser()
            self.pca = read_pca(file, options.components)
            self.dim, self.sha256 = options.components, hash_all(path, file)

    def encode_clips(self, clips: Tensor) -> Tensor:
        """uint8 [B, 16, 112, 112, 3] -> float32 [B, 1, dim]."""
        assert isinstance(self.network, C3DNetwork)
        pixels = (clips.float() - self.mean.to(clips.device)).permute(0, 4, 1, 2, 3)
        features = self.network(pixels, self.options.layer)
        if self.pca is not None:
            mean, directions = (part.to(clips.device) for part in self.pca)
            features = (features - mean) @ directions
        return features[:, None]


def rename(name: str) -> str:
    """A published name of a weight -> this network's, which is c3d-pytorch's."""
    name = name.removeprefix("backbone.").replace(".conv.", ".")
    return re.sub(r"^conv([12])a\.", r"conv\1.", name)


def read_pca(path: Path, components: int) -> tuple[Tensor, Tensor]:
    """The mean [4096] and the first principal directions [4096, components] that an HDF5 file holds, float32.

    The layout is ActivityNet's and DAPs': ``x_mean`` and ``U``, a direction a column, at the root or in ``data``.

    Raises:
        ConfigError: there is no such file, or it holds something else; names it.
    """
    import h5py

    if not path.is_file():
        raise ConfigError(
            f"encoder c3d: no file {path}; option pca wants PCA_activitynet_v1-3.hdf5, which http://activity-net.org "
            f"publishes beside its C3D features (challenge 2016)"
        )
    try:
        with h5py.File(path) as file:
            group = file.get("data", file)
            mean = np.asarray(group["x_mean"], np.float32).reshape(-1)
            directions = np.asarray(group["U"][:, :components], np.float32)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"encoder c3d: {path} has no datasets x_mean and U of a PCA in HDF5 ({error})") from None
    if mean.shape != (4096,) or directions.shape != (4096, components):
        raise ConfigError(
            f"encoder c3d: {path} has x_mean {mean.shape} and {directions.shape} of U; "
            f"4096 and 4096 x {components} (option components) are needed"
        )
    return torch.from_numpy(mean), torch.from_numpy(directions)
