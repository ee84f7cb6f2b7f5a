from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vpgfast import ops
from vpgfast.ops import temporal_map_conv2d, temporal_map_conv2d_cells
from vpgfast.ops.temporal_map_conv2d_cells import at_cells

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
from .test_temporal_map_conv2d import random_case, shapes


def numbers(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero()[:, 0]


def listed_case(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, and the cells of the input and of the result."""
    x, weight, bias, in_mask, out_mask = (t.to(device) for t in random_case(shape, dtype))
    in_cells, out_cells = numbers(in_mask), numbers(out_mask)
    return at_cells(x, in_cells).contiguous(), weight, bias, in_cells, out_cells


@implementations(triton=True)
@dtypes
@shapes
def test_grid(device: str, backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if backend == "triton" and device == "cpu" and shape[4] > 5:
        shape = (1, 2, 3, 3, 6, 4)  # the interpreter is slow
    x, weight, bias, *cells = listed_case(shape, dtype, device)
    T, padding = shape[3], shape[5]
    compare(lambda *t: temporal_map_conv2d_cells(*t, *cells, T, padding), [x, weight, bias], backend, of_scale=1e-5)
    compare(
        lambda *t: temporal_map_conv2d_cells(*t, None, *cells, T, padding, "relu", normalize=True),
        [x, weight],
        backend,
        of_scale=1e-5,
    )


@implementations(triton=True, interpreted=False)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 32, 9, 5, 2), (2, 17, 33, 9, 5, 2), (3, 2, 4, 12, 9, 10)], ids=str)
def test_equals_the_op_on_maps(device: str, backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """To the bit on the CPU, where both do the same: result and gradients, in 16 channels and in 17."""
    x, weight, bias, in_mask, out_mask = (t.to(device) for t in random_case(shape, dtype))
    in_cells, out_cells = numbers(in_mask), numbers(out_mask)
    maps = [t.clone().requires_grad_() for t in (x, weight, bias)]
    rows = [t.clone().requires_grad_() for t in (at_cells(x, in_cells), weight, bias)]
    # Without TF32: the two may be cut into other blocks, whose units round to it in other ways.
    with ops.backend(backend), torch.backends.cudnn.flags(allow_tf32=False):  # type: ignore[arg-type]
        expected = temporal_map_conv2d(*maps, in_mask, out_mask, shape[-1], "relu", True)
        found = temporal_map_conv2d_cells(*rows, in_cells, out_cells, shape[3], shape[-1], "relu", True)
        incoming = torch.randn_like(expected)
        grads = torch.autograd.grad(expected, maps, incoming)
        ours = torch.autograd.grad(found, rows, at_cells(incoming, out_cells))
    exactly = {"rtol": 0.0, "atol": 0.0} if device == "cpu" else {}
    torch.testing.assert_close(found, at_cells(expected, out_cells), **exactly)
    for a, b in zip(ours, (at_cells(grads[0], in_cells), *grads[1:]), strict=True):
        torch.testing.assert_close(a, b, **exactly)


@implementations(triton=True, interpreted=False)
@layouts
def test_layouts(device: str, backend: str, layout: str) -> None:
    x, weight, bias, *cells = listed_case((2, 3, 4, 6, 3, 1), torch.float32, device)
    x, weight = LAYOUTS[layout](x), LAYOUTS[layout](weight)
    cells = [torch.stack([c, c], 1)[:, 0] for c in cells]
    compare(
        lambda *t: temporal_map_conv2d_cells(*t, *cells, 6, 1, "relu", True), [x, weight, bias], backend, of_scale=1e-5
    )


@implementations(triton=True)
def test_no_cells(device: str, backend: str) -> None:
    """Nothing to read leaves the bias; nothing to compute gives nothing, and no gradient."""
    x, weight, bias, in_cells, out_cells = listed_case((2, 3, 4, 5, 3, 1), torch.float64, device)
    none = in_cells[:0]
    with ops.backend(backend):  # type: ignore[arg-type]
        out = temporal_map_conv2d_cells(x[:, :0], weight, bias, none, out_cells, 5, 1)
        torch.testing.assert_close(out, bias.expand_as(out))
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        out = temporal_map_conv2d_cells(*leaves, in_cells, none, 5, 1)
        assert out.shape == (2, 0, 4)
        assert not any(g.any() for g in torch.autograd.grad(out.sum(), leaves))


@implementations(triton=True, interpreted=False)
def test_gradcheck(device: str, backend: str) -> None:
    *leaves, in_cells, out_cells = listed_case((1, 2, 2, 4, 3, 1), device=device)
    leaves = [t.requires_grad_() for t in leaves]
    with ops.backend(backend):  # type: ignore[arg-type]
        for options in ((1, "relu", True), (1, None, False)):
            assert torch.autograd.gradcheck(
                lambda *t, o=options: temporal_map_conv2d_cells(*t, in_cells, out_cells, 4, *o), leaves
            )


@implementations(triton=True)
def test_only_the_gradients_asked_for(device: str, backend: str) -> None:
    *tensors, in_cells, out_cells = listed_case((1, 2, 3, 4, 3, 1), torch.float32, device)

    def run(*leaves: Tensor) -> Tensor:
        return temporal_map_conv2d_cells(*leaves, in_cells, out_cells, 4, 1).sum()

    with ops.backend(backend):  # type: ignore[arg-type]
        every = [t.clone().requires_grad_() for t in tensors]
        expected = torch.autograd.grad(run(*every), every)
        for i in range(3):
            leaves = [t.clone().requires_grad_(j == i) for j, t in enumerate(tensors)]
            (grad,) = torch.autograd.grad(run(*leaves), leaves[i])
            torch.testing.assert_close(grad, expected[i])


@implementations(triton=True, interpreted=False)
def test_deterministic_and_fully_written(device: str, backend: str) -> None:
    x, weight, bias, *cells = listed_case((4, 40, 48, 12, 9, 4), torch.float32, device)
    with ops.backend(backend):  # type: ignore[arg-type]
        check_deterministic(lambda *t: temporal_map_conv2d_cells(*t, *cells, 12, 4, "relu", True), x, weight, bias)


@implementations(triton=True, interpreted=False)
def test_a_stack_keeps_no_maps(device: str, backend: str) -> None:
    """Behind a layer nothing is saved that is larger than its listed cells."""
    x, weight, _, in_cells, out_cells = listed_case((2, 16, 16, 9, 5, 2), torch.float32, device)
    saved: list[int] = []

    def save(t: Tensor) -> Tensor:
        saved.append(t.untyped_storage().nbytes() // t.element_size())
        return t

    with (
        ops.backend(backend),  # type: ignore[arg-type]
        torch.autograd.graph.saved_tensors_hooks(save, lambda t: t),
    ):
        temporal_map_conv2d_cells(x, weight.requires_grad_(), None, in_cells, out_cells, 9, 2, "relu")
    listed = [2 * 16 * len(in_cells), weight.numel(), 2 * 16 * len(out_cells), len(in_cells), len(out_cells)]
    assert sorted(saved) == sorted(listed)


def test_registration() -> None:
    x, weight, bias, in_cells, out_cells = listed_case((2, 3, 4, 5, 3, 1), torch.float32)
    check_registration(
        "temporal_map_conv2d_cells",
        [
            (x, weight, bias, in_cells, out_cells, 5, 1, True, True),
            (
                x.clone().requires_grad_(),
                weight.clone().requires_grad_(),
                None,
                in_cells,
                out_cells,
                5,
                1,
                False,
                False,
            ),
        ],
    )
    grad = torch.randn(2, len(out_cells), 4)
    check_registration(
        "temporal_map_conv2d_cells_backward",
        [
            (grad, x, weight, grad.relu(), in_cells, out_cells, 5, 1, True, True, True, True),
            (grad, x, weight, None, in_cells, out_cells, 5, 1, False, False, True, False),
        ],
    )


def test_compiles_without_graph_break() -> None:
    case = listed_case((2, 3, 4, 5, 3, 1), torch.float32)
    check_compiles(lambda *t: temporal_map_conv2d_cells(*t, 5, 1, "relu", True), *case)


def test_autocast_runs_in_the_autocast_dtype() -> None:
    *leaves, in_cells, out_cells = listed_case((2, 3, 4, 5, 3, 1), torch.float32)
    leaves = [t.requires_grad_() for t in leaves]
    with torch.autocast("cpu", torch.bfloat16):
        out = temporal_map_conv2d_cells(*leaves, in_cells, out_cells, 5, 1)
    assert out.dtype == torch.bfloat16
    wide = temporal_map_conv2d_cells(*leaves, in_cells, out_cells, 5, 1)
    torch.testing.assert_close(out.float(), wide, rtol=0.02, atol=0.02)
    assert [g.dtype for g in torch.autograd.grad(out.float().sum(), leaves)] == [torch.float32] * 3


def test_second_derivative_is_refused() -> None:
    x, weight, _, *cells = listed_case((1, 1, 1, 3, 3, 1))
    x.requires_grad_()
    out = temporal_map_conv2d_cells(x, weight, None, *cells, 3, 1)
    (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="temporal_map_conv2d_cells has no second derivative"):
        grad.sum().backward()


X, W, CELLS = torch.zeros(1, 3, 2), torch.zeros(3, 2, 3, 3), torch.tensor([0, 5, 15])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("name", ["in_cells", "out_cells"])
@pytest.mark.parametrize("cells", [[0, 5, 16], [-1, 5, 6], [0, 0, 1], [3, 2, 1]], ids=str)
def test_cells_must_rise_in_the_map(backend: str, name: str, cells: list[int]) -> None:
    arguments = {"in_cells": CELLS, "out_cells": CELLS} | {name: torch.tensor(cells)}
    with (
        ops.backend(backend),  # type: ignore[arg-type]
        pytest.raises(RuntimeError, match=f"{name} .*; it must hold rising numbers of the 16 cells"),
    ):
        temporal_map_conv2d_cells(X, W, None, T=4, padding=1, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(3, 2)}, r"x has shape \[3, 2\]; it must be \[B, P, C\]"),
        ({"x": torch.zeros(1, 4, 2)}, r"in_cells has shape \[3\]; it must be \[4\]"),
        ({"x": X.long()}, "x has dtype torch.int64"),
        ({"in_cells": CELLS[None]}, r"in_cells has shape \[1, 3\]; it must be \[3\]"),
        ({"out_cells": CELLS.int()}, "out_cells has dtype torch.int32; it must be int64"),
        ({"weight": torch.zeros(3, 1, 3, 3)}, r"weight has shape \[3, 1, 3, 3\]; it must be \[D, 2, k, k\]"),
        ({"weight": W.double()}, "weight has dtype torch.float64; it must be torch.float32, that of x"),
        ({"bias": torch.zeros(2)}, r"bias has shape \[2\]; it must be \[3\]"),
        ({"padding": -1}, "padding is -1"),
        ({"T": -1}, "T is -1"),
        ({"weight": torch.zeros(3, 2, 8, 8)}, "the kernel is 8 wide, padding is 1 and T is 4"),
        ({"activation": "gelu"}, "activation is 'gelu'; it must be 'relu' or None"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    given = {"x": X, "weight": W, "bias": None, "in_cells": CELLS, "out_cells": CELLS, "T": 4, "padding": 1}
    with pytest.raises(ValueError, match=message):
        temporal_map_conv2d_cells(**(given | arguments))


@implementations(triton=True, interpreted=False)
def test_nan_spreads_no_further_than_documented(device: str, backend: str) -> None:
    """A NaN reaches the cells that its taps feed; cells that share no tile and no tap with it stay clean."""
    T = 24
    every = torch.arange(T * T, device=device)
    x = torch.ones(1, T * T, 1, device=device)
    x[0, 0] = math.nan
    with ops.backend(backend):  # type: ignore[arg-type]
        out = temporal_map_conv2d_cells(x, torch.ones(1, 1, 3, 3, device=device), None, every, every, T, 1)
    assert out[0, 0].isnan().all()
    assert out[0, T * T // 2 :].isfinite().all()
