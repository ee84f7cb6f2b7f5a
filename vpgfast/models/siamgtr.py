"""SiamGTR: Siamese Learning with Joint Alignment and Regression for Weakly-Supervised Video Paragraph Grounding.

Tan et al., CVPR 2024. A paragraph's sentences are grounded together by one network that sees two videos in training:
the paragraph's own (inference branch), and that video inserted into another one (augmentation branch), where it is
known when the whole paragraph happens. Equation numbers are the paper's, A.x those of its supplement; what the paper
leaves open is settled in ``docs/methods/siamgtr.md`` and named where it happens.

Letters: B paragraphs with their videos; M sentences; Q = 1 + M queries, the paragraph's before those of its sentences;
T clips; D width; H heads; K layers; C concepts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, BatchNeeds, Prediction
from vpgfast.models.alignment import Alignment, alignment_loss, own_video, similar_spans
from vpgfast.models.configs.siamgtr import SiamGTRConfig
from vpgfast.models.layers import (
    Dropout,
    Linear,
    WordEmbedding,
    at_least_float32,
    attend,
    feed_forward,
    mlp,
    same_videos,
    sinusoid,
)
from vpgfast.models.method import Method
from vpgfast.ops import AttentionStats, anchor_cross_attention, anchor_embedding, temporal_giou


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
        self.span = mlp(config.dim, config.dim, config.dim, 2)
        self.concepts = Concepts(config, word_vectors) if config.concepts else None
        self.alignment = AlignedAttention(config.dim, config.pseudo_span_share) if config.alignment_weight else None

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
        found = self.decoder(memory, queries, inside, need_weights)
        return found, self.span_of(found.features[-1], start)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """``loss`` = the weighted sum of the losses that the settings ask for, each of which is there by its name."""
        config, size = self.config, len(batch)
        clips, queries = self.project(batch), self.text(batch)
        sentences, pairs = batch.sentence_mask, batch.sentence_mask[:, 1:]
        losses: dict[str, Tensor] = {}
        if self.concepts is not None:
            losses["concept"] = self.concepts.loss(queries.features, batch)

        spans, labelled = self.labels(batch)
        unlabelled = sentences & ~labelled
        if self.alignment is not None:
            similarity = self.alignment.similarity(queries.sentences[sentences], clips)
            losses["alignment"] = alignment_loss(similarity, sentences, same_videos(batch))
            similarity = own_video(similarity, sentences)  # [N, T], for the N sentences of the batch
            if config.pseudo_span_weight:
                similar = similar_spans(similarity, config.pseudo_span_share).to(spans.dtype)
                spans = spans.masked_scatter(unlabelled.unsqueeze(2), similar[unlabelled[sentences]])
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
        losses["order"] = order_loss(places[:size], gap / 2, pairs)
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
            losses["order"] = losses["order"] + order_loss(places[size:], gap / 4, pairs & there)
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

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Spans [B, M, 2], zero where there is no label, and bool [B, M] where there is one."""
        if batch.spans is None or batch.labelled is None or self.config.supervision == "weakly":
            there = batch.sentence_mask
            return batch.video.new_zeros(*there.shape, 2), torch.zeros_like(there)
        return batch.spans, batch.sentence_mask & batch.labelled.unsqueeze(1)

    @torch.no_grad()
    def predict(self, batch: Batch, top_n: int = 10) -> Prediction:
        """The one span of each sentence; its score is the share of the sentence's attention that lies inside."""
        found, spans = self(self.project(batch), self.text(batch), need_weights=True)
        assert found.weights is not None
        spans = spans[:, 1:].clamp(0, 1)
        clip = torch.arange(self.config.max_clips, device=spans.device) / self.config.max_clips
        start, end = spans[..., :1], spans[..., 1:]
        shared = torch.minimum(end, clip + 1 / len(clip)) - torch.maximum(start, clip)
        scores = (found.weights[:, 1:] * shared.clamp_min(0) * len(clip)).sum(-1)
        spans = spans * batch.durations[:, None, None]
        scores = scores.masked_fill(~batch.sentence_mask, -torch.inf)
        return Prediction(
            spans=F.pad(spans.unsqueeze(2), (0, 0, 0, top_n - 1)),
            scores=F.pad(scores.unsqueeze(2), (0, top_n - 1), value=-torch.inf),
        )

    def project(self, batch: Batch) -> Tensor:
        """F_v (section 3.2), [B, T, D]."""
        if batch.video.shape[1] != self.config.max_clips:
            raise ValueError(
                f"SiamGTR takes {self.config.max_clips} clips a video, this batch has {batch.video.shape[1]}"
            )
        return self.clips(batch.video)

    def span_of(self, features: Tensor, start: Tensor | None) -> Tensor:
        """Start and end of each query as fractions of the duration [..., 2], from its features [..., D].

        What the features add to, before the sigmoid, is the centre and width of ``start`` [..., 2], if there is one.
        """
        logits = at_least_float32(self.span(features))
        if start is not None:
            centre, width = (start[..., 0] + start[..., 1]) / 2, start[..., 1] - start[..., 0]
            logits = logits + torch.stack([centre, width], -1).to(logits.dtype).logit(0.005)
        centre, width = logits.sigmoid().unbind(-1)
        return torch.stack([centre - width / 2, centre + width / 2], -1)


