"""WSRA's training loss in the form of the field's code: phi on the tiled concatenation of every snippet and query.

It takes a :class:`vpgfast.models.wsra.WSRA` for its weights, so that both compute the same thing. The relevance is an
argument: :func:`broadcast` is the best that we know in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vpgfast.data.types import Batch
from vpgfast.models.layers import same_videos
from vpgfast.models.wsra import WSRA, Relevance, choose_queries


def tiled(phi: Relevance, video: Tensor, query: Tensor) -> Tensor:
    """phi(v, t) = sigmoid(FC(relu(FC([v; t])))), [..., d] and [..., d_t], broadcast against each other -> [...]."""
    shape = torch.broadcast_shapes(video.shape[:-1], query.shape[:-1])
    both = torch.cat([video.expand(*shape, -1), query.expand(*shape, -1)], -1)
    weight = torch.cat([phi.video.weight, phi.query.weight], 1)
    return phi.out(F.linear(both, weight, phi.video.bias).relu()).squeeze(-1).sigmoid()


def broadcast(phi: Relevance, video: Tensor, query: Tensor) -> Tensor:
    """The same with the first layer applied to snippets and to queries by themselves; only its outputs are spread."""
    return phi.out((phi.video(video) + phi.query(query)).relu()).squeeze(-1).sigmoid()


class FieldWSRA:
    """The loss of a model with the paper's settings: clips attended to, none of the switches of our own."""

    def __init__(self, model: WSRA, relevance: Callable[[Relevance, Tensor, Tensor], Tensor] = tiled) -> None:
        self.model, self.relevance = model, relevance

    def loss(self, batch: Batch) -> Tensor:
        """Eq. 8, of videos of two clips or more."""
        model, config = self.model, self.model.config
        assert model.phi_video is not None
        assert model.phi_snippet is not None
        video, mask = batch.video, batch.video_mask  # [B, T, d], [B, T]
        words, there = model.sentence.words(batch.words[:, 0]), batch.word_mask[:, 0].unsqueeze(-1)
        query = (words * there).sum(1) / there.sum(1)
        chosen = choose_queries(query, same_videos(batch), config.top_k, config.last_k, config.false_negatives)

        scores = self.relevance(model.phi_video, video, query.unsqueeze(1))
        alpha = scores.masked_fill(~mask, -torch.inf).softmax(1).unsqueeze(-1)  # Eq. 2
        foreground = (alpha * video).sum(1)  # Eq. 1
        background = ((1 - alpha) * video * mask.unsqueeze(-1)).sum(1) / (mask.sum(1, keepdim=True) - 1)
        gap = self.relevance(model.phi_video, background, query) - self.relevance(model.phi_video, foreground, query)
        video_loss = self.terms(gap).sum().log1p()  # Eq. 3

        scores = self.relevance(model.phi_snippet, video.unsqueeze(2), query.view(1, 1, *query.shape))  # [B, T, B]
        beta = scores.softmax(-1)  # Eq. 4
        own = torch.arange(len(batch), device=scores.device)
        positive, of_negative = (x[own, :, own].unsqueeze(-1) for x in (scores, beta))
        exps = self.terms(of_negative * scores - beta * positive)
        kept = mask.unsqueeze(-1) & chosen.negatives.unsqueeze(1)
        snippet_loss = (exps * kept).sum((1, 2)).log1p().mean()  # Eq. 5

        gamma = chosen.similarity.softmax(1)  # Eq. 6
        foreground, background = F.normalize(foreground, dim=1), F.normalize(background, dim=1)
        gap = background @ foreground.t() - foreground @ foreground.t()
        exps = (config.tau * gamma * (gap + config.margin)).exp()
        batch_loss = (exps * chosen.pseudo_positives).sum().log1p()  # Eq. 7
        return config.video_loss * video_loss + config.snippet_loss * snippet_loss + config.batch_loss * batch_loss

    def terms(self, gap: Tensor) -> Tensor:
        """The terms of Eq. 3 and 5."""
        return (self.model.config.tau * (gap + self.model.config.margin)).exp()
