"""``video_text``: dual encoders of short clips and text that ``transformers`` has: X-CLIP, VideoPrism LvT.

Ni et al., "Expanding Language-Image Pretrained Models for General Video Recognition", ECCV 2022; Zhao et al.,
"VideoPrism", ICML 2024.
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

_FRAMES = {"xclip": 8, "videoprism": 16}
"""Models that are known here, and how many frames a clip has unless their config says it."""


@dataclass(frozen=True)
class VideoTextOptions:
    """Options of ``video_text``.

    Attributes:
        fps: frames looked at a second.
        stride: frames from the start of a clip to that of the next; ``none``: as long as a clip.
    """

    fps: float = 8.0
    stride: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ConfigError(f"encoder video_text: fps must be above 0, got {self.fps:g}")
        if self.stride is not None and self.stride < 1:
            raise ConfigError(f"encoder video_text: stride must be at least 1, got {self.stride}")


class VideoText(Encoder):
    """See the module. Rows: float32 [T, E], a clip of 8 (X-CLIP) or 16 (VideoPrism) frames each, of length 1.

    At 8 frames a second a clip of X-CLIP is 1 s, one of VideoPrism 2 s. A last clip that is not full is filled up with
    the last frame. An X-CLIP sentence here is its text tower's vector alone, without the prompt that the video adds to
    it in the paper: that depends on the clip, and then nothing could be indexed.

    Weights: a folder as ``save_pretrained`` writes it, or a hub name that is in the cache, such as
    ``microsoft/xclip-base-patch32`` or ``google/videoprism-lvt-base-f16r288``.
    """

    family = "video_text"
    Options = VideoTextOptions
    has_text = True
    batch = 4
    network: Any

    def __init__(self, weights: str | None, options: VideoTextOptions) -> None:
        folder = find_folder(weights, self.family, "microsoft/xclip-base-patch32")
        self.network = load_model(folder)
        config = self.network.config
        if config.model_type not in _FRAMES:
            raise ConfigError(
                f"encoder video_text: {folder} is a {config.model_type}; known are {', '.join(_FRAMES)}"
                + (", and clip for pictures" if hasattr(self.network, "get_image_features") else "")
            )
        self.tokenizer = load_tokenizer(folder)
        self.pixels = Preprocessing(folder, int(getattr(config.vision_config, "image_size", 224)))
        frames = int(getattr(config.vision_config, "num_frames", None) or _FRAMES[config.model_type])
        self.weights, self.sha256, self.options = str(folder.absolute()), hash_weights(folder), options
        self.sampling = Sampling(options.fps, frames, options.stride or frames, tail="pad")
        self.picture = self.pixels.picture
        self.dim = self.encode_text(["width"]).shape[-1]

    def encode_clips(self, clips: Tensor) -> Tensor:
        frames = self.pixels(clips)  # [B, F, 3, H, W]
        name = "pixel_values" if self.network.config.model_type == "xclip" else "pixel_values_videos"
        return F.normalize(pooled(self.network.get_video_features(**{name: frames})), dim=-1)[:, None]

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        filled = 64 if self.network.config.model_type == "videoprism" else None
        with torch.inference_mode():
            return F.normalize(encode_texts(self.network, self.tokenizer, sentences, filled), dim=-1)
