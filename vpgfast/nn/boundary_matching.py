"""BMN's boundary-matching layer: one feature vector for every moment of a video."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.proposal_conv import proposal_conv
from ..ops.proposal_grids import Layout, boundary_matching_grid, extend_spans
from .constants import ModuleWithConstants


class BoundaryMatching(ModuleWithConstants):
    """Clip features [B, C, T] to a map of moment features: sampling, then a convolution over the samples.

    A drop-in for the released layer, which multiplies by a dense sample mask [T, N * D * T] and then applies
    ``Conv3d(C, out_channels, (N, 1, 1))``: the same numbers, without the mask and without the sampled features. The
    convolution's weight [out_channels, C, N, 1, 1] loads as it is; its ``sample_mask`` is not needed. Cells whose
    moment would end outside the video hold the bias, as they do there.

    Source: BMN (Lin et al., ICCV 2019), section 4.2, with its settings as defaults; DMR-JRG's released code.

    Args:
        in_channels: C.
        out_channels: of the convolution.
        T: number of clips.
        max_duration: longest moment in clips; ``None`` for T.
        num_samples: N, 32 in BMN.
        samples_per_bin: points that each sample is the mean of, 3 in BMN.
        boundary_ratio: how far before and behind a moment it samples, in lengths of the moment.
        layout: ``"duration_start"`` (BMN): cell (s - 1, i) of [max_duration, T] is the moment of s clips that starts at
            clip i; ``"start_end"``: cell (i, j) of [T, T] is the moment of clips i ... j.
        bias: whether the convolution has one.

    Raises:
        ValueError: a number out of range, an unknown layout; on the forward pass, features of another length than T.
    """

    clips: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        T: int,
        max_duration: int | None = None,
        num_samples: int = 32,
        samples_per_bin: int = 3,
        boundary_ratio: float = 0.5,
        layout: Layout = "duration_start",
        bias: bool = True,
    ) -> None:
        super().__init__()
        for name, number in (("num_samples", num_samples), ("samples_per_bin", samples_per_bin)):
            if number < 1:
                raise ValueError(f"{name} is {number}; it must be 1 or more")
        self.T = T
        self.samples_per_bin = samples_per_bin
        self.boundary_ratio = boundary_ratio
        self.max_duration = max_duration
        self.layout: Layout = layout
        self.register_constants()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, num_samples))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def constants(self) -> dict[str, Tensor]:
        """``clips``: first and last clip of every cell, as integers, so that `module.half()` does not round positions.

        A cell that no moment has gets a clip so far before the video that its samples read nothing.
        """
        grid = boundary_matching_grid(self.T, self.max_duration, self.boundary_ratio, self.layout)
        clips = torch.full((*grid.shape, 2), -1 - math.ceil(self.boundary_ratio), dtype=torch.int64)
        clips[grid.cells[:, 0], grid.cells[:, 1]] = grid.spans.long() - torch.tensor([0, 1])
        return {"clips": clips}

    def reset_parameters(self) -> None:
        """As ``torch.nn.Conv3d`` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(max(1, self.weight[0].numel()))
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, C, T] to [B, out_channels, max_duration, T] or, in layout ``"start_end"``, [B, out_channels, T, T].

        ``lengths`` (integer [B]) says how many clips of each video are real: nothing behind them is read.
        """
        if x.dim() != 3 or x.shape[2] != self.T:
            raise ValueError(f"x has shape {list(x.shape)}; it must be [B, {self.weight.shape[1]}, {self.T}]")
        proposals = extend_spans(self.clips, self.boundary_ratio)
        out = proposal_conv(x, proposals.flatten(0, 1), self.weight, self.bias, self.samples_per_bin, lengths)
        return out.unflatten(2, self.clips.shape[:2])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.get(prefix + "weight")
        if weight is not None and weight.shape == (*self.weight.shape, 1, 1):  # a Conv3d's
            state_dict[prefix + "weight"] = weight.flatten(2)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        out_channels, in_channels, num_samples = self.weight.shape
        return f"{in_channels}, {out_channels}, T={self.T}, num_samples={num_samples}, map={list(self.clips.shape[:2])}"