class Queries(NamedTuple):
    """Paragraphs and their sentences as queries.

    Attributes:
        features: Z_q [B, Q, D], the paragraph's before those of its sentences.
        mask: bool [B, Q], which there are.
        sentences: F_s [B, M, D], each by itself.
    """

    features: Tensor
    mask: Tensor
    sentences: Tensor


class Insertions(NamedTuple):
    """How each video of a batch is inserted into another one.

    Attributes:
        background: int64 [B], which of the batch it is inserted into.
        stride: float64 [B], s > 0 of the random re-sampling.
        place: int64 [B], I, how many of the background's clips come before it, 0 to T.
        shift: float64 [B, 2], shares of its length that are labelled as background at its start and its end (RBS).
        there: bool [B], whether the batch has another video at all; without, the rest means nothing.
    """

    background: Tensor
    stride: Tensor
    place: Tensor
    shift: Tensor
    there: Tensor


class Decoded(NamedTuple):
    """What the decoder's K layers have found.

    Attributes:
        features: [K, B, Q, D].
        anchors: A [K, B, Q, 2], logits of (centre, width), after each layer; None without dynamic anchors.
        centroid: [K, B, Q], the attended clip (Eq. 9).
        mass: [K, B, Q], the attention inside the intervals given; None where none were.
        weights: [B, Q, T], the attention of the last layer, mean over its heads; None unless asked for.
    """

    features: Tensor
    anchors: Tensor | None
    centroid: Tensor
    mass: Tensor | None
    weights: Tensor | None


def draw_insertions(batch: Batch, config: SiamGTRConfig) -> Insertions:
    """At random (section 3.3, A.1); the background is a video of the same batch."""
    size, T, device = len(batch), config.max_clips, batch.video.device
    draws = torch.rand(size, size, device=device).masked_fill(same_videos(batch), -1)
    low, high = config.strides
    stride = low + (high - low) * torch.rand(size, device=device, dtype=torch.float64)
    place = torch.randint(0, T + 1, (size,), device=device)
    end = T * torch.randint(0, 2, (size,), device=device)
    place = torch.where(torch.rand(size, device=device) < config.insert_at_ends, end, place)
    shift = config.boundary_shift * torch.rand(size, 2, device=device, dtype=torch.float64)
    return Insertions(draws.argmax(1), stride, place, shift, draws.amax(1) >= 0)


