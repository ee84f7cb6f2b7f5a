from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vpgfast import ops
from vpgfast.ops import AttentionStats, anchor_cross_attention

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

# B, H, Q, T, d, e, f
SHAPES = [
    (2, 3, 5, 40, 8, 8, 8),
    (1, 1, 1, 1, 1, 1, 1),
    (3, 2, 4, 130, 20, 4, 33),
    (2, 1, 3, 7, 5, 0, 2),
    (0, 2, 3, 4, 2, 2, 2),
    (9, 2, 0, 4, 2, 2, 2),
    (3, 2, 4, 0, 2, 2, 2),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))


def inputs_for(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64, *, one_k_pos: bool = False, seed: int = 0
) -> list[Tensor]:
    B, H, Q, T, d, e, f = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = [(B, H, Q, d), (B, H, Q, e), (B, H, T, d), (1 if one_k_pos else B, H, T, e), (B, H, T, f)]
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def extras_for(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """A mask whose first video has no clip at all, and intervals: fractional, on clips, empty of clips, beyond them."""
    B, _, Q, T = shape[:4]
    generator = torch.Generator().manual_seed(seed + 100)
    mask = torch.rand(B, T, generator=generator) < 0.7
    mask[:1] = False
    intervals = ((torch.rand(B, Q, 2, generator=generator) * 1.4 - 0.2) * T).sort(-1).values
    return mask, torch.where(torch.rand(B, Q, 1, generator=generator) < 0.5, intervals.round(), intervals)


def joined(key_mask: Tensor | None, intervals: Tensor | None, need_weights: bool) -> Callable[..., Tensor]:
    """Everything that the op gives, in one tensor of the inputs' dtype."""

    def function(*inputs: Tensor) -> Tensor:
        out, stats = anchor_cross_attention(*inputs, key_mask, intervals, need_weights)
        parts = [out, stats.centroid / max(1, inputs[2].shape[2])]
        parts += [part for part in (stats.mass, stats.weights) if part is not None]
        return torch.cat([part.flatten().to(inputs[4].dtype) for part in parts])

    return function


@pytest.mark.parametrize("backend", ["cpp", "reference", "triton"])
def test_by_hand(backend: str) -> None:
    """Two clips with logits 0 and ln 3: attention 1/4 and 3/4."""
    with ops.backend(backend):
        out, stats = anchor_cross_attention(
            torch.tensor([[[[math.log(3.0)]]]]),
            torch.tensor([[[[math.log(3.0)]]]]),
            torch.tensor([[[[0.0], [math.sqrt(2) / 2]]]]),
            torch.tensor([[[[0.0], [math.sqrt(2) / 2]]]]),
            torch.tensor([[[[8.0, 0.0], [4.0, 1.0]]]]),
            intervals=torch.tensor([[[0.5, 1.0]]]),
            need_weights=True,
        )
    torch.testing.assert_close(out, torch.tensor([[[[5.0, 0.75]]]]))
    assert stats.mass is not None
    assert stats.weights is not None
    torch.testing.assert_close(stats.centroid, torch.tensor([[0.75]]))
    torch.testing.assert_close(stats.mass, torch.tensor([[0.75]]))
    torch.testing.assert_close(stats.weights, torch.tensor([[[[0.25, 0.75]]]]))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_equals_attention_over_the_concatenation(backend: str) -> None:
    """What conditional and DAB-DETR decoders compute: content and position side by side in every head."""
    inputs = inputs_for((2, 4, 6, 30, 8, 8, 8))
    mask, intervals = torch.rand(2, 30, generator=torch.Generator().manual_seed(3)) < 0.8, None
    with ops.backend(backend):
        out, stats = anchor_cross_attention(*inputs, mask, intervals, need_weights=True)
    q_content, q_pos, k_content, k_pos, v = inputs
    q, k = torch.cat([q_content, q_pos], -1), torch.cat([k_content, k_pos], -1)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask[:, None, None])
    torch.testing.assert_close(out, expected)
    assert stats.mass is None
    assert stats.weights is not None
    torch.testing.assert_close(stats.weights @ v, expected)
    t = torch.arange(30, dtype=torch.float64)
    torch.testing.assert_close(stats.centroid, stats.weights.mean(1) @ t)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_losses_on_statistics_equal_losses_on_the_matrix(backend: str) -> None:
    """SiamGTR's Eq. 9 and A.3: the same values and gradients whether read off the statistics or the matrix."""
    shape = (2, 2, 4, 25, 6, 6, 6)
    inputs = [t.requires_grad_() for t in inputs_for(shape)]
    _, intervals = extras_for(shape)
    intervals = intervals.clamp(2, 20)

    def losses(centroid: Tensor, mass: Tensor) -> Tensor:
        order = (1.5 + centroid[:, :-1] - centroid[:, 1:]).clamp(min=0).sum()
        return order - (mass + 1e-3).log().mean()

    with ops.backend(backend):
        _, stats = anchor_cross_attention(*inputs, intervals=intervals, need_weights=True)
        assert stats.mass is not None
        assert stats.weights is not None
        from_statistics = torch.autograd.grad(losses(stats.centroid, stats.mass), inputs, retain_graph=True)
        t = torch.arange(25)
        inside = (intervals[..., :1] <= t) & (t <= intervals[..., 1:])
        average = stats.weights.mean(1)
        from_matrix = torch.autograd.grad(losses(average @ t.double(), (average * inside).sum(-1)), inputs)
    for a, b in zip(from_statistics, from_matrix, strict=True):
        torch.testing.assert_close(a, b)


