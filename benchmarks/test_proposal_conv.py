"""proposal_conv and sample_proposals against BMN's dense sample mask and Conv3d, and against the best plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vpgfast.ops import (
    ProposalGrid,
    boundary_matching_grid,
    marn_stride,
    multi_scale_grid,
    proposal_conv,
    sample_proposals,
)
from vpgfast.ops.sample_proposals import sampling_points

from .measure import Provider, measure


@dataclass
class Taps:
    """What a list of proposals reads: the two clips of every point and their weights, [N * per_bin, P]."""

    lower: Tensor
    upper: Tensor
    lower_weight: Tensor
    upper_weight: Tensor

    @classmethod
    def of(cls, proposals: Tensor, T: int, points: int) -> Taps:
        t = sampling_points(proposals, points).T
        lower, upper, fraction = t.trunc(), t.ceil(), t - t.trunc()
        lower_weight = torch.where((lower >= 0) & (lower < T), 1 - fraction, 0).float()
        upper_weight = torch.where((upper >= 0) & (upper < T), fraction, 0).float()
        return cls(
            lower.clamp(0, T - 1).long().contiguous(),
            upper.clamp(0, T - 1).long().contiguous(),
            lower_weight,
            upper_weight,
        )

    def to(self, device: torch.device) -> Taps:
        return Taps(*(t.to(device) for t in vars(self).values()))

    def mask(self, T: int, N: int) -> Tensor:
        """The dense sample mask [T, N * P]."""
        points, P = self.lower.shape
        mask = torch.zeros(T, points, P, device=self.lower.device)
        mask.scatter_add_(0, self.lower[None], self.lower_weight[None])
        mask.scatter_add_(0, self.upper[None], self.upper_weight[None])
        return mask.reshape(T, N, points // N, P).mean(2).reshape(T, N * P)


def dense(mask: Tensor, N: int, listed: Tensor | None) -> Callable[..., Tensor]:
    """The field's way: every cell of the map is sampled by a dense matrix, then convolved; ``listed`` picks cells."""

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        samples = torch.matmul(x, mask).reshape(*x.shape[:2], N, 1, -1)
        out = functional.conv3d(samples, weight[..., None, None], bias)[:, :, 0, 0]
        return out if listed is None else out.index_select(2, listed)

    return run