def insert_videos(clips: Tensor, insertions: Insertions) -> tuple[Tensor, Tensor]:
    """F_aug = NRS(Concat(F_bg[:I], RRS(F_v), F_bg[I:])), and when RRS(F_v) is on (Eq. 1-2), for a whole batch at once.

    RRS takes the clips at 0, s, 2s, ... (rounded down); NRS interpolates linearly between the middles of clips.

    Args:
        clips: F_v [B, T, D].

    Returns:
        [B, T, D], and [B, 2] fractions of the whole.
    """
    B, T, _ = clips.shape
    background, stride, place, shift, _ = insertions
    count = (T / stride).ceil().long()  # clips that RRS leaves: those with i * s < T
    total = T + count
    position = (torch.arange(T, device=clips.device) + 0.5) * (total.double() / T).unsqueeze(1) - 0.5
    position = torch.minimum(position.clamp_min(0), (total - 1).unsqueeze(1))
    low = position.long()
    high = torch.minimum(low + 1, (total - 1).unsqueeze(1))
    flat = clips.flatten(0, 1)

    def at(index: Tensor) -> Tensor:
        """Clips of the concatenation, int64 [B, T] -> [B, T, D]."""
        inserted = index - place.unsqueeze(1)
        of_video = (inserted >= 0) & (inserted < count.unsqueeze(1))
        own = (inserted * stride.unsqueeze(1)).long().clamp(0, T - 1)
        other = torch.where(inserted < 0, index, index - count.unsqueeze(1)).clamp(0, T - 1)
        row = torch.where(of_video, torch.arange(B, device=clips.device).unsqueeze(1), background.unsqueeze(1))
        return F.embedding(row * T + torch.where(of_video, own, other), flat)

    pseudo = torch.lerp(at(low), at(high), (position - low).unsqueeze(2).to(clips.dtype))
    labelled = torch.stack([place + shift[:, 0] * count, place + (1 - shift[:, 1]) * count], 1)
    return pseudo, (labelled / total.unsqueeze(1)).to(at_least_float32(clips).dtype)


class QueryEncoder(nn.Module):
    """Sentences by a bidirectional GRU, the paragraph by a token, and a transformer over them (section 3.2, Eq. 4)."""

    def __init__(self, config: SiamGTRConfig, word_vectors: WordVectors) -> None:
        super().__init__()
        self.paragraph = config.paragraph
        self.words = WordEmbedding(word_vectors.vectors)
        self.gru = nn.GRU(word_vectors.dim, config.dim, bidirectional=True, batch_first=True)
        self.sentence = nn.Linear(2 * config.dim, config.dim)
        if self.paragraph == "learned":
            self.token = nn.Parameter(torch.randn(config.dim))
        self.norm = nn.LayerNorm(config.dim)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))

    def forward(self, batch: Batch) -> Queries:
        """Z_q of a batch's words."""
        there = batch.sentence_mask
        sentences = self.read(batch.words[there], batch.word_mask[there])
        sentences = sentences.new_zeros(*there.shape, sentences.shape[-1]).masked_scatter(there.unsqueeze(2), sentences)
        queries = torch.cat([self.whole(batch, sentences).unsqueeze(1), sentences], 1)
        mask = F.pad(there, (1, 0), value=True)
        x = self.norm(queries) + sinusoid(queries.shape[1], queries.shape[2], queries)
        for layer in self.layers:
            x = layer(x, mask=mask)
        return Queries(x, mask, sentences)

    def read(self, words: Tensor, mask: Tensor) -> Tensor:
        """Sentences int64 [N, W], each of one word or more -> F_s [N, D]."""
        packed = pack_padded_sequence(self.words(words), mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.gru(packed)
        return self.sentence(torch.cat([last[0], last[1]], 1))

    def whole(self, batch: Batch, sentences: Tensor) -> Tensor:
        """F_p [B, D], what the query of the paragraph starts from (Table 7)."""
        there = batch.sentence_mask.unsqueeze(2)
        if self.paragraph == "learned":
            return self.token.expand(len(batch), -1)
        if self.paragraph == "mean":
            return sentences.sum(1) / there.sum(1)
        if self.paragraph == "max":
            return sentences.masked_fill(~there, torch.finfo(sentences.dtype).min).amax(1)
        words, mask = batch.words.flatten(1), batch.word_mask.flatten(1)
        order = mask.long().argsort(dim=1, descending=True, stable=True)[:, : int(mask.sum(1).max())]
        return self.read(words.gather(1, order), mask.gather(1, order))


class VideoEncoder(nn.Module):
    """Self-attention over the clips, whose positions are added to queries and keys alone (Eq. 3)."""

    def __init__(self, config: SiamGTRConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config, config.modulated_positions) for _ in range(config.layers))

    def forward(self, clips: Tensor) -> Tensor:
        """[B, T, D] -> memory M [B, T, D]."""
        positions = sinusoid(clips.shape[1], clips.shape[2], clips)
        for layer in self.layers:
            clips = layer(clips, positions)
        return clips


