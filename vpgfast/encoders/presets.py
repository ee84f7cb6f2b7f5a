"""Published ways to make features, by name: which encoder, with which options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Settings of an encoder under which published features were made.

    Attributes:
        family: the encoder.
        about: whose features these are, and how many rows they have.
        options: of the family.
    """

    family: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)


_VSLNET = {"tail": "back", "spare": 1}
"""Its last window is moved back to end at the last frame, which is then left out."""

PRESETS: dict[str, Preset] = {
    "vslnet_charades": Preset(
        "i3d",
        "Charades-STA I3D of VSLNet and SeqPAN (rgb_charades.pt or rgb_imagenet.pt): 2 rows for each 24 frames at 24 a "
        "second",
        {"fps": 24.0, "window": 24, "stride": 24, "short_side": 226, "enlarge_only": True, **_VSLNET},
    ),
    "vslnet_activitynet": Preset(
        "i3d",
        "ActivityNet and TACoS I3D of VSLNet and SeqPAN (rgb_imagenet.pt): a row for each 16 frames of the file",
        {"fps": None, "window": 16, "stride": 16, "short_side": 224, **_VSLNET},
    ),
    "video_features_i3d": Preset(
        "i3d",
        "I3D of v-iashin's video_features as it is today (i3d_rgb.pt, i3d_flow.pt): a row for each 64 frames of the "
        "file that one more follows",
        {"fps": None, "window": 64, "stride": 64, "rows": "mean", "tail": "drop", "spare": 1, "batch_norm_eps": 1e-5},
    ),
    "bmt_i3d": Preset(
        "i3d",
        "ActivityNet I3D of BMT, by video_features of 2020 (i3d_rgb.pt, i3d_flow.pt): a row for each 64 frames at 25 a "
        "second, and one for the rest, repeated, where that is a fifth or more",
        {"fps": 25.0, "window": 64, "stride": 64, "rows": "mean", "tail": "cycle", "spare": 1, "batch_norm_eps": 1e-5},
    ),
    "activitynet_c3d": Preset(
        "c3d",
        "ActivityNet's C3D fc7, a row for each 8 frames of the file; 500 numbers with pca=PCA_activitynet_v1-3.hdf5",
        {"layer": "fc7"},
    ),
    "viga_charades_c3d": Preset("c3d", "Charades-STA C3D fc6 of ViGA: a row for each 8 frames of the file"),
    "tacos_tall": Preset(
        "c3d",
        "TACoS C3D fc6 of TALL and 2D-TAN: 16 of 64 frames of the file, a row for each 12",
        {"window": 64, "stride": 12},
    ),
    "marn": Preset(
        "c3d", "C3D fc6 of MARN: 16 frames of each second", {"fps": 16.0, "window": 16, "stride": 16, "tail": "pad"}
    ),
    "moment_detr": Preset(
        "clip",
        "CLIP ViT-B/32 of QVHighlights, Moment-DETR and Lighthouse: a row for each 2 seconds, of their middle frame",
        {"fps": 0.5},
    ),
    "moment_detr_slowfast": Preset(
        "slowfast",
        "SlowFast of QVHighlights, by HERO's extractor (SLOWFAST_8x8_R50.pkl): a row for each 2 seconds",
        {"window": 60, "stride": 60, "size": 224, "spread": "hero"},
    ),
    "howto100m": Preset(
        "s3d_howto100m", "Clips as MIL-NCE was trained on: a row for each 32 frames at 10 a second", {"stride": 32}
    ),
}
