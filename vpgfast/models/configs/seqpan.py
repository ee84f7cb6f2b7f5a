"""Settings of SeqPAN, see :mod:`vpgfast.models.seqpan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vpgfast.models.configs.base import MethodConfig

ClipTimes = Literal["points", "extents"]


@dataclass
class SeqPANConfig(MethodConfig):
    """Settings of SeqPAN; the defaults are the paper's for Charades-STA.

    Attributes:
        dim: width d of every hidden layer.
        heads: attention heads; must divide dim.
        conv_layers: separable convolution layers of the encoder (Eq. 1).
        conv_kernel: their kernel in clips or words, odd.
        attention: attention block: "sgpa", "pa" (SGPA whose self-guided head is a plain layer), or transformer blocks
            with self attention ("se_trm"), with cross attention ("co_trm"), or with one behind the other ("seco_trm",
            "cose_trm"); Tables 4 and 6.
        attention_blocks: how many of them are stacked (Fig. 5).
        similarity: similarity of a clip and a word in the context-query attention: "trilinear" (released code) or
            "bilinear" (Eq. 16 as printed).
        matching: "sq" labels each clip outside, begin, inside or end (Eq. 6-11); "fb" only tells foreground from
            background; "none" leaves the module out (Table 5).
        gumbel: sample the labels with the Gumbel-max trick (Eq. 8 and 9); off, a plain softmax weights the label
            embeddings (Table 5, Fig. 6).
        label_embeddings: add to each clip the embedding of its label (Eq. 10); off, the labels are only predicted and
            trained (Table 5).
        inference_labels: the labels whose embeddings inference adds: the likeliest ("arg_max", Eq. 7) or hard samples
            drawn with noise ("sampled", appendix A.3; then results depend on the random generator's state).
        tau: temperature of the Gumbel-softmax (Eq. 9, Fig. 6).
        char_cnn: append a vector made from its characters to each word's vector.
        char_dim: width of a character embedding.
        punctuation: whether punctuation marks are words, as where queries have 7.22 words on average (Table 7).
        localizer: the transformer blocks of Eq. 12: one for start and end ("shared", released code) or one for each
            ("two", the paper's TRM_s and TRM_e).
        dropout: probability of dropping an element of the inputs and of each layer's output.
        max_clips: videos of more clips are mean-pooled to this many.
        max_words: longer sentences are cut to this many words.
        windowed: how evaluation and grounding see a video of more clips than max_clips, and than training videos have:
            brought down to max_clips (false), through windows (true), or so if it is twice as long as one (auto).
        decode: of a paragraph's sentences the best span each ("independent", the paper), or together, so that their
            starts do not fall and the product of their probabilities is the largest there is ("ordered").
        presence_weight: weight of a loss that wants the scores of a sentence low in another video of the batch and high
            in its own (not in the paper, which never sees a video without its sentence: for long videos and "nothing
            here"); 0 leaves it out.
        clip_times: which time a clip i of T stands for: "points", the instant i / (T - 1) of the duration (text under
            Eq. 14), or "extents", the stretch from i / T to (i + 1) / T (released code).
        as_released: follow the released code where its network and its losses differ from the paper: soft label samples
            without straight-through, noise at test time too, boundary targets of 0.5 with 0.25 on each neighbour, the
            labels of short moments, start and end losses summed, the orthogonality's root, and ``released_layers``.
            What lies outside the network (optimiser, clip times, punctuation, what chooses the epoch) is set beside it
            in ``configs/seqpan/charades_sta_as_released.yaml``.
        released_layers: what the released code's attention blocks and localizer have beyond the paper's text: more
            linear layers, the block's input in the self-guided head, positions and convolutions in the localizer,
            dropout on attention weights; null: as ``as_released`` says.
    """

    method = "seqpan"

    dim: int = 128
    heads: int = 8
    conv_layers: int = 4
    conv_kernel: int = 7
    attention: Literal["sgpa", "pa", "se_trm", "co_trm", "seco_trm", "cose_trm"] = "sgpa"
    attention_blocks: int = 2
    similarity: Literal["trilinear", "bilinear"] = "trilinear"
    matching: Literal["sq", "fb", "none"] = "sq"
    gumbel: bool = True
    label_embeddings: bool = True
    inference_labels: Literal["arg_max", "sampled"] = "arg_max"
    tau: float = 0.3
    char_cnn: bool = True
    char_dim: int = 50
    punctuation: bool = False
    localizer: Literal["shared", "two"] = "shared"
    dropout: float = 0.2
    max_clips: int = 64
    max_words: int = 50
    presence_weight: float = 0.0
    windowed: bool | Literal["auto"] = "auto"
    decode: Literal["independent", "ordered"] = "independent"
    clip_times: ClipTimes = "points"
    as_released: bool = False
    released_layers: bool | None = None

    @property
    def layers_as_released(self) -> bool:
        """Whether the layers are the released code's."""
        return self.as_released if self.released_layers is None else self.released_layers

    @classmethod
    def of_checkpoint(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """As :class:`MethodConfig`: ``as_released`` was about losses alone before ``released_layers`` was there."""
        return {"released_layers": False, **settings}

    def __post_init__(self) -> None:
        sizes = "dim heads attention_blocks char_dim conv_kernel max_clips max_words"
        self.require(sizes, "be at least 1", lambda value: value >= 1)
        self.require("dim", f"be a multiple of heads = {self.heads}", lambda dim: dim % self.heads == 0)
        self.require("conv_layers", "be 0 or more", lambda value: value >= 0)
        self.require("conv_kernel", "be odd", lambda value: value % 2 == 1)
        self.require("tau", "be above 0", lambda value: value > 0)
        self.require_weights()
        self.require("dropout", "lie in [0, 1)", lambda value: 0 <= value < 1)
