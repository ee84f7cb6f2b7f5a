"""DMR-JRG: Dual-task Mutual Reinforcing Embedded Joint Video Paragraph Retrieval and Grounding.

Wang et al., 2024. Finds the video that a paragraph describes, then when each of its sentences happens. Weakly
supervised: training sees which video a paragraph belongs to, never when. Equation numbers are the paper's; what the
paper leaves open is settled in ``docs/methods/dmr_jrg.md`` and named where it happens.

Letters: B paragraphs with their videos; M sentences of a paragraph, N of the whole batch, one paragraph after another
and without padding; W words; T clips; K segments of several clips each, between which moments lie: moment (i, j) lasts
from segment i to segment j; P = K (K + 1) / 2 of these, numbered row by row of the K x K map's upper triangle; Q
candidate moments of each sentence; D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, BatchNeeds, Prediction
from vpgfast.models.alignment import Alignment, own_video
from vpgfast.models.candidates import Candidates
from vpgfast.models.configs.dmr_jrg import DMRJRGConfig
from vpgfast.models.dmr_jrg_parts import (
    ClassEncoder,
    TextEncoder,
    draw_words,
    mean_of_paragraphs,
    nce_loss,
    rank_loss,
    rewards_of,
    triplet_loss,
    unit,
)
from vpgfast.models.layers import at_least_float32, masked_mean, same_videos, to_paragraphs
from vpgfast.models.method import RetrievalMethod
from vpgfast.models.moment_map import TAN, MomentMap, Pointwise, SimilarityMap, fuse
from vpgfast.models.ordered import put_in_order
from vpgfast.models.reconstructor import Reconstructor
from vpgfast.ops import dense_anchor_mask, ordered_suppression_scan, temporal_map_bce, temporal_nms


class Draws(NamedTuple):
    """What a step of training takes at random.

    Attributes:
        masked: bool [N, W], the words that the reconstructor does not see.
        negatives: float64 [2, 2, B] in [0, 1), which of the hardest negatives: of the retrieval and of the global loss,
            of a paragraph and of a video.
    """

    masked: Tensor
    negatives: Tensor


class Moments(NamedTuple):
    """What is said of every moment of a video by every sentence of its paragraph.

    Attributes:
        features: F-bar [N, P, D], behind the TAN.
        logits: of the paper's map P, [N, P].
        synced: P^f and P^r, those that there are, [N, P] each.
    """

    features: Tensor
    logits: Tensor
    synced: list[Tensor]


class DMRJRG(RetrievalMethod):
    """The network of section III, its losses and its inference."""

    name = DMRJRGConfig.method
    Config = DMRJRGConfig
    config: DMRJRGConfig

    @staticmethod
    def needs(config: DMRJRGConfig) -> BatchNeeds:
        """Paragraphs without spans, every video brought to T clips, and which words are nouns and verbs."""
        return BatchNeeds(
            level="paragraph",
            labelled_share=0,
            max_clips=config.max_clips,
            resample="pool",
            fixed_length=True,
            max_words=config.max_words,
            vocabulary=config.language_model is None,
            content_words=config.masks_content_words,
            max_sentences=config.max_sentences,
            sentence_order=config.sentence_order,
        )

    def __init__(self, config: DMRJRGConfig, feature_dim: int, word_vectors: WordVectors) -> None:
        super().__init__(config, feature_dim, word_vectors)
        self.config = config
        dim, K = config.dim, config.segments
        self.clips = nn.Linear(feature_dim, dim)
        self.text = TextEncoder(config, word_vectors)
        self.video_encoder = ClassEncoder(config) if config.class_tokens else None  # E_1 and E_3
        self.text_encoder = ClassEncoder(config) if config.class_tokens else None  # E_2
        compared = config.retrieval_weight * config.retrieval_nce + config.global_weight * config.global_nce
        if config.scale is None and compared:
            self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))  # [1]: FSDP takes no scalar

        self.moments = MomentMap(config.moment_map, dim, K, config.moment_samples)
        self.fuse_sentence = nn.Linear(dim, dim, bias=False)  # W_s
        self.fuse_moment = nn.Linear(dim, dim, bias=False)  # W_v
        self.context: TAN | Pointwise | None = None
        if config.context == "convolutions":
            self.context = TAN(dim, K, config.tan_layers, config.tan_kernel, config.tan_normalize)
        elif config.context == "pointwise":
            self.context = Pointwise(dim, K)
        self.score = nn.Linear(dim, 1)  # PL
        synced = (config.forward_sync, config.reverse_sync) if config.time_weight else (False, False)
        self.forward_score = nn.Linear(dim, 1) if synced[0] else None  # PL^f
        self.reverse_score = nn.Linear(dim, 1) if synced[1] else None  # PL^r
        self.trains_sync_heads = config.train_sync_heads and config.local_weight + config.pseudo_span_weight > 0
        for head in (self.forward_score, self.reverse_score):
            if head is not None:
                head.requires_grad_(self.trains_sync_heads)
        self.reconstructor = None
        if config.local_weight:
            self.reconstructor = Reconstructor(
                feature_dim,
                dim,
                config.reconstructor_heads,
                config.reconstructor_layers,
                config.feed_forward,
                config.dropout,
                config.reconstructor_clips,
                len(word_vectors.vectors),
            )
        if config.global_weight:
            self.moment_token = nn.Parameter(0.02 * torch.randn(dim))  # f'_cls,v
            self.fuse_tokens = nn.Linear(2 * dim, dim)  # Eq. 16: a 1 x 1 convolution of two vectors
            if config.candidate_weights is None:
                self.candidate_weights = nn.Parameter(torch.full((config.candidates,), 1 / config.candidates))

        paragraphs = word_vectors if config.alignment_reads == "paragraphs" else None
        gap, share = config.alignment_gap, config.pseudo_span_share
        self.alignment = Alignment(dim, share, gap, paragraphs) if config.alignment_weight else None
        self.similarity = SimilarityMap(dim) if config.alignment_weight else None

        self.register_constants()
        self.cells: Tensor
        self.triangle: Tensor

    def constants(self) -> dict[str, Tensor]:
        """``cells`` int64 [2, K (K + 1) / 2], C of Eq. 20, row by row; where they are on the map, bool [K, K]; and the
        ``candidate_weights`` that are given."""
        K = self.config.segments
        constants = {"cells": torch.triu_indices(K, K), "triangle": dense_anchor_mask(K)}
        if self.config.global_weight and self.config.candidate_weights is not None:
            constants["candidate_weights"] = torch.tensor(self.config.candidate_weights)
        return constants

    # --- the two branches

    def project(self, video: Tensor) -> Tensor:
        """Clips [B, T, d_v] -> their features [B, T, D] (section III.C)."""
        if video.shape[1] != self.config.max_clips:
            raise ValueError(f"DMR-JRG takes {self.config.max_clips} clips a video, this batch has {video.shape[1]}")
        return self.clips(video).relu()

    def segments(self, clips: Tensor) -> Tensor:
        """Of clips [B, T, ...] -> of segments [B, K, ...], each the mean of its clips (section III.C)."""
        return clips.unflatten(1, (self.config.segments, -1)).mean(2)

    def video_class(self, segments: Tensor) -> Tensor:
        """[B, K, D] -> f_cls,v [B, D] behind E_1 (Eq. 1)."""
        if self.video_encoder is None:
            return segments.mean(1)
        every = torch.ones(segments.shape[:2], dtype=torch.bool, device=segments.device)
        return self.video_encoder(segments, every)

    def text_class(self, sentences: Tensor, there: Tensor) -> Tensor:
        """h_m [N, D] and bool [B, M], which there are -> f_cls,t [B, D] behind E_2 (Eq. 1)."""
        padded = to_paragraphs(sentences, there)
        if self.text_encoder is None:
            return masked_mean(padded, there)
        return self.text_encoder(padded, there)

    def embed_videos(self, video: Tensor, video_mask: Tensor) -> Tensor:
        """As :class:`RetrievalMethod`; all T clips are real, whatever the mask says. E = D."""
        return unit(self.video_class(self.segments(self.project(video))))

    def embed_paragraphs(self, batch: Batch) -> Tensor:
        """As :class:`RetrievalMethod`; E = D."""
        return unit(self.text_class(self.text(batch).sentences, batch.sentence_mask))

    def forward(
        self, clips: Tensor, sentences: Tensor, there: Tensor, similarity: Tensor | None = None, sync: bool = False
    ) -> Moments:
        """Hold every sentence against every moment of its video (section III.E and G).

        Args:
            clips: [B, T, D] of :meth:`project`.
            sentences: h_m [N, D].
            there: bool [B, M], which sentences there are.
            similarity: of :meth:`align`.
            sync: whether the maps of the two branches are wanted.
        """
        number, counts = there.nonzero()[:, 1], there.sum(1).tolist()
        # W_v F once for all sentences of a video.
        moments = self.fuse_moment(self.moments(self.segments(clips).transpose(1, 2)))
        fused = fuse(self.fuse_sentence(sentences).to(moments.dtype), moments, counts)
        if self.config.normalize_fusion:
            fused = F.normalize(fused, dim=2)
        if self.similarity is not None and self.alignment is not None and similarity is not None:
            located = self.alignment.located(own_video(similarity, there), there)
            fused = fused + self.similarity(self.segments(located))
        features = fused if self.context is None else self.context(fused, number)

        branches = [(self.forward_score, False), (self.reverse_score, True)] if sync else []
        synced_heads = [(head, reverse) for head, reverse in branches if head is not None]
        weight = torch.cat([self.score.weight, *(head.weight for head, _ in synced_heads)])
        logits, *z = at_least_float32(F.linear(features, weight)).unbind(2)
        synced = []
        for (head, reverse), product in zip(synced_heads, z, strict=True):
            # Eq. 18-19. The layer is linear before its sigmoid: 1 - sum P, one number a cell, can wait until behind it.
            padded, bias = to_paragraphs(self.on_map(product), there), head.bias.to(product.dtype)
            synced.append(ordered_suppression_scan(padded, bias, there, reverse)[there][:, *self.cells])
        return Moments(features, logits + self.score.bias, synced)

    def align(self, sentences: Tensor, clips: Tensor, batch: Batch) -> Tensor | None:
        """Similarities of the batch's h_m [N, D] and clips [B, T, D], [N, B, T]; None without alignment."""
        if self.alignment is None:
            return None
        return self.alignment.similarity(self.alignment.read(sentences, batch), clips)

    # --- training

    def draw(self, batch: Batch) -> Draws:
        """What :meth:`loss` takes at random."""
        mask = batch.word_mask[batch.sentence_mask]
        masked = draw_words(mask, self.text.weights(batch.words[batch.sentence_mask]), self.config.masked_share)
        return Draws(masked, torch.rand(2, 2, len(batch), dtype=torch.float64, device=mask.device))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """``loss`` = the weighted sum of those that the settings ask for (Eq. 23).

        ``retrieval`` (Eq. 2-7), ``reconstruction`` (Eq. 11) and ``rank`` (Eq. 12), which are the local loss, ``global``
        (section III.F), ``grrm`` (Eq. 17), ``time`` (Eq. 22), ``sync_rank``, which trains the two branches' layers, and
        ``alignment`` and ``pseudo_span``, which the paper does not have.
        """
        config, there, drawn = self.config, batch.sentence_mask, self.draw(batch)
        clips, text = self.project(batch.video), self.text(batch, drawn.masked)
        video, paragraph = self.video_class(self.segments(clips)), self.text_class(text.sentences, there)
        aligned = self.align(text.sentences, clips, batch)
        moments = self(clips, text.sentences, there, aligned, sync=True)
        candidates = moments.logits.detach().topk(config.candidates, 1).indices
        losses: dict[str, Tensor] = {}

        similarity, same = unit(paragraph) @ unit(video).t(), same_videos(batch)  # S^r
        if config.retrieval_weight:
            losses["retrieval"] = self.contrast(similarity, same, drawn.negatives[0], config.retrieval_nce)
        if text.masked is not None:
            losses |= self.local_losses(batch, moments, candidates, text.masked, drawn.masked)
        if config.global_weight:
            fine = unit(paragraph) @ unit(self.fused_class(video, moments, candidates, there)).t()  # S^g
            losses["global"] = self.contrast(fine, same, drawn.negatives[1], config.global_nce)
            if config.grrm_weight:
                losses["grrm"] = F.mse_loss(similarity, fine.detach())  # Eq. 17: S^g is the label
        if config.time_weight:
            losses["time"] = torch.stack([self.time_loss(moments.logits, P, len(batch)) for P in moments.synced]).sum()
        if self.alignment is not None and aligned is not None:
            losses["alignment"] = self.alignment.loss(aligned, batch)
        if self.alignment is not None and aligned is not None and config.pseudo_span_weight:
            spans = self.alignment.spans(own_video(aligned, there), there)
            maps = [moments.logits, *(P.logit(1e-6) for P in moments.synced if self.trains_sync_heads)]
            losses["pseudo_span"] = torch.stack([self.label_loss(P, spans, len(batch)) for P in maps]).sum()
        weights_of = {"reconstruction": "local", "rank": "local", "sync_rank": "local"}
        total = [getattr(config, f"{weights_of.get(name, name)}_weight") * value for name, value in losses.items()]
        return {"loss": torch.stack(total).sum(), **losses}

    def local_losses(
        self, batch: Batch, moments: Moments, candidates: Tensor, words: Tensor, masked: Tensor
    ) -> dict[str, Tensor]:
        """Reconstruction and rank loss (Eq. 9-12).

        Args:
            batch: as :meth:`loss` takes it.
            moments: of its sentences.
            candidates: int64 [N, Q], the moments of the highest P.
            words: encoded with some masked, [N, W, D].
            masked: bool [N, W], which.
        """
        assert self.reconstructor is not None
        there = batch.sentence_mask
        owner, mask = there.nonzero()[:, 0], batch.word_mask[there]
        told = mask if self.config.told == "all" else masked
        nll = self.reconstructor(batch.video, owner, self.clips_of(candidates), words, mask, batch.words[there], told)
        if self.config.reduction == "mean":
            nll = nll / told.sum(1, keepdim=True)
        rewards = rewards_of(nll.detach())
        maps = [moments.logits.sigmoid(), *(moments.synced if self.trains_sync_heads else ())]
        rank, *ranks = [mean_of_paragraphs(rank_loss(P.gather(1, candidates), rewards), there) for P in maps]
        losses = {"reconstruction": mean_of_paragraphs(nll.mean(1), there), "rank": rank}
        return losses | ({"sync_rank": torch.stack(ranks).sum()} if ranks else {})

    def fused_class(self, video: Tensor, moments: Moments, candidates: Tensor, there: Tensor) -> Tensor:
        """The fused class tokens f_cls,f [B, D] (Eq. 14-16) from those of the videos [B, D]."""
        assert self.video_encoder is not None
        features, weights = moments.features, self.candidate_weights.to(moments.features.dtype)
        chosen = features.gather(1, candidates.unsqueeze(2).expand(-1, -1, features.shape[2]))
        chosen = (chosen * weights.unsqueeze(1)).sum(1)  # CMFF, Eq. 14
        found = self.video_encoder(to_paragraphs(chosen, there), there, self.moment_token)  # E_3 is E_1
        return self.fuse_tokens(torch.cat([video, found], 1))

    def contrast(self, similarity: Tensor, same: Tensor, draws: Tensor, nce: float) -> Tensor:
        """L_trip + beta L_nce of similarities [B, B], paragraphs by videos (sections III.D and F)."""
        loss = triplet_loss(similarity, same, draws, self.config.margin, self.config.hardest)
        if not nce:
            return loss
        return loss + nce * nce_loss(similarity * self.scale, same)

    @property
    def scale(self) -> Tensor | float:
        """lambda."""
        return self.log_scale.exp() if self.config.scale is None else self.config.scale

    def time_loss(self, logits: Tensor, synced: Tensor, batch: int) -> Tensor:
        """L^f or L^r: P against the soft labels around the best moment of P^f or P^r [N, P] (Eq. 20-21)."""
        best = synced.detach().argmax(1)
        return self.label_loss(logits, self.spans_of(best), batch)

    def label_loss(self, logits: Tensor, spans: Tensor, batch: int) -> Tensor:
        """Scores against the soft labels around a span of each sentence.

        Args:
            logits: [N, P].
            spans: [N, 2], fractions of the duration.
            batch: B, over which "sum" takes the mean.
        """
        maps, spans = self.on_map(logits).unsqueeze(1), spans.unsqueeze(1).to(logits.dtype)
        loss = temporal_map_bce(maps, spans, self.triangle, self.config.min_iou, self.config.max_iou)
        if self.config.reduction == "mean":
            return loss
        return loss * (len(logits) * self.cells.shape[1] / batch)

    # --- moments by their number

    def on_map(self, values: Tensor) -> Tensor:
        """[N, P] -> [N, K, K], zero below the diagonal."""
        K = self.config.segments
        maps = values.new_zeros(len(values), K * K)
        return maps.index_copy(1, self.cells[0] * K + self.cells[1], values).unflatten(1, (K, K))

    def clips_of(self, moments: Tensor) -> Tensor:
        """First clip and the one after the last, int64 [..., 2]."""
        length = self.config.max_clips // self.config.segments
        first, last = self.cells[:, moments]
        return torch.stack([first * length, (last + 1) * length], -1)

    def spans_of(self, moments: Tensor) -> Tensor:
        """Start and end as fractions of the duration, float64 [..., 2]."""
        first, last = self.cells[:, moments]
        return torch.stack([first, last + 1], -1).double() / self.config.segments

    # --- inference

    @torch.no_grad()
    def predict(self, batch: Batch, top_n: int = 10) -> Prediction:
        """The ``top_n`` moments of the highest P that do not overlap a better one too much."""
        there = batch.sentence_mask
        clips, sentences = self.project(batch.video), self.text(batch).sentences
        moments = self(clips, sentences, there, self.align(sentences, clips, batch))
        P = moments.logits.sigmoid()
        prediction = self.rank(to_paragraphs(P, there, -torch.inf), batch, top_n)
        prediction.maps = to_paragraphs(self.on_map(P).masked_fill(~self.triangle, torch.nan), there, torch.nan)
        if self.config.decode == "independent":
            return prediction
        seconds = self.spans_in_segments() / self.config.segments * batch.durations[:, None, None, None]
        log_scores = to_paragraphs(F.logsigmoid(moments.logits), there, -torch.inf)
        candidates = Candidates(seconds.expand(*log_scores.shape, 2), log_scores)
        return put_in_order(prediction, candidates, there, self.config.nms)

    def at_random(self, batch: Batch, top_n: int, generator: torch.Generator) -> Prediction:
        """As :class:`Method`."""
        there = batch.sentence_mask
        scores = torch.rand(*there.shape, self.cells.shape[1], generator=generator).to(there.device)
        return self.rank(scores.masked_fill(~there.unsqueeze(-1), -torch.inf), batch, top_n)

    def spans_in_segments(self) -> Tensor:
        """Of all moments, float64 [P, 2]."""
        return torch.stack([self.cells[0], self.cells[1] + 1], 1).double()

    def rank(self, scores: Tensor, batch: Batch, top_n: int) -> Prediction:
        """The ``top_n`` moments of the highest scores [B, M, P], after suppression."""
        # In segments, whose overlaps are exact: many pairs of moments have an IoU of just 1/2.
        spans = self.spans_in_segments().expand(*scores.shape, 2)
        kept = temporal_nms(spans, scores, 1.0 if self.config.nms is None else self.config.nms, top_n)
        found = kept >= 0
        kept = kept.clamp_min(0)
        chosen = spans.gather(2, kept.unsqueeze(-1).expand(-1, -1, -1, 2)) / self.config.segments
        return Prediction(
            spans=(chosen * batch.durations[:, None, None, None]).masked_fill(~found.unsqueeze(-1), 0),
            scores=scores.gather(2, kept).masked_fill(~found, -torch.inf),
        )

    @torch.no_grad()
    def candidates(self, batch: Batch, count: int) -> Candidates:
        """As :class:`Method`: P holds for a moment and a sentence, whatever else the video shows."""
        found = self.predict(batch, count)
        return Candidates(found.spans[:, 0], found.scores[:, 0].clamp_min(0).log())

    def check_weights(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """Refuses weights that were trained beside another language model."""
        if self.text.language is not None:
            self.text.language.check_weights(weights, "text.language.", path)