def convolve_first(taps: Taps, per_bin: int) -> Callable[..., Tensor]:
    """Plain PyTorch in the order of proposal_conv: one matrix product of the clips, then columns interpolated."""

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        D, C, N = weight.shape
        product = torch.matmul(weight.permute(2, 0, 1).reshape(N * D, C), x).unflatten(1, (N, D))
        out = bias[:, None]
        for m in range(taps.lower.shape[0]):
            columns = product[:, m // per_bin]
            out = out + columns.index_select(2, taps.lower[m]) * (taps.lower_weight[m] / per_bin)
            out = out + columns.index_select(2, taps.upper[m]) * (taps.upper_weight[m] / per_bin)
        return out

    return run


def convolve_first_rows(taps: Taps, per_bin: int, T: int) -> Callable[..., Tensor]:
    """The same with channels last and one weighted embedding_bag over the rows that each proposal reads."""
    samples = torch.arange(taps.lower.shape[0], device=taps.lower.device)[:, None] // per_bin
    rows = torch.cat([samples * T + taps.lower, samples * T + taps.upper]).T.contiguous()  # [P, 2 * points]
    weights = (torch.cat([taps.lower_weight, taps.upper_weight]) / per_bin).T.contiguous()

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        (B, C, _), (D, _, N) = x.shape, weight.shape
        clips = x.permute(2, 0, 1).reshape(T * B, C)
        product = torch.matmul(clips, weight.permute(2, 1, 0)).reshape(N * T, B * D)
        out = functional.embedding_bag(rows, product, mode="sum", per_sample_weights=weights)
        return (out.unflatten(1, (B, D)) + bias).permute(1, 2, 0).contiguous()

    return run


def convolve_first_sparse(taps: Taps, per_bin: int, T: int) -> Callable[..., Tensor]:
    """The same with a sparse matrix of the weights."""
    points, P = taps.lower.shape
    samples = torch.arange(points, device=taps.lower.device)[:, None] // per_bin
    columns = torch.cat([samples * T + taps.lower, samples * T + taps.upper]).flatten()
    rows = torch.arange(P, device=columns.device).repeat(2 * points)
    values = torch.cat([taps.lower_weight, taps.upper_weight]).flatten() / per_bin
    shape = (P, points // per_bin * T)
    matrix = torch.sparse_coo_tensor(torch.stack([rows, columns]), values, shape).coalesce().to_sparse_csr()

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        (B, C, _), (D, _, N) = x.shape, weight.shape
        clips = x.permute(2, 0, 1).reshape(T * B, C)
        product = torch.matmul(clips, weight.permute(2, 1, 0)).reshape(N * T, B * D)
        return ((matrix @ product).unflatten(1, (B, D)) + bias).permute(1, 2, 0).contiguous()

    return run


def all_cells(grid: ProposalGrid, T: int) -> Tensor:
    """The list as the whole map, row by row; invalid cells hold a proposal that reads nothing."""
    cells = torch.full((*grid.shape, 2), -9.0, dtype=torch.float64)
    cells[grid.cells[:, 0], grid.cells[:, 1]] = grid.proposals
    return cells.flatten(0, 1)


MARN_CHARADES = multi_scale_grid(32, (6, 7, 8, 9, 10, 12))
MARN_ACTIVITYNET = multi_scale_grid(128, range(2, 129, 2), marn_stride)
BMN = boundary_matching_grid(100)
HOUR = multi_scale_grid(4096, [2**k for k in range(2, 11)], marn_stride)
# B, C, D, T, N, points a sample, grid, whether the map is wanted whole (BMN's), whether dense forms can run at all
CASES = [
    pytest.param(16, 512, 512, 32, 4, 1, MARN_CHARADES, False, True, id="MARN-Charades"),
    pytest.param(4, 128, 512, 128, 4, 1, MARN_ACTIVITYNET, False, True, id="MARN-ActivityNet"),
    pytest.param(1, 128, 512, 100, 32, 3, BMN, True, True, id="BMN"),
    pytest.param(1, 256, 512, 4096, 4, 1, HOUR, False, False, id="hour"),
]


@pytest.mark.parametrize(("B", "C", "D", "T", "N", "per_bin", "grid", "whole", "has_dense"), CASES)
def test_proposal_conv(
    B: int, C: int, D: int, T: int, N: int, per_bin: int, grid: ProposalGrid, whole: bool, has_dense: bool,
    device: torch.device, record,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, C, T, generator=generator).to(device)
    weight = (torch.randn(D, C, N, generator=generator) / (C * N) ** 0.5).to(device)
    bias = torch.randn(D, generator=generator).to(device)
    cells = all_cells(grid, T)
    proposals = (cells if whole else grid.proposals).to(device)
    P = proposals.shape[0]
    taps = Taps.of(proposals.cpu(), T, N * per_bin).to(device)
    first = convolve_first(taps, per_bin)
    providers = []
    if has_dense:
        every = Taps.of(cells, T, N * per_bin).to(device).mask(T, N)
        listed = None if whole else (grid.cells[:, 0] * grid.shape[1] + grid.cells[:, 1]).to(device)
        providers = [Provider("mask and Conv3d", dense(every, N, listed), is_fields=True)]
        if not whole:
            providers.append(Provider("mask and Conv3d, list", dense(taps.mask(T, N), N, None)))
    if N * per_bin <= 8:  # a loop over 96 points takes seconds to compile and to run
        providers += [Provider("plain", first), Provider("plain, compiled", torch.compile(first))]
    providers += [
        Provider("plain, rows", convolve_first_rows(taps, per_bin, T)),
        Provider("plain, sparse", convolve_first_sparse(taps, per_bin, T)),
        Provider("vpgfast", lambda x, w, b: proposal_conv(x, proposals, w, b, per_bin), is_ours=True),
    ]
    # Read x and weight, write y; then read dy, x and weight, write their gradients.
    arguments, written = 4 * (B * C * T + D * C * N), 4 * B * D * P
    flops = 2.0 * B * N * D * C * T
    record(
        measure(
            "proposal_conv",
            f"B={B} C={C} D={D} T={T} N={N}x{per_bin} P={P}",
            providers,
            [x, weight, bias],
            floor_bytes={"forward": arguments + written, "forward+backward": 3 * arguments + 2 * written},
            floor_flops={"forward": flops, "forward+backward": 3 * flops},
        )
    )


def interpolate(taps: Taps, N: int, per_bin: int) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        lower, upper = taps.lower.flatten(), taps.upper.flatten()
        points = x[:, :, lower] * taps.lower_weight.flatten() + x[:, :, upper] * taps.upper_weight.flatten()
        return points.unflatten(2, (N, per_bin, -1)).mean(3)

    return run


@pytest.mark.parametrize(("B", "C", "D", "T", "N", "per_bin", "grid", "whole", "has_dense"), CASES)
def test_sample_proposals(
    B: int, C: int, D: int, T: int, N: int, per_bin: int, grid: ProposalGrid, whole: bool, has_dense: bool,
    device: torch.device, record,
) -> None:  # fmt: skip
    x = torch.randn(B, C, T, generator=torch.Generator().manual_seed(0)).to(device)
    proposals = grid.proposals.to(device)
    P = len(grid)
    taps = Taps.of(grid.proposals, T, N * per_bin).to(device)
    plain = interpolate(taps, N, per_bin)
    providers = []
    if has_dense:
        mask = taps.mask(T, N)
        providers = [Provider("mask", lambda x: torch.matmul(x, mask).unflatten(2, (N, P)), is_fields=True)]
    providers += [
        Provider("plain", plain),
        Provider("plain, compiled", torch.compile(plain)),
        Provider("vpgfast", lambda x: sample_proposals(x, proposals, N, per_bin), is_ours=True),
    ]
    read, written = 4 * B * C * T, 4 * B * C * N * P
    floors = {"forward": read + written, "forward+backward": 2 * (read + written)}
    record(measure("sample_proposals", f"B={B} C={C} T={T} N={N}x{per_bin} P={P}", providers, [x], floor_bytes=floors))
