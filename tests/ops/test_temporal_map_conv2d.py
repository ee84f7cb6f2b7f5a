from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vpgfast import ops
from vpgfast.ops import dense_anchor_mask, sparse_anchor_mask, temporal_map_conv2d, temporal_map_masks

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

# B, C, D, T, k, padding
SHAPES = [
    (2, 3, 5, 6, 3, 1),
    (1, 1, 1, 1, 1, 0),
    (2, 17, 33, 9, 5, 2),
    (2, 4, 3, 7, 9, 4),
    (1, 2, 2, 3, 9, 8),
    (2, 3, 2, 5, 2, 0),
    (1, 2, 3, 5, 10, 6),
    (0, 3, 4, 4, 3, 1),
    (2, 0, 4, 4, 3, 1),
    (2, 3, 0, 4, 3, 1),
    (2, 3, 4, 0, 1, 0),
    (2, 3, 4, 3, 4, 0),  # T' = 0
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random_case(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, and masks of the input and the result. Sums are about 1, and none is on the ReLU's kink."""
    B, C, D, T, k, padding = shape
    generator = torch.Generator().manual_seed(seed)

    def numbers(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    out_T = T + 2 * padding - k + 1
    x = numbers(B, C, T, T).to(dtype)
    weight = (numbers(D, C, k, k) / max(1, C * k * k) ** 0.5).to(dtype)
    in_mask = torch.rand(T, T, generator=generator) < 0.6
    out_mask = torch.rand(out_T, out_T, generator=generator) < 0.6
    return x, weight, numbers(D).to(dtype), in_mask, out_mask


def two_d_tan(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, padding: int) -> Tensor:
    """2D-TAN's layer: a full convolution, ReLU, and one over the convolution of the mask with ones."""
    k = weight.shape[2]
    count = torch.nn.functional.conv2d(mask[None, None].to(x), torch.ones(1, 1, k, k).to(x), padding=padding)
    return torch.nn.functional.conv2d(x, weight, bias, padding=padding).relu() * torch.where(count > 0, 1 / count, 0)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_by_hand(backend: str) -> None:
    x = torch.tensor([[[[1.0, 2.0], [math.nan, 4.0]]]], dtype=torch.float64)
    weight = torch.tensor([[[[1.0, 10.0], [100.0, 1000.0]]]], dtype=torch.float64)
    bias = torch.tensor([-3000.0], dtype=torch.float64)
    upper = torch.ones(2, 2, dtype=torch.bool).triu()
    two_cells = torch.zeros(3, 3, dtype=torch.bool)
    two_cells[1, 1] = two_cells[2, 0] = True

    def rounded(out: Tensor) -> list[list[float]]:
        return (out[0, 0] * 1e6).round().div(1e6).tolist()

    with ops.backend(backend):  # type: ignore[arg-type]
        out = temporal_map_conv2d(x, weight, None, upper, padding=1)
        assert rounded(out) == [[1000, 2100, 200], [10, 4021, 402], [0, 40, 4]]
        out = temporal_map_conv2d(x, weight, bias, upper, padding=1, activation="relu")
        assert rounded(out) == [[0, 0, 0], [0, 1021, 0], [0, 0, 0]]
        out = temporal_map_conv2d(x, weight, bias, upper, normalize=True)
        assert rounded(out) == [[340.333333]]  # three valid taps
        out = temporal_map_conv2d(x, weight, bias, upper, two_cells, padding=1, normalize=True)
        assert rounded(out) == [[0, 0, 0], [0, 340.333333, 0], [0, 0, 0]]  # [2, 0] has no valid tap


@implementations(triton=True)
@dtypes
@shapes
def test_grid(device: str, backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if backend == "triton" and device == "cpu" and shape[4] > 5:
        shape = (1, 2, 3, 3, 6, 4)  # the interpreter is slow
    x, weight, bias, in_mask, out_mask = (t.to(device) for t in random_case(shape, dtype))
    padding = shape[-1]
    compare(lambda *t: temporal_map_conv2d(*t, padding=padding), [x, weight, bias], backend, of_scale=1e-5)
    compare(
        lambda *t: temporal_map_conv2d(*t, None, in_mask, out_mask, padding, "relu", normalize=True),
        [x, weight],
        backend,
        of_scale=1e-5,
    )


@implementations(triton=True)
@layouts
def test_layouts(device: str, backend: str, layout: str) -> None:
    x, weight, bias, in_mask, out_mask = random_case((2, 3, 4, 6, 3, 1), torch.float32)
    x, weight = LAYOUTS[layout](x.to(device)), LAYOUTS[layout](weight.to(device))
    masks = [LAYOUTS["transposed"](m.to(device)) for m in (in_mask, out_mask)]
    inputs = [x, weight, bias.to(device)]
    compare(lambda *t: temporal_map_conv2d(*t, *masks, 1, "relu", True), inputs, backend, of_scale=1e-5)


@implementations(triton=True, interpreted=False)
def test_more_rows_than_a_chunk_holds(device: str, backend: str) -> None:
    x, weight, bias, *_ = (t.to(device) for t in random_case((6, 512, 4, 14, 5, 8)))
    compare(lambda *t: temporal_map_conv2d(*t, padding=8), [x, weight, bias], backend)


@implementations(triton=True, interpreted=False)
def test_tiles_that_some_sub_kernels_feed_or_none(device: str, backend: str) -> None:
    x, weight, *_ = (t.to(device) for t in random_case((2, 3, 4, 12, 9, 12)))
    mask = torch.zeros(12, 12, dtype=torch.bool, device=device)
    mask[:4, 6:9] = True
    compare(lambda *t: temporal_map_conv2d(*t, None, mask, padding=12), [x, weight], backend)


@implementations(triton=True)
@pytest.mark.parametrize("normalize", [True, False])
def test_equals_two_d_tan(device: str, backend: str, normalize: bool) -> None:
    x, weight, bias, mask, _ = (t.to(device) for t in random_case((2, 3, 4, 8, 5, 4), torch.float64))
    x = torch.where(mask, x, 0)
    expected = two_d_tan(x, weight, bias, mask, 4)
    if not normalize:
        expected = torch.nn.functional.conv2d(x, weight, bias, padding=4).relu()
    with ops.backend(backend):  # type: ignore[arg-type]
        out = temporal_map_conv2d(x, weight, bias, mask, padding=4, activation="relu", normalize=normalize)
    torch.testing.assert_close(out, expected)


@implementations(triton=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_lies_outside_the_masks_has_no_effect(device: str, backend: str, dtype: torch.dtype) -> None:
    """NaN and infinities there reach neither the result nor a gradient, and outside the result is exactly zero."""
    x, weight, bias, in_mask, out_mask = (t.to(device) for t in random_case((2, 3, 4, 7, 5, 2), dtype))
    results = []
    for special in (0.0, math.nan, math.inf):
        leaves = [torch.where(in_mask, x, special).requires_grad_(), weight.clone().requires_grad_(), bias]
        with ops.backend(backend):  # type: ignore[arg-type]
            out = temporal_map_conv2d(*leaves, in_mask, out_mask, 2, "relu", True)
            incoming = torch.where(out_mask, torch.ones_like(out), special)
            grads = torch.autograd.grad(out, leaves[:2], incoming)
        results.append((out.detach(), *grads))
        assert (out[:, :, ~out_mask] == 0).all()
        assert (grads[0][:, :, ~in_mask] == 0).all()
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert torch.equal(a, b)


def test_error_of_float32_is_within_the_documented_bound() -> None:
    """Winograd's sums are formed of larger terms: 1e-5 of the result's scale, where conv2d has about 1e-6."""
    mask = dense_anchor_mask(16)
    for k, seed in itertools.product((5, 9), range(4)):
        generator = torch.Generator().manual_seed(10 * seed + k)
        x = torch.randn(4, 64, 16, 16, generator=generator).relu().requires_grad_()
        weight = (torch.randn(64, 64, k, k, generator=generator) / (8 * k)).requires_grad_()
        incoming = torch.randn(4, 64, 16, 16, generator=generator)
        ours = temporal_map_conv2d(x, weight, None, mask, padding=k // 2)
        wide = [t.detach().double().requires_grad_() for t in (x, weight)]
        truth = torch.nn.functional.conv2d(wide[0] * mask, wide[1], padding=k // 2)
        pairs = zip(
            (ours, *torch.autograd.grad(ours, (x, weight), incoming)),
            (truth, *torch.autograd.grad(truth, wide, incoming.double())),
            strict=True,
        )
        for a, b in pairs:
            assert float((a - b).detach().abs().max() / b.detach().abs().max()) < 1e-5


@implementations(triton=True, interpreted=False)
def test_gradcheck(device: str, backend: str) -> None:
    x, weight, bias, in_mask, out_mask = (t.to(device) for t in random_case((1, 2, 2, 4, 3, 1)))
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    with ops.backend(backend):  # type: ignore[arg-type]
        for options in ((1, "relu", True), (1, None, False)):
            assert torch.autograd.gradcheck(
                lambda *t, o=options: temporal_map_conv2d(*t, in_mask, out_mask, *o), leaves
            )


@implementations(triton=True)
def test_only_the_gradients_asked_for(device: str, backend: str) -> None:
    tensors = [t.to(device) for t in random_case((1, 2, 3, 4, 3, 1), torch.float32)[:3]]
    with ops.backend(backend):  # type: ignore[arg-type]
        every = [t.clone().requires_grad_() for t in tensors]
        expected = torch.autograd.grad(temporal_map_conv2d(*every, padding=1).sum(), every)
        for i in range(3):
            leaves = [t.clone().requires_grad_(j == i) for j, t in enumerate(tensors)]
            (grad,) = torch.autograd.grad(temporal_map_conv2d(*leaves, padding=1).sum(), leaves[i])
            torch.testing.assert_close(grad, expected[i])


@implementations(triton=True)
def test_deterministic_and_fully_written(device: str, backend: str) -> None:
    shape = (4, 40, 48, 12, 9, 4) if backend != "triton" or device != "cpu" else (2, 3, 4, 5, 3, 1)
    x, weight, bias, in_mask, out_mask = (t.to(device) for t in random_case(shape, torch.float32))
    with ops.backend(backend):  # type: ignore[arg-type]
        check_deterministic(
            lambda *t: temporal_map_conv2d(*t, in_mask, out_mask, shape[-1], "relu", True), x, weight, bias
        )


def test_registration() -> None:
    x, weight, bias, in_mask, out_mask = random_case((2, 3, 4, 5, 3, 1), torch.float32)
    check_registration(
        "temporal_map_conv2d",
        [
            (x, weight, bias, in_mask, out_mask, 1, True, True),
            (x.clone().requires_grad_(), weight.clone().requires_grad_(), None, None, None, 0, False, False),
        ],
    )
    grad = torch.randn(2, 4, 5, 5)
    check_registration(
        "temporal_map_conv2d_backward",
        [
            (grad, x, weight, grad.relu(), in_mask, out_mask, 1, True, True, True, True),
            (grad, x, weight, None, None, None, 1, False, False, True, False),
        ],
    )


def test_compiles_without_graph_break() -> None:
    x, weight, bias, in_mask, out_mask = random_case((2, 3, 4, 5, 3, 1), torch.float32)
    check_compiles(
        lambda x, w, b, mi, mo: temporal_map_conv2d(x, w, b, mi, mo, 1, "relu", True),
        x,
        weight,
        bias,
        in_mask,
        out_mask,
    )


def test_autocast_runs_in_the_autocast_dtype() -> None:
    x, weight, bias, in_mask, _ = random_case((2, 3, 4, 5, 3, 1), torch.float32)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        out = temporal_map_conv2d(*leaves, in_mask, padding=1)
        assert temporal_map_conv2d(x.double(), weight.double(), padding=1).dtype == torch.float64
        mixed = temporal_map_conv2d(x.bfloat16(), weight, bias, in_mask, padding=1)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, mixed)
    grads = torch.autograd.grad(out.float().sum(), leaves)
    assert [g.dtype for g in grads] == [torch.float32] * 3
    torch.testing.assert_close(out.float(), temporal_map_conv2d(*leaves, in_mask, padding=1), rtol=0.02, atol=0.02)


def test_autocast_compiles() -> None:
    x, weight, bias, *_ = random_case((1, 2, 2, 4, 3, 1), torch.float32)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return temporal_map_conv2d(x, weight, bias, padding=1)

    check_compiles(run, x, weight, bias)


def test_second_derivative_is_refused() -> None:
    x, weight, *_ = random_case((1, 1, 1, 3, 3, 1))
    x.requires_grad_()
    (grad,) = torch.autograd.grad(temporal_map_conv2d(x, weight, padding=1).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="temporal_map_conv2d has no second derivative"):
        grad.sum().backward()


X, W = torch.zeros(1, 2, 4, 4), torch.zeros(3, 2, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(2, 4, 4)}, r"x has shape \[2, 4, 4\]; it must be \[B, C, T, T\]"),
        ({"x": torch.zeros(1, 2, 4, 5)}, r"x has shape \[1, 2, 4, 5\]; it must be \[1, 2, 4, 4\]"),
        ({"x": X.long()}, "x has dtype torch.int64"),
        ({"weight": torch.zeros(3, 1, 3, 3)}, r"weight has shape \[3, 1, 3, 3\]; it must be \[D, 2, k, k\]"),
        ({"weight": torch.zeros(3, 2, 3, 5)}, r"weight has shape .*; it must be \[3, 2, 3, 3\]"),
        ({"weight": W.double()}, "weight has dtype torch.float64; it must be torch.float32, that of x"),
        ({"bias": torch.zeros(2)}, r"bias has shape \[2\]; it must be \[3\]"),
        ({"bias": torch.zeros(3).double()}, "bias has dtype torch.float64"),
        ({"in_mask": torch.ones(3, 3, dtype=torch.bool)}, r"in_mask has shape \[3, 3\]; it must be \[4, 4\]"),
        ({"out_mask": torch.ones(4, 4, dtype=torch.bool)}, r"out_mask has shape \[4, 4\]; it must be \[2, 2\]"),
        ({"in_mask": torch.ones(4, 4)}, "in_mask has dtype torch.float32; it must be bool"),
        ({"padding": -1}, "padding is -1"),
        ({"weight": torch.zeros(3, 2, 6, 6)}, "the kernel is 6 wide, padding is 0 and T is 4"),
        ({"weight": torch.zeros(3, 2, 0, 0)}, "the kernel is 0 wide"),
        ({"activation": "gelu"}, "activation is 'gelu'; it must be 'relu' or None"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        temporal_map_conv2d(**({"x": X, "weight": W} | arguments))


def test_masks_by_hand() -> None:
    """One valid moment in a map of 3 clips: the first layer spreads it, the second brings it back."""
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[0, 2] = True
    (first_in, first_out), (second_in, second_out) = temporal_map_masks(mask, (3, 3), (2, 0))
    assert torch.equal(first_in, mask)
    assert torch.equal(second_in, first_out)
    assert torch.equal(second_out, mask)
    # In the padded 5 x 5 map the moment is at (1, 3), and both layers reach one cell around.
    assert {(int(i), int(j)) for i, j in first_out.nonzero()} == {(i, j) for i in range(3) for j in range(2, 5)}


@pytest.mark.parametrize(
    ("mask", "kernel_sizes", "paddings"),
    [
        (sparse_anchor_mask(20, (4, 3, 2)), (5, 3, 7), (6, 0, 0)),
        (dense_anchor_mask(6), (3, 3), (1, 1)),
        (sparse_anchor_mask(12, (2, 2)), (1, 5, 4, 2), (0, 0, 4, 0)),
    ],
    ids=["as 2D-TAN", "same size", "mixed"],
)
def test_masks_are_exactly_what_matters(mask: Tensor, kernel_sizes: tuple[int, ...], paddings: tuple[int, ...]) -> None:
    """With positive numbers everywhere, a cell matters if it is positive and the result's gradient reaches it."""
    maps = [mask[None, None].double().requires_grad_()]
    for k, padding in zip(kernel_sizes, paddings, strict=True):
        maps.append(torch.nn.functional.conv2d(maps[-1], torch.ones(1, 1, k, k).double(), padding=padding))
    grads = torch.autograd.grad((maps[-1] * mask).sum(), maps)
    used = [((value > 0) & (grad > 0))[0, 0] for value, grad in zip(maps, grads, strict=True)]
    masks = temporal_map_masks(mask, kernel_sizes, paddings)
    assert len(masks) == len(kernel_sizes)
    for layer, (in_mask, out_mask) in enumerate(masks):
        assert torch.equal(in_mask, used[layer])
        assert torch.equal(out_mask, used[layer + 1])


def test_masks_refuse_nonsense() -> None:
    mask = dense_anchor_mask(4)
    for kernel_sizes, paddings in (((3,), (0,)), ((3, 3), (1,)), ((), ()), ((9, 1), (0, 4)), ((0,), (0,))):
        with pytest.raises(ValueError, match="kernel_sizes is"):
            temporal_map_masks(mask, kernel_sizes, paddings)
    with pytest.raises(ValueError, match=r"mask has shape \[4, 3\]"):
        temporal_map_masks(mask[:, :3], (3,), (1,))
    with pytest.raises(ValueError, match="mask has dtype"):
        temporal_map_masks(mask.float(), (3,), (1,))
