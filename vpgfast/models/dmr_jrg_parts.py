"""The encoders, draws and losses of DMR-JRG, see :mod:`vpgfast.models.dmr_jrg`, also for the letters."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch
from vpgfast.models.configs.dmr_jrg import DMRJRGConfig
from vpgfast.models.language import LanguageModel, MeanOfOutputs
from vpgfast.models.layers import WordEmbedding, at_least_float32, masked_mean, sinusoid, to_paragraphs
from vpgfast.models.reconstructor import EncoderLayer


class Text(NamedTuple):
    """The sentences of a batch, N in all.

    Attributes:
        sentences: h_m [N, D].
        masked: the words of the sentences with some of them masked, encoded, [N, W, D]; None unless asked for.
    """

    sentences: Tensor
    masked: Tensor | None


class TextEncoder(nn.Module):
    """Sentences by a Bi-LSTM over word vectors, or by a frozen language model; masked words always by the Bi-LSTM."""

    def __init__(self, config: DMRJRGConfig, word_vectors: WordVectors) -> None:
        super().__init__()
        self.language: MeanOfOutputs | None = None
        if config.language_model is not None:
            self.language = MeanOfOutputs(LanguageModel(config.language_model), "last")
            self.project = nn.Linear(self.language.out_dim, config.dim)
        if self.language is None or config.local_weight:
            self.words = WordEmbedding(word_vectors.vectors)
            self.lstm = nn.LSTM(word_vectors.dim, config.dim // 2, bidirectional=True, batch_first=True)
            self.takes_means = config.start_from_means
        # What stands in the place of a masked word.
        self.mask = nn.Parameter(torch.zeros(word_vectors.dim)) if config.local_weight else None
        self.content_weight = config.content_weight
        counts = word_vectors.content_counts
        self.counted = counts is not None  # not in a model made for its weights: they bring the content words
        content = torch.zeros(len(word_vectors.vectors), dtype=torch.bool)
        if counts is not None:
            content = torch.from_numpy(counts > 0)
        self.register_buffer("content", content if config.masks_content_words else None)
        self.content: Tensor | None

    def forward(self, batch: Batch, masked: Tensor | None = None) -> Text:
        """The sentences of a batch and, given bool [N, W] ``masked``, their words without those."""
        there = batch.sentence_mask
        versions = []
        if self.language is None or (masked is not None and self.mask is not None):
            words = self.words(batch.words[there])
            versions = [words] if self.language is None else []
            if masked is not None and self.mask is not None:
                versions.append(torch.where(masked.unsqueeze(2), self.mask, words))
            # One call: both go through the same Bi-LSTM.
            states, sentences = self.read(torch.cat(versions), batch.word_mask[there].repeat(len(versions), 1))
        if self.language is None:
            sentences = sentences[: len(words)]
        else:
            texts = [sentence for paragraph in batch.paragraphs for sentence in paragraph.sentences]
            sentences = self.project(self.language(texts).to(self.project.weight.dtype))
        return Text(sentences, states[-len(words) :] if masked is not None and self.mask is not None else None)

    def read(self, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Word vectors [N, W, d_w], one word or more a sentence -> states [N, W, D] and the sentences [N, D]: the last
        state of each way, or the mean of all."""
        packed = pack_padded_sequence(words, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        states, (last, _) = self.lstm(packed)
        states, _ = pad_packed_sequence(states, batch_first=True, total_length=words.shape[1])
        if self.takes_means:
            return states, masked_mean(states, mask)
        return states, torch.cat([last[0], last[1]], 1)

    def weights(self, words: Tensor) -> Tensor:
        """How readily each word of int64 [N, W] is masked, [N, W]."""
        if self.content is None:
            return torch.ones(words.shape, device=words.device)
        if not self.counted:
            raise ValueError("masking needs word vectors with content_counts (vpgfast.data.text.count_content_words)")
        return torch.where(self.content[words], self.content_weight, 1.0)


class ClassEncoder(nn.Module):
    """A transformer encoder over a class token and a sequence, and what the token has become (Eq. 1 and 15)."""

    def __init__(self, config: DMRJRGConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.token = nn.Parameter(0.02 * torch.randn(config.dim))  # small, or what it attends to changes it too little
        self.starts_from_mean = config.start_from_means
        self.layers = nn.ModuleList(
            EncoderLayer(config.dim, config.heads, config.feed_forward, config.dropout) for _ in range(config.layers)
        )

    def forward(self, x: Tensor, mask: Tensor, token: Tensor | None = None) -> Tensor:
        """[B, L, D] and bool [B, L] -> [B, D]; ``token`` [D] in the place of the encoder's own."""
        x, own = self.norm(x), (self.token if token is None else token).expand(len(x), -1)
        if self.starts_from_mean:
            own = own + masked_mean(x, mask)
        x = torch.cat([own.unsqueeze(1), x], 1)
        x, mask = x + sinusoid(x.shape[1], x.shape[2], x), F.pad(mask, (1, 0), value=True)
        for layer in self.layers:
            x = layer(x, mask)
        return x[:, 0]


def draw_words(mask: Tensor, weights: Tensor, share: float) -> Tensor:
    """Draw ``share`` of the words of each sentence (rounded down, one at least), without putting them back.

    A word is drawn with a probability in proportion to its weight (by the Gumbel trick: Vieira, 2014).

    Args:
        mask: bool [N, W], which words there are.
        weights: [N, W], above 0.
        share: in (0, 1].

    Returns:
        bool [N, W].
    """
    uniform = torch.rand(mask.shape, dtype=torch.float64, device=mask.device).clamp_min(1e-300)
    keys = (weights.double().log() - (-uniform.log()).log()).masked_fill(~mask, -torch.inf)
    rank = keys.argsort(1, descending=True).argsort(1)
    # A third of 3 words is 1, whatever rounding makes of 3 * (1 / 3).
    count = (mask.sum(1, keepdim=True) * share + 1e-9).floor().clamp_min(1)
    return (rank < count) & mask


def unit(x: Tensor) -> Tensor:
    """[..., D] -> vectors of length 1, float32 at least."""
    return F.normalize(at_least_float32(x), dim=-1)


def mean_of_paragraphs(x: Tensor, there: Tensor) -> Tensor:
    """Mean over the sentences [N] of each paragraph, then over the paragraphs, by bool [B, M] ``there``."""
    return (to_paragraphs(x, there).sum(1) / there.sum(1).clamp_min(1)).mean()


def nce_loss(logits: Tensor, same: Tensor) -> Tensor:
    """InfoNCE of paragraphs over videos and of videos over paragraphs (Eq. 2-4).

    Other items of the same video are no negatives.

    Args:
        logits: [B, B], lambda times the similarities of paragraphs (rows) and videos.
        same: bool [B, B], which items are of one video.
    """
    own = torch.arange(len(logits), device=logits.device)
    others = same & (own != own.unsqueeze(1))
    of_paragraphs, of_videos = (x.masked_fill(others, -torch.inf) for x in (logits, logits.t()))
    return F.cross_entropy(of_paragraphs, own) + F.cross_entropy(of_videos, own)


def triplet_loss(similarity: Tensor, same: Tensor, draws: Tensor, margin: float, hardest: int) -> Tensor:
    """Triplet ranking loss of paragraphs and of videos (Eq. 5-7).

    The negative is one of the ``hardest`` most similar of the batch; other items of the same video are none. An item
    without any has loss 0.

    Args:
        similarity: [B, B] of paragraphs (rows) and videos.
        same: bool [B, B], which items are of one video.
        draws: [2, B] in [0, 1), which of them: the negative video of a paragraph, the negative paragraph of a video.
        margin: Delta.
        hardest: how many to choose from.
    """
    count = (~same).sum(1)
    losses = []
    for scores, draw in zip((similarity, similarity.t()), draws, strict=True):
        order = scores.detach().masked_fill(same, -torch.inf).argsort(dim=1, descending=True, stable=True)
        pick = (draw * count.clamp(max=hardest)).long()
        negative = scores.gather(1, order.gather(1, pick.unsqueeze(1))).squeeze(1)
        losses.append(((margin + negative - scores.diagonal()).relu() * (count > 0)).mean())
    return torch.stack(losses).sum()


def rewards_of(nll: Tensor) -> Tensor:
    """R^q [N, Q]: 1 for the candidate that tells its sentence best, falling by 1 / (Q - 1) to 0 (Eq. 12)."""
    rewards = torch.linspace(1, 0, nll.shape[1], dtype=nll.dtype, device=nll.device)
    return rewards[nll.argsort(dim=1, stable=True).argsort(1)]


def rank_loss(scores: Tensor, rewards: Tensor) -> Tensor:
    """-1/Q sum R^q log softmax of the candidates' scores (Eq. 12): two [N, Q] -> [N]."""
    return -(rewards * scores.log_softmax(1)).mean(1)
