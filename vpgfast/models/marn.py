"""MARN: Weakly-Supervised Multi-Level Attentional Reconstruction Network for Grounding Textual Queries in Videos.

Song et al., 2020. Weakly supervised, one sentence at a time: a video and its sentence are all that training sees.
Proposals are attended to by the query, and a decoder must tell the query again from what was attended. Equation numbers
are the paper's; what the paper leaves open is settled in ``docs/methods/marn.md`` and named where it happens.

Letters: B sentences, each with its own copy of its video; T clips; P proposals; C channels after the reduction; D width
of all that follows; W words; V words of the vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, BatchNeeds, Prediction
from vpgfast.models.candidates import Candidates
from vpgfast.models.configs.marn import MARNConfig
from vpgfast.models.layers import WordEmbedding, another_video, at_least_float32
from vpgfast.models.method import Method
from vpgfast.models.ordered import predict_in_order, predict_one_by_one
from vpgfast.ops import ProposalGrid, marn_stride, multi_scale_grid, proposal_conv, temporal_map_max_pool, temporal_nms


class Attended(NamedTuple):
    """What one branch attends to.

    Attributes:
        weights: [B, P], attention over the moments, summing to 1, in float32 whatever the precision of the layers.
        feature: [B, D], the moments' features weighted by it.
    """

    weights: Tensor
    feature: Tensor


class MARN(Method):
    """The network of section 3, its loss and its inference."""

    name = MARNConfig.method
    Config = MARNConfig
    config: MARNConfig

    @staticmethod
    def needs(config: MARNConfig) -> BatchNeeds:
        """Single sentences without spans, every video brought to T clips or to its own of ``clip_seconds``."""
        return BatchNeeds(
            level="sentence",
            labelled_share=0,
            max_clips=config.max_clips,
            resample="pool",
            fixed_length=True,
            clip_seconds=config.clip_seconds,
            min_clips=config.scales[0],  # so that a proposal fits into every video
            max_words=config.max_words,
            whole_paragraphs=config.decode == "ordered",
        )

    def __init__(self, config: MARNConfig, feature_dim: int, word_vectors: WordVectors) -> None:
        super().__init__(config, feature_dim, word_vectors)
        self.config = config
        channels = max(1, feature_dim // config.reduction)
        proposals = self.proposal_grid()
        clips = multi_scale_grid(config.max_clips, [1])
        self.words = WordEmbedding(word_vectors.vectors)
        self.query = nn.GRU(word_vectors.dim, config.dim, batch_first=True)
        self.representation = MomentRepresentation(config, channels)  # shared by the branches, as the decoder is
        self.proposals = Branch(config, feature_dim, channels, proposals)
        self.clips = Branch(config, feature_dim, channels, clips) if config.clip_branch else None
        self.decoder = Decoder(config.dim, word_vectors.dim, len(word_vectors.vectors))
        self.register_constants()
        self.spans: Tensor
        self.middle: Tensor

    def proposal_grid(self) -> ProposalGrid:
        """The P proposals."""
        stride = marn_stride if self.config.scale_stride == "quarter" else 1
        return multi_scale_grid(self.config.max_clips, self.config.scales, stride)

    def constants(self) -> dict[str, Tensor]:
        """``spans`` [P, 2] of the proposals, as fractions of T clips, and the clip in the ``middle`` of each: its start
        plus half its length (Eq. 15)."""
        spans = self.proposal_grid().spans
        return {"spans": spans / self.config.max_clips, "middle": spans.mean(1).long()}

    def forward(self, batch: Batch) -> tuple[Attended, Attended | None]:
        """From a batch of single sentences (M = 1) to what the proposals' and the clips' branch attend to."""
        query = self.read(batch)
        proposals, *clips = [
            branch.attend(self.moments(branch, batch), query, self.there(branch, batch)) for branch in self.branches()
        ]
        return proposals, clips[0] if clips else None

    def branches(self) -> list[Branch]:
        """The proposals' branch and, if there is one, the clips'."""
        return [self.proposals] if self.clips is None else [self.proposals, self.clips]

    def read(self, batch: Batch) -> Tensor:
        """F_q of each sentence, [B, D]."""
        if batch.words.shape[1] != 1:
            raise ValueError(f"MARN takes one sentence a video, this batch has up to {batch.words.shape[1]}")
        states, _ = self.query(self.words(batch.words[:, 0]))
        last = (batch.word_mask[:, 0].sum(1) - 1).clamp_min(0)
        return states[torch.arange(len(last), device=last.device), last]

    def moments(self, branch: Branch, batch: Batch) -> Tensor:
        """Features of a branch's moments, [B, D, P]."""
        if batch.video.shape[1] != self.config.max_clips:
            raise ValueError(f"MARN takes {self.config.max_clips} clips a video, this batch has {batch.video.shape[1]}")
        return branch(batch.video.transpose(1, 2), self.representation, self.lengths(batch))

    def lengths(self, batch: Batch) -> Tensor | None:
        """int64 [B], how many clips each video has; ``None``: all have T."""
        return None if self.config.clip_seconds is None else batch.video_mask.sum(1)

    def there(self, branch: Branch, batch: Batch) -> Tensor | None:
        """bool [B, P], which of a branch's moments lie within each video; ``None``: all do."""
        lengths = self.lengths(batch)
        return None if lengths is None else branch.grid.within(lengths)

    def spans_of(self, batch: Batch) -> Tensor:
        """Of the proposals in each video, float64 [B, P, 2] in seconds."""
        durations, lengths = batch.durations, self.lengths(batch)
        if lengths is None or self.config.clip_seconds is None:
            return self.spans * durations[:, None, None]
        # As vpgfast.data.fixed_clips: the last clip ends with the video.
        seconds = torch.full_like(durations, self.config.clip_seconds)
        unit = seconds.maximum(durations / self.config.max_clips).minimum(durations / self.config.scales[0])
        clips = self.proposals.grid.spans.to(durations.device)
        last = clips >= lengths[:, None, None]
        return torch.where(last, durations[:, None, None], clips * unit[:, None, None])

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """``loss`` = ``proposals`` (Eq. 10) + lambda ``clips`` (Eq. 13): the query's mean negative log-likelihood.

        With ``negative_weight`` both branches have a hinge on the likelihood in another video beside it, whose weighted
        sum is ``negatives``.
        """
        config = self.config
        words, mask = batch.words[:, 0], batch.word_mask[:, 0]
        embedded, query = self.words(words), self.read(batch)
        other = another_video(batch) if config.negative_weight else None
        losses, hinges = {}, {}
        for name, branch in zip(("proposals", "clips"), self.branches(), strict=False):
            moments, there = self.moments(branch, batch), self.there(branch, batch)
            own = self.decoder(branch.attend(moments, query, there).feature, embedded, words, mask)
            losses[name] = own.mean()
            if other is not None:
                its = None if there is None else there.roll(other.shift, 0)
                feature = branch.attend(moments.roll(other.shift, 0), query, its).feature
                gap = (config.negative_margin + own - self.decoder(feature, embedded, words, mask)).relu()
                hinges[name] = (gap * other.different).sum() / other.different.sum().clamp_min(1)
        weights = {"proposals": 1.0, "clips": config.clip_weight}
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()  # Eq. 14
        if other is not None:
            losses["negatives"] = torch.stack([weights[name] * value for name, value in hinges.items()]).sum()
            total = total + config.negative_weight * losses["negatives"]
        return {"loss": total, **losses}

    @torch.no_grad()
    def predict(self, batch: Batch, top_n: int = 10) -> Prediction:
        """The ``top_n`` proposals of the highest attention that do not overlap a better one too much (Eq. 15)."""
        if self.config.decode == "ordered":
            return predict_in_order(batch, lambda part: self.answer(part, top_n), self.config.nms)
        return self.answer(batch, top_n)[0]

    def answer(self, batch: Batch, top_n: int) -> tuple[Prediction, Candidates]:
        """Ranked spans of single sentences, and all proposals as candidates."""
        proposals, clips = self(batch)
        scores, there = self.refine(proposals, clips, batch), self.there(self.proposals, batch)
        weights = proposals.weights if there is None else proposals.weights.masked_fill(~there, torch.nan)
        attention = self.proposals.grid.to_map(weights, torch.nan).unsqueeze(1)
        candidates = Candidates(self.spans_of(batch), scores.clamp_min(1e-30).log().masked_fill(scores < 0, -torch.inf))
        return replace(self.rank(scores, batch, top_n), attention=attention), candidates

    @torch.no_grad()
    def candidates(self, batch: Batch, count: int) -> Candidates:
        """As :class:`Method`: attention, less how badly the sentence is told from what was attended (nats a word)."""
        words, mask, query = batch.words[:, 0], batch.word_mask[:, 0], self.read(batch)
        branch = self.proposals
        feature = branch.attend(self.moments(branch, batch), query, self.there(branch, batch)).feature
        badly = self.decoder(feature, self.words(words), words, mask)
        found = self.rank(self.scores(batch), batch, count)
        return Candidates(found.spans[:, 0], found.scores[:, 0].clamp_min(0).log() - badly.unsqueeze(1))

    def scores(self, batch: Batch) -> Tensor:
        """Of all proposals, [B, P], each 0 or more (Eq. 15); -inf of those that do not lie within the video."""
        proposals, clips = self(batch)
        return self.refine(proposals, clips, batch)

    def refine(self, proposals: Attended, clips: Attended | None, batch: Batch) -> Tensor:
        """The scores that both branches' attention makes."""
        scores = proposals.weights
        if clips is not None and self.config.clip_scores:
            scores = scores + self.config.epsilon * clips.weights[:, self.middle]
        there = self.there(self.proposals, batch)
        return scores if there is None else scores.masked_fill(~there, -torch.inf)

    def at_random(self, batch: Batch, top_n: int, generator: torch.Generator) -> Prediction:
        """As :class:`Method`."""

        def answer(part: Batch) -> Prediction:
            scores = torch.rand(len(part.video), self.spans.shape[-2], generator=generator).to(self.spans.device)
            there = self.there(self.proposals, part)
            return self.rank(scores if there is None else scores.masked_fill(~there, -torch.inf), part, top_n)

        return predict_one_by_one(batch, answer)

    def rank(self, scores: Tensor, batch: Batch, top_n: int) -> Prediction:
        """The ``top_n`` proposals of the highest scores, after suppression."""
        spans = self.spans.expand(len(scores), -1, -1)
        kept = temporal_nms(spans, scores, 1.0 if self.config.nms is None else self.config.nms, top_n)
        found = kept >= 0
        kept = kept.clamp_min(0)
        chosen = self.spans_of(batch).gather(1, kept.unsqueeze(-1).expand(-1, -1, 2))
        return Prediction(
            spans=(chosen * found.unsqueeze(-1)).unsqueeze(1),
            scores=scores.gather(1, kept).masked_fill(~found, -torch.inf).unsqueeze(1),
        )


