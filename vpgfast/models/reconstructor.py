"""Which moment tells most about a sentence whose words are partly masked: DMR-JRG's language reconstructor.

And the post-norm transformer layers that it shares with DMR-JRG's encoders.

Letters: N sentences; Q candidate moments of each; W words; T clips of a video; R clips that a moment is read at; D
width; V words of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vpgfast.models.layers import Linear, MultiHeadAttention, Residual, at_least_float32, feed_forward, sinusoid


def attention(dim: int, heads: int, dropout: float) -> Residual:
    """A layer of attention: (x [B, N, D], what it looks at [B, K, D], bool [B, K]) -> [B, N, D]."""
    return Residual(MultiHeadAttention(dim, heads), dim, dropout)


class EncoderLayer(nn.Module):
    """Attention to itself, then feed-forward."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.itself = attention(dim, heads, dropout)
        self.feed_forward = feed_forward(dim, hidden, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, N, D] and bool [B, N] -> [B, N, D]."""
        return self.feed_forward(self.itself(x, x, mask))


class DecoderLayer(nn.Module):
    """Attention to the words, attention to the clips, feed-forward; :class:`Reconstructor` calls one after another."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.itself = attention(dim, heads, dropout)
        self.clips = attention(dim, heads, dropout)
        self.feed_forward = feed_forward(dim, hidden, dropout)


class Reconstructor(nn.Module):
    """Tells a sentence's words from what is left of them and from a candidate moment (DMR-JRG Eq. 9-11).

    A transformer encoder reads the moment's clips, a transformer decoder the sentence's words as they were encoded with
    a part of them masked; a linear layer and a softmax tell each word.

    Args:
        feature_dim: width d_v of a clip.
        dim: D.
        heads, layers, hidden, dropout: of encoder and decoder alike.
        samples: R, evenly spaced clips that a moment is read at, so that all moments are equally long.
        vocabulary: V.
    """

    def __init__(
        self,
        feature_dim: int,
        dim: int,
        heads: int,
        layers: int,
        hidden: int,
        dropout: float,
        samples: int,
        vocabulary: int,
    ) -> None:
        super().__init__()
        self.samples = samples
        self.clips = nn.Sequential(Linear(feature_dim, dim), nn.LayerNorm(dim))
        self.words = nn.LayerNorm(dim)
        self.encoder = nn.ModuleList(EncoderLayer(dim, heads, hidden, dropout) for _ in range(layers))
        self.decoder = nn.ModuleList(DecoderLayer(dim, heads, hidden, dropout) for _ in range(layers))
        self.out = Linear(dim, vocabulary)

    def forward(
        self, video: Tensor, owner: Tensor, moments: Tensor, words: Tensor, mask: Tensor, labels: Tensor, told: Tensor
    ) -> Tensor:
        """How badly each candidate tells its sentence.

        Args:
            video: [B, T, d_v].
            owner: int64 [N], whose video each sentence's is.
            moments: int64 [N, Q, 2], first clip and the clip after the last.
            words: [N, W, D], the encoded words, some of them masked.
            mask: bool [N, W], which words there are.
            labels: int64 [N, W], the words of the vocabulary that they were.
            told: bool [N, W], which of them have to be told.

        Returns:
            [N, Q] negative log-likelihoods, the sum over the words that are told.
        """
        N, Q = moments.shape[:2]
        frames = self.read(video, owner, moments)
        every = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        for layer in self.encoder:
            frames = layer(frames, every)
        x = self.words(words) + sinusoid(words.shape[1], words.shape[2], words)
        for number, layer in enumerate(self.decoder):
            assert isinstance(layer, DecoderLayer)
            x = layer.itself(x, x, mask)
            if number == 0:  # so far the words have seen no clip: all candidates have this in common
                x, mask = x.repeat_interleave(Q, 0), mask.repeat_interleave(Q, 0)
            x = layer.feed_forward(layer.clips(x, frames, every))
        rows = x.unflatten(0, (N, Q)).transpose(1, 2)[told]  # only what is told is held against the vocabulary
        logits = at_least_float32(self.out(rows)).flatten(0, 1)
        nll = word_nll(logits, labels[told].repeat_interleave(Q)).view(-1, Q)
        return nll.new_zeros(*told.shape, Q).masked_scatter(told.unsqueeze(2), nll).sum(1)

    def read(self, video: Tensor, owner: Tensor, moments: Tensor) -> Tensor:
        """The clips of each moment with their positions, [N * Q, R, D]."""
        clips = self.clips(video)
        start, end = moments.unsqueeze(-2).unbind(-1)  # [N, Q, 1]
        step = torch.arange(self.samples, device=video.device)
        index = start + (end - start) * step // self.samples
        frames = F.embedding(owner[:, None, None] * video.shape[1] + index, clips.flatten(0, 1)).flatten(0, 1)
        return frames + sinusoid(self.samples, frames.shape[2], frames)


def word_nll(logits: Tensor, words: Tensor) -> Tensor:
    """-log p of one word a row: ``F.cross_entropy(logits, words, reduction="none")``, gradient included.

    Going backward it makes one array of the size of the logits less; with a vocabulary these are large.

    Args:
        logits: [R, V].
        words: int64 [R], of the vocabulary of V.

    Returns:
        [R].
    """
    nll: Tensor = _WordNLL.apply(logits, words)
    return nll


class _WordNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, words: Tensor) -> Tensor:
        logs = logits.log_softmax(1)
        ctx.save_for_backward(logs, words)
        return -logs.gather(1, words.unsqueeze(1)).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logs, words = ctx.saved_tensors
        grad_logits = logs.exp()
        grad_logits.scatter_add_(1, words.unsqueeze(1), grad_logits.new_full((len(words), 1), -1.0))
        return grad_logits.mul_(grad.unsqueeze(1)), None
