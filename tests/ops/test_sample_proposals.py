from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vpgfast import ops
from vpgfast.ops import sample_proposals

from .grid import (
    LAYOUTS,
    check_compiles,
    check_deterministic,
    check_registration,
    compare,
    dtypes,
    implementations,
    layouts,
)

# B, C, T, P, N, samples per bin
SHAPES = [
    (2, 3, 16, 30, 4, 1),
    (1, 1, 1, 5, 3, 2),
    (2, 20, 33, 70, 3, 2),
    (3, 65, 8, 9, 1, 1),
    (1, 130, 7, 3, 1, 4),
    (2, 3, 6, 130, 2, 9),
    (1, 40, 300, 10, 2, 1),  # more clips than a block has threads for
    (2, 19, 5, 700, 2, 1),  # four channels in shared memory
    (1, 9, 4, 7000, 3, 1),  # two of them
    (1, 3, 4, 20_000, 3, 1),  # a channel that shared memory has no room for
    (0, 3, 4, 5, 2, 1),
    (2, 0, 4, 5, 2, 1),
    (2, 3, 0, 5, 2, 1),
    (2, 3, 4, 0, 2, 1),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random_proposals(*lead: int, T: int, seed: int = 0) -> Tensor:
    """Within and around the video: many ends at whole and half clips, some empty, some wholly outside."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.rand(*lead, 2, generator=generator, dtype=torch.float64) * (1.6 * T + 6) - 0.3 * T - 3
    rounding = torch.randint(0, 4, (*lead, 1), generator=generator)
    ends = torch.where(rounding == 0, ends.round(), torch.where(rounding == 1, (2 * ends).round() / 2, ends))
    ends = torch.where(torch.rand(*lead, 1, generator=generator) < 0.1, ends[..., :1], ends)
    return ends.sort(-1).values


def bin_mask(start: float, end: float, T: int, N: int, per_bin: int) -> Tensor:
    """BMN's released sample mask of one proposal, [T, N], restated with its order of operations in Python floats."""
    mask = torch.zeros(T, N, dtype=torch.float64)
    step = (end - start) / (N * per_bin - 1.0)
    for n in range(N):
        for m in range(n * per_bin, (n + 1) * per_bin):
            position = start + step * m
            fraction, down = math.modf(position)
            for clip, weight in ((int(down), 1 - fraction), (math.ceil(position), fraction)):
                if 0 <= clip <= T - 1:
                    mask[clip, n] += weight
    return mask / per_bin


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_by_hand(backend: str) -> None:
    x = torch.tensor([[[1.0, 3.0, 7.0]]])
    with ops.backend(backend):
        assert sample_proposals(x, torch.tensor([[0.0, 2.0], [0.5, 1.5]]), 3).tolist() == [
            [[[1, 2], [3, 3], [7, 5]]]  # [B, C, N, P]
        ]
        # One sample lies in the middle; two points a bin are averaged: (1 + 2) / 2 and (3 + 5 + ...) / 2.
        assert sample_proposals(x, torch.tensor([[0.0, 1.0]]), 1).tolist() == [[[[2]]]]
        assert sample_proposals(x, torch.tensor([[0.0, 1.5]]), 2, 2).tolist() == [[[[1.5], [4]]]]
        # Border: nothing at -1, clip 0 whole above it; fading after the last clip, nothing from T on.
        border = torch.tensor([[t, t] for t in (-1.0, -0.75, 2.0, 2.25, 3.0, 1e30, -1e30)])
        assert sample_proposals(x, border, 1)[0, 0, 0].tolist() == [0, 1, 7, 5.25, 0, 0, 0]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gradient_by_hand(backend: str) -> None:
    x = torch.zeros(1, 1, 3, requires_grad=True)
    with ops.backend(backend):
        out = sample_proposals(x, torch.tensor([[0.0, 2.0], [-0.5, 2.5]]), 2)
        (grad,) = torch.autograd.grad(out, x, torch.tensor([[[[1.0, 10.0], [100.0, 1000.0]]]]))
    # Samples: clip 0; clip 2; at -0.5 clip 0 whole; at 2.5 half of clip 2.
    assert grad.tolist() == [[[11, 0, 600]]]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_equals_the_released_sample_mask(backend: str) -> None:
    """On BMN's own grid, widened by half of each moment."""
    T, N, per_bin = 24, 32, 3
    proposals = torch.tensor([[i - s / 2, i + s - 1 + s / 2] for s in range(1, T + 1) for i in range(T - s + 1)])
    mask = torch.stack([bin_mask(start, end, T, N, per_bin) for start, end in proposals.tolist()], -1)  # [T, N, P]
    x = torch.randn(2, 3, T, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with ops.backend(backend):
        out = sample_proposals(x, proposals, N, per_bin)
    torch.testing.assert_close(out, torch.einsum("bct,tnp->bcnp", x, mask), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_positions_at_minus_one_round_as_released(backend: str) -> None:
    """A point meant to lie at -1 may be computed just above it, and then reads clip 0: to the last bit as released."""
    N, ratio, ends, points = 96, 0.3, [], []
    for s in range(1, 60):
        for i in range(s):
            start, end = i - ratio * s, i + s - 1 + ratio * s
            at_border = [m for m in range(N) if abs(start + (end - start) / (N - 1) * m + 1) < 1e-9]
            ends += [(start, end)] * len(at_border)
            points += at_border
    mask = torch.stack([bin_mask(start, end, 4, N, 1) for start, end in ends], -1)
    features = torch.eye(4, dtype=torch.float64)[None]
    with ops.backend(backend):
        out = sample_proposals(features, torch.tensor(ends, dtype=torch.float64), N)
    torch.testing.assert_close(out[0], mask, rtol=1e-12, atol=1e-12)
    read = [bool(mask[0, m, p] > 0) for p, m in enumerate(points)]
    assert {True, False} == set(read), "no position was rounded to either side of -1"


@implementations()
@dtypes
@layouts
@shapes
@pytest.mark.parametrize("each_video", [False, True], ids=["shared", "each_video"])
def test_grid(
    device: str, backend: str, dtype: torch.dtype, layout: str, shape: tuple[int, ...], each_video: bool
) -> None:
    B, C, T, P, N, per_bin = shape
    x = torch.randn(B, C, T, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    proposals = random_proposals(*((B, P) if each_video else (P,)), T=T)
    proposals = LAYOUTS["transposed" if layout == "transposed" else "contiguous"](proposals).to(device)
    x = LAYOUTS[layout](x.to(device))
    compare(lambda x: sample_proposals(x, proposals, N, per_bin), [x], backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_proposals_of_any_floating_dtype(dtype: torch.dtype) -> None:
    proposals = random_proposals(9, T=6).to(dtype)
    x = torch.randn(1, 2, 6)
    torch.testing.assert_close(sample_proposals(x, proposals, 3), sample_proposals(x, proposals.double(), 3))


@implementations()
def test_gradcheck(device: str, backend: str) -> None:
    x = torch.randn(2, 3, 6, dtype=torch.float64, device=device, requires_grad=True)
    proposals = random_proposals(2, 5, T=6).to(device)
    with ops.backend(backend):
        assert torch.autograd.gradcheck(lambda x: sample_proposals(x, proposals, 3, 2), (x,))


@implementations()
def test_deterministic_and_fully_written(device: str, backend: str) -> None:
    proposals = random_proposals(500, T=37).to(device)
    with ops.backend(backend):
        check_deterministic(lambda x: sample_proposals(x, proposals, 3, 2), torch.randn(3, 70, 37, device=device))


def test_registration() -> None:
    x, proposals = torch.randn(2, 3, 5), random_proposals(4, T=5)
    check_registration("sample_proposals", [(x, proposals, 3, 2), (x.clone().requires_grad_(), proposals, 1, 1)])
    check_registration("sample_proposals_backward", [(torch.randn(2, 3, 2, 4), proposals, 5, 1)])


def test_compiles_without_graph_break() -> None:
    proposals = random_proposals(4, T=5)
    check_compiles(lambda x: sample_proposals(x, proposals, 3, 2), torch.randn(2, 3, 5))


def test_autocast_keeps_the_dtype() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = sample_proposals(torch.randn(1, 1, 4), torch.tensor([[0.0, 1.3]]), 3)
    assert out.dtype == torch.float32


def test_second_derivative_is_refused() -> None:
    x = torch.randn(1, 1, 4, requires_grad=True)
    out = sample_proposals(x, torch.tensor([[0.0, 1.3]]), 3)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="sample_proposals has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("x", "proposals", "numbers", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 2), (1, 1), r"x has shape \[2, 3\]; it must be \[B, C, T\]"),
        (torch.zeros(1, 1, 3).long(), torch.zeros(4, 2), (1, 1), "x has dtype torch.int64"),
        (torch.zeros(1, 1, 3), torch.zeros(4), (1, 1), r"proposals has shape \[4\]; it must be \[1, P, 2\]"),
        (
            torch.zeros(2, 1, 3),
            torch.zeros(3, 4, 2),
            (1, 1),
            r"proposals has shape \[3, 4, 2\]; it must be \[2, P, 2\]",
        ),
        (torch.zeros(1, 1, 3), torch.zeros(4, 2).long(), (1, 1), "proposals has dtype torch.int64"),
        (torch.zeros(1, 1, 3), torch.zeros(4, 2, requires_grad=True), (1, 1), r"pass proposals.detach\(\)"),
        (torch.zeros(1, 1, 3), torch.zeros(4, 2), (0, 1), "num_samples is 0; it must be 1 or more"),
        (torch.zeros(1, 1, 3), torch.zeros(4, 2), (1, -1), "samples_per_bin is -1; it must be 1 or more"),
    ],
)
def test_wrong_arguments(x: Tensor, proposals: Tensor, numbers: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_proposals(x, proposals, *numbers)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("bad", [(2.0, 1.0), (0.0, math.nan), (-math.inf, 1.0)], ids=str)
def test_wrong_values(backend: str, bad: tuple[float, float]) -> None:
    proposals = torch.tensor([[0.0, 1.0], bad])
    with ops.backend(backend), pytest.raises(RuntimeError, match=r"proposal 1 is \(.*\); it must be two finite"):
        sample_proposals(torch.zeros(1, 1, 3), proposals, 2)
    with ops.backend(backend), pytest.raises(RuntimeError, match="it must be two finite"):
        torch.ops.vpgfast.sample_proposals_backward(torch.zeros(1, 1, 2, 2), proposals.double(), 3, 1)
