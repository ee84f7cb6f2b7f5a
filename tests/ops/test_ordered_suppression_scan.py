from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vpgfast import ops
from vpgfast.ops import ordered_suppression_scan

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
    ("B", "M", "T"), [(2, 3, 8), (1, 1, 1), (2, 5, 33), (0, 2, 4), (2, 0, 4), (2, 3, 0), (3, 1, 5)]
)


def inputs_for(
    B: int, M: int, T: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(B, M, T, T, generator=generator, dtype=torch.float64) * 2
    bias = torch.randn((), generator=generator, dtype=torch.float64)
    return z.to(dtype), bias.to(dtype), torch.rand(B, M, generator=generator) < 0.7


def paper(features: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """Eq. 18 and 19 to the letter: features [B, M, D, T, T] times 1 minus the maps before, through the whole layer."""
    M = features.shape[1]
    maps: dict[int, Tensor] = {}
    for m in reversed(range(M)) if reverse else range(M):
        left = features[:, m]
        if maps:
            left = left * (1 - torch.stack(list(maps.values())).sum(0))[:, None].expand_as(left)
        maps[m] = torch.sigmoid(torch.nn.functional.linear(left.movedim(1, -1), weight[None], bias[None])[..., 0])
    return torch.stack([maps[m] for m in range(M)], 1)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_by_hand(backend: str) -> None:
    """z = 0 gives 1/2 at first; of what is left, 1/2, sigmoid(ln 9 / 2) = 3/4; a masked sentence takes nothing."""
    z = torch.tensor([0.0, 5.0, 9.0]).log().nan_to_num(neginf=0.0)[None, :, None]
    with ops.backend(backend):
        P = ordered_suppression_scan(z, torch.tensor(0.0), torch.tensor([[True, False, True]]))
    torch.testing.assert_close(P, torch.tensor([[[0.5], [0.0], [0.75]]]))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("reverse", [False, True])
def test_equals_the_papers_form_and_its_gradients(backend: str, reverse: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(2, 4, 6, 5, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn((), generator=generator, dtype=torch.float64, requires_grad=True)
    with ops.backend(backend):
        ours = ordered_suppression_scan(torch.einsum("bmdij,d->bmij", features, weight), bias, reverse=reverse)
        expected = paper(features, weight, bias, reverse)
        torch.testing.assert_close(ours, expected)
        incoming = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
        for a, b in zip(
            torch.autograd.grad(ours, (features, weight, bias), incoming),
            torch.autograd.grad(expected, (features, weight, bias), incoming),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@implementations()
@dtypes
@layouts
@shapes
@pytest.mark.parametrize("reverse", [False, True])
def test_grid(
    device: str, backend: str, dtype: torch.dtype, layout: str, B: int, M: int, T: int, reverse: bool
) -> None:
    z, bias, mask = (t.to(device) for t in inputs_for(B, M, T, dtype))
    compare(lambda z, b: ordered_suppression_scan(z, b, mask, reverse), [LAYOUTS[layout](z), bias], backend)


@implementations()
def test_gradcheck(device: str, backend: str) -> None:
    z, bias, mask = (t.to(device) for t in inputs_for(2, 3, 2))
    with ops.backend(backend):
        assert torch.autograd.gradcheck(
            lambda z, b: ordered_suppression_scan(z, b, mask), (z.requires_grad_(), bias.requires_grad_())
        )


@implementations()
def test_large_logits(device: str, backend: str) -> None:
    """Saturated either way, and past what exp can hold."""
    z, bias, _ = (t.to(device) for t in inputs_for(2, 3, 4, torch.float32))
    compare(lambda z, b: ordered_suppression_scan(z * 100, b), [z, bias], backend)


@implementations()
def test_deterministic_and_fully_written(device: str, backend: str) -> None:
    z, bias, mask = (t.to(device) for t in inputs_for(9, 4, 48, torch.float32))
    with ops.backend(backend):
        check_deterministic(lambda z, b: ordered_suppression_scan(z, b, mask), z, bias)


def test_any_trailing_shape() -> None:
    z, bias, _ = inputs_for(2, 3, 6)
    whole = ordered_suppression_scan(z, bias)
    assert torch.equal(ordered_suppression_scan(z.flatten(2), bias), whole.flatten(2))
    assert torch.equal(ordered_suppression_scan(z[:, :, 0, 0], bias[None]), whole[:, :, 0, 0])


def test_registration() -> None:
    z, bias, mask = inputs_for(2, 3, 4, torch.float32)
    flat = z.flatten(2)
    check_registration(
        "ordered_suppression_scan",
        [(flat, bias, mask, False), (flat.clone().requires_grad_(), bias.clone().requires_grad_(), None, True)],
    )
    check_registration(
        "ordered_suppression_scan_backward", [(torch.randn_like(flat), flat, bias, torch.rand_like(flat), mask, True)]
    )


def test_compiles_without_graph_break() -> None:
    z, bias, mask = inputs_for(2, 3, 4, torch.float32)
    check_compiles(lambda z, b: ordered_suppression_scan(z, b, mask), z, bias)


def test_autocast_computes_in_float32() -> None:
    z, bias, _ = inputs_for(2, 3, 4, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert ordered_suppression_scan(z, bias.float()).dtype == torch.float32


def test_second_derivative_is_refused() -> None:
    z, bias, _ = inputs_for(1, 2, 2)
    z.requires_grad_()
    (grad,) = torch.autograd.grad(ordered_suppression_scan(z, bias).sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="ordered_suppression_scan has no second derivative"):
        grad.sum().backward()


def test_wrong_arguments() -> None:
    z, bias, mask = inputs_for(2, 3, 4, torch.float32)
    with pytest.raises(ValueError, match=r"z has shape \[3\]; it must be \[B, M, \.\.\.\]"):
        ordered_suppression_scan(z[0, :, 0, 0], bias)
    with pytest.raises(ValueError, match=r"bias has shape \[2\]; it must be one number"):
        ordered_suppression_scan(z, torch.zeros(2))
    with pytest.raises(ValueError, match=r"bias has dtype torch\.float64; it must be torch\.float32"):
        ordered_suppression_scan(z, bias.double())
    with pytest.raises(ValueError, match=r"sentence_mask has shape \[2, 2\]; it must be \[2, 3\]"):
        ordered_suppression_scan(z, bias, mask[:, 1:])
    with pytest.raises(ValueError, match=r"sentence_mask has dtype torch\.float32; it must be bool"):
        ordered_suppression_scan(z, bias, mask.float())
