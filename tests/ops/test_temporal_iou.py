from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vpgfast import ops
from vpgfast.ops import temporal_giou, temporal_iou
from vpgfast.ops.temporal_iou import plain_iou

from .grid import (
    LAYOUTS,
    check_compiles,
    check_deterministic,
    check_registration,
    compare,
    dtypes,
    implementations,
    layouts,
    random_spans,
)

# (leading sizes), N, M: wide rows and narrow ones take different paths; odd, empty and one-element shapes.
SHAPES = [
    ((2,), 5, 7),
    ((), 1, 1),
    ((3,), 4, 33),
    ((2, 2), 9, 16),
    ((2,), 21, 68),
    ((), 530, 40),
    ((), 600, 3),
    ((0,), 2, 3),
    ((2,), 0, 3),
    ((2,), 3, 0),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
functions = pytest.mark.parametrize("function", [temporal_iou, temporal_giou], ids=lambda f: f.__name__)


def random_pair(shape: tuple[tuple[int, ...], int, int], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Intervals on a coarse lattice among others: ends coincide, some intervals are empty and some are equal."""
    generator = torch.Generator().manual_seed(seed)
    lead, N, M = shape
    pair = [random_spans(*lead, n, generator=generator, low=-0.5, high=2.0) for n in (N, M)]
    return tuple(  # type: ignore[return-value]
        torch.where(torch.rand(t.shape[:-1], generator=generator)[..., None] < 0.4, (t * 4).round() / 4, t).to(dtype)
        for t in pair
    )


def by_hand(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    """IoU and GIoU from first principles, in Python."""
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    joined = (a[1] - a[0]) + (b[1] - b[0]) - shared
    hull = max(a[1], b[1]) - min(a[0], b[0])
    iou = shared / joined if joined > 0 else 0.0
    return iou, iou - ((hull - joined) / hull if hull > 0 else 0.0)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize(
    ("a", "b", "iou", "giou"),
    [
        ((0, 2), (1, 3), 1 / 3, 1 / 3),
        ((0, 1), (0, 1), 1, 1),
        ((0, 1), (2, 3), 0, -1 / 3),
        ((0, 1), (1, 2), 0, 0),
        ((0, 4), (1, 2), 0.25, 0.25),
        ((1, 1), (1, 1), 0, 0),  # equal and empty
        ((1, 1), (3, 3), 0, -1),  # apart and empty
        ((1, 1), (0, 2), 0, 0),  # empty inside another
    ],
)
def test_by_hand(backend: str, a: tuple[float, float], b: tuple[float, float], iou: float, giou: float) -> None:
    with ops.backend(backend):
        ta, tb = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
        for function, value in ((temporal_iou, iou), (temporal_giou, giou)):
            assert function(ta, tb).item() == pytest.approx(value)
            assert function(ta, tb, pairwise=False).item() == pytest.approx(value)
            assert function(tb, ta).item() == pytest.approx(value)


def test_reference_equals_python() -> None:
    a, b = random_pair(((), 30, 20), torch.float64)
    with ops.backend("reference"):
        for which, function in enumerate((temporal_iou, temporal_giou)):
            expected = [[by_hand(tuple(x), tuple(y))[which] for y in b.tolist()] for x in a.tolist()]
            torch.testing.assert_close(function(a, b), torch.tensor(expected, dtype=torch.float64))


@functions
def test_reference_gradient_is_autograds(function) -> None:
    """The gradient formulas against autograd of the plain form, with coinciding ends and empty ones."""
    a, b = random_pair(((2,), 12, 17), torch.float64, seed=3)
    generalized = function is temporal_giou
    leaves = [t.clone().requires_grad_() for t in (a, b)]
    plain = plain_iou(leaves[0][:, :, None], leaves[1][:, None], generalized)
    weight = torch.randn(plain.shape, dtype=torch.float64)
    expected = torch.autograd.grad(plain, leaves, weight)
    with ops.backend("reference"):
        leaves = [t.clone().requires_grad_() for t in (a, b)]
        grads = torch.autograd.grad(function(*leaves), leaves, weight)
    torch.testing.assert_close(grads, expected)


@implementations()
@functions
@dtypes
@layouts
@shapes
def test_grid(device: str, backend: str, function, dtype: torch.dtype, layout: str, shape) -> None:
    a, b = (LAYOUTS[layout](t.to(device)) for t in random_pair(shape, dtype))
    compare(function, [a, b], backend)


@implementations()
@functions
@dtypes
@layouts
@pytest.mark.parametrize("shape", [(7,), (), (1,), (3, 5), (0, 2), (700,)], ids=str)
def test_grid_element_wise(device: str, backend: str, function, dtype: torch.dtype, layout: str, shape) -> None:
    a, b = (t[..., 0, :].to(device) for t in random_pair((shape, 1, 1), dtype))
    if shape and layout != "contiguous":
        a, b = LAYOUTS[layout](a), LAYOUTS[layout](b)
    compare(lambda a, b: function(a, b, pairwise=False), [a, b], backend)


def test_broadcasting_and_mixed_dtypes() -> None:
    a, _ = random_pair(((3, 1), 4, 1), torch.float32)
    b, _ = random_pair(((2,), 5, 1), torch.float64)
    out = temporal_iou(a, b)
    assert out.shape == (3, 2, 4, 5)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out[2, 1], temporal_iou(a[2, 0].double(), b[1]))
    assert temporal_iou(a, b[0, 0], pairwise=False).shape == (3, 1, 4)


@implementations()
@functions
def test_gradcheck(device: str, backend: str, function) -> None:
    generator = torch.Generator().manual_seed(5)  # no coinciding ends
    a, b = (random_spans(2, n, generator=generator).to(device).requires_grad_() for n in (3, 4))
    with ops.backend(backend):
        assert torch.autograd.gradcheck(function, (a, b))
        assert torch.autograd.gradcheck(lambda a, b: function(a, b[:, :3], pairwise=False), (a, b))


@implementations()
def test_empty_intervals_have_finite_gradients(device: str, backend: str) -> None:
    a = torch.tensor([[1.0, 1.0], [0.0, 2.0]], device=device, requires_grad=True)
    with ops.backend(backend):
        for function in (temporal_iou, temporal_giou):
            out = function(a, a.detach()).sum()
            assert out.isfinite()
            assert torch.autograd.grad(out, a)[0].isfinite().all()


@implementations()
@functions
def test_deterministic_and_fully_written(device: str, backend: str, function) -> None:
    a, b = (t.to(device) for t in random_pair(((40,), 300, 30), torch.float32))
    with ops.backend(backend):
        check_deterministic(function, a, b)
        check_deterministic(lambda a, b: function(a[:, :30], b, pairwise=False), a, b)


def test_registration() -> None:
    a, b = random_pair(((2,), 3, 4), torch.float32)
    for generalized in (False, True):
        leaves = a.clone().requires_grad_(), b.clone().requires_grad_()
        check_registration("temporal_iou", [(a, b, generalized), (*leaves, generalized)])
        check_registration("temporal_iou_backward", [(torch.randn(2, 3, 4), a, b, generalized)])
        flat = a.flatten(0, 1), b.flatten(0, 1)[:6]
        check_registration("temporal_iou_elementwise", [(*flat, generalized)])
        check_registration("temporal_iou_elementwise_backward", [(torch.randn(6), *flat, generalized)])


@functions
def test_compiles_without_graph_break(function) -> None:
    a, b = random_pair(((2,), 3, 4), torch.float32)
    check_compiles(function, a, b)
    check_compiles(lambda a, b: function(a, b[:, :3], pairwise=False), a, b)


def test_autocast_computes_in_float32() -> None:
    a, b = random_pair(((2,), 3, 4), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = temporal_iou(a.bfloat16(), b.bfloat16())
    assert out.dtype == torch.float32


def test_second_derivative_is_refused() -> None:
    a, b = random_pair(((), 2, 3), torch.float64)
    a.requires_grad_()
    (grad,) = torch.autograd.grad(temporal_iou(a, b).sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="temporal_iou has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(3), torch.zeros(1, 2), r"a has shape \[3\]; it must be \[..., N, 2\]"),
        (torch.zeros(1, 2), torch.zeros(1, 3), r"b has shape \[1, 3\]; it must be \[..., M, 2\]"),
        (torch.zeros(1, 2).long(), torch.zeros(1, 2), "a has dtype torch.int64"),
        (torch.zeros(2, 1, 2), torch.zeros(3, 1, 2), "do not broadcast"),
    ],
)
def test_wrong_arguments(a: Tensor, b: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        temporal_iou(a, b)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_inverted_interval_is_named(backend: str) -> None:
    good, bad = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0], [3.0, 2.0]])
    with ops.backend(backend):
        with pytest.raises(RuntimeError, match=r"interval 1 of b is \(3.*2.*\); its end must not lie before its start"):
            temporal_iou(good, bad)
        with pytest.raises(RuntimeError, match="interval 1 of a"):
            temporal_giou(bad, bad, pairwise=False)
