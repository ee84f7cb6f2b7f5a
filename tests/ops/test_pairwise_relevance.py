from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vpgfast import ops
from vpgfast.ops import pairwise_relevance

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
    ("N", "M", "H"), [(5, 3, 8), (1, 1, 1), (9, 10, 33), (64, 2, 40), (0, 2, 4), (2, 0, 4), (2, 3, 0)]
)
# Rows that several blocks share, others that are summed in parts, more channels than a block has, tiles that overhang.
larger = pytest.mark.parametrize(
    ("N", "M", "H"), [(130, 42, 64), (7, 301, 20), (3, 70, 1030), (257, 1, 12), (2, 5, 515)]
)


def inputs_for(N: int, M: int, H: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Some sums a + b are exactly 0, where ReLU has its corner."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(rows, H, generator=generator, dtype=torch.float64) for rows in (N, M))
    a, b = (torch.where(torch.rand(t.shape, generator=generator) < 0.3, t.round(), t) for t in (a, b))
    w = torch.randn(H, generator=generator, dtype=torch.float64) / max(1, H) ** 0.5
    return [t.to(dtype) for t in (a, b, w, torch.randn((), generator=generator, dtype=torch.float64))]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_by_hand(backend: str) -> None:
    """Hidden (1 + 1, relu(-3 + 1)) times (0.5, 7) less 1 is 0; with the other query (1 + 2, -3 + 4) it is 7.5."""
    with ops.backend(backend):
        out = pairwise_relevance(
            torch.tensor([[1.0, -3.0]]),
            torch.tensor([[1.0, 1.0], [2.0, 4.0]]),
            torch.tensor([0.5, 7.0]),
            torch.tensor([-1.0]),
        )
    torch.testing.assert_close(out, torch.tensor([[0.5, 0.99944722]]))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_equals_a_perceptron_on_the_concatenation(backend: str) -> None:
    generator = torch.Generator().manual_seed(5)
    snippets, queries = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (7, 4))
    first, second = torch.nn.Linear(12, 10).double(), torch.nn.Linear(10, 1).double()
    pairs = torch.cat([snippets[:, None].expand(7, 4, 6), queries[None].expand(7, 4, 6)], -1)
    expected = second(first(pairs).relu()).sigmoid()[..., 0]
    with ops.backend(backend):
        out = pairwise_relevance(
            snippets @ first.weight[:, :6].T,
            queries @ first.weight[:, 6:].T + first.bias,
            second.weight[0],
            second.bias,
        )
    torch.testing.assert_close(out, expected)


@implementations()
@dtypes
@layouts
@shapes
def test_grid(device: str, backend: str, dtype: torch.dtype, layout: str, N: int, M: int, H: int) -> None:
    a, b, w, bias = (t.to(device) for t in inputs_for(N, M, H, dtype))
    compare(pairwise_relevance, [LAYOUTS[layout](a), LAYOUTS[layout](b), w, bias], backend)


@implementations()
@dtypes
@larger
def test_larger(device: str, backend: str, dtype: torch.dtype, N: int, M: int, H: int) -> None:
    # Backward has the probabilities as they were rounded, and sums gradients of either sign.
    of_scale = 2e-6 if dtype.itemsize > 2 else 2e-2
    compare(pairwise_relevance, [t.to(device) for t in inputs_for(N, M, H, dtype)], backend, of_scale=of_scale)


@implementations()
def test_views_that_start_anywhere(device: str, backend: str) -> None:
    """A contiguous view need not start where 16-byte loads may."""
    inputs = [t.to(device) for t in inputs_for(9, 6, 8, torch.float32)]
    for moved in range(3):
        shifted = list(inputs)
        t = inputs[moved]
        shifted[moved] = torch.zeros(t.numel() + 1, device=device)[1:].view_as(t).copy_(t)
        compare(pairwise_relevance, shifted, backend)


@implementations()
def test_gradcheck(device: str, backend: str) -> None:
    generator = torch.Generator().manual_seed(6)
    a, b, w = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((3, 5), (4, 5), (5,)))
    leaves = [t.to(device).requires_grad_() for t in (a, b, w, torch.tensor(0.3, dtype=torch.float64))]
    with ops.backend(backend):
        assert torch.autograd.gradcheck(pairwise_relevance, leaves)


@implementations()
def test_deterministic_and_fully_written(device: str, backend: str) -> None:
    with ops.backend(backend):
        check_deterministic(pairwise_relevance, *(t.to(device) for t in inputs_for(130, 42, 70, torch.float32)))


@implementations()
def test_nan_is_handed_on(device: str, backend: str) -> None:
    a, b, w, bias = (t.to(device) for t in inputs_for(5, 3, 20, torch.float32))
    a[2, 7] = torch.nan
    with ops.backend(backend):
        out = pairwise_relevance(a, b, w, bias)
    assert out[2].isnan().all()
    assert out[[0, 1, 3, 4]].isfinite().all()


def test_registration() -> None:
    inputs = inputs_for(5, 3, 8, torch.float32)
    check_registration("pairwise_relevance", [tuple(inputs), tuple(t.clone().requires_grad_() for t in inputs)])
    check_registration("pairwise_relevance_backward", [(torch.randn(5, 3), *inputs, torch.rand(5, 3))])


def test_compiles_without_graph_break() -> None:
    check_compiles(pairwise_relevance, *inputs_for(5, 3, 8, torch.float32))


def test_autocast_computes_in_float32() -> None:
    a, b, w, bias = inputs_for(5, 3, 8, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert pairwise_relevance(a, b, w.float(), bias).dtype == torch.float32


def test_second_derivative_is_refused() -> None:
    a, b, w, bias = (t.requires_grad_() for t in inputs_for(5, 3, 8))
    (grad,) = torch.autograd.grad(pairwise_relevance(a, b, w, bias).sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="pairwise_relevance has no second derivative"):
        grad.sum().backward()


def test_wrong_arguments() -> None:
    a, b, w, bias = inputs_for(5, 3, 8, torch.float32)
    with pytest.raises(ValueError, match=r"b has shape \[3, 7\]; it must be \[M, 8\]"):
        pairwise_relevance(a, b[:, 1:], w, bias)
    with pytest.raises(ValueError, match=r"w has shape \[7\]; it must be \[8\]"):
        pairwise_relevance(a, b, w[1:], bias)
    with pytest.raises(ValueError, match=r"bias has shape \[2\]; it must be one number"):
        pairwise_relevance(a, b, w, torch.zeros(2))
    with pytest.raises(ValueError, match=r"w has dtype torch\.float64; it must be torch\.float32"):
        pairwise_relevance(a, b, w.double(), bias)
