"""Settings of DMR-JRG, see :mod:`vpgfast.models.dmr_jrg`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vpgfast.errors import ConfigError
from vpgfast.models.configs.base import MethodConfig


@dataclass
class DMRJRGConfig(MethodConfig):
    """Settings of DMR-JRG; the defaults are the paper's for ActivityNet Captions.

    Attributes:
        max_clips: T, the number of clips that every video is brought to; a multiple of ``segments``.
        segments: K, into how many equal segments a video is cut; the map of moments is K x K.
        dim: width D.
        heads: of the retrieval branch's encoders.
        layers: of each of them.
        feed_forward: width of the hidden layer of all feed-forward networks.
        dropout: in all transformer layers.
        class_tokens: video and paragraph as class tokens of transformer encoders (Eq. 1, Table 4: VPCMR); off, as the
            means of their segments and of their sentences.
        start_from_means: a class token starts from the mean of what it attends to, and a sentence is the mean of its
            words' states and not the last ones (not in the paper: so that what is known of single words can carry over
            to paragraphs that training has not seen).
        language_model: folder of a frozen language model, as save_pretrained of the package transformers writes it,
            which reads the sentences in the place of word vectors and the Bi-LSTM (Table 6); null: these.
        moment_map: what a moment is made of: the maximum of its segments ("max_pool", the paper), or BMN's layer
            ("boundary_matching", the released code).
        moment_samples: of a moment by BMN's layer.
        normalize_fusion: scale a moment's fused features to length 1 (2D-TAN and the released code; Eq. 8 does not).
        context: what lets moments see their neighbours: four convolutions ("convolutions", the paper's TAN; Table 4:
            VTC-LD), one layer over each moment and its place by itself ("pointwise", the released code), or "none".
        tan_layers: how many convolutions.
        tan_kernel: their width and height in segments, odd.
        tan_normalize: divide what each of them gives by the number of moments that it saw (2D-TAN; after four layers of
            5 x 5 all moments are the same then, up to the last digits of float32).
        retrieval_weight: of the retrieval loss L_cmr; 0 leaves a loss and what only it trains out, here and below.
        local_weight: of the local loss (Eq. 13).
        global_weight: of the global loss (Eq. 14-16, Table 4: VTFA-GD).
        time_weight: of the temporal loss (Eq. 18-22, Table 4: BTSE-TD).
        grrm_weight: of the loss by which grounding reinforces retrieval (Eq. 17, Table 4: GRRM).
        retrieval_nce: beta_1, weight of InfoNCE beside the triplet loss in L_cmr.
        global_nce: beta_2, the same in the global loss.
        scale: lambda of InfoNCE; null: learned, from 1 / 0.07 on (Fig. 8).
        margin: Delta of the triplet losses (Fig. 8).
        hardest: the negative of a triplet is one of this many hardest of the batch.
        candidates: Q (Fig. 7).
        candidate_weights: w_1 ... w_Q, of the candidates in their order (Eq. 14, Table 5); null: learned.
        alignment_weight: of a contrast between single sentences and the clips of all videos of the batch, whose
            similarities every moment is then told (not in the paper: nothing there asks more of a sentence than of its
            paragraph); 0 leaves both out.
        alignment_reads: single "sentences", or "paragraphs" as a whole, whose sentences then know what was said before
            and find their clips in their order (for text that says little sentence by sentence).
        alignment_gap: of paragraphs: how many clips lie between the places of two sentences at least; 0 or more.
        pseudo_span_weight: of a loss by which the scores (with train_sync_heads also the two branches') learn spans
            that are read off that alignment, by soft labels as in Eq. 20-21 (not in the paper).
        pseudo_span_share: a sentence's span is where clips are more similar to it than a level, this share of the way
            from the worst ones of the video to the best one.
        reduction: "sum" adds up words (Eq. 11), sentences and moments (Eq. 20-21) as the equations do, "mean" takes
            their means instead (2D-TAN and the released code).
        masked_share: of a sentence's words.
        content_weight: how much more often a noun or a verb is masked than another word; 1: as often.
        told: which words the reconstruction loss is about: "all" (Eq. 11), or those that were "masked".
        reconstructor_heads: of the reconstructor's attention.
        reconstructor_layers: of its encoder and of its decoder.
        reconstructor_clips: clips that it reads of a moment.
        forward_sync: the forward branch (Eq. 18, Table 4).
        reverse_sync: the reverse branch (Eq. 19, Table 4).
        train_sync_heads: train the two branches' prediction layers, by Eq. 12 on their own maps and by pseudo spans; in
            the paper's losses nothing trains them.
        min_iou: IoU with the pseudo-label at and below which a moment's soft label is 0 (Eq. 20-21).
        max_iou: IoU at and above which it is 1.
        nms: largest IoU between two ranked moments; null ranks all of them.
        windowed: how evaluation and grounding see a video of more clips than max_clips, and than training videos have:
            brought down to max_clips (false), through windows (true), or so if it is twice as long as one (auto).
        decode: of a paragraph's sentences the best span each ("independent", the paper), or together, so that their
            starts do not fall and the product of their scores is the largest there is ("ordered").
        sentence_order: "time" sorts a paragraph's sentences by annotated start, "file" leaves them.
        max_sentences: longer paragraphs are cut to this in training and into pieces at evaluation; null: never.
        max_words: longer sentences are cut to this many words; with ``language_model`` only where words are told.
    """

    method = "dmr_jrg"

    max_clips: int = 256
    segments: int = 32
    dim: int = 512
    heads: int = 8
    layers: int = 6
    feed_forward: int = 2048
    dropout: float = 0.1
    class_tokens: bool = True
    start_from_means: bool = False
    language_model: Path | None = None
    moment_map: Literal["max_pool", "boundary_matching"] = "max_pool"
    moment_samples: int = 16
    normalize_fusion: bool = False
    context: Literal["convolutions", "pointwise", "none"] = "convolutions"
    tan_layers: int = 4
    tan_kernel: int = 5
    tan_normalize: bool = False
    retrieval_weight: float = 1.0
    local_weight: float = 1.0
    global_weight: float = 1.0
    time_weight: float = 1.0
    grrm_weight: float = 1.0
    retrieval_nce: float = 0.04
    global_nce: float = 0.04
    scale: float | None = None
    margin: float = 0.2
    hardest: int = 20
    candidates: int = 3
    candidate_weights: list[float] | None = field(default_factory=lambda: [0.4, 0.3, 0.3])
    alignment_weight: float = 0.0
    alignment_reads: Literal["sentences", "paragraphs"] = "sentences"
    alignment_gap: int = 1
    pseudo_span_weight: float = 0.0
    pseudo_span_share: float = 0.6
    reduction: Literal["sum", "mean"] = "sum"
    masked_share: float = 1 / 3
    content_weight: float = 2.0
    told: Literal["all", "masked"] = "all"
    reconstructor_heads: int = 4
    reconstructor_layers: int = 3
    reconstructor_clips: int = 16
    forward_sync: bool = True
    reverse_sync: bool = True
    train_sync_heads: bool = True
    min_iou: float = 0.5
    max_iou: float = 1.0
    nms: float | None = 0.5
    windowed: bool | Literal["auto"] = "auto"
    decode: Literal["independent", "ordered"] = "independent"
    sentence_order: Literal["time", "file"] = "time"
    max_sentences: int | None = None
    max_words: int = 50

    def __post_init__(self) -> None:
        sizes = "max_clips segments dim heads layers feed_forward moment_samples max_words"
        others = "tan_layers tan_kernel hardest candidates reconstructor_heads reconstructor_layers reconstructor_clips"
        self.require(f"{sizes} {others}", "be at least 1", lambda value: value >= 1)
        self.require(
            "max_clips", f"be a multiple of segments = {self.segments}", lambda value: value % self.segments == 0
        )
        self.require(
            "dim",
            f"be a multiple of 8, of heads = {self.heads} and of reconstructor_heads = {self.reconstructor_heads}",
            lambda dim: dim % 8 == 0 and dim % self.heads == 0 and dim % self.reconstructor_heads == 0,
        )
        self.require("tan_kernel", "be odd", lambda value: value % 2 == 1)
        self.require("retrieval_nce global_nce margin alignment_gap", "be 0 or more", lambda value: value >= 0)
        self._check_losses()
        moments = self.segments * (self.segments + 1) // 2
        self.require("candidates", f"be at most the {moments} moments", lambda value: value <= moments)
        self.require(
            "candidate_weights",
            f"be one a candidate ({self.candidates}), or null",
            lambda weights: weights is None or len(weights) == self.candidates,
        )
        self.require("scale", "be above 0, or null", lambda value: value is None or value > 0)
        self.require("masked_share", "lie in (0, 1]", lambda value: 0 < value <= 1)
        self.require("pseudo_span_share", "lie in [0, 1]", lambda value: 0 <= value <= 1)
        self.require("content_weight", "be above 0", lambda value: value > 0)
        if not 0 <= self.min_iou < self.max_iou <= 1:
            raise ConfigError(
                f"dmr_jrg: it must hold that 0 <= min_iou < max_iou <= 1, got {self.min_iou} and {self.max_iou}"
            )
        self.require("nms", "be from 0 to 1, or null", lambda value: value is None or 0 <= value <= 1)
        self.require("max_sentences", "be at least 1, or null", lambda value: value is None or value >= 1)

    @property
    def masks_content_words(self) -> bool:
        """Whether it matters which words are nouns and verbs."""
        return self.local_weight > 0 and self.content_weight != 1

    def _check_losses(self) -> None:
        self.require_weights()
        if not self.retrieval_weight and not self.global_weight:
            raise ConfigError("dmr_jrg: retrieval_weight or global_weight must be above 0, or nothing trains retrieval")
        if not self.local_weight and not self.time_weight and not self.pseudo_span_weight:
            raise ConfigError(
                "dmr_jrg: local_weight, time_weight or pseudo_span_weight must be above 0, or nothing trains the scores"
            )
        if self.pseudo_span_weight and not self.alignment_weight:
            raise ConfigError(
                "dmr_jrg: pseudo_span_weight needs alignment_weight, off whose alignment the spans are read"
            )
        if self.global_weight and not self.class_tokens:
            raise ConfigError("dmr_jrg: global_weight needs class_tokens, which the global loss compares")
        if self.grrm_weight and not self.global_weight:
            raise ConfigError("dmr_jrg: grrm_weight needs global_weight, whose similarities it teaches")
        if self.time_weight and not (self.forward_sync or self.reverse_sync):
            raise ConfigError("dmr_jrg: time_weight needs forward_sync or reverse_sync, whose maps it learns from")
