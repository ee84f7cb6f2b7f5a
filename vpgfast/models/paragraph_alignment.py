"""The alignment of sentences and clips with a paragraph read as a whole: nobody's paper, see :mod:`.alignment`.

"It does so again" says little by itself. What tells which moment is meant is what was said before, and that the
sentences come in their order. So a sentence is compared as what the paragraph has said up to it, and a video fits a
paragraph as well as all ways to give each sentence a clip, each some clips behind the last one's, do together (the
forward algorithm of hidden Markov models).

Letters: B paragraphs with their videos; M sentences; N sentences of the whole batch, without padding; W words; T clips;
D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch
from vpgfast.models.layers import WordEmbedding, at_least_float32, in_one_go, to_paragraphs

_OTHER_ORDERS = 6
_ORDER_WEIGHT = 0.3
_NO_WAY = -1e4
"""In the place of minus infinity: a paragraph of more sentences than a video has room for stays comparable."""


class ParagraphReader(nn.Module):
    """What a paragraph has said up to the end of each sentence, to be added to that sentence; at the start nothing."""

    def __init__(self, word_vectors: WordVectors, dim: int) -> None:
        super().__init__()
        self.words = WordEmbedding(word_vectors.vectors)
        self.gru = nn.GRU(word_vectors.dim, dim, batch_first=True)
        self.said = nn.Linear(dim, dim)
        nn.init.zeros_(self.said.weight)
        nn.init.zeros_(self.said.bias)

    def forward(self, batch: Batch) -> Tensor:
        """Of the N sentences of a batch, [N, D]."""
        words, mask = in_one_go(batch.words, batch.word_mask)
        packed = pack_padded_sequence(self.words(words), mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        last = batch.word_mask.sum(2).cumsum(1) - 1  # of each sentence, among the paragraph's words
        b = batch.sentence_mask.nonzero()[:, 0]
        return self.said(states[b, last[batch.sentence_mask]])


def ordered_scores(similarity: Tensor, sentences: Tensor, gap: int) -> Tensor:
    """How well paragraphs fit videos in their order: the log-sum-exp, over all ways to give each sentence a clip, of
    the sum of their similarities.

    Args:
        similarity: [B, M, ..., T].
        sentences: bool [B, M], which there are; the first of every paragraph is.
        gap: how many clips behind the one of the sentence before a sentence's clip lies at least; 0 or more.

    Returns:
        [B, ...], float32 at least.
    """
    similarity = at_least_float32(similarity)
    ways = (similarity + _earlier(similarity, gap)).logsumexp(-1)
    return ways[torch.arange(len(ways), device=ways.device), sentences.sum(1) - 1]


def ordered_evidence(similarity: Tensor, sentences: Tensor, gap: int) -> Tensor:
    """Where each sentence is, given its similarities and those of all others of its paragraph: the logarithm of the sum
    over all ways of :func:`ordered_scores` in which it has clip t, up to a number for each sentence.

    Args:
        similarity: of each sentence with the clips of its video, [B, M, T].
        sentences: bool [B, M].
        gap: as there.

    Returns:
        [B, M, T]; the largest value that the other sentences add to a clip is 0.
    """
    similarity = at_least_float32(similarity)
    # A sentence that isn't there has an equal share in all ways, wherever it is.
    similarity = similarity.masked_fill(~sentences.unsqueeze(2), 0)
    others = _earlier(similarity, gap) + _later(similarity, sentences, gap)
    return similarity + others - others.amax(2, keepdim=True)


def _earlier(similarity: Tensor, gap: int) -> Tensor:
    """Log-sum-exp over the ways to place all sentences before the one that has clip t; [B, M, ..., T]."""
    ways = [torch.zeros_like(similarity[:, 0])]
    for of_sentence in similarity[:, :-1].unbind(1):
        ways.append(_reached(of_sentence + ways[-1], gap))
    return torch.stack(ways, 1)


def _later(similarity: Tensor, sentences: Tensor, gap: int) -> Tensor:
    """The same of all sentences after that one; [B, M, T]."""
    ways = [torch.zeros_like(similarity[:, 0])]
    for m in range(similarity.shape[1] - 1, 0, -1):
        reached = _reached((similarity[:, m] + ways[-1]).flip(-1), gap).flip(-1)
        ways.append(torch.where(sentences[:, m, None], reached, 0))
    return torch.stack(ways[::-1], 1)


def _reached(ways: Tensor, gap: int) -> Tensor:
    """Log-sum-exp of what lies ``gap`` clips before each clip or earlier, [..., T]."""
    return F.pad(ways.logcumsumexp(-1), (gap, 0), value=_NO_WAY)[..., : ways.shape[-1]]


def paragraph_alignment_loss(similarity: Tensor, sentences: Tensor, same_video: Tensor, gap: int) -> Tensor:
    """Whose video does a paragraph describe, which paragraph describes a video, and in which order does it?

    The cross-entropies of :func:`ordered_scores` over the videos and over the paragraphs of the batch, and of the
    paragraph's own order against a few random ones in its own video.

    Args:
        similarity: [N, B, T].
        sentences: bool [B, M], which there are; the N in their order.
        same_video: bool [B, B].
        gap: as there.
    """
    padded, item = to_paragraphs(at_least_float32(similarity), sentences), torch.arange(len(sentences))
    item = item.to(padded.device)
    scores = ordered_scores(padded, sentences, gap)
    scores = scores.masked_fill(same_video & ~torch.eye(len(item), dtype=torch.bool, device=item.device), -torch.inf)
    contrast = F.cross_entropy(scores, item) + F.cross_entropy(scores.t(), item)
    return contrast + _ORDER_WEIGHT * order_contrast(padded[item, :, item], sentences, gap)


def order_contrast(similarity: Tensor, sentences: Tensor, gap: int) -> Tensor:
    """Cross-entropy of the paragraphs' own order against random orders of their sentences.

    Args:
        similarity: [B, M, T].
        sentences: bool [B, M].
        gap: as of :func:`ordered_scores`.
    """
    B, M, T = similarity.shape
    # Sentences that aren't there stay behind those that are; a draw that is no other order doesn't count.
    keys = torch.rand(_OTHER_ORDERS, B, M, device=similarity.device).masked_fill(~sentences, 2)
    orders = keys.argsort(dim=2, stable=True)
    other = ((orders != torch.arange(M, device=orders.device)) & sentences).any(2)
    moved = similarity.expand(_OTHER_ORDERS, -1, -1, -1).gather(2, orders.unsqueeze(3).expand(-1, -1, -1, T))
    there = sentences.repeat(_OTHER_ORDERS, 1)
    others = ordered_scores(moved.flatten(0, 1), there, gap).view(_OTHER_ORDERS, B).masked_fill(~other, -torch.inf)
    scores = torch.cat([ordered_scores(similarity, sentences, gap).unsqueeze(0), others])
    return -scores.log_softmax(0)[0].mean()