class MomentRepresentation(nn.Module):
    """One vector for each listed moment of a video (Eq. 2-5), or one of the forms that Tables 3 and 4 compare it with.

    The convolution over N samples and ``proposal_conv`` are the same linear map; the pooled forms end in a linear layer
    of the same width, so that all that follows is one network. ReLU follows all but the LSTM.
    """

    def __init__(self, config: MARNConfig, channels: int) -> None:
        super().__init__()
        self.kind = config.representation
        if self.kind == "lstm":
            self.lstm = nn.LSTM(channels, config.dim, batch_first=True)
            return
        samples = config.samples if self.kind == "conv3d" else 1
        self.weight = nn.Parameter(torch.empty(config.dim, channels, samples))
        self.bias = nn.Parameter(torch.zeros(config.dim))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as torch's convolutions

    def forward(self, x: Tensor, grid: ProposalGrid, lengths: Tensor | None = None) -> Tensor:
        """Clips [B, C, T] -> moments [B, D, P]; ``lengths`` [B] are those of the videos. What is made of a moment that
        does not lie within its video means nothing."""
        if self.kind == "conv3d":
            return proposal_conv(x, grid.proposals.to(x.device), self.weight, self.bias, lengths=lengths).relu()
        if self.kind == "lstm":
            return self._over_lstm(x, grid)
        first, last = grid.proposals.long().to(x.device).unbind(1)
        if self.kind == "max":
            pooled = temporal_map_max_pool(x, torch.stack([first, last], 1))
        else:
            total = F.pad(x.cumsum(2), (1, 0))
            pooled = (total[:, :, last + 1] - total[:, :, first]) / (last + 1 - first).to(x.dtype)
        return F.conv1d(pooled, self.weight, self.bias).relu()

    def _over_lstm(self, x: Tensor, grid: ProposalGrid) -> Tensor:
        """Moments of one length together, as one batch of sequences; the grid lists them length by length."""
        first, last = grid.proposals.long().unbind(1)
        parts = []
        for length in (last - first + 1).unique().tolist():
            starts = first[last - first + 1 == length].to(x.device)
            windows = x.unfold(2, length, 1)[:, :, starts].permute(0, 2, 3, 1)  # [B, count, length, C]
            _, (state, _) = self.lstm(windows.flatten(0, 1))
            parts.append(state[0].unflatten(0, windows.shape[:2]))
        return torch.cat(parts, 1).transpose(1, 2)


