"""Settings of SiamGTR, see :mod:`vpgfast.models.siamgtr`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vpgfast.errors import ConfigError
from vpgfast.models.configs.base import MethodConfig


@dataclass
class SiamGTRConfig(MethodConfig):
    """Settings of SiamGTR; the defaults are the paper's for ActivityNet Captions.

    Attributes:
        supervision: "weakly" sees no span in training, "semi" those of a share of the paragraphs, "fully" all of them
            and has no augmentation branch.
        labelled_share: of the training paragraphs, for "semi"; which ones depends on the seed.
        max_clips: T, the number of clips that every video is brought to.
        dim: width D.
        heads: H of every attention.
        layers: K of the video encoder, of the query encoder and of the decoder.
        feed_forward: width of the hidden layer of their feed-forward networks.
        dropout: in them.
        paragraph: what the query of the whole paragraph is made of: a "learned" token, the "mean" or "max" of the
            sentences' features, or its "words" read in one go (Table 7).
        modulated_positions: let the content of clips modulate their positional encodings (Eq. 3, Table 4: MPE).
        dynamic_anchors: decode with anchors that every layer moves (Eq. 6-7, Table 4: DAB).
        concepts: C, how many of the commonest nouns and verbs the queries must tell (Eq. 5, Table 4: CSC);
            0 leaves it out.
        strides: smallest and largest stride of the random re-sampling of the inserted video (Eq. 1, Table 4: RRS);
            [1, 1] leaves it as it is.
        boundary_shift: p, by how much of the inserted video's length each of its ends may be labelled too far inside
            (Eq. 2, Table 4: RBS); 0 labels it exactly.
        insert_at_ends: share of the insertions that go to the very start or end of the other video, so that which side
            is meant can only be told from the paragraph (not in the paper).
        regression_weight: of the regression in the augmentation branch (Eq. 8).
        self_consistent: regress only where the attention has more than ``beta`` inside (Eq. 8, Table 5); off, always.
        beta: see self_consistent.
        order_weight: of the order-guided attention loss (Eq. 9, Table 5).
        order_in: the unit of that loss: "clips", as it is printed, or "fractions" of the video, a T-th of that.
        concept_weight: of the concept loss (Eq. 5).
        predict_from: what a query's span is predicted from: its "features", or, as the paper's text has it, the
            "features and attention" of the decoder's last layer.
        cross_branch_weight: of the loss between the branches (Eq. A.1, Table 6).
        anchor_ranking_weight: of the loss on the order of the anchors (Eq. A.2, Table 6).
        pseudo_attention_weight: of the attention inside the inserted video (Eq. A.3, Table 6).
        sentence_pseudo_attention: ask it of the sentences, too (not in the paper).
        label_weight: of the loss on labelled paragraphs (section 3.5).
        alignment_weight: of a contrast between single sentences and the clips of all videos of the batch, by which
            every sentence also finds clips before it is decoded, and a span that the prediction of its own starts from
            (not in the paper: nothing there asks more of a sentence than of its paragraph); 0 leaves all of it out.
        alignment_reads: single "sentences", or "paragraphs" as a whole, whose sentences then know what was said before
            and find their clips in their order (for text that says little sentence by sentence).
        alignment_gap: of paragraphs: how many clips lie between the places of two sentences at least; 0 or more.
        pseudo_span_weight: of a loss as on labels, for sentences without, whose spans are read off that alignment (not
            in the paper). Beside labels it teaches that the alignment is right as it is: give it less weight than them.
        pseudo_span_share: a sentence's span is where clips are more similar to it than a level, this share of the way
            from the worst ones of the video to the best one.
        windowed: how evaluation and grounding see a video of more clips than max_clips, and than training videos have:
            brought down to max_clips (false), through windows (true), or so if it is twice as long as one (auto).
        decode: of a paragraph's sentences the best span each ("independent", the paper), or together, so that their
            starts do not fall and the product of their attention inside is the largest there is ("ordered").
        sentence_order: "time" sorts a paragraph's sentences by annotated start, "file" leaves them.
        max_sentences: longer paragraphs are cut to this in training and into pieces at evaluation; null: never.
        max_words: longer sentences are cut to this many words.
    """

    method = "siamgtr"

    supervision: Literal["weakly", "semi", "fully"] = "weakly"
    labelled_share: float = 0.1
    max_clips: int = 256
    dim: int = 256
    heads: int = 8
    layers: int = 3
    feed_forward: int = 1024
    dropout: float = 0.1
    paragraph: Literal["learned", "mean", "max", "words"] = "learned"
    modulated_positions: bool = True
    dynamic_anchors: bool = True
    concepts: int = 100
    strides: list[float] = field(default_factory=lambda: [0.75, 3.0])
    boundary_shift: float = 0.1
    insert_at_ends: float = 0.0
    regression_weight: float = 2.0
    self_consistent: bool = True
    beta: float = 0.5
    order_weight: float = 1.0
    order_in: Literal["clips", "fractions"] = "fractions"
    concept_weight: float = 10.0
    predict_from: Literal["features", "features and attention"] = "features"
    cross_branch_weight: float = 1.0
    anchor_ranking_weight: float = 1.0
    pseudo_attention_weight: float = 1.0
    sentence_pseudo_attention: bool = False
    label_weight: float = 1.0
    alignment_weight: float = 0.0
    alignment_reads: Literal["sentences", "paragraphs"] = "sentences"
    alignment_gap: int = 1
    pseudo_span_weight: float = 0.0
    pseudo_span_share: float = 0.6
    windowed: bool | Literal["auto"] = "auto"
    decode: Literal["independent", "ordered"] = "independent"
    sentence_order: Literal["time", "file"] = "time"
    max_sentences: int | None = None
    max_words: int = 50

    def __post_init__(self) -> None:
        self.require("max_clips dim heads layers feed_forward max_words", "be at least 1", lambda value: value >= 1)
        self.require(
            "dim",
            f"be a multiple of 4 and of heads = {self.heads}",
            lambda dim: dim % self.heads == 0 and dim % 4 == 0,
        )
        self.require("concepts alignment_gap", "be 0 or more", lambda value: value >= 0)
        self.require("strides", "be two rising numbers above 0", lambda s: len(s) == 2 and 0 < s[0] <= s[1])
        self.require("labelled_share", "lie in (0, 1]", lambda value: 0 < value <= 1)
        self.require("insert_at_ends beta pseudo_span_share", "lie in [0, 1]", lambda value: 0 <= value <= 1)
        self.require("boundary_shift", "lie in [0, 0.5)", lambda value: 0 <= value < 0.5)
        self.require("max_sentences", "be at least 1, or null", lambda value: value is None or value >= 1)
        self.require_weights()
        if self.pseudo_span_weight and not self.alignment_weight:
            raise ConfigError(
                "siamgtr: pseudo_span_weight needs alignment_weight, off whose alignment the spans are read"
            )
