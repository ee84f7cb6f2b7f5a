"""SeqPAN: Parallel Attention Network with Sequence Matching for Video Grounding.

Zhang et al., Findings of ACL-IJCNLP 2021. Fully supervised, one sentence at a time. Equation numbers are the paper's;
what the paper leaves open is settled in ``docs/methods/seqpan.md`` and named where it happens.

Letters: B sentences, each with its own copy of its video; T clips; W words; d width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpgfast.data.text import NUM_CHARS, WordVectors
from vpgfast.data.types import Batch, BatchNeeds, Prediction
from vpgfast.models.candidates import Candidates
from vpgfast.models.configs.seqpan import SeqPANConfig
from vpgfast.models.layers import (
    AttentionPooling,
    CharCNN,
    Dropout,
    TransformerLayer,
    WordEmbedding,
    another_video,
    at_least_float32,
    attend,
    init_linear,
    masked_log_softmax,
    masked_softmax,
)
from vpgfast.models.method import Method
from vpgfast.models.ordered import predict_in_order
from vpgfast.models.seqpan_clips import INSIDE, best_clips, clips_to_spans, make_targets
from vpgfast.models.seqpan_encoder import Encoder
from vpgfast.models.seqpan_released import ReleasedLocalizer, ReleasedParallelAttention


class Scores(NamedTuple):
    """What the network says about each clip, in float32 whatever the precision of the layers.

    Attributes:
        start, end: [B, T] log-probabilities of the boundaries, a very low number on padding.
        labels: log-probabilities of the regions, [B, T, 4] ("sq") or [B, T, 2] ("fb"), or ``None``.
        level: [B], what the logarithms of start and of end were lowered by to be probabilities, both together.
    """

    start: Tensor
    end: Tensor
    labels: Tensor | None
    level: Tensor


class SeqPAN(Method):
    """The network of section 3, its loss and its inference."""

    name = SeqPANConfig.method
    Config = SeqPANConfig
    config: SeqPANConfig

    @staticmethod
    def needs(config: SeqPANConfig) -> BatchNeeds:
        """Single sentences with their spans, videos pooled down to ``max_clips``."""
        return BatchNeeds(
            level="sentence",
            labelled_share=1,
            max_clips=config.max_clips,
            resample="pool",
            chars=config.char_cnn,
            max_words=config.max_words,
            punctuation=config.punctuation,
            whole_paragraphs=config.decode == "ordered",
        )

    def __init__(self, config: SeqPANConfig, feature_dim: int, word_vectors: WordVectors) -> None:
        super().__init__(config, feature_dim, word_vectors)
        self.config = config
        dim = config.dim
        self.words = WordEmbedding(word_vectors.vectors)
        self.chars = CharCNN(NUM_CHARS, config.char_dim) if config.char_cnn else None
        query_dim = word_vectors.dim + (self.chars.out_dim if self.chars else 0)
        self.dropout = Dropout(config.dropout)
        self.video_input = nn.Sequential(nn.Linear(feature_dim, dim), nn.LayerNorm(dim))
        self.query_input = nn.Sequential(nn.Linear(query_dim, dim), nn.LayerNorm(dim))
        self.encoder = Encoder(config)
        self.attention = nn.ModuleList(AttentionBlock(config) for _ in range(config.attention_blocks))
        self.query_to_video = ContextQueryAttention(dim, config.similarity)
        self.video_to_query = ContextQueryAttention(dim, config.similarity)
        self.pool_query = AttentionPooling(dim)
        self.fuse = nn.Linear(2 * dim, dim)
        self.matching = SequenceMatching(config) if config.matching != "none" else None
        self.localizer = ReleasedLocalizer(config) if config.layers_as_released else ConditionedLocalizer(config)
        self.apply(init_linear)

    def forward(self, batch: Batch) -> Scores:
        """From a batch of single sentences (M = 1) to the scores of every clip."""
        if batch.words.shape[1] != 1:
            raise ValueError(f"SeqPAN takes one sentence a video, this batch has up to {batch.words.shape[1]}")
        video_mask, query_mask = batch.video_mask, batch.word_mask[:, 0]
        query = self.words(batch.words[:, 0])
        if self.chars is not None:
            if batch.chars is None:
                raise ValueError("SeqPAN with char_cnn needs a batch with characters")
            query = torch.cat([query, self.chars(batch.chars[:, 0])], -1)

        # Eq. 1; what the encoder learns is shared by both modalities.
        video = self.encoder(self.video_input(self.dropout(batch.video)), video_mask)
        query = self.encoder(self.query_input(self.dropout(query)), query_mask)
        for block in self.attention:
            video, query = block(video, query, video_mask, query_mask)

        video_with_query = self.query_to_video(video, query, video_mask, query_mask)  # V^Q
        query_with_video = self.video_to_query(query, video, query_mask, video_mask)  # Q^V
        sentence = self.pool_query(query_with_video, query_mask)  # Eq. 19
        # Eq. 20, W_h [V^Q; q] + b_h, without repeating q for every clip.
        of_video, of_sentence = self.fuse.weight.chunk(2, dim=1)
        fused = F.linear(video_with_query, of_video) + F.linear(sentence, of_sentence, self.fuse.bias).unsqueeze(1)

        labels = None
        if self.matching is not None:
            fused, labels = self.matching(fused)
        start, end = self.localizer(fused, video_mask)
        logs = masked_log_softmax(start, video_mask), masked_log_softmax(end, video_mask)
        level = sum((raw - log)[:, 0] for raw, log in zip((start, end), logs, strict=True))  # the first clip is real
        return Scores(*logs, labels, level)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """``loss`` = ``localization`` (Eq. 13) + ``matching`` + ``orthogonality`` (the two terms of Eq. 11), and with a
        weight of its own ``presence``."""
        if batch.spans is None:
            raise ValueError("SeqPAN learns from spans, but this batch holds none")
        scores = self(batch)
        targets = make_targets(batch, self.config)
        start_loss = -(targets.start * scores.start).sum(1).mean()
        end_loss = -(targets.end * scores.end).sum(1).mean()
        losses = {"localization": (start_loss + end_loss) * (1.0 if self.config.as_released else 0.5)}
        if scores.labels is not None:
            labels = targets.labels
            nll = F.nll_loss(scores.labels.transpose(1, 2), labels, reduction="none")
            losses["matching"] = (nll * batch.video_mask).sum() / batch.video_mask.sum().clamp_min(1)
        if self.matching is not None and self.matching.embeddings is not None:
            losses["orthogonality"] = orthogonality(self.matching.embeddings, root=self.config.as_released)
        total = torch.stack(list(losses.values())).sum()
        if self.config.presence_weight:
            losses["presence"] = self.presence_loss(batch, scores.level)
            total = total + self.config.presence_weight * losses["presence"]
        return {"loss": total, **losses}

    def true_labels(self, batch: Batch) -> Tensor | None:
        """As :class:`Method`: the labels of Eq. 11."""
        if self.matching is None or batch.spans is None:
            return None
        alone = [replace(batch, spans=spans) for spans in batch.spans.split(1, dim=1)]
        return torch.cat([self.regions(make_targets(sentence, self.config).labels) for sentence in alone], 1)

    def regions(self, labels: Tensor) -> Tensor:
        """Labels [B, T] of the network as those of a prediction [B, 1, T]: what "fb" calls foreground is inside."""
        return (labels * INSIDE if self.config.matching == "fb" else labels).unsqueeze(1)

    def presence_loss(self, batch: Batch, level: Tensor) -> Tensor:
        """Cross-entropy of "the sentence happens here" in its own video and in another one of the batch (not in the
        paper). ``level`` [B] is its logit, so that scores before the softmax mean the same in every video."""
        other = another_video(batch)
        video, mask = batch.video.roll(other.shift, 0), batch.video_mask.roll(other.shift, 0)
        absent = F.softplus(self(replace(batch, video=video, video_mask=mask)).level) * other.different
        return F.softplus(-level).mean() + absent.sum() / other.different.sum().clamp_min(1)

    @torch.no_grad()
    def predict(self, batch: Batch, top_n: int = 10) -> Prediction:
        """The ``top_n`` spans of the highest joint probability (Eq. 14); scores are these probabilities."""
        if self.config.decode == "ordered":
            return predict_in_order(batch, lambda part: self.answer(part, top_n))
        return self.rank(self(batch), batch, top_n)

    def answer(self, batch: Batch, top_n: int) -> tuple[Prediction, Candidates]:
        """Ranked spans of single sentences, and as candidates each start with the best of its ends."""
        scores, mask = self(batch), batch.video_mask
        best, place = scores.end.masked_fill(~mask, -torch.inf).flip(1).cummax(1)
        best, end = best.flip(1), mask.shape[1] - 1 - place.flip(1)
        start = torch.arange(mask.shape[1], device=mask.device).expand_as(end)
        spans = clips_to_spans(start, end, mask, self.config.clip_times) * batch.durations[:, None, None]
        candidates = Candidates(spans, (scores.start + best).masked_fill(~mask, -torch.inf))
        return self.rank(scores, batch, top_n), candidates

    @torch.no_grad()
    def candidates(self, batch: Batch, count: int) -> Candidates:
        """As :class:`Method`: by the network's scores before the softmax over a window's clips, which would make the
        best of every window likely."""
        scores = self(batch)
        found = self.rank(scores, batch, count)
        return Candidates(found.spans[:, 0], found.scores[:, 0].clamp_min(0).log() + scores.level.unsqueeze(1))

    def rank(self, scores: Scores, batch: Batch, top_n: int) -> Prediction:
        """The ``top_n`` spans of the highest joint probability."""
        start, end, log_probability = best_clips(scores.start, scores.end, batch.video_mask, top_n)
        spans = clips_to_spans(start, end, batch.video_mask, self.config.clip_times) * batch.durations[:, None, None]
        found = log_probability > -torch.inf
        return Prediction(
            spans=(spans * found.unsqueeze(-1)).unsqueeze(1),
            scores=log_probability.exp().masked_fill(~found, -torch.inf).unsqueeze(1),
            labels=None if scores.labels is None else self.regions(scores.labels.argmax(-1) * batch.video_mask),
        )


class ParallelAttention(nn.Module):
    """Self and cross attention side by side, crossing gates, self-guided head: the SGPA block for one modality.

    As in the transformer layer whose place it takes (appendix A.1), each half normalises its input and has a residual,
    and the self-guided head stands where the feed-forward layer was. Without it ("pa") that layer is back.
    """

    def __init__(self, config: SeqPANConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.norm_attention = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)  # the query projection serves both attentions
        self.cross_key_value = nn.Linear(dim, 2 * dim)
        self.out_self = nn.Linear(dim, dim)
        self.out_cross = nn.Linear(dim, dim)
        self.gate_self = nn.Linear(dim, dim)
        self.gate_cross = nn.Linear(dim, dim)
        self.norm_head = nn.LayerNorm(dim)
        self.confidence = nn.Linear(dim, dim) if config.attention == "sgpa" else None
        self.value = nn.Linear(dim, dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, other: Tensor, mask: Tensor, other_mask: Tensor) -> Tensor:
        """x [B, T, d] looks at itself and at ``other`` [B, W, d] -> [B, T, d]."""
        query, key, value = self.query_key_value(self.norm_attention(x)).chunk(3, -1)
        cross_key, cross_value = self.cross_key_value(self.norm_attention(other)).chunk(2, -1)
        v_self = self.out_self(attend(query, key, value, self.heads, mask))  # Eq. 2
        v_cross = self.out_cross(attend(query, cross_key, cross_value, self.heads, other_mask))
        gated = self.gate_cross(v_cross).sigmoid() * v_self + self.gate_self(v_self).sigmoid() * v_cross  # Eq. 3
        x = x + self.dropout(gated)
        normed = self.norm_head(x)
        refined = self.value(normed)
        if self.confidence is not None:
            refined = self.confidence(normed).sigmoid() * refined  # Eq. 4
        return x + self.dropout(refined)


class AttentionBlock(nn.Module):
    """One attention block over both modalities, with one set of weights for the two (Fig. 4, 9 and 10)."""

    def __init__(self, config: SeqPANConfig) -> None:
        super().__init__()
        self.kind = config.attention
        layers: dict[str, nn.Module] = {}
        if self.kind in ("sgpa", "pa"):
            kind = ReleasedParallelAttention if config.layers_as_released else ParallelAttention
            layers["parallel"] = kind(config)
        if self.kind in ("se_trm", "seco_trm", "cose_trm"):
            layers["self"] = TransformerLayer(config.dim, config.heads, config.dropout)
        if self.kind in ("co_trm", "seco_trm", "cose_trm"):
            layers["cross"] = TransformerLayer(config.dim, config.heads, config.dropout)
        order = ("cross", "self") if self.kind == "cose_trm" else ("parallel", "self", "cross")
        self.layers = nn.ModuleDict({name: layers[name] for name in order if name in layers})

    def forward(self, video: Tensor, query: Tensor, video_mask: Tensor, query_mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, d], [B, W, d] and their masks -> the same shapes; both sides read the block's input."""
        for name, layer in self.layers.items():
            if name == "parallel":
                video, query = layer(video, query, video_mask, query_mask), layer(query, video, query_mask, video_mask)
            elif name == "self":
                video, query = layer(video, video_mask), layer(query, query_mask)
            else:
                video, query = layer(video, query_mask, context=query), layer(query, video_mask, context=video)
        return video, query


