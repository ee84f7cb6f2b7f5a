"""Settings of WSRA, see :mod:`vpgfast.models.wsra`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vpgfast.errors import ConfigError
from vpgfast.models.configs.base import MethodConfig


@dataclass
class WSRAConfig(MethodConfig):
    """Settings of WSRA; the defaults are the paper's for Charades-STA.

    Attributes:
        language_model: folder of a frozen language model, as save_pretrained of the package transformers writes it: a
            sentence is the mean of its outputs (section 4, with GPT-2). null: the mean of its word vectors (WSRA*).
        language_layers: which outputs of the language model: those of "all" its modules, or of the "last".
        hidden: width H of the hidden layer of phi.
        video_loss: weight of the foreground-background loss (Eq. 3); 0 leaves it out (Table 1).
        snippet_loss: weight of the loss over snippets and negative queries (Eq. 5); 0 leaves it out (Table 1).
        batch_loss: weight of the loss over pseudo-positive videos (Eq. 7); 0 leaves it out (Table 1).
        margin: m of the three losses.
        tau: their temperature.
        top_k: the queries of the batch most like a video's own are no negatives of it but pseudo-positives; how many
            (section 3.2.1, Fig. 6). 0 leaves the batch loss nothing to compare.
        last_k: the queries of the batch least like a video's own are too easy as negatives; how many are left out
            (section 3.2.1, Fig. 6).
        referring_weights: weight the scores of the snippet loss by beta (Eq. 4); off, all weigh 1.
        false_negatives: let queries of the same video, or with the same words, be negatives.
        query_negatives: also hold the foreground's score with its own query above its scores with the negative queries
            (not in the paper: Eq. 3 can be won without reading the query).
        attend: what a snippet is: "clips", or "moments", the mean features of the candidate moments (section 3, and
            DiDeMo in section 4.1).
        global_feature: append the mean of a video's snippets to each of them (DiDeMo, section 4.1).
        moments: the candidate moments: "windows" slid over the video, or all ranges of "segments" (clips).
        windows: lengths of the windows, as shares of the video.
        overlap: share of its length that a window has in common with the next.
        nms: largest IoU of two spans in a prediction; null keeps all.
        windowed: how evaluation and grounding see a video of more clips than max_clips, and than training videos have:
            brought down to max_clips (false), through windows (true), or so if it is twice as long as one (auto).
        decode: of a paragraph's sentences the best span each ("independent", the paper), or together, so that their
            starts do not fall and the product of their scores is the largest there is ("ordered").
        max_clips: videos of more clips are mean-pooled to this many.
        max_words: longer sentences are cut to this many words; a language model reads up to its own limit instead.
    """

    method = "wsra"

    language_model: Path | None = None
    language_layers: Literal["all", "last"] = "all"
    hidden: int = 512
    video_loss: float = 0.1
    snippet_loss: float = 1.0
    batch_loss: float = 0.1
    margin: float = 0.2
    tau: float = 1.0
    top_k: int = 3
    last_k: int = 3
    referring_weights: bool = True
    false_negatives: bool = False
    query_negatives: bool = False
    attend: Literal["clips", "moments"] = "clips"
    global_feature: bool = False
    moments: Literal["windows", "segments"] = "windows"
    windows: list[float] = field(default_factory=lambda: [0.2, 0.3, 0.4, 0.5])
    overlap: float = 0.8
    nms: float | None = None
    windowed: bool | Literal["auto"] = "auto"
    decode: Literal["independent", "ordered"] = "independent"
    max_clips: int = 64
    max_words: int = 50

    def __post_init__(self) -> None:
        self.require("hidden max_clips max_words", "be at least 1", lambda value: value >= 1)
        losses = "video_loss snippet_loss batch_loss"
        self.require(f"{losses} top_k last_k", "be 0 or more", lambda value: value >= 0)
        if not self.video_loss and not self.snippet_loss:
            raise ConfigError("wsra: video_loss or snippet_loss must be above 0, nothing else reads the query")
        if self.batch_loss and not self.video_loss:
            raise ConfigError("wsra: batch_loss needs video_loss, whose foregrounds it compares")
        self.require("tau", "be above 0", lambda value: value > 0)
        self.require(
            "windows",
            "be shares of the video, above 0 and at most 1",
            lambda windows: windows and all(0 < share <= 1 for share in windows),
        )
        self.require("overlap", "lie in [0, 1)", lambda value: 0 <= value < 1)
        self.require("nms", "be from 0 to 1, or null", lambda value: value is None or 0 <= value <= 1)
