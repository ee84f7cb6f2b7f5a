"""``clip``: any dual encoder of pictures and text that ``transformers`` loads: CLIP, SigLIP, SigLIP 2, MetaCLIP, ALIGN.

A frame is a row and a sentence a vector of the same space. Radford et al., "Learning Transferable Visual Models From
Natural Language Supervision", ICML 2021, and its successors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vpgfast.encoders.base import Encoder
from vpgfast.encoders.sampling import Sampling
from vpgfast.encoders.transformers_models import (
    Preprocessing,
    encode_texts,
    find_folder,
    load_model,
    load_tokenizer,
    pooled,
)
from vpgfast.encoders.weights import hash_weights
from vpgfast.errors import ConfigError

_FILLED = {"siglip": 64, "siglip2": 64, "align": 64}
"""Models whose sentences are filled up to so many tokens, in training too."""


@dataclass(frozen=True)
class ClipOptions:
    """Options of ``clip``.

    Attributes:
        fps: frames looked at a second, each in the middle of its share of the time.
        normalize: scale rows to length 1.
    """

    fps: float = 2.0
    normalize: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ConfigError(f"encoder clip: fps must be above 0, got {self.fps:g}")


class Clip(Encoder):
    """See the module. Rows: float32 [T, E], a frame each, of length 1; 2 a second (``--preset moment_detr``: 1 in 2 s).

    Size, crop, filter, mean and deviation are those of the model's ``preprocessor_config.json``. Models that take
    pictures of any aspect ratio (SigLIP 2 "naflex") see a square, as those of one size do.

    Weights: a folder as ``save_pretrained`` writes it, or a hub name that is in the cache, such as
    ``openai/clip-vit-base-patch32``.
    """

    family = "clip"
    Options = ClipOptions
    has_text = True
    batch = 16
    network: Any

    def __init__(self, weights: str | None, options: ClipOptions) -> None:
        folder = find_folder(weights, self.family, "openai/clip-vit-base-patch32")
        self.network = load_model(folder)
        for tower in ("get_image_features", "get_text_features"):
            if not hasattr(self.network, tower):
                raise ConfigError(
                    f"encoder clip: {folder} is a {self.network.config.model_type} without {tower}; a dual encoder of "
                    "pictures and text is needed, such as CLIP or SigLIP"
                )
        self.tokenizer = load_tokenizer(folder)
        vision = self.network.config.vision_config
        self.patch = int(vision.patch_size) if self.network.config.model_type == "siglip2" else None
        side = int(getattr(vision, "image_size", 224))
        if self.patch:
            side = math.isqrt(int(vision.num_patches)) * self.patch
        self.pixels = Preprocessing(folder, side)
        self.weights, self.sha256, self.options = str(folder.absolute()), hash_weights(folder), options
        self.sampling = Sampling(options.fps, offset=0.5)
        self.picture = self.pixels.picture
        self.dim = self.encode_text(["width"]).shape[-1]

    def encode_clips(self, clips: Tensor) -> Tensor:
        frames = self.pixels(clips.flatten(0, 1))  # one frame a clip
        rows = pooled(
            self.network.get_image_features(**(self._patches(frames) if self.patch else {"pixel_values": frames}))
        )
        return (F.normalize(rows, dim=-1) if self.options.normalize else rows)[:, None]

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        with torch.inference_mode():
            rows = encode_texts(self.network, self.tokenizer, sentences, _FILLED.get(self.network.config.model_type))
        return F.normalize(rows, dim=-1) if self.options.normalize else rows

    def _patches(self, frames: Tensor) -> dict[str, Tensor]:
        """float32 [N, 3, H, W] as SigLIP 2 takes pictures: patches [N, P, 3 * patch * patch] and how they lie."""
        count, _, height, width = frames.shape
        patch = self.patch or 1
        rows, columns = height // patch, width // patch
        grid = frames.reshape(count, 3, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
        return {
            "pixel_values": grid.reshape(count, rows * columns, -1),
            "pixel_attention_mask": torch.ones(count, rows * columns, dtype=torch.int32, device=frames.device),
            "spatial_shapes": torch.tensor([[rows, columns]] * count, device=frames.device),
        }
