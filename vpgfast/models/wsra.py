"""WSRA: Weak Supervision and Referring Attention for Temporal-Textual Association Learning.

Fang et al., 2020. Weakly supervised, one sentence at a time: training sees that a sentence belongs to a video, never
when. Equation numbers are the paper's; what the paper leaves open is settled in ``docs/methods/wsra.md`` and named
where it happens.

Letters: B pairs of a video and its query (a sentence); T clips; N snippets, which are the clips or the candidate
moments; P candidate moments; d width of a snippet; H hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, BatchNeeds, Prediction
from vpgfast.models.candidates import Candidates
from vpgfast.models.configs.wsra import WSRAConfig
from vpgfast.models.language import LanguageModel, MeanOfOutputs
from vpgfast.models.layers import WordEmbedding, at_least_float32, init_linear, masked_softmax, same_videos
from vpgfast.models.method import Method
from vpgfast.models.ordered import predict_in_order, predict_one_by_one
from vpgfast.ops import boundary_matching_grid, pairwise_relevance, sliding_windows, temporal_nms


class WSRA(Method):
    """The scoring functions of section 3, their losses and the ranking of candidate moments."""

    name = WSRAConfig.method
    Config = WSRAConfig
    config: WSRAConfig

    @staticmethod
    def needs(config: WSRAConfig) -> BatchNeeds:
        """Single sentences without spans, videos pooled down to ``max_clips``."""
        return BatchNeeds(
            level="sentence",
            labelled_share=0,
            max_clips=config.max_clips,
            resample="pool",
            max_words=config.max_words,
            vocabulary=config.language_model is None,
            whole_paragraphs=config.decode == "ordered",
        )

    def __init__(self, config: WSRAConfig, feature_dim: int, word_vectors: WordVectors) -> None:
        super().__init__(config, feature_dim, word_vectors)
        self.config = config
        self.sentence: MeanOfWords | MeanOfOutputs
        if config.language_model is None:
            self.sentence = MeanOfWords(word_vectors)
        else:
            self.sentence = MeanOfOutputs(LanguageModel(config.language_model), config.language_layers)
        dim = feature_dim * (2 if config.global_feature else 1)
        # Two functions with parameters of their own (Fig. 2); one that no loss trains is not there.
        self.phi_video = Relevance(dim, self.sentence.out_dim, config.hidden) if config.video_loss else None
        self.phi_snippet = Relevance(dim, self.sentence.out_dim, config.hidden) if config.snippet_loss else None
        self.apply(init_linear)

    def forward(self, batch: Batch) -> Tensor:
        """How much each snippet of a video is what its query says: [B, N], the mean of the phi; 0 on padding."""
        snippets, mask = self.snippets(batch, self.moments(batch))
        query = self.query(batch)
        scores = [phi(snippets, query.unsqueeze(1)) for phi in (self.phi_video, self.phi_snippet) if phi is not None]
        return torch.stack(scores).mean(0).masked_fill(~mask, 0)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """``loss`` = the weighted sum of ``video`` (Eq. 3), ``snippet`` (Eq. 5) and ``batch`` (Eq. 7), Eq. 8."""
        config = self.config
        snippets, mask = self.snippets(batch, self.moments(batch))
        query = self.query(batch)
        chosen = choose_queries(query, same_videos(batch), config.top_k, config.last_k, config.false_negatives)
        losses: dict[str, Tensor] = {}
        if self.phi_video is not None:
            scores = self.phi_video(snippets, query.unsqueeze(1))
            alpha = masked_softmax(scores, mask)  # Eq. 2
            foreground, background = split_video(snippets, mask, alpha)
            has_background = (mask.sum(1) > 1).unsqueeze(1)
            positive = self.phi_video(foreground, query).unsqueeze(1)
            negative, compared = self.phi_video(background, query).unsqueeze(1), has_background
            if config.query_negatives:
                negative = torch.cat([negative, self.phi_video.all_pairs(foreground, query)], 1)
                compared = torch.cat([compared, chosen.negatives], 1)
            losses["video"] = video_loss(positive, negative, compared, config.margin, config.tau)
        if self.phi_snippet is not None:
            scores = self.phi_snippet.all_pairs(snippets.flatten(0, 1), query).unflatten(0, mask.shape)
            losses["snippet"] = snippet_loss(
                scores, mask, chosen.negatives, config.margin, config.tau, config.referring_weights
            )
        if config.batch_loss:
            positives = chosen.pseudo_positives & has_background
            losses["batch"] = batch_loss(
                foreground, background, chosen.similarity, positives, config.margin, config.tau
            )
        weights = {"video": config.video_loss, "snippet": config.snippet_loss, "batch": config.batch_loss}
        return {"loss": torch.stack([weights[name] * value for name, value in losses.items()]).sum(), **losses}

    @torch.no_grad()
    def predict(self, batch: Batch, top_n: int = 10) -> Prediction:
        """The ``top_n`` candidate moments of the highest mean score; equal ones in the order of the candidates."""
        if self.config.decode == "ordered":
            return predict_in_order(batch, lambda part: self.answer(part, top_n), self.config.nms)
        return self.rank(*self.score_moments(batch), top_n)

    def answer(self, batch: Batch, top_n: int) -> tuple[Prediction, Candidates]:
        """Ranked spans of single sentences, and all moments as candidates."""
        spans, scores = self.score_moments(batch)
        return self.rank(spans, scores, top_n), Candidates(spans, scores.log())

    @torch.no_grad()
    def candidates(self, batch: Batch, count: int) -> Candidates:
        """As :class:`Method`: its scores hold for a snippet and a sentence alone."""
        found = self.rank(*self.score_moments(batch), count)
        return Candidates(found.spans[:, 0], found.scores[:, 0].clamp_min(0).log())

    def score_moments(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Candidate moments in seconds, float64 [B, P, 2], and their mean scores [B, P]; -inf where there is none."""
        moments, scores = self.moments(batch), self(batch)
        if self.config.attend == "clips":
            # In float64, which autocast leaves alone: means of few clips are close to each other.
            scores = (moments.shares @ scores.double().unsqueeze(-1)).squeeze(-1).to(scores.dtype)
        scores = scores.masked_fill(~moments.mask, -torch.inf)
        return moments.spans * batch.durations[:, None, None], scores

    def at_random(self, batch: Batch, top_n: int, generator: torch.Generator) -> Prediction:
        """As :class:`Method`."""

        def answer(part: Batch) -> Prediction:
            moments = self.moments(part)
            scores = torch.rand(moments.mask.shape, generator=generator).to(moments.mask.device)
            spans = moments.spans * part.durations[:, None, None]
            return self.rank(spans, scores.masked_fill(~moments.mask, -torch.inf), top_n)

        return predict_one_by_one(batch, answer)

    def rank(self, spans: Tensor, scores: Tensor, top_n: int) -> Prediction:
        """The ``top_n`` moments of the highest scores."""
        if self.config.nms is None:
            best = scores.sort(dim=1, descending=True, stable=True).indices[:, :top_n]
        else:
            best = temporal_nms(spans, scores, self.config.nms, min(top_n, scores.shape[1]))
        ranked = scores.gather(1, best.clamp_min(0)).masked_fill(best < 0, -torch.inf)
        spans = spans.gather(1, best.clamp_min(0).unsqueeze(-1).expand(-1, -1, 2))
        spans = spans.masked_fill((ranked == -torch.inf).unsqueeze(-1), 0)
        missing = top_n - best.shape[1]
        return Prediction(
            spans=F.pad(spans, (0, 0, 0, missing)).unsqueeze(1),
            scores=F.pad(ranked, (0, missing), value=-torch.inf).unsqueeze(1),
        )

    def query(self, batch: Batch) -> Tensor:
        """The vector t of each sentence, [B, d_t]."""
        if batch.words.shape[1] != 1:
            raise ValueError(f"WSRA takes one sentence a video, this batch has up to {batch.words.shape[1]}")
        if isinstance(self.sentence, MeanOfWords):
            return self.sentence(batch.words[:, 0], batch.word_mask[:, 0])
        return self.sentence([paragraph.sentences[0] for paragraph in batch.paragraphs]).to(batch.video.dtype)

    def check_weights(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """Refuses weights that were trained beside another language model."""
        if isinstance(self.sentence, MeanOfOutputs):
            self.sentence.check_weights(weights, "sentence.", path)

    def moments(self, batch: Batch) -> Moments:
        """The candidate moments of each video."""
        clips = batch.video_mask.shape[1]
        if self.config.moments == "windows":
            shares = window_spans(self.config.windows, self.config.overlap, batch.video.device)
            return windows_of_videos(shares, batch.video_mask)
        return segments_of_videos(boundary_matching_grid(clips).spans.to(batch.video.device), batch.video_mask)

    def snippets(self, batch: Batch, moments: Moments) -> tuple[Tensor, Tensor]:
        """Features [B, N, d] and mask [B, N] of what is attended to; padding is 0."""
        mask = batch.video_mask
        snippets = batch.video.masked_fill(~mask.unsqueeze(-1), 0)
        if self.config.attend == "moments":
            mask = moments.mask
            snippets = moments.shares.to(snippets.dtype) @ snippets
        if self.config.global_feature:
            mean = snippets.sum(1, keepdim=True) / mask.sum(1).clamp_min(1)[:, None, None]
            snippets = torch.cat([snippets, mean.expand_as(snippets)], -1).masked_fill(~mask.unsqueeze(-1), 0)
        return snippets, mask


class MeanOfWords(nn.Module):
    """A sentence as the mean of its words' vectors (the text feature of WSRA*, section 4.1)."""

    def __init__(self, word_vectors: WordVectors) -> None:
        super().__init__()
        self.words = WordEmbedding(word_vectors.vectors)
        self.out_dim = word_vectors.dim

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """int64 [B, W] and bool [B, W] -> [B, d_t]; zeros for a sentence without words."""
        vectors = self.words(words).masked_fill(~mask.unsqueeze(-1), 0)
        return vectors.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)


