"""The moments of a video and what lets them see each other, in DMR-JRG: as in its paper, and as released.

Letters: B videos; N sentences; K segments of a video; P = K (K + 1) / 2 moments, those from segment i to segment j with
i <= j, row by row; D width. Cells of the paper's K x K map below its diagonal are no moments and are not stored.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vpgfast.models.layers import sinusoid
from vpgfast.nn import BoundaryMatching, TemporalMapConv2d
from vpgfast.nn.constants import ModuleWithConstants
from vpgfast.ops import dense_anchor_mask, temporal_map_max_pool


class MomentMap(ModuleWithConstants):
    """F, one vector for every moment (DMR-JRG, section III.C).

    Args:
        kind: "max_pool", the maximum over the moment's segments (the paper); or "boundary_matching", three convolutions
            over the segments and BMN's layer (the released code).
        dim: D, a multiple of 8.
        segments: K.
        samples: of a moment, by BMN's layer.
    """

    def __init__(self, kind: Literal["max_pool", "boundary_matching"], dim: int, segments: int, samples: int) -> None:
        super().__init__()
        self.before: nn.Sequential | None = None
        self.segments = segments
        self.register_constants()
        self.cells: Tensor
        if kind == "boundary_matching":
            half = dim // 2
            self.before = nn.Sequential(
                *(nn.Conv1d(dim, half, 3, padding=1, groups=4), nn.ReLU()),
                *(nn.Conv1d(half, half, 3, padding=1, groups=4), nn.ReLU()),
                *(nn.Conv1d(half, half, 15, padding=7), nn.ReLU()),
            )
            self.layer = BoundaryMatching(
                half, dim, segments, num_samples=samples, samples_per_bin=1, layout="start_end"
            )

    def constants(self) -> dict[str, Tensor]:
        """``cells``: int64 [2, P], first and last segment of each moment."""
        return {"cells": torch.triu_indices(self.segments, self.segments)}

    def forward(self, segments: Tensor) -> Tensor:
        """[B, D, K] -> [B, P, D]."""
        maps = temporal_map_max_pool(segments) if self.before is None else self.layer(self.before(segments)).relu()
        return maps[..., *self.cells].transpose(1, 2)


def fuse(sentences: Tensor, moments: Tensor, counts: list[int]) -> Tensor:
    """Every sentence times every moment of its video (DMR-JRG, Eq. 8), without copying a video's moments a sentence.

    Args:
        sentences: [N, D], those of the first video before those of the second.
        moments: [B, P, D], of the same dtype.
        counts: B numbers of sentences, which add up to N.

    Returns:
        [N, P, D].
    """
    fused: Tensor = _Fuse.apply(sentences, moments, counts)
    return fused


class _Fuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sentences: Tensor, moments: Tensor, counts: list[int]) -> Tensor:
        fused = moments.new_empty(len(sentences), *moments.shape[1:])
        for out, codes, video in zip(fused.split(counts), sentences.split(counts), moments, strict=True):
            torch.mul(codes.unsqueeze(1), video, out=out)
        ctx.save_for_backward(sentences, moments)
        ctx.counts = counts
        return fused

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        sentences, moments = ctx.saved_tensors
        grad_sentences, grad_moments = torch.empty_like(sentences), torch.empty_like(moments)
        parts = (x.split(ctx.counts) for x in (grad, sentences, grad_sentences))
        for rows, codes, to_sentences, video, to_video in zip(*parts, moments, grad_moments, strict=True):
            torch.sum(rows * video, 1, out=to_sentences)
            torch.sum(rows * codes.unsqueeze(1), 0, out=to_video)
        return grad_sentences, grad_moments, None


class SimilarityMap(nn.Module):
    """What a sentence's similarity to every segment says of every moment (nobody's paper, see alignment.py).

    Two numbers a moment, brought to D by a linear layer: the sum of its segments' similarities, less their mean over
    the video, and how many segments it has. So the layer can ask for the longest moment whose segments are more similar
    than a level of its choice: what is best by a mean or a maximum is always a single segment.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(2, dim, bias=False)

    def forward(self, similarity: Tensor) -> Tensor:
        """[N, K] -> [N, P, D]. No gradient for the similarity."""
        K = similarity.shape[1]
        similarity = similarity.detach()
        before = F.pad((similarity - similarity.mean(1, keepdim=True)).cumsum(1), (1, 0))
        first, last = torch.triu_indices(K, K, device=similarity.device)
        total = before[:, last + 1] - before[:, first]
        count = (1 + last - first).to(total.dtype).expand_as(total)
        return self.project((torch.stack([total, count], 2) / K).to(self.project.weight.dtype))


class TAN(TemporalMapConv2d):
    """2D-TAN's convolutions: a ReLU after each, over moments alone, padded as early as there is something to be seen.

    2D-TAN pads the first layer for all layers, which gives the same and stores rows that no moment reaches.

    Args:
        dim: D.
        segments: K.
        layers: how many.
        kernel: their width and height, odd.
        normalize: divide what a layer gives by the number of moments that it saw.
    """

    def __init__(self, dim: int, segments: int, layers: int, kernel: int, normalize: bool) -> None:
        paddings: list[int] = []
        for _ in range(layers):
            paddings.append(min(kernel - 1, layers * (kernel // 2) - sum(paddings)))
        super().__init__(dense_anchor_mask(segments), dim, [dim] * layers, [kernel] * layers, paddings, normalize)
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")  # what goes in comes out in its own size

    def forward(self, x: Tensor, number: Tensor) -> Tensor:  # type: ignore[override]
        """[N, P, D] -> [N, P, D]; ``number`` is not needed, see :class:`Pointwise`."""
        return self.on_cells(x)


class Pointwise(nn.Module):
    """The released code's TAN: one layer over a moment's features and the codes of its sentence, start and end.

    The layer is linear before its ReLU, so the codes go through it by themselves, not once for every moment.

    Args:
        dim: D.
        segments: K.
    """

    def __init__(self, dim: int, segments: int) -> None:
        super().__init__()
        self.segments, self.width = segments, dim // 4
        self.features = nn.Linear(dim, dim)
        self.codes = nn.ModuleList(nn.Linear(self.width, dim, bias=False) for _ in range(3))

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        """Features [N, P, D] and each sentence's place in its paragraph int64 [N], from 0 -> [N, P, D].

        Codes are sinusoids that count from 1.
        """
        K = self.segments
        code = sinusoid(max(K, int(number.max()) + 1) + 1, self.width, x)[1:]
        sentence, start, end = (layer(code) for layer in self.codes)  # [..., D]
        first, last = torch.triu_indices(K, K, device=x.device)
        return (self.features(x) + sentence[number].unsqueeze(1) + start[first] + end[last]).relu()
