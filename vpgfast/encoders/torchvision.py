"""``torchvision:NAME``: the video networks of torchvision: ``s3d``, ``r2plus1d_18``, ``mvit_v2_s``, ``swin3d_t``, ...

What a row is: the vector that goes into the classifier (Kinetics-400, unless other weights are given).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpgfast.encoders.base import Encoder
from vpgfast.encoders.sampling import Sampling
from vpgfast.encoders.weights import find_file, hash_weights, load_into, read_tensors
from vpgfast.errors import ConfigError
from vpgfast.video import Picture


@dataclass(frozen=True)
class TorchvisionOptions:
    """Options of ``torchvision``.

    Attributes:
        file: state dict of the network, as torchvision publishes it; ``none`` takes the one in torch's cache
            (``~/.cache/torch/hub/checkpoints``), if it is there.
        fps: frames looked at a second; torchvision's recipes have 15.
        window: frames of a clip; ``none``: as in torchvision's recipe, 32 for Swin3D, 14 for S3D, else 16.
        stride: frames from the start of a clip to that of the next; ``none``: as long as a clip.
    """

    file: str | None = None
    fps: float = 15.0
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ConfigError(f"encoder torchvision: fps must be above 0, got {self.fps:g}")
        for name in ("window", "stride"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"encoder torchvision: {name} must be at least 1, got {getattr(self, name)}")


class Torchvision(Encoder):
    """See the module. Rows: float32 [T, width of the network], before the classifier, not scaled.

    Size, crop, mean and deviation are those of torchvision's own transforms. A last clip that is not full is filled up
    with the last frame.
    """

    family = "torchvision"
    Options = TorchvisionOptions
    files = ("file",)
    batch = 2
    network: Any

    def __init__(self, weights: str | None, options: TorchvisionOptions) -> None:
        try:
            from torchvision.models import get_model_builder, get_model_weights, list_models
            from torchvision.models import video as family
        except (ImportError, RuntimeError) as error:  # a build for another torch raises the latter
            raise ConfigError(
                f"encoder torchvision: torchvision can't be loaded ({str(error).splitlines()[0]}); install the version "
                "that goes with your torch"
            ) from None
        known = list_models(family)
        if weights is None or weights not in known:
            raise ConfigError(f"encoder torchvision: no video network {weights!r}; there are {', '.join(known)}")
        published = get_model_weights(weights).DEFAULT
        if options.file is None:
            path = Path(torch.hub.get_dir()) / "checkpoints" / published.url.rsplit("/", 1)[-1]
            hint = f"{path.name}, which PyTorch publishes at {published.url}"
        else:
            path, hint = Path(options.file), "the state dict of this network"
        file = find_file(str(path), f"torchvision:{weights},file=FILE", hint)
        self.network = get_model_builder(weights)(weights=None).eval().requires_grad_(False)
        load_into(self.network, read_tensors(file), file)
        self.head, self.dim = _cut(self.network)
        self.weights, self.sha256, self.options = weights, hash_weights(file), options
        transform = published.transforms()
        recipe = 32 if weights.startswith("swin3d") else int(published.meta.get("min_temporal_size", 16))
        window = options.window or recipe
        self.sampling = Sampling(options.fps, window, options.stride or window, tail="pad")
        resize = [int(side) for side in transform.resize_size]
        crop = (int(transform.crop_size[0]), int(transform.crop_size[-1]))
        self.picture = (
            Picture(short_side=resize[0], crop=crop)
            if len(resize) == 1
            else Picture(size=(resize[0], resize[1]), crop=crop)
        )
        self.mean, self.std = torch.tensor(transform.mean), torch.tensor(transform.std)

    def encode_clips(self, clips: Tensor) -> Tensor:
        pixels = (clips.float() / 255 - self.mean.to(clips.device)) / self.std.to(clips.device)
        rows = self.network(pixels.permute(0, 4, 1, 2, 3))
        return rows.flatten(1)[:, None]


def _cut(network: nn.Module) -> tuple[str, int]:
    """Take the classifier off; returns its name and the width of what goes into it.

    S3D classifies at every place before it takes the mean; there its classifier becomes nothing too, as the mean of a
    linear map is the map of the mean.
    """
    for name in ("fc", "head", "classifier"):
        last = getattr(network, name, None)
        if last is None:
            continue
        layer = next(m for m in last.modules() if isinstance(m, nn.Linear | nn.Conv3d))
        setattr(network, name, nn.Identity())
        return name, layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    raise ConfigError(f"encoder torchvision: {type(network).__name__} has no classifier that could be taken off")