class Relevance(nn.Module):
    """phi(v, t) = sigmoid(w . relu(W_v v + W_t t + b_1) + b_2) (section 3.1).

    The paper's single linear layer on [v; t] adds to a snippet's score the same number for every snippet of the
    video: the snippets' order would not depend on the query. The hidden layer mends that.
    """

    def __init__(self, video_dim: int, query_dim: int, hidden: int) -> None:
        super().__init__()
        self.video = nn.Linear(video_dim, hidden)
        self.query = nn.Linear(query_dim, hidden, bias=False)  # video's bias serves the sum
        self.out = nn.Linear(hidden, 1)

    def forward(self, video: Tensor, query: Tensor) -> Tensor:
        """phi of each snippet [..., d] and its query [..., d_t], broadcast against each other -> [...]."""
        hidden = (self.video(video) + self.query(query)).relu()
        return at_least_float32(self.out(hidden).squeeze(-1)).sigmoid()

    def all_pairs(self, video: Tensor, query: Tensor) -> Tensor:
        """phi of each of N snippets [N, d] and each of M queries [M, d_t] -> [N, M], no [N, M, H] in memory."""
        weight = self.out.weight[0]
        a, b = self.video(video).to(weight.dtype), self.query(query).to(weight.dtype)
        return at_least_float32(pairwise_relevance(a, b, weight, self.out.bias))