class Branch(nn.Module):
    """Features of the moments of a grid, attended to by the query: the proposals' branch and the clips' (Eq. 11-12)."""

    def __init__(self, config: MARNConfig, feature_dim: int, channels: int, grid: ProposalGrid) -> None:
        super().__init__()
        self.grid = grid
        self.reduce = nn.Conv1d(feature_dim, channels, config.conv_kernel, padding=config.conv_kernel // 2)
        self.attention = MapAttention(config.dim, config.attention_kernels, grid)

    def forward(self, video: Tensor, representation: MomentRepresentation, lengths: Tensor | None = None) -> Tensor:
        """F_vp of Eq. 1-3: clips [B, d_v, T] -> moments [B, D, P]; ``representation`` is shared by the branches. Clips
        behind the ``lengths`` [B] of the videos must be zero, as before clip 0."""
        return representation(self.reduce(video), self.grid, lengths)

    def attend(self, moments: Tensor, query: Tensor, there: Tensor | None = None) -> Attended:
        """Moments [B, D, P] and queries [B, D] -> what each query attends to of the moments ``there`` [B, P]."""
        weights = self.attention(moments, query, there)
        # Over the moments' own features: those fused with the query would let the decoder read it there (sec. 3.2).
        return Attended(weights, (moments @ weights.to(moments.dtype).unsqueeze(2)).squeeze(2))  # Eq. 8


class MapAttention(nn.Module):
    """Attention over the moments from their map and the query (Eq. 6-7).

    The 1 x 1 convolution of [F_vp; tiled F_q] is W_p F_vp + W_q F_q: nothing is tiled. The last convolution has one
    output channel, so the products of its k x k taps with every moment come first, and the map holds k * k channels
    instead of D. Cells that no moment has read as zero, as do those of moments that end behind their video.
    """

    def __init__(self, dim: int, kernels: list[int], grid: ProposalGrid) -> None:
        super().__init__()
        self.grid = grid
        self.of_moment = nn.Conv1d(dim, dim, 1)
        self.of_query = nn.Linear(dim, dim, bias=False)
        self.hidden = nn.ModuleList(nn.Conv2d(dim, dim, k, padding=k // 2) for k in kernels[:-1])
        # A bias would only shift all scores alike.
        self.last = nn.Conv2d(dim, 1, kernels[-1], padding=kernels[-1] // 2, bias=False)

    def forward(self, moments: Tensor, query: Tensor, there: Tensor | None = None) -> Tensor:
        """[B, D, P] and [B, D] -> [B, P] in float32 or wider, summing to 1 over the moments that are ``there``."""
        fused = (self.of_moment(moments) + self.of_query(query).unsqueeze(2)).relu()
        absent = None if there is None else ~there.unsqueeze(1)
        fused = fused if absent is None else fused.masked_fill(absent, 0)
        for conv in self.hidden:
            fused = self.grid.to_list(conv(self.grid.to_map(fused)).relu())
            fused = fused if absent is None else fused.masked_fill(absent, 0)
        scores = at_least_float32(self._last(fused))
        return (scores if there is None else scores.masked_fill(~there, -torch.inf)).softmax(1)

    def _last(self, fused: Tensor) -> Tensor:
        weight, size = self.last.weight, self.last.weight.shape[-1]
        taps = self.grid.to_map(weight.flatten(2)[0].t() @ fused)  # [B, k * k, rows, columns]
        at_tap = torch.eye(size * size, dtype=taps.dtype, device=taps.device).view(1, size * size, size, size)
        return self.grid.to_list(F.conv2d(taps, at_tap, padding=size // 2)).squeeze(1)


class Decoder(nn.Module):
    """Tells the query word by word from what was attended (Eq. 9-10).

    The first word follows a zero vector and a zero state (the paper is silent).
    """

    def __init__(self, dim: int, word_dim: int, vocabulary: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim + word_dim, dim, batch_first=True)
        self.out = nn.Linear(dim, vocabulary)

    def forward(self, feature: Tensor, embedded: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Mean negative log-likelihood of a word of each sentence, [B].

        Args:
            feature: [B, D].
            embedded: [B, W, d_w], vectors of the words (teacher forcing).
            words: int64 [B, W].
            mask: bool [B, W].
        """
        before = F.pad(embedded[:, :-1], (0, 0, 1, 0))
        inputs = torch.cat([feature.unsqueeze(1).expand(-1, before.shape[1], -1), before], 2)
        states, _ = self.lstm(inputs)
        logits = self.out(states).transpose(1, 2)
        nll = F.cross_entropy(logits, words, reduction="none")
        return (nll * mask).sum(1) / mask.sum(1).clamp_min(1)
