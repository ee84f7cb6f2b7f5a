from __future__ import annotations

import math

import pytest
import torch

from vpgfast import ops
from vpgfast.ops import anchor_embedding

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

shapes = pytest.mark.parametrize(
    ("N", "D"), [(7, 16), (1, 4), (33, 100), (0, 8), (3, 0), (5, 256), (3, 1300), (1100, 8)]
)


def anchors_for(N: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return (torch.rand(N, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.5 - 0.25).to(dtype)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_by_hand(backend: str) -> None:
    """Two frequencies at D = 8: 2 pi and 2 pi / 10000^(1/2)."""
    with ops.backend(backend):
        out = anchor_embedding(torch.tensor([0.25, 0.5], dtype=torch.float64), 8)
    slow = [f(2 * math.pi * x / 100) for x in (0.25, 0.5) for f in (math.sin, math.cos)]
    expected = [1, 0, slow[0], slow[1], 0, -1, slow[2], slow[3]]
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@implementations()
@dtypes
@layouts
@shapes
def test_grid(device: str, backend: str, dtype: torch.dtype, layout: str, N: int, D: int) -> None:
    anchors = LAYOUTS[layout](anchors_for(N, dtype).to(device))
    compare(lambda a: anchor_embedding(a, D), [anchors], backend)


@implementations()
def test_any_angle(device: str, backend: str) -> None:
    """Far outside what an anchor should be: sines stay sines, and what is no number stays none."""
    anchors = torch.tensor([[-3e4, 4e3], [1e20, -5e7], [0.0, -0.0]], device=device)
    with ops.backend(backend):
        out = anchor_embedding(anchors, 64)
        assert anchor_embedding(torch.tensor([[math.inf, math.nan]], device=device), 8).isnan().all()
    assert (out.abs() <= 1).all()
    turns = anchors[:2, :, None] * torch.tensor(2 * math.pi, device=device)
    torch.testing.assert_close(out[:2].reshape(2, 2, -1)[..., :1], turns.sin(), rtol=0, atol=1e-6)


@implementations()
@dtypes
@pytest.mark.parametrize(
    ("N", "D", "temperature"), [(2, 16_384, 1e4), (2, 16_388, 1e4), (3, 256, 20.0), (3, 512, 1.0), (3, 64, 1e-2)]
)
def test_frequencies(device: str, backend: str, dtype: torch.dtype, N: int, D: int, temperature: float) -> None:
    """More of them than a table holds, and other temperatures: as exact as float64 rounded to the dtype."""
    anchors = anchors_for(N, dtype).clamp(0, 1) / max(1.0, 1 / temperature)
    # Backward adds up thousands of terms of either sign.
    compare(lambda a: anchor_embedding(a, D, temperature), [anchors.to(device)], backend, of_scale=2e-6)


@implementations()
def test_views_that_start_anywhere(device: str, backend: str) -> None:
    """A contiguous gradient need not start where a load of two numbers may."""
    anchors = anchors_for(4, torch.float32).to(device).requires_grad_()
    incoming = torch.randn(4 * 8 + 1, generator=torch.Generator().manual_seed(1)).to(device)[1:].view(4, 8)
    with ops.backend(backend):
        out = anchor_embedding(anchors, 8)
        shifted = torch.autograd.grad(out, anchors, incoming, retain_graph=True)[0]
        assert torch.equal(shifted, torch.autograd.grad(out, anchors, incoming.clone())[0])


@implementations()
def test_gradcheck(device: str, backend: str) -> None:
    anchors = anchors_for(4).to(device).requires_grad_()
    with ops.backend(backend):
        assert torch.autograd.gradcheck(lambda a: anchor_embedding(a, 12), (anchors,))


@implementations()
def test_deterministic_and_fully_written(device: str, backend: str) -> None:
    with ops.backend(backend):
        check_deterministic(lambda a: anchor_embedding(a, 64), anchors_for(500, torch.float32).to(device))


def test_leading_sizes() -> None:
    anchors = anchors_for(24)
    assert torch.equal(anchor_embedding(anchors.view(2, 3, 4, 2), 8).view(24, 8), anchor_embedding(anchors, 8))


def test_registration() -> None:
    anchors = anchors_for(5, torch.float32)
    check_registration("anchor_embedding", [(anchors, 8, 1e4), (anchors.clone().requires_grad_(), 8, 1e4)])
    check_registration("anchor_embedding_backward", [(torch.randn(5, 8), anchors, 1e4)])


def test_compiles_without_graph_break() -> None:
    check_compiles(lambda a: anchor_embedding(a, 8), anchors_for(5, torch.float32))


def test_autocast_computes_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert anchor_embedding(anchors_for(5, torch.bfloat16), 8).dtype == torch.float32


def test_second_derivative_is_refused() -> None:
    anchors = anchors_for(3).requires_grad_()
    (grad,) = torch.autograd.grad(anchor_embedding(anchors, 8).sum(), anchors, create_graph=True)
    with pytest.raises(RuntimeError, match="anchor_embedding has no second derivative"):
        grad.sum().backward()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"anchors has shape \[5, 3\]; it must be \[\.\.\., 2\]"):
        anchor_embedding(torch.zeros(5, 3), 8)
    with pytest.raises(ValueError, match="D is 6; it must be a multiple of 4"):
        anchor_embedding(torch.zeros(5, 2), 6)
    with pytest.raises(ValueError, match=r"temperature is 0\.0"):
        anchor_embedding(torch.zeros(5, 2), 8, 0.0)
    with pytest.raises(ValueError, match=r"anchors has dtype torch\.int64"):
        anchor_embedding(torch.zeros(5, 2, dtype=torch.int64), 8)