class Queries(NamedTuple):
    """What the queries of a batch are to each other; row i is about the i-th video, column j the j-th query.

    Attributes:
        similarity: [B, B] cosines.
        pseudo_positives: bool [B, B], the ``top_k`` most similar queries of other videos.
        negatives: bool [B, B], those neither among these nor among the ``last_k`` least similar ones.
    """

    similarity: Tensor
    pseudo_positives: Tensor
    negatives: Tensor


@torch.no_grad()
def choose_queries(query: Tensor, same_video: Tensor, top_k: int, last_k: int, false_negatives: bool) -> Queries:
    """Top/last-K sampling (section 3.2.1); the query itself is not counted.

    A query of the same video is ranked only with ``false_negatives``. One with the same words (a cosine of 1) may be a
    pseudo-positive; a negative it is only with ``false_negatives``. Where a batch is so small that nothing is left,
    there are no negatives.

    Args:
        query: [B, d_t] vectors t.
        same_video: bool [B, B].
        top_k, last_k: how many of the most and of the least similar queries are no negatives.
        false_negatives: see above.
    """
    size = len(query)
    unit = F.normalize(at_least_float32(query), dim=1)
    similarity = unit @ unit.t()
    ranked = ~torch.eye(size, dtype=torch.bool, device=query.device)
    if not false_negatives:
        ranked = ranked & ~same_video
    order = similarity.masked_fill(~ranked, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)  # 0 for the most similar query; those that are not ranked come last
    count = ranked.sum(1, keepdim=True)
    top = rank < torch.minimum(count, torch.full_like(count, top_k))
    negatives = ranked & (rank >= top_k) & (rank < count - last_k)
    if not false_negatives:
        negatives = negatives & (similarity < 1 - 1e-5)
    return Queries(similarity, top, negatives)