class ContextQueryAttention(nn.Module):
    """What Y says about each element of X (Eq. 16-18)."""

    def __init__(self, dim: int, similarity: Literal["trilinear", "bilinear"]) -> None:
        super().__init__()
        self.similarity = similarity
        shape = (3, dim) if similarity == "trilinear" else (dim, dim)
        self.weight = nn.Parameter(torch.empty(shape))
        nn.init.xavier_uniform_(self.weight)
        self.out = nn.Linear(4 * dim, dim)

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """S [B, N_x, N_y] of x [B, N_x, d] and y [B, N_y, d] (Eq. 16).

        Bilinear: x W y. Trilinear: w . [x; y; x * y], as three products that never build the [N_x, N_y, 3d] tensor.
        """
        if self.similarity == "bilinear":
            return x @ self.weight @ y.transpose(1, 2)
        of_x, of_y, of_both = self.weight
        return (x * of_both) @ y.transpose(1, 2) + (x @ of_x).unsqueeze(2) + (y @ of_y).unsqueeze(1)

    def forward(self, x: Tensor, y: Tensor, x_mask: Tensor, y_mask: Tensor) -> Tensor:
        """x [B, N_x, d], y [B, N_y, d] -> [B, N_x, d]."""
        scores = self.scores(x, y)
        over_y = masked_softmax(scores, y_mask.unsqueeze(1), dim=2).to(x.dtype)  # S_r
        over_x = masked_softmax(scores, x_mask.unsqueeze(2), dim=1).to(x.dtype)  # S_c
        a_xy = over_y @ y  # Eq. 17
        a_yx = over_y @ (over_x.transpose(1, 2) @ x)
        return self.out(torch.cat([x, a_xy, x * a_xy, x * a_yx], -1))  # Eq. 18


