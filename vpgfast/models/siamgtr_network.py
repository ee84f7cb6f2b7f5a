"""The parts of SiamGTR's network (sections 3.2 and 3.3), see :mod:`vpgfast.models.siamgtr`, also for the letters."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch
from vpgfast.models.alignment import Alignment
from vpgfast.models.configs.siamgtr import SiamGTRConfig
from vpgfast.models.layers import (
    Dropout,
    Linear,
    WordEmbedding,
    at_least_float32,
    attend,
    feed_forward,
    in_one_go,
    mlp,
    sinusoid,
    to_paragraphs,
)
from vpgfast.models.siamgtr_training import mean_where
from vpgfast.ops import AttentionStats, anchor_cross_attention, anchor_embedding


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
        return self.read(*in_one_go(batch.words, batch.word_mask))


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

    def __init__(self, dim: int, share: float, gap: int, paragraphs: WordVectors | None) -> None:
        super().__init__(dim, share, gap, paragraphs)
        self.value = nn.Linear(dim, dim)
        self.value_position = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, clips: Tensor, sentences: Tensor, mask: Tensor, queries: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend by similarity; a paragraph's is the mean of its sentences', and its span holds all of theirs.

        Args:
            clips: F_v [B, T, D].
            sentences: F_s [B, M, D], as they are compared.
            mask: bool [B, M], which there are.
            queries: [B, 1 + M, D], the paragraph's first.
            memory: [B, T, D], what is attended to.

        Returns:
            Queries [B, 1 + M, D]; spans [B, 1 + M, 2], fractions of the duration, without a gradient.
        """
        similarity = (self.of_sentences(sentences) @ self.of_clips(clips).transpose(1, 2))[mask]  # [N, T]
        located, there = to_paragraphs(self.located(similarity, mask), mask), mask.unsqueeze(2)
        of_paragraph = (located * there).sum(1, keepdim=True) / there.sum(1, keepdim=True)
        attention = torch.cat([of_paragraph, located], 1).softmax(2)
        value = self.value(memory) + self.value_position(sinusoid(memory.shape[1], memory.shape[2], memory))
        spans = to_paragraphs(self.spans(similarity, mask), mask)
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