def check_case(device: str, backend: str, dtype: torch.dtype, layout: str, shape: tuple, one_k_pos: bool) -> None:
    inputs = [LAYOUTS[layout](t.to(device)) for t in inputs_for(shape, dtype, one_k_pos=one_k_pos)]
    mask, intervals = (t.to(device) for t in extras_for(shape))
    # Tensor cores round the attention to 10 bits before it is multiplied with v.
    rounded = 2**-10 if dtype == torch.float16 else 0.0
    compare(joined(mask, intervals, need_weights=True), inputs, backend, of_scale=rounded)


@implementations(triton=True, interpreted=False)
@dtypes
@layouts
@shapes
@pytest.mark.parametrize("one_k_pos", [False, True])
def test_grid(device: str, backend: str, dtype: torch.dtype, layout: str, shape: tuple, one_k_pos: bool) -> None:
    check_case(device, backend, dtype, layout, shape, one_k_pos)


@implementations(triton=True)
@pytest.mark.parametrize(
    ("dtype", "layout", "together"),
    [
        (torch.float32, "contiguous", False),
        (torch.bfloat16, "transposed", True),
        (torch.float64, "strided", False),
        (torch.float16, "expanded", False),
        (torch.float32, "strided", True),
    ],
)
@shapes
@pytest.mark.parametrize("one_k_pos", [False, True])
def test_triton_grid(
    device: str, backend: str, dtype: torch.dtype, layout: str, together: bool, shape: tuple, one_k_pos: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Every dtype and every layout, but not each with each: Triton's interpreter is slow. All gradients in one launch,
    or in three."""
    from vpgfast.triton_kernels import anchor_cross_attention as launchers

    monkeypatch.setattr(launchers, "FEWEST_TOGETHER", 1 if together else 10**6)
    check_case(device, backend, dtype, layout, shape, one_k_pos)


@implementations(triton=True)
@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("has_intervals", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_optional_arguments(device: str, backend: str, has_mask: bool, has_intervals: bool, need_weights: bool) -> None:
    mask, intervals = (t.to(device) for t in extras_for(SHAPES[0]))
    function = joined(mask if has_mask else None, intervals if has_intervals else None, need_weights)
    compare(function, [t.to(device) for t in inputs_for(SHAPES[0])], backend)


@implementations(triton=True, interpreted=False)
def test_many_queries_and_long_videos(device: str, backend: str) -> None:
    """More queries and clips than are treated at once."""
    for shape in [(1, 2, 70, 1500, 4, 4, 4), (1, 1, 3, 70_000, 3, 2, 1), (17, 1, 2, 20, 3, 3, 3)]:
        mask, intervals = (t.to(device) for t in extras_for(shape))
        inputs = [t.to(device) for t in inputs_for(shape, one_k_pos=True)]
        compare(joined(mask, intervals, need_weights=False), inputs, backend)


@implementations(triton=True, interpreted=False)
def test_gradcheck(device: str, backend: str) -> None:
    shape = (2, 2, 2, 3, 2, 2, 2)
    inputs = [t.to(device).requires_grad_() for t in inputs_for(shape, one_k_pos=True)]
    mask, intervals = torch.ones(2, 3, dtype=torch.bool, device=device), extras_for(shape)[1].to(device)
    mask[1, 0] = False
    with ops.backend(backend):
        assert torch.autograd.gradcheck(joined(mask, intervals, need_weights=True), inputs)


@implementations(triton=True)
def test_deterministic_and_fully_written(device: str, backend: str) -> None:
    # Interpreted, blocks run one after the other, a hundred times more slowly.
    shape = (2 if backend == "triton" and device == "cpu" else 9, 2, 5, 60, 8, 8, 8)
    mask, intervals = (t.to(device) for t in extras_for(shape))
    inputs = [t.to(device) for t in inputs_for(shape, torch.float32, one_k_pos=True)]
    with ops.backend(backend):
        check_deterministic(joined(mask, intervals, need_weights=True), *inputs)


@implementations(triton=True)
def test_a_masked_clip_has_no_influence(device: str, backend: str) -> None:
    """Not even when it holds NaN in its values' place of the logits."""
    inputs = [t.to(device) for t in inputs_for(SHAPES[0], torch.float32)]
    mask = torch.ones(2, 40, dtype=torch.bool, device=device)
    mask[:, 30:] = False
    with ops.backend(backend):
        before, _ = anchor_cross_attention(*inputs, mask)
        inputs[2][:, :, 30:] = 1e30
        inputs[4][:, :, 30:] = 1e30
        after, _ = anchor_cross_attention(*inputs, mask)
    assert torch.equal(before, after)


@implementations(triton=True)
def test_large_logits_do_not_overflow(device: str, backend: str) -> None:
    inputs = [t.to(device) * 200 for t in inputs_for(SHAPES[0], torch.float32)]
    compare(joined(None, None, need_weights=True), inputs, backend)


def test_gradients_lie_as_their_inputs() -> None:
    inputs = [t.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for t in inputs_for(SHAPES[0])]
    out, _ = anchor_cross_attention(*inputs)
    assert out.transpose(1, 2).is_contiguous()
    for tensor, grad in zip(inputs, torch.autograd.grad(out.sum(), inputs), strict=True):
        assert grad.stride() == tensor.stride()


@pytest.mark.parametrize("one_k_pos", [False, True])
def test_registration(one_k_pos: bool) -> None:
    inputs = inputs_for(SHAPES[0], torch.float32, one_k_pos=one_k_pos)
    mask, intervals = extras_for(SHAPES[0])
    heads_last = [t.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for t in inputs]
    samples = [(*inputs, mask, intervals.double(), True), (*heads_last, None, None, False)]
    check_registration("anchor_cross_attention", samples)
    out, centroid, mass, weights = torch.ops.vpgfast.anchor_cross_attention(*inputs, mask, intervals.double(), True)
    grads = [torch.randn_like(t) for t in (out, centroid, mass, weights)]
    check_registration("anchor_cross_attention_backward", [(*grads, *inputs, mask, intervals.double())])


def test_compiles_without_graph_break() -> None:
    mask, intervals = extras_for(SHAPES[0])
    check_compiles(joined(mask, intervals, need_weights=True), *inputs_for(SHAPES[0], torch.float32))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_autocast_runs_in_its_dtype(compiled: bool) -> None:
    """The intervals are not rounded: 1001 is no bfloat16."""
    shape = (1, 2, 1, 1200, 4, 4, 4)
    inputs = inputs_for(shape, torch.float32)
    intervals = torch.tensor([[[1001.0, 1001.0]]])
    function = torch.compile(anchor_cross_attention, backend="aot_eager") if compiled else anchor_cross_attention
    with torch.autocast("cpu", torch.bfloat16):
        out, stats = function(*inputs, intervals=intervals, need_weights=True)
    assert isinstance(stats, AttentionStats)
    assert out.dtype == torch.bfloat16
    assert stats.weights is not None
    assert stats.mass is not None
    assert stats.centroid.dtype == torch.float32
    rounded = [t.to(torch.bfloat16).double() for t in inputs]
    _, exact = anchor_cross_attention(*rounded, intervals=intervals, need_weights=True)
    assert exact.mass is not None
    torch.testing.assert_close(stats.mass.double(), exact.mass, rtol=1e-4, atol=1e-7)


def test_second_derivative_is_refused() -> None:
    inputs = [t.requires_grad_() for t in inputs_for(SHAPES[0])]
    (grad,) = torch.autograd.grad(anchor_cross_attention(*inputs)[0].sum(), inputs[4], create_graph=True)
    with pytest.raises(RuntimeError, match="anchor_cross_attention has no second derivative"):
        grad.sum().backward()


def test_wrong_arguments() -> None:
    q_content, q_pos, k_content, k_pos, v = inputs_for(SHAPES[0], torch.float32)
    with pytest.raises(ValueError, match=r"q_pos has shape \[2, 3, 4, 8\]; it must be \[2, 3, 5, e\]"):
        anchor_cross_attention(q_content, q_pos[:, :, 1:], k_content, k_pos, v)
    with pytest.raises(ValueError, match=r"k_content has shape .* it must be \[2, 3, T, 8\]"):
        anchor_cross_attention(q_content, q_pos, k_content[..., 1:], k_pos, v)
    with pytest.raises(ValueError, match="k_pos has shape"):
        anchor_cross_attention(q_content, q_pos, k_content, k_pos[:, :, 1:], v)
    with pytest.raises(ValueError, match=r"v has shape .* it must be \[2, 3, 40, f\]"):
        anchor_cross_attention(q_content, q_pos, k_content, k_pos, v[:, :, 1:])
    with pytest.raises(ValueError, match=r"v has dtype torch\.float64; it must be torch\.float32"):
        anchor_cross_attention(q_content, q_pos, k_content, k_pos, v.double())
    with pytest.raises(ValueError, match=r"key_mask has dtype torch\.float32; it must be bool"):
        anchor_cross_attention(q_content, q_pos, k_content, k_pos, v, torch.ones(2, 40))
    with pytest.raises(ValueError, match=r"key_mask has shape \[2, 39\]; it must be \[2, 40\]"):
        anchor_cross_attention(q_content, q_pos, k_content, k_pos, v, torch.ones(2, 39, dtype=torch.bool))
    intervals = torch.zeros(2, 5, 2, requires_grad=True)
    with pytest.raises(ValueError, match="intervals requires a gradient"):
        anchor_cross_attention(q_content, q_pos, k_content, k_pos, v, intervals=intervals)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_inverted_interval_is_named(backend: str) -> None:
    intervals = torch.zeros(2, 5, 2)
    intervals[0, 3, 0] = 1
    with ops.backend(backend), pytest.raises(RuntimeError, match="interval 3 of intervals"):
        anchor_cross_attention(*inputs_for(SHAPES[0]), intervals=intervals)
