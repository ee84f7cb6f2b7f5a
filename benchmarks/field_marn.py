"""MARN in the form of the field's code: a dense sampling matrix over all cells of the map, tiled concatenation, masks.

It takes a :class:`vpgfast.models.marn.MARN` for its weights, so that both compute the same thing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vpgfast.data.types import Batch
from vpgfast.models.marn import MARN, Branch
from vpgfast.ops import ProposalGrid


class DenseMap(NamedTuple):
    """Attributes: ``sampling`` [T, N * rows * T] (Eq. 4-5), ``mask`` bool [rows, T] of the proposals that count."""

    sampling: Tensor
    mask: Tensor


def dense_map(grid: ProposalGrid, lengths: list[int], samples: int, dtype: torch.dtype) -> DenseMap:
    """W of Eq. 4-5 for every start and length, also those that no listed proposal has."""
    rows, T = grid.shape
    sampling = torch.zeros(T, samples, rows, T, dtype=dtype)
    for row, length in enumerate(lengths):
        for start in range(T):
            for n in range(samples):
                t = start + (length - 1) * (n / (samples - 1) if samples > 1 else 0.5)
                low, part = int(t), t - int(t)
                if low < T:
                    sampling[low, n, row, start] += 1 - part
                if part > 0 and low + 1 < T:
                    sampling[low + 1, n, row, start] += part
    return DenseMap(sampling.flatten(1), grid.mask)


class FieldMARN:
    """The loss of a model with the representation "conv3d", as the field computes it."""

    def __init__(self, model: MARN) -> None:
        config = model.config
        self.model = model
        dtype, device = model.decoder.out.weight.dtype, model.decoder.out.weight.device
        self.maps = [dense_map(model.proposals.grid, config.scales, config.samples, dtype)]
        if model.clips is not None:
            self.maps.append(dense_map(model.clips.grid, [1], config.samples, dtype))
        self.maps = [DenseMap(*(part.to(device) for part in dense)) for dense in self.maps]

    def proposals(self, branch: Branch, dense: DenseMap, video: Tensor) -> Tensor:
        """Eq. 1-3: [B, d_v, T] -> [B, D, rows, T], every cell."""
        representation = self.model.representation
        x = branch.reduce(video)
        rows, T = dense.mask.shape
        sampled = (x @ dense.sampling).view(*x.shape[:2], -1, rows, T)
        weight = representation.weight[..., None, None]
        return F.conv3d(sampled, weight, representation.bias).squeeze(2).relu()

    def attended(self, branch: Branch, dense: DenseMap, video: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Attention over the map [B, rows, T], and the feature that it makes [B, D]."""
        moments = self.proposals(branch, dense, video)
        attention = branch.attention
        fused = torch.cat([moments, query[:, :, None, None].expand_as(moments)], 1)  # Eq. 6
        weight = torch.cat([attention.of_moment.weight.squeeze(2), attention.of_query.weight], 1)
        fused = F.conv2d(fused, weight[..., None, None], attention.of_moment.bias).relu() * dense.mask
        for conv in attention.hidden:
            fused = conv(fused).relu() * dense.mask
        scores = attention.last(fused).squeeze(1).masked_fill(~dense.mask, -torch.inf)
        weights = scores.flatten(1).softmax(1).view_as(scores)  # Eq. 7
        return weights, torch.einsum("bdst,bst->bd", moments, weights)  # Eq. 8

    def loss(self, batch: Batch) -> Tensor:
        """Eq. 14."""
        model = self.model
        words, mask = batch.words[:, 0], batch.word_mask[:, 0]
        embedded = model.words(words)
        states, _ = model.query(embedded)
        query = states[torch.arange(len(words), device=words.device), mask.sum(1) - 1]
        video = batch.video.transpose(1, 2)
        branches = [model.proposals] if model.clips is None else [model.proposals, model.clips]
        total = torch.zeros((), dtype=video.dtype, device=video.device)
        for branch, dense, weight in zip(branches, self.maps, (1.0, model.config.clip_weight), strict=False):
            _, feature = self.attended(branch, dense, video, query)
            total = total + weight * model.decoder(feature, embedded, words, mask).mean()
        return total