class SequenceMatching(nn.Module):
    """Region labels of the clips, and their embeddings added to the clips (Eq. 6-10)."""

    def __init__(self, config: SeqPANConfig) -> None:
        super().__init__()
        self.config = config
        sequence = config.matching == "sq"
        self.classify = nn.Linear(config.dim, 4 if sequence else 2)
        embedded = sequence and config.label_embeddings
        self.embeddings = nn.Parameter(nn.init.orthogonal_(torch.empty(4, config.dim))) if embedded else None
        self.gumbel = sequence and config.gumbel

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, d] -> the same with label embeddings added, and log-probabilities [B, T, labels] for the loss."""
        logits = at_least_float32(self.classify(x))  # H_seq of Eq. 6
        if self.gumbel:
            if self.training or self.config.as_released or self.config.inference_labels == "sampled":
                logits = logits + gumbel_noise(logits)
            log_soft = (logits / self.config.tau).log_softmax(-1)  # Eq. 9
            labels = log_soft.exp() if self.config.as_released else straight_through(log_soft.exp())  # Eq. 8
        else:
            log_soft = logits.log_softmax(-1)  # S_seq of Eq. 6
            labels = log_soft.exp()
        if self.embeddings is not None:
            x = x + labels.to(x.dtype) @ self.embeddings  # Eq. 10
        return x, log_soft


class ConditionedLocalizer(nn.Module):
    """Scores of start and end (Eq. 12); the end's features are made from the start's, by the same transformer layer or
    by one of its own."""

    def __init__(self, config: SeqPANConfig) -> None:
        super().__init__()
        self.transformer = TransformerLayer(config.dim, config.heads, config.dropout)
        own = config.localizer == "two"
        self.end_transformer = TransformerLayer(config.dim, config.heads, config.dropout) if own else None
        # What pre-norm layers leave is normalised before it is used; a bias would only shift all scores alike.
        self.norm_start = nn.LayerNorm(config.dim, bias=False)
        self.norm_end = nn.LayerNorm(config.dim, bias=False)
        self.start = nn.Linear(2 * config.dim, 1)
        self.end = nn.Linear(2 * config.dim, 1)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, d] and [B, T] -> two [B, T]."""
        h_start = self.transformer(x, mask)
        h_end = (self.end_transformer or self.transformer)(h_start, mask)
        start = self.start(torch.cat([self.norm_start(h_start), x], -1))
        end = self.end(torch.cat([self.norm_end(h_end), x], -1))
        return at_least_float32(start.squeeze(-1)), at_least_float32(end.squeeze(-1))


def gumbel_noise(like: Tensor) -> Tensor:
    """Independent Gumbel(0, 1) samples of the shape of ``like``: -log of an exponential variable."""
    return -torch.empty_like(like).exponential_().log()


def straight_through(soft: Tensor) -> Tensor:
    """One-hot of the largest element (the first on ties) forward, the gradient of ``soft`` backward (Eq. 8 and 9)."""
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())


def orthogonality(embeddings: Tensor, root: bool = False) -> Tensor:
    """||E^T E * (1 - I)||_F^2 of embeddings given as rows [L, d] (second term of Eq. 11), or its root."""
    products = embeddings @ embeddings.t()
    off_diagonal = products - products.diag().diag()
    return torch.linalg.vector_norm(off_diagonal) if root else off_diagonal.square().sum()
