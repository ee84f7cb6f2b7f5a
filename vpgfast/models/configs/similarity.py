"""Settings of ``similarity``, see :mod:`vpgfast.models.similarity`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vpgfast.models.configs.base import MethodConfig

NEUTRAL = (
    "a video",
    "something",
    "a scene",
    "a person",
    "an object",
    "a place",
    "somebody does something",
    "nothing in particular",
)


@dataclass
class SimilarityConfig(MethodConfig):
    """Settings of the training-free method.

    Attributes:
        encoder: spec of the encoder whose text tower reads the sentences; none: the one that made the features.
        order: "paragraph" takes the sentences of a paragraph in their order, "none" each for itself.
        span: how the best span of a sentence is read off its curve: "sum", the largest sum above the level, or
            "contrast", the largest mean inside less mean outside; the ranked spans behind it are always by contrast.
        overlap: what spans in order may do, "none" (a span begins where the one before ends, or later) or "starts"
            (only the starts rise).
        template: what the tower reads; {} is the sentence.
        neutral: texts that fit everything; a clip's mean similarity with them is taken off its similarity with a
            sentence. An empty list takes nothing off.
        smooth: width of the Gaussian that smooths a curve over time, in seconds (its standard deviation); 0 for none.
        level: how high a curve has to be for a clip to count for a span, as a share of the way from its mean over the
            video to its best clip ("sum", and in order).
        min_seconds: spans are at least this long.
        max_share: spans are at most this share of the video.
        overlap_of_ranked: ranked spans of one sentence overlap each other by at most this IoU.
    """

    method = "similarity"

    encoder: str | None = None
    order: Literal["paragraph", "none"] = "paragraph"
    span: Literal["sum", "contrast"] = "sum"
    overlap: Literal["none", "starts"] = "starts"
    template: str = "{}"
    neutral: tuple[str, ...] = NEUTRAL
    smooth: float = 0.5
    level: float = 0.3
    min_seconds: float = 1.0
    max_share: float = 1.0
    overlap_of_ranked: float = 0.5

    def __post_init__(self) -> None:
        self.require("template", "hold {}, where the sentence goes", lambda value: "{}" in value)
        self.require("smooth min_seconds", "be 0 or more", lambda value: value >= 0)
        self.require("level", "be from 0 up to 1", lambda value: 0 <= value < 1)
        self.require("max_share", "be above 0 and at most 1", lambda value: 0 < value <= 1)
        self.require("overlap_of_ranked", "be from 0 to 1", lambda value: 0 <= value <= 1)