def split_video(snippets: Tensor, mask: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Foreground sum alpha_t v_t and background sum (1 - alpha_t) v_t / (N - 1) of each video (Eq. 1).

    A video of one snippet has no background: it is 0, and the losses leave it out.

    Args:
        snippets: [B, N, d], 0 on padding.
        mask: bool [B, N].
        alpha: [B, N], 0 on padding (Eq. 2).

    Returns:
        Two [B, d].
    """
    rest = (1 - alpha) * mask / (mask.sum(1, keepdim=True) - 1).clamp_min(1)
    both = torch.stack([alpha, rest], 1).to(snippets.dtype) @ snippets
    return both[:, 0], both[:, 1]


def log_one_plus_sum_exp(x: Tensor, mask: Tensor) -> Tensor:
    """log(1 + sum exp(x)) over the last dimension's elements that ``mask`` keeps: [..., n] -> [...].

    The form of all three losses. Exact for any finite x; 0, with gradient 0, where nothing is kept.
    """
    kept = x.masked_fill(~mask, torch.finfo(x.dtype).min)
    return F.pad(kept, (1, 0)).logsumexp(-1)


def video_loss(positive: Tensor, negative: Tensor, mask: Tensor, margin: float, tau: float) -> Tensor:
    """log(1 + sum_i exp(tau (s_n - s_p + m))) over the videos of the batch (Eq. 3).

    Args:
        positive: s_p, phi of each foreground and its query, [B, 1].
        negative: s_n, phi of each background and the query, [B, 1]; with ``query_negatives`` beside phi of the
            foreground and the other queries, [B, 1 + B].
        mask: bool, shape of ``negative``: which of them count (a video of one snippet has no background).
    """
    return log_one_plus_sum_exp((tau * (negative - positive + margin)).flatten(), mask.flatten())


def snippet_loss(
    scores: Tensor, mask: Tensor, negatives: Tensor, margin: float, tau: float, referring_weights: bool = True
) -> Tensor:
    """Mean over videos of log(1 + sum exp(tau (beta+ s_n - beta- s_p + m))) over snippets and negatives (Eq. 4-5).

    beta is the softmax of a snippet's scores over all queries of the batch; s_n of a negative is weighted by the beta
    of the video's own query, s_p of that query by the beta of the negative, as Eq. 5 has it.

    Args:
        scores: phi of each snippet and each query, [B, N, B].
        mask: bool [B, N] of snippets.
        negatives: bool [B, B], the negative queries of each video.
    """
    own = torch.arange(len(scores), device=scores.device)
    positive = scores[own, :, own].unsqueeze(-1)  # [B, N, 1]
    if referring_weights:
        beta = scores.softmax(-1)
        of_negative, of_positive = beta[own, :, own].unsqueeze(-1), beta
        gap = of_negative * scores - of_positive * positive
    else:
        gap = scores - positive
    kept = mask.unsqueeze(2) & negatives.unsqueeze(1)
    return log_one_plus_sum_exp(tau * (gap + margin).flatten(1), kept.flatten(1)).mean()


def batch_loss(
    foreground: Tensor, background: Tensor, similarity: Tensor, positives: Tensor, margin: float, tau: float
) -> Tensor:
    """log(1 + sum exp(tau gamma_i (s_n - s_p + m))) over videos and their pseudo-positives (Eq. 6-7).

    gamma is the softmax of the similarities of a query over all queries of the batch, itself among them. s_p and s_n
    are cosines of a video's foreground and background with the foreground of the pseudo-positive video.

    Args:
        foreground, background: [B, d].
        similarity: cosines of the queries, [B, B].
        positives: bool [B, B], the pseudo-positives of each video.
    """
    gamma = similarity.softmax(1)
    fore, back = (F.normalize(at_least_float32(x), dim=1) for x in (foreground, background))
    gap = back @ fore.t() - fore @ fore.t()
    return log_one_plus_sum_exp((tau * gamma * (gap + margin)).flatten(), positives.flatten())


class Moments(NamedTuple):
    """Candidate moments of each video of a batch.

    Attributes:
        spans: float64 [B, P, 2], shares of the duration, 0 where there is none.
        mask: bool [B, P], which there are.
        shares: float64 [B, P, T], how much of a moment each clip is; a row sums to 1, or is 0 where there is none.
    """

    spans: Tensor
    mask: Tensor
    shares: Tensor


def window_spans(windows: Sequence[float], overlap: float, device: torch.device) -> Tensor:
    """Sliding windows as shares of the video, float64 [P, 2] in [0, 1] (Charades-STA, section 4.2)."""
    return sliding_windows(1, windows, overlap).spans.clamp(max=1).to(device)


def windows_of_videos(shares: Tensor, mask: Tensor) -> Moments:
    """The same windows [P, 2] in every video that has a clip; clips [B, T] by ``mask``."""
    count = mask.sum(1)
    there = (count > 0).unsqueeze(1).expand(-1, len(shares))
    return overlaps(shares * count[:, None, None], there, count, mask.shape[1])


def segments_of_videos(clips: Tensor, mask: Tensor) -> Moments:
    """The moments [P, 2], in clips, that end within each video (DiDeMo, section 4.1: 21 of six segments)."""
    count = mask.sum(1)
    there = clips[:, 1] <= count.unsqueeze(1)
    return overlaps(clips.expand(len(mask), -1, -1), there, count, mask.shape[1])


def overlaps(spans: Tensor, there: Tensor, count: Tensor, clips: int) -> Moments:
    """Clip t lasts from t to t + 1: a moment is made of the clips by exactly the time that it shares with each.

    Args:
        spans: float64 [B, P, 2], in clips.
        there: bool [B, P].
        count: int64 [B] of real clips.
        clips: T.
    """
    clip = torch.arange(clips, device=spans.device, dtype=spans.dtype)
    start, end = spans[..., :1], spans[..., 1:]
    shared = (torch.minimum(end, clip + 1) - torch.maximum(start, clip)).clamp_min(0)
    shared = shared.masked_fill(~there.unsqueeze(-1), 0)
    shares = shared / shared.sum(-1, keepdim=True).clamp_min(1e-12)
    fractions = (spans / count.clamp_min(1)[:, None, None]).clamp(0, 1)
    return Moments(fractions.masked_fill(~there.unsqueeze(-1), 0), there, shares)
