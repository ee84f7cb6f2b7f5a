"""SiamGTR: Siamese Learning with Joint Alignment and Regression for Weakly-Supervised Video Paragraph Grounding.

Tan et al., CVPR 2024. A paragraph's sentences are grounded together by one network that sees two videos in training:
the paragraph's own (inference branch), and that video inserted into another one (augmentation branch), where it is
known when the whole paragraph happens. Equation numbers are the paper's, A.x those of its supplement; what the paper
leaves open is settled in ``docs/methods/siamgtr.md`` and named where it happens.

Letters: B paragraphs with their videos; M sentences; Q = 1 + M queries, the paragraph's before those of its sentences;
T clips; D width; H heads; K layers; C concepts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, BatchNeeds, Prediction
from vpgfast.models.alignment import own_video
from vpgfast.models.candidates import Candidates
from vpgfast.models.configs.siamgtr import SiamGTRConfig
from vpgfast.models.layers import Linear, at_least_float32, mlp, to_paragraphs
from vpgfast.models.method import Method
from vpgfast.models.ordered import put_in_order
from vpgfast.models.siamgtr_network import (
    AlignedAttention,
    Concepts,
    Decoded,
    Decoder,
    Queries,
    QueryEncoder,
    VideoEncoder,
)
from vpgfast.models.siamgtr_training import (
    boundary_error,
    clips_inside,
    cross_branch_loss,
    draw_insertions,
    guidance_loss,
    insert_videos,
    log_mass,
    mean_where,
    order_loss,
)


class SiamGTR(Method):
    """The network of sections 3.2 to 3.4, its losses and its inference."""

    name = SiamGTRConfig.method
    Config = SiamGTRConfig
    config: SiamGTRConfig

    @staticmethod
    def needs(config: SiamGTRConfig) -> BatchNeeds:
        """Paragraphs, the labelled share of them with spans, every video brought to T clips."""
        return BatchNeeds(
            level="paragraph",
            labelled_share={"weakly": 0.0, "semi": config.labelled_share, "fully": 1.0}[config.supervision],
            max_clips=config.max_clips,
            resample="pool",
            fixed_length=True,
            max_words=config.max_words,
            content_words=config.concepts > 0,
            max_sentences=config.max_sentences,
            sentence_order=config.sentence_order,
        )

    def __init__(self, config: SiamGTRConfig, feature_dim: int, word_vectors: WordVectors) -> None:
        super().__init__(config, feature_dim, word_vectors)
        self.config = config
        self.clips = Linear(feature_dim, config.dim)
        self.text = QueryEncoder(config, word_vectors)
        self.video = VideoEncoder(config)
        self.decoder = Decoder(config)
        seen = config.dim + (config.max_clips if config.predict_from != "features" else 0)
        self.span = mlp(seen, config.dim, config.dim, 2)
        self.concepts = Concepts(config, word_vectors) if config.concepts else None
        self.alignment = None
        if config.alignment_weight:
            paragraphs = word_vectors if config.alignment_reads == "paragraphs" else None
            gap, share = config.alignment_gap, config.pseudo_span_share
            self.alignment = AlignedAttention(config.dim, share, gap, paragraphs)

    def forward(
        self, clips: Tensor, queries: Queries, intervals: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Decoded, Tensor]:
        """Look for queries in videos.

        Args:
            clips: [B, T, D] of :meth:`project`.
            queries: of the text encoder.
            intervals: [B, Q, 2] fractions of the duration, where the attention's mass is wanted.
            need_weights: whether the attention of the last layer itself is wanted.

        Returns:
            What the decoder found, and the predicted spans [B, Q, 2], fractions of the duration.
        """
        inside = None if intervals is None else clips_inside(intervals, clips.shape[1])
        memory, start = self.video(clips), None
        if self.alignment is not None:
            aligned, start = self.alignment(clips, queries.sentences, queries.mask[:, 1:], queries.features, memory)
            queries = queries._replace(features=aligned)
        both = self.config.predict_from != "features"
        found = self.decoder(memory, queries, inside, need_weights or both)
        last = found.features[-1]
        if both:
            assert found.weights is not None
            last = torch.cat([last, found.weights.to(last.dtype)], -1)
        return found, self.span_of(last, start)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """``loss`` = the weighted sum of the losses that the settings ask for, each of which is there by its name."""
        config, size = self.config, len(batch)
        clips, queries = self.project(batch), self.read(batch)
        sentences, pairs = batch.sentence_mask, batch.sentence_mask[:, 1:]
        losses: dict[str, Tensor] = {}
        if self.concepts is not None:
            losses["concept"] = self.concepts.loss(queries.features, batch)

        spans, labelled = self.labels(batch)
        unlabelled = sentences & ~labelled
        if self.alignment is not None:
            similarity = self.alignment.similarity(queries.sentences[sentences], clips)
            losses["alignment"] = self.alignment.loss(similarity, batch)
            similarity = own_video(similarity, sentences)  # [N, T], for the N sentences of the batch
            if config.pseudo_span_weight:
                similar = self.alignment.spans(similarity, sentences).to(spans.dtype)
                spans = spans.masked_scatter(unlabelled.unsqueeze(2), similar[unlabelled[sentences]])
        if batch.all_spans is not None and labelled.any():
            spans = torch.where(labelled.unsqueeze(2), self.nearest_spans(clips, queries, batch), spans)
        intervals = F.pad(spans, (0, 0, 1, 0))  # nothing is known of the paragraph as a whole

        insertions = None
        if config.supervision != "fully":
            # Both branches have the same weights: they are one batch.
            insertions = draw_insertions(batch, config)
            pseudo, interval = insert_videos(clips, insertions)
            clips = torch.cat([clips, pseudo])
            queries = Queries(*(torch.cat([x, x]) for x in queries))
            intervals = torch.cat([intervals, interval.unsqueeze(1).expand_as(intervals)])
        found, predicted = self(clips, queries, intervals)
        assert found.mass is not None

        gap = 1 / sentences.sum(1, keepdim=True).to(predicted.dtype)  # 1 / N
        places = found.centroid[-1, :, 1:] / config.max_clips
        unit = config.max_clips if config.order_in == "clips" else 1
        losses["order"] = unit * order_loss(places[:size], gap / 2, pairs)
        if found.anchors is not None:
            centres = found.anchors[-1, :size, 1:, 0].sigmoid()
            losses["anchor_ranking"] = order_loss(centres, gap / 2, pairs)
        error = boundary_error(predicted[:size, 1:], spans) - log_mass(found.mass[:, :size, 1:]).mean(0)
        if config.pseudo_span_weight:
            losses["pseudo_span"] = mean_where(error * unlabelled, sentences)
        if config.supervision != "weakly":
            if self.alignment is not None:
                guidance = guidance_loss(similarity, spans[sentences]).to(error.dtype)
                error = error + torch.zeros_like(error).masked_scatter(sentences, guidance)
            # The mean over labelled sentences, but for batches with more or fewer of them than their share.
            losses["label"] = mean_where(error * labelled, sentences) / self.needs(config).labelled_share
        if insertions is not None:
            there = insertions.there.unsqueeze(1)
            losses["order"] = losses["order"] + unit * order_loss(places[size:], gap / 4, pairs & there)
            error, mass = boundary_error(predicted[size:, :1], interval.unsqueeze(1)), found.mass[:, size:]
            if config.self_consistent:
                error = error * (mass[-1, :, :1] > config.beta)
            losses["regression"] = mean_where(error, there)
            losses["pseudo_attention"] = mean_where(-log_mass(mass[..., :1]), there)
            if config.sentence_pseudo_attention:
                inside = mean_where(-log_mass(mass[..., 1:]), sentences & there)
                losses["pseudo_attention"] = losses["pseudo_attention"] + inside
            augmented, normal = found.features[:, size:], found.features[:, :size]
            losses["cross_branch"] = cross_branch_loss(augmented, normal, sentences, there)
        weights = {name: getattr(config, f"{name}_weight") for name in losses}
        return {"loss": torch.stack([weights[name] * value for name, value in losses.items()]).sum(), **losses}

    @torch.no_grad()
    def nearest_spans(self, clips: Tensor, queries: Queries, batch: Batch) -> Tensor:
        """Of several moments that a sentence is true of, the one that is nearest to what is predicted now, [B, M, 2]:
        one span can't learn them all, and their mean is none of them."""
        predicted = self(clips, queries)[1][:, 1:]
        spans, there = batch.true_spans
        error = boundary_error(predicted.unsqueeze(2).expand_as(spans), spans.to(predicted.dtype))
        nearest = error.masked_fill(~there, torch.inf).argmin(2)
        return spans.gather(2, nearest[..., None, None].expand(-1, -1, 1, 2)).squeeze(2)

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Spans [B, M, 2], zero where there is no label, and bool [B, M] where there is one."""
        if batch.spans is None or batch.labelled is None or self.config.supervision == "weakly":
            there = batch.sentence_mask
            return batch.video.new_zeros(*there.shape, 2), torch.zeros_like(there)
        return batch.spans, batch.sentence_mask & batch.labelled.unsqueeze(1)

    @torch.no_grad()
    def predict(self, batch: Batch, top_n: int = 10) -> Prediction:
        """The one span of each sentence; its score is the share of the sentence's attention that lies inside."""
        found, spans = self(self.project(batch), self.read(batch), need_weights=True)
        assert found.weights is not None
        spans = spans[:, 1:].clamp(0, 1)
        scores = (found.weights[:, 1:] * shares_inside(spans, self.config.max_clips)).sum(-1)
        seconds = spans * batch.durations[:, None, None]
        scores = scores.masked_fill(~batch.sentence_mask, -torch.inf)
        prediction = Prediction(
            spans=F.pad(seconds.unsqueeze(2), (0, 0, 0, top_n - 1)),
            scores=F.pad(scores.unsqueeze(2), (0, top_n - 1), value=-torch.inf),
        )
        if self.config.decode == "independent":
            return prediction
        moved, masses = moved_spans(spans, found.weights[:, 1:])
        candidates = Candidates(moved * batch.durations[:, None, None, None], masses)
        ordered = put_in_order(prediction, candidates, batch.sentence_mask)
        ordered.scores[:, :, 1:] = -torch.inf  # the one span, as before
        return ordered

    @torch.no_grad()
    def candidates(self, batch: Batch, count: int) -> Candidates:
        """As :class:`Method`: by the alignment's similarities inside the span, log-sum-exp as its loss compares videos.

        Without alignment by the attention inside, which is large in any window and compares badly.
        """
        clips, queries = self.project(batch), self.read(batch)
        found, spans = self(clips, queries, need_weights=True)
        spans = spans[:, 1].clamp(0, 1)
        if self.alignment is None:
            assert found.weights is not None
            scores = (found.weights[:, 1] * shares_inside(spans, clips.shape[1])).sum(-1).clamp_min(1e-9).log()
        else:
            similarity = self.alignment.similarity(queries.sentences[:, 0], clips)
            similarity = own_video(similarity, batch.sentence_mask)
            inside = shares_inside(spans, clips.shape[1]).clamp_min(1e-9).log()
            scores = (similarity + inside.to(similarity.dtype)).logsumexp(1)
        return Candidates((spans * batch.durations[:, None])[:, None], scores[:, None])

    def read(self, batch: Batch) -> Queries:
        """The batch's queries, their sentences as the alignment compares them."""
        queries, there = self.text(batch), batch.sentence_mask
        if self.alignment is None:
            return queries
        return queries._replace(sentences=to_paragraphs(self.alignment.read(queries.sentences[there], batch), there))

    def project(self, batch: Batch) -> Tensor:
        """F_v (section 3.2), [B, T, D]."""
        if batch.video.shape[1] != self.config.max_clips:
            raise ValueError(
                f"SiamGTR takes {self.config.max_clips} clips a video, this batch has {batch.video.shape[1]}"
            )
        return self.clips(batch.video)

    def span_of(self, features: Tensor, start: Tensor | None) -> Tensor:
        """Start and end of each query, fractions of the duration [..., 2], from its features [..., D], or [..., D + T]
        with its attention behind them.

        What these give is added, before the sigmoid, to the centre and width of ``start`` [..., 2], if there is one.
        """
        logits = at_least_float32(self.span(features))
        if start is not None:
            centre, width = (start[..., 0] + start[..., 1]) / 2, start[..., 1] - start[..., 0]
            logits = logits + torch.stack([centre, width], -1).to(logits.dtype).logit(0.005)
        centre, width = logits.sigmoid().unbind(-1)
        return torch.stack([centre - width / 2, centre + width / 2], -1)


