"""Settings of the plain alignment, see :mod:`vpgfast.models.plain_alignment`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vpgfast.models.configs.base import MethodConfig


@dataclass
class PlainAlignmentConfig(MethodConfig):
    """Settings of the plain alignment.

    Attributes:
        supervision: "weakly" sees no span in training, "semi" those of a share of the paragraphs, "fully" all of them.
        labelled_share: of the training paragraphs, for "semi"; which ones depends on the seed.
        max_clips: T, the number of clips that every video is brought to.
        dim: width D.
        alignment_reads: single "sentences", or "paragraphs" as a whole, whose sentences then know what was said before
            and find their clips in their order: what SiamGTR and DMR-JRG have by the same setting, without them.
        alignment_gap: of paragraphs: how many clips lie between the places of two sentences at least; 0 or more.
        label_weight: of the loss on labelled paragraphs, beside the contrast between videos.
        pseudo_span_share: a sentence's span is where clips are more similar to it than a level, this share of the way
            from the worst ones of the video to the best one.
        windowed: how evaluation and grounding see a video of more clips than max_clips, and than training videos have:
            brought down to max_clips (false), through windows (true), or so if it is twice as long as one (auto).
        decode: of a paragraph's sentences the best span each ("independent"), or together, so that their starts do not
            fall and the product of the similarities inside is the largest there is ("ordered").
        sentence_order: "time" sorts a paragraph's sentences by annotated start, "file" leaves them.
        max_sentences: longer paragraphs are cut to this in training and into pieces at evaluation; null: never.
        max_words: longer sentences are cut to this many words.
    """

    method = "plain_alignment"

    supervision: Literal["weakly", "semi", "fully"] = "weakly"
    labelled_share: float = 0.1
    max_clips: int = 64
    dim: int = 128
    alignment_reads: Literal["sentences", "paragraphs"] = "sentences"
    alignment_gap: int = 1
    label_weight: float = 1.0
    pseudo_span_share: float = 0.6
    windowed: bool | Literal["auto"] = "auto"
    decode: Literal["independent", "ordered"] = "independent"
    sentence_order: Literal["time", "file"] = "time"
    max_sentences: int | None = None
    max_words: int = 50

    def __post_init__(self) -> None:
        self.require("max_clips dim max_words", "be at least 1", lambda value: value >= 1)
        self.require("alignment_gap", "be 0 or more", lambda value: value >= 0)
        self.require("labelled_share", "lie in (0, 1]", lambda value: 0 < value <= 1)
        self.require("pseudo_span_share", "lie in [0, 1]", lambda value: 0 <= value <= 1)
        self.require("max_sentences", "be at least 1, or null", lambda value: value is None or value >= 1)
        self.require_weights()
