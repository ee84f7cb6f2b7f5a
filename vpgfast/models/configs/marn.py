"""Settings of MARN, see :mod:`vpgfast.models.marn`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from vpgfast.models.configs.base import MethodConfig

Representation = Literal["conv3d", "avg", "max", "lstm"]


@dataclass
class MARNConfig(MethodConfig):
    """Settings of MARN; the defaults are the paper's for Charades-STA.

    Attributes:
        max_clips: T, the number of clips that every video is brought to, or the largest one with ``clip_seconds``.
        clip_seconds: length of a clip in seconds: a video has as many clips as it lasts (at least as many as the
            shortest proposal, at most T, see :mod:`vpgfast.data.fixed_clips`), and proposals that end behind it are
            left out. The paper: 2 on ActivityNet; 1 on Charades by its figures. null: all videos are stretched to T.
        scales: lengths of the proposals in clips, rising.
        scale_stride: "one" clip from one proposal of a length to the next, or a "quarter" of the length.
        reduction: r, by which the first convolution divides the width of the features.
        dim: width D of proposals, query, attention and decoder.
        samples: N, points that a proposal is sampled at.
        conv_kernel: kernel of the first convolution in clips, odd (Tables 3 and 4: 1 or 3).
        representation: how a proposal's clips become one vector: "conv3d" over N sampled points, or over all of its
            clips "avg", "max" or "lstm" (Tables 3 and 4).
        attention_kernels: kernels of the convolutions that make the attention from the map, each odd: [1], [3] or
            [3, 3] (Tables 3 and 4).
        clip_branch: train the clip-level branch beside the proposals (Table 5).
        clip_scores: let its attention refine the scores at inference (Eq. 15, Table 5).
        clip_weight: lambda, weight of its loss (Eq. 14).
        epsilon: weight of its attention in the scores (Eq. 15).
        negative_weight: weight of a loss that wants a query told worse from another video of the batch than from its
            own (not in the paper: attention can be a code for the query, which the decoder learns to read whatever the
            video shows); 0 leaves it out.
        negative_margin: by how much worse, in nats a word.
        nms: largest IoU between two ranked proposals; null ranks all of them.
        windowed: how evaluation and grounding see a video of more clips than max_clips, and than training videos have:
            brought down to max_clips (false), through windows (true), or so if it is twice as long as one (auto).
        decode: of a paragraph's sentences the best span each ("independent", the paper), or together, so that their
            starts do not fall and the product of their scores is the largest there is ("ordered").
        max_words: longer sentences are cut to this many words.
    """

    method = "marn"

    max_clips: int = 32
    clip_seconds: float | None = None
    scales: list[int] = field(default_factory=lambda: [6, 7, 8, 9, 10, 12])
    scale_stride: Literal["one", "quarter"] = "one"
    reduction: int = 8
    dim: int = 512
    samples: int = 4
    conv_kernel: int = 3
    representation: Representation = "conv3d"
    attention_kernels: list[int] = field(default_factory=lambda: [3])
    clip_branch: bool = True
    clip_scores: bool = True
    clip_weight: float = 1.0
    epsilon: float = 0.1
    negative_weight: float = 0.0
    negative_margin: float = 1.0
    nms: float | None = 0.5
    windowed: bool | Literal["auto"] = "auto"
    decode: Literal["independent", "ordered"] = "independent"
    max_words: int = 50

    def __post_init__(self) -> None:
        self.require("max_clips reduction dim samples max_words", "be at least 1", lambda value: value >= 1)
        self.require(
            "scales",
            f"be rising numbers of clips from 1, the first at most max_clips = {self.max_clips}",
            lambda scales: scales and scales == sorted(set(scales)) and 1 <= scales[0] <= self.max_clips,
        )
        self.require("clip_seconds", "be above 0, or null", lambda value: value is None or 0 < value < math.inf)
        self.require("conv_kernel", "be odd", lambda kernel: kernel >= 1 and kernel % 2 == 1)
        self.require(
            "attention_kernels",
            "be odd, one or more",
            lambda kernels: kernels and all(k >= 1 and k % 2 == 1 for k in kernels),
        )
        self.require("clip_weight epsilon negative_weight negative_margin", "be 0 or more", lambda value: value >= 0)
        self.require("nms", "be from 0 to 1, or null", lambda value: value is None or 0 <= value <= 1)