class EncoderLayer(nn.Module):
    """Post-norm transformer layer as DETR's: positions, if any, are added to queries and keys and not to values.

    Args:
        modulated: multiply the positions by a function of the content first, X_pe = MLP(X) * PE(X) (Eq. 3).
    """

    def __init__(self, config: SiamGTRConfig, modulated: bool = False) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.modulate = mlp(dim, dim, dim) if modulated else None
        self.query_key = Linear(dim, 2 * dim)
        self.value = Linear(dim, dim)
        self.out = Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.feed_forward = feed_forward(dim, config.feed_forward, config.dropout)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x [B, N, D], positions [N, D], bool mask [B, N] -> [B, N, D]."""
        where = x
        if positions is not None:
            where = x + (positions if self.modulate is None else self.modulate(x) * positions)
        query, key = self.query_key(where).chunk(2, -1)
        x = self.norm(x + self.dropout(self.out(attend(query, key, self.value(x), self.heads, mask))))
        return self.feed_forward(x)


class AlignedAttention(Alignment):
    """The alignment that also tells every query, before the decoder's first layer, what its clips hold and when."""

    def __init__(self, dim: int, share: float) -> None:
        super().__init__(dim)
        self.share = share
        self.value = nn.Linear(dim, dim)
        self.value_position = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, clips: Tensor, sentences: Tensor, mask: Tensor, queries: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend by similarity; a paragraph's is the mean of its sentences', and its span holds all of theirs.

        Args:
            clips: F_v [B, T, D].
            sentences: F_s [B, M, D].
            mask: bool [B, M], which there are.
            queries: [B, 1 + M, D], the paragraph's first.
            memory: [B, T, D], what is attended to.

        Returns:
            Queries [B, 1 + M, D]; spans [B, 1 + M, 2], fractions of the duration, without a gradient.
        """
        similarity = self.of_sentences(sentences) @ self.of_clips(clips).transpose(1, 2)  # [B, M, T]
        there = mask.unsqueeze(2)
        of_paragraph = (similarity * there).sum(1, keepdim=True) / there.sum(1, keepdim=True)
        attention = torch.cat([of_paragraph, similarity], 1).softmax(2)
        value = self.value(memory) + self.value_position(sinusoid(memory.shape[1], memory.shape[2], memory))
        spans = similar_spans(similarity.flatten(0, 1), self.share).unflatten(0, mask.shape)
        first = spans[..., 0].masked_fill(~mask, 1).amin(1, keepdim=True)
        last = spans[..., 1].masked_fill(~mask, 0).amax(1, keepdim=True)
        spans = torch.cat([torch.stack([first, last], 2), spans], 1)
        return self.norm(queries + attention.to(value.dtype) @ value), spans


class Decoder(nn.Module):
    """Layers that look at the clips with anchors, which each of them moves (section 3.3, "Query Decoder")."""

    def __init__(self, config: SiamGTRConfig) -> None:
        super().__init__()
        dim = config.dim
        self.dim, self.clips = dim, config.max_clips
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.seed = mlp(dim, dim, 2) if config.dynamic_anchors else None
        self.offset = mlp(dim, dim, 2) if config.dynamic_anchors else None
        self.position = mlp(dim, dim, dim) if config.dynamic_anchors else None

    def forward(self, memory: Tensor, queries: Queries, inside: Tensor | None, need_weights: bool) -> Decoded:
        """Memory M [B, T, D] and queries; ``inside`` [B, Q, 2] as ``intervals`` of ``anchor_cross_attention``."""
        x, mask = queries.features, queries.mask
        positions = sinusoid(memory.shape[1], self.dim, memory)
        features, anchors, stats, logits = [], [], [], None
        for number, layer in enumerate(self.layers):
            embedded = self.embed(x, logits)
            weights = need_weights and number == len(self.layers) - 1
            x, attended = layer(x, mask, memory, positions, embedded, inside, weights)
            if self.seed is not None and self.offset is not None:
                logits = self.seed(x) if logits is None else logits + self.offset(x)
                anchors.append(logits)
            features.append(x)
            stats.append(attended)
        return Decoded(
            features=torch.stack(features),
            anchors=torch.stack(anchors) if anchors else None,
            centroid=torch.stack([s.centroid for s in stats]),
            mass=None if inside is None else torch.stack([s.mass for s in stats]),
            weights=at_least_float32(stats[-1].weights).mean(1) if need_weights else None,
        )

    def embed(self, x: Tensor, logits: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """F_a and H_a [B, Q, D] of the anchors; those of the first layer are all zero."""
        if self.position is None:
            return None
        anchors = x.new_zeros(*x.shape[:2], 2) if logits is None else logits.sigmoid()
        # In clips, as the clips' own positions are; the op counts in turns of a circle.
        embedded = anchor_embedding(anchors * (self.clips / (2 * math.pi)), self.dim)
        return embedded, self.position(embedded)


class DecoderLayer(nn.Module):
    """Self-attention among the queries (Eq. 6), attention to the clips (Eq. 7), feed-forward.

    Without anchors it is DETR's layer: positions of clips are added to their content, queries have none but their own.
    """

    def __init__(self, config: SiamGTRConfig) -> None:
        super().__init__()
        dim, anchors = config.dim, config.dynamic_anchors
        self.heads = config.heads
        self.query_key = nn.Linear(dim, 2 * dim)
        self.query_key_position = nn.Linear(dim, 2 * dim) if anchors else None
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.cross = CrossAttention(dim, config.heads, anchors)
        self.cross_norm = nn.LayerNorm(dim)
        self.feed_forward = feed_forward(dim, config.feed_forward, config.dropout)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        memory: Tensor,
        positions: Tensor,
        anchors: tuple[Tensor, Tensor] | None,
        inside: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, AttentionStats]:
        """Queries [B, Q, D] and their mask, memory [B, T, D], its positions [T, D], (F_a, H_a) -> queries [B, Q, D]."""
        query_key, embedded = self.query_key(x), None
        if anchors is not None and self.query_key_position is not None:
            embedded, position = anchors
            query_key = query_key + self.query_key_position(position)
        query, key = query_key.chunk(2, -1)
        x = self.norm(x + self.dropout(self.out(attend(query, key, self.value(x), self.heads, mask))))
        attended, stats = self.cross(x, embedded, memory, positions, inside, need_weights)
        return self.feed_forward(self.cross_norm(x + self.dropout(attended))), stats


class CrossAttention(nn.Module):
    """Attention of queries with anchors to clips (Eq. 7), whose keys and values are never built.

    There are few queries and many clips: instead of every clip through the projection W_k, the queries go through its
    transpose, q . (W_k m) = (W_k' q) . m, and what is attended goes through W_v afterwards. So each head of a query is
    a query of its own to the memory as it is. Biases of keys cancel in the softmax and those of values are one with
    the output's: there are none.
    """

    def __init__(self, dim: int, heads: int, anchors: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.query_position = nn.Linear(dim, dim) if anchors else None
        self.key = nn.Linear(dim, dim, bias=False)
        self.key_position = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.value_position = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        anchors: Tensor | None,
        memory: Tensor,
        positions: Tensor,
        inside: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, AttentionStats]:
        """As :class:`DecoderLayer`; weights [B, H, Q, T]."""
        B, Q, D = x.shape
        content = self.split(self.query(x))
        # Without anchors the content's query meets key + position: the same product with the same query.
        position = (
            content if anchors is None or self.query_position is None else self.split(self.query_position(anchors))
        )
        width = D // self.heads * (1 if position is content else 2)
        scale = math.sqrt(2 * D / width)  # the op divides by the root of 2 D
        attended, stats = anchor_cross_attention(
            scale * self.through(content, self.key).unsqueeze(1),
            scale * self.through(position, self.key_position).unsqueeze(1),
            memory.unsqueeze(1),
            positions.expand(1, 1, -1, -1),
            memory.unsqueeze(1),
            intervals=None if inside is None else inside.repeat(1, self.heads, 1),
            need_weights=True,
        )
        assert stats.weights is not None
        where = stats.weights[:, 0] @ positions.to(stats.weights.dtype)
        out = self.back(attended[:, 0], self.value) + self.back(where, self.value_position)
        each = (B, self.heads, Q)
        return self.out(out), AttentionStats(
            stats.centroid.view(each).mean(1),
            None if stats.mass is None else stats.mass.view(each).mean(1),
            stats.weights.view(*each, -1) if need_weights else None,
        )

    def split(self, x: Tensor) -> Tensor:
        """[B, Q, D] -> [B, H, Q, D / H]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def through(self, x: Tensor, projection: nn.Linear) -> Tensor:
        """Each head [B, H, Q, D / H] by its rows of the transposed projection -> [B, H Q, D]."""
        return torch.einsum("bhqi,hid->bhqd", x, projection.weight.unflatten(0, (self.heads, -1))).flatten(1, 2)

    def back(self, x: Tensor, projection: nn.Linear) -> Tensor:
        """[B, H Q, D], each head by its rows of the projection -> [B, Q, D]."""
        x = x.unflatten(1, (self.heads, -1))
        return torch.einsum("bhqd,hid->bqhi", x, projection.weight.unflatten(0, (self.heads, -1))).flatten(2)


class Concepts(nn.Module):
    """Conceptual semantic connector: queries must tell which common nouns and verbs they hold (Eq. 5).

    The concepts are the commonest nouns and verbs of the training sentences, as words of the vocabulary.
    """

    def __init__(self, config: SiamGTRConfig, word_vectors: WordVectors) -> None:
        super().__init__()
        words = torch.zeros(config.concepts, dtype=torch.long)  # 0, the padding, where the corpus has fewer
        counts = word_vectors.content_counts
        self.counted = counts is not None  # not in a model made for its weights: they bring the concepts
        if counts is not None:
            commonest = (-counts).argsort(kind="stable")[: config.concepts]
            commonest = commonest[counts[commonest] > 0]
            words[: len(commonest)] = torch.from_numpy(commonest)
        self.register_buffer("words", words)
        self.register_buffer("vectors", torch.as_tensor(word_vectors.vectors, dtype=torch.float32)[words])
        self.project = nn.Linear(word_vectors.dim, config.dim)
        self.words: Tensor
        self.vectors: Tensor

    def loss(self, queries: Tensor, batch: Batch) -> Tensor:
        """BCE of the paragraphs' concepts + BCE of the sentences', each a mean, of Z_q [B, Q, D]."""
        if not self.counted:
            raise ValueError("concepts need word vectors with content_counts (vpgfast.data.text.count_content_words)")
        logits = at_least_float32(queries @ self.project(self.vectors).t())
        of_sentences = self.labels(batch.words)
        labels = torch.cat([of_sentences.any(1, keepdim=True), of_sentences], 1)
        error = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
        known = (self.words > 0)[None, None]
        return mean_where(error[:, :1], known) + mean_where(error[:, 1:], known & batch.sentence_mask.unsqueeze(2))

    def labels(self, words: Tensor) -> Tensor:
        """Which concepts sentences hold: int64 [B, M, W] -> bool [B, M, C]."""
        size = len(self.words)
        number = torch.full((int(words.max()) + 1,), size, device=words.device)
        known = ((self.words > 0) & (self.words < len(number))).nonzero()[:, 0]
        number[self.words[known]] = known
        held = torch.zeros(*words.shape[:2], size + 1, dtype=torch.bool, device=words.device)
        return held.scatter_(2, number[words], True)[..., :size]


# --- losses


def mean_where(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the elements of ``x`` that ``mask`` (bool, broadcast to ``x``) keeps; 0 where it keeps none."""
    mask = mask.expand_as(x)
    return x.masked_fill(~mask, 0).sum() / mask.sum().clamp_min(1)


def order_loss(places: Tensor, gap: Tensor, pairs: Tensor) -> Tensor:
    """max(0, gap + place of sentence j - place of sentence j + 1), mean over pairs of neighbours (Eq. 9 and A.2).

    Args:
        places: [B, M], fractions of the duration.
        gap: [B, 1], how far apart neighbours have to be at least.
        pairs: bool [B, M - 1].
    """
    return mean_where((gap + places[:, :-1] - places[:, 1:]).relu(), pairs)


def boundary_error(spans: Tensor, target: Tensor) -> Tensor:
    """L1 distance of both ends + 1 - GIoU (Eq. 8), of two [..., 2] -> [...]."""
    return (spans - target).abs().sum(-1) + 1 - temporal_giou(spans, target, pairwise=False)


def log_mass(mass: Tensor) -> Tensor:
    """Logarithm of the attention inside an interval (Eq. A.3), finite also where there is none."""
    return mass.clamp_min(1e-6).log()


def guidance_loss(similarity: Tensor, spans: Tensor) -> Tensor:
    """Asks that every clip inside a sentence's span be as similar to it as the others, and no clip outside.

    The cross-entropy of attention by similarity against attention that is even over the span: LGI's temporal attention
    guidance (Mun et al., CVPR 2020).

    Args:
        similarity: of N sentences and the clips of their video, [N, T].
        spans: [N, 2], fractions of the duration.

    Returns:
        [N].
    """
    T = similarity.shape[1]
    start, end = clips_inside(spans, T).unsqueeze(-1).unbind(1)  # [N, 1]
    t = torch.arange(T, device=spans.device)
    inside = (start <= t) & (t <= end)
    return -(similarity.log_softmax(1) * inside).sum(1) / inside.sum(1)


def cross_branch_loss(augmented: Tensor, normal: Tensor, sentences: Tensor, there: Tensor) -> Tensor:
    """1 - cosine of the branches' features, for sentences and for paragraphs, mean over layers (Eq. A.1).

    Sentences follow the inference branch, the paragraph follows the augmentation branch.

    Args:
        augmented, normal: [K, B, Q, D].
        sentences: bool [B, M].
        there: bool [B, 1], whether the augmentation branch has a video.
    """
    of_sentences = 1 - F.cosine_similarity(augmented[:, :, 1:], normal[:, :, 1:].detach(), dim=-1)
    of_paragraph = 1 - F.cosine_similarity(augmented[:, :, :1].detach(), normal[:, :, :1], dim=-1)
    return mean_where(of_sentences, sentences & there) + mean_where(of_paragraph, there)


# --- parts


def clips_inside(intervals: Tensor, T: int) -> Tensor:
    """Fractions of the duration [..., 2] -> clip positions. A clip is inside if its middle is, the nearest always."""
    start, end = (intervals.double() * T - 0.5).unbind(-1)
    middle = ((start + end) / 2).round().clamp(0, T - 1)
    return torch.stack([torch.minimum(start, middle), torch.maximum(end, middle)], -1)