def shares_inside(spans: Tensor, T: int) -> Tensor:
    """How much of each of T clips lies inside of spans, fractions of the duration: [..., 2] -> [..., T]."""
    clip = torch.arange(T, device=spans.device) / T
    shared = torch.minimum(spans[..., 1:], clip + 1 / T) - torch.maximum(spans[..., :1], clip)
    return shared.clamp_min(0) * T


def moved_spans(spans: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Each sentence's span, and spans of its length from every clip on, with how much attention lies inside each.

    The sentence's own span counts as much as the best of the others, and a little more: it stays where order allows.

    Args:
        spans: [B, M, 2], fractions of the duration.
        weights: [B, M, T], attention that sums to 1.

    Returns:
        [B, M, 1 + T, 2], fractions of the duration, and logarithms of the attention, [B, M, 1 + T].
    """
    T = weights.shape[2]
    length = spans[..., 1:] - spans[..., :1]
    start = torch.minimum(torch.arange(T, device=spans.device) / T, 1 - length)  # within the video
    moved = torch.stack([start, start + length], -1)
    before = F.pad(weights.double().cumsum(2), (1, 0))  # attention before each clip's start
    at = moved.double().clamp(0, 1).flatten(2) * T
    clip = at.long().clamp(max=T - 1)
    mass = torch.lerp(before.gather(2, clip), before.gather(2, clip + 1), at - clip).unflatten(2, (T, 2)).diff(dim=-1)
    masses = mass.squeeze(-1).clamp_min(1e-9).log()
    own = masses.amax(2, keepdim=True) + 1e-6
    return torch.cat([spans.unsqueeze(2), moved], 2), torch.cat([own, masses], 2)
