from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vpgfast import ops
from vpgfast.ops import dense_anchor_mask, sparse_anchor_mask, temporal_map_max_pool

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
from .memory import linux_only, stages

SHAPES = [(2, 3, 16), (1, 1, 1), (2, 5, 7), (3, 2, 33), (0, 3, 4), (2, 0, 4), (2, 3, 0), (1, 2, 130)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random_x(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Features with many ties, and both zeros: the hard cases for whose gradient it is."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = torch.where(torch.rand(shape, generator=generator) < 0.3, (x * 2).round() / 2, x)
    return x.to(dtype)


def random_span_list(P: int, T: int, seed: int = 0) -> Tensor:
    return torch.randint(0, max(T, 1), (P, 2), generator=torch.Generator().manual_seed(seed)).sort(-1).values


def by_loops(x: Tensor) -> Tensor:
    """Independent of everything else here: slices and Python's max."""
    B, C, T = x.shape
    out = torch.zeros(B, C, T, T, dtype=x.dtype)
    for b in range(B):
        for c in range(C):
            for i in range(T):
                for j in range(i, T):
                    values = x[b, c, i : j + 1].tolist()
                    out[b, c, i, j] = math.nan if any(map(math.isnan, values)) else max(values)
    return out


def test_by_hand() -> None:
    x = torch.tensor([[[1.0, 3.0, 2.0]]], requires_grad=True)
    out = temporal_map_max_pool(x)
    assert out.tolist() == [[[[1, 3, 3], [0, 3, 3], [0, 0, 2]]]]
    (grad,) = torch.autograd.grad(out, x, torch.tensor([[[[1.0, 10, 100], [9, 1000, 10000], [9, 9, 100000]]]]))
    assert grad.tolist() == [[[1, 11110, 100000]]]


@pytest.mark.parametrize("shape", [(2, 2, 9), (1, 1, 1), (1, 3, 4)], ids=str)
def test_reference_equals_loops(shape: tuple[int, ...]) -> None:
    x = random_x(shape, torch.float64)
    x[0, 0, shape[2] // 2] = math.nan
    with ops.backend("reference"):
        torch.testing.assert_close(temporal_map_max_pool(x), by_loops(x), equal_nan=True, rtol=0, atol=0)
        spans = random_span_list(12, shape[2])
        listed = torch.stack([by_loops(x)[:, :, i, j] for i, j in spans.tolist()], -1)
        torch.testing.assert_close(temporal_map_max_pool(x, spans), listed, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("poison", [None, math.nan], ids=["ties", "nan"])
def test_gradient_follows_max_pool1d(poison: float | None) -> None:
    """The clip that torch's MaxPool1d would choose, on ties and NaN too."""
    T = 9
    x = random_x((2, 3, T), torch.float64)
    if poison is not None:
        x[0, 0, [2, 5]] = poison
    weight = torch.randn(2, 3, T, T, dtype=torch.float64)

    def stacked(x: Tensor) -> Tensor:
        rows = torch.zeros(2, 3, T, T, dtype=x.dtype)
        for length in range(1, T + 1):
            pooled = torch.nn.functional.max_pool1d(x, length, stride=1)
            starts = torch.arange(T - length + 1)
            rows[:, :, starts, starts + length - 1] = pooled
        return rows

    grads = []
    for pool in (stacked, temporal_map_max_pool):
        leaf = x.clone().requires_grad_()
        grads.append(torch.autograd.grad(pool(leaf), leaf, weight)[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-12, atol=1e-12)


@implementations()
@dtypes
@layouts
@shapes
def test_grid(device: str, backend: str, dtype: torch.dtype, layout: str, shape: tuple[int, ...]) -> None:
    if backend == "triton" and device == "cpu" and shape[2] > 100:
        shape = (*shape[:2], 40)  # the interpreter is slow
    x = LAYOUTS[layout](random_x(shape, dtype).to(device))
    compare(temporal_map_max_pool, [x], backend, exact=True)


@implementations()
@pytest.mark.parametrize(("rows", "T"), [(512, 128), (484, 132), (500, 130)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_maps_larger_than_the_caches(device: str, backend: str, rows: int, T: int, dtype: torch.dtype) -> None:
    """From 32 MiB on the C++ kernel stores past the caches, where rows are aligned; the last of these are not."""
    rows *= 4 // dtype.itemsize
    x = random_x((1, rows, T), dtype).to(device)
    assert rows * T * T * dtype.itemsize >= 2**25
    expected = torch.cummax(x.unsqueeze(2).expand(-1, -1, T, -1).triu() + _below(T, x), 3).values.triu()
    with ops.backend(backend):
        assert torch.equal(temporal_map_max_pool(x), expected)


def _below(T: int, x: Tensor) -> Tensor:
    """-inf below the diagonal, 0 elsewhere."""
    return torch.full((T, T), -torch.inf, dtype=x.dtype, device=x.device).tril(-1)


@implementations()
@dtypes
@layouts
@shapes
@pytest.mark.parametrize("P", [0, 1, 50])
def test_grid_of_spans(
    device: str, backend: str, dtype: torch.dtype, layout: str, shape: tuple[int, ...], P: int
) -> None:
    P = P if shape[2] > 0 else 0  # a video without clips has no spans to list
    x = LAYOUTS[layout](random_x(shape, dtype).to(device))
    spans = LAYOUTS[layout if layout != "expanded" else "strided"](random_span_list(P, shape[2])).to(device)
    compare(lambda x: temporal_map_max_pool(x, spans), [x], backend, exact=True)


@implementations()
@dtypes
@pytest.mark.parametrize("special", [math.nan, -math.nan, math.inf, -math.inf, -0.0])
def test_special_values(device: str, backend: str, dtype: torch.dtype, special: float) -> None:
    x = random_x((2, 3, 11), dtype)
    x[0, :, 4] = special
    x[1, 0, [1, 7]] = special
    compare(temporal_map_max_pool, [x.to(device)], backend)
    if backend != "triton":
        spans = random_span_list(30, 11).to(device)
        compare(lambda x: temporal_map_max_pool(x, spans), [x.to(device)], backend)


def positions_of_maxima(x: Tensor) -> Tensor:
    """Where the maximum of every moment is, [B, C, T, T] (0 below the diagonal): row by row from the last one up."""
    B, C, T = x.shape
    positions = torch.zeros(B, C, T, T, dtype=torch.int64)
    below = torch.zeros(B, C, T, dtype=torch.int64)
    for i in range(T - 1, -1, -1):
        later = x.gather(2, below)
        stays = (later > x[:, :, i : i + 1]) | later.isnan()
        below = torch.where(stays & (torch.arange(T) > i), below, i)
        positions[:, :, i] = torch.where(torch.arange(T) >= i, below, 0)
    return positions


@implementations()
@dtypes
@pytest.mark.parametrize("T", [60, 128, 129, 132, 257, 264, 520])
@pytest.mark.parametrize("poison", [None, math.nan], ids=["ties", "nan"])
def test_gradient_of_maps_wider_than_a_warp(
    device: str, backend: str, dtype: torch.dtype, T: int, poison: float | None
) -> None:
    x = random_x((1, 3, T), dtype, seed=T)
    x[:, 2] = torch.arange(T, 0, -1).to(dtype)  # the first clip is every maximum of its row
    if poison is not None:
        x[0, 0, [1, T // 2, T - 2]] = poison
    grad = (torch.randint(-8, 9, (1, 3, T, T), generator=torch.Generator().manual_seed(1)) / 8).to(dtype)
    grad[..., 1, 0] = math.nan  # below the diagonal, where no gradient flows
    positions = positions_of_maxima(x).flatten(2)
    expected = torch.zeros(1, 3, T, dtype=torch.float64)
    expected.scatter_add_(2, positions, torch.where(torch.ones(T, T).triu() > 0, grad.double(), 0).flatten(2))
    leaf = x.to(device).requires_grad_()
    with ops.backend(backend):
        temporal_map_max_pool(leaf).backward(grad.to(device))
    assert leaf.grad is not None
    exact = {"rtol": 0.0, "atol": 0.0}  # sums of eighths, rounded once
    torch.testing.assert_close(leaf.grad.cpu(), expected.to(dtype), **exact)


@implementations()
@pytest.mark.parametrize(
    ("B", "C", "T", "P"),
    [
        (2, 2, 1000, 700),
        (1, 1, 4096, 3000),
        (1, 2, 5001, 300),
        (1, 1, 70_001, 500),
        (300, 2, 5, 3),
        (600, 2, 1, 9),
        (1, 3, 64, 1025),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("poison", [None, math.nan], ids=["ties", "nan"])
def test_lists_of_any_length(
    device: str, backend: str, B: int, C: int, T: int, P: int, dtype: torch.dtype, poison: float | None
) -> None:
    """Tables that fit into shared memory and ones that do not; rows that share a block and ones that several have."""
    x = random_x((B, C, T), dtype)
    if poison is not None:
        x[0, 0, [T // 3, T // 2]] = poison
    spans = random_span_list(P, T)
    spans[0] = torch.tensor([0, T - 1])
    spans[-1] = T - 1
    grad = (torch.randint(-8, 9, (B, C, P), generator=torch.Generator().manual_seed(1)) / 8).to(dtype)
    out, expected = torch.empty(B, C, P, dtype=dtype), torch.zeros(B, C, T, dtype=torch.float64)
    for p, (first, last) in enumerate(spans.tolist()):
        clips = x[:, :, first : last + 1]
        best = clips.argmax(2)  # the first of several
        if poison is not None:
            lasts = clips.shape[2] - 1 - clips.isnan().flip(2).int().argmax(2)
            best = torch.where(clips.isnan().any(2), lasts, best)
        out[:, :, p] = clips.gather(2, best[..., None])[..., 0]
        expected.scatter_add_(2, best[..., None] + first, grad[:, :, p, None].double())
    leaf = x.to(device).requires_grad_()
    with ops.backend(backend):
        ours = temporal_map_max_pool(leaf, spans.to(device))
        ours.backward(grad.to(device))
    exact = {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(ours.detach().cpu(), out, equal_nan=True, **exact)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad.cpu(), expected.to(dtype), **exact)  # sums of eighths, rounded once


@implementations()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_views_that_start_anywhere(device: str, backend: str, dtype: torch.dtype) -> None:
    """A contiguous view need not start where 16-byte loads may."""
    T = 16
    x, incoming = torch.zeros(3 * T + 1), torch.zeros(3 * T * T + 1)
    x[1:] = random_x((3 * T,), torch.float32)
    incoming[1:] = torch.randint(-8, 9, (3 * T * T,), generator=torch.Generator().manual_seed(1)) / 8
    spans = torch.cat([torch.zeros(1, dtype=torch.int64), random_span_list(9, T).flatten()]).to(device)[1:].view(9, 2)
    results = []
    for offset in (False, True):
        shifted = [t.to(device, dtype)[1:] if offset else t[1:].to(device, dtype) for t in (x, incoming)]
        leaf = shifted[0].view(1, 3, T).requires_grad_()
        with ops.backend(backend):
            out = temporal_map_max_pool(leaf)
            (grad,) = torch.autograd.grad(out, leaf, shifted[1].view(1, 3, T, T))
            results.append(
                (out.detach(), grad, temporal_map_max_pool(leaf, spans if offset else spans.clone()).detach())
            )
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_map_and_list_agree() -> None:
    x = random_x((2, 3, 12), torch.float32)
    mask = sparse_anchor_mask(12, (3, 2))
    assert torch.equal(temporal_map_max_pool(x, mask.nonzero()), temporal_map_max_pool(x)[:, :, mask])


@implementations()
def test_gradcheck(device: str, backend: str) -> None:
    x = torch.randn(2, 2, 5, dtype=torch.float64, device=device, requires_grad=True)
    spans = random_span_list(6, 5).to(device)
    with ops.backend(backend):
        assert torch.autograd.gradcheck(temporal_map_max_pool, (x,))
        assert torch.autograd.gradcheck(lambda x: temporal_map_max_pool(x, spans), (x,))


@implementations()
def test_deterministic_and_fully_written(device: str, backend: str) -> None:
    x = random_x((8, 64, 37), torch.float32).to(device)
    spans = random_span_list(500, 37).to(device)
    with ops.backend(backend):
        check_deterministic(temporal_map_max_pool, x)
        check_deterministic(lambda x: temporal_map_max_pool(x, spans), x)


CHANNELS, CLIPS, LISTED = 16, 100_000, 500_000


def a_long_list() -> Iterator[None]:
    """Spans of every length, up to the whole video."""
    x, spans = random_x((1, CHANNELS, CLIPS), torch.float32).requires_grad_(), random_span_list(LISTED, CLIPS)
    temporal_map_max_pool(x[:, :, :9], spans[:9] // CLIPS).sum().backward()  # whatever is loaded and started once
    x.grad = None
    grad = torch.ones(1, CHANNELS, LISTED)
    yield
    out = temporal_map_max_pool(x, spans)
    yield
    out.backward(grad)
    yield
    assert x.grad is not None
    assert x.grad.sum() == CHANNELS * LISTED
    for p in (0, 123_456, LISTED - 1):
        first, last = spans[p].tolist()
        assert torch.equal(out[:, :, p], x[:, :, first : last + 1].amax(2))


@linux_only
def test_any_length_in_bounded_memory_and_time() -> None:
    """500,000 spans of 100,000 clips, a third of the video long on average: read one by one, 270 billion clips."""
    forward, both = stages(a_long_list)
    mib = 4 / 2**20
    inputs = (CHANNELS * CLIPS + 2 * 2 * LISTED) * mib  # spans are int64
    outputs = CHANNELS * LISTED * mib
    assert outputs < forward.peak < 2 * (inputs + outputs), f"forward took {forward} for {inputs} in, {outputs} out"
    total = inputs + 2 * outputs + CHANNELS * CLIPS * mib  # the gradients too
    assert both.peak < 2 * total, f"forward and backward took {both} for {total} MiB of inputs, outputs and gradients"
    assert forward.seconds + both.seconds < 5, f"{forward}, {both}"


def test_registration() -> None:
    x, spans = torch.randn(2, 3, 5), random_span_list(4, 5)
    check_registration("temporal_map_max_pool", [(x,), (x.requires_grad_(),)])
    check_registration("temporal_map_max_pool_backward", [(torch.randn(2, 3, 5, 5), x.detach())])
    check_registration("temporal_map_max_pool_spans", [(x, spans), (x.detach(), spans)])
    check_registration("temporal_map_max_pool_spans_backward", [(torch.randn(2, 3, 4), x.detach(), spans, False)])


def test_compiles_without_graph_break() -> None:
    x, spans = torch.randn(2, 3, 5), random_span_list(4, 5)
    check_compiles(temporal_map_max_pool, x)
    check_compiles(temporal_map_max_pool, x, spans)


def test_second_derivative_is_refused() -> None:
    x = torch.randn(1, 1, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(temporal_map_max_pool(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="temporal_map_max_pool has no second derivative"):
        grad.sum().backward()


def test_autocast_keeps_the_dtype() -> None:
    """A maximum is exact in any dtype: nothing to cast."""
    with torch.autocast("cpu", torch.bfloat16):
        assert temporal_map_max_pool(torch.randn(1, 1, 4)).dtype == torch.float32
        assert temporal_map_max_pool(torch.randn(1, 1, 4).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("x", "spans", "message"),
    [
        (torch.zeros(2, 3), None, r"x has shape \[2, 3\]; it must be \[B, C, T\]"),
        (torch.zeros(1, 1, 3, dtype=torch.int64), None, "x has dtype torch.int64"),
        (torch.zeros(1, 1, 3), torch.zeros(4, dtype=torch.int64), r"spans has shape \[4\]"),
        (torch.zeros(1, 1, 3), torch.zeros(4, 2), "spans has dtype torch.float32"),
    ],
)
def test_wrong_arguments(x: Tensor, spans: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        temporal_map_max_pool(x, spans)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("span", [(2, 1), (-1, 1), (0, 3)])
def test_spans_outside_the_video(backend: str, span: tuple[int, int]) -> None:
    spans = torch.tensor([[0, 1], span])
    with ops.backend(backend), pytest.raises(RuntimeError, match=rf"spans\[1\] is \({span[0]}, {span[1]}\)"):
        temporal_map_max_pool(torch.zeros(1, 1, 3), spans)


def test_anchor_masks_by_hand() -> None:
    assert dense_anchor_mask(3).tolist() == [[True, True, True], [False, True, True], [False, False, True]]
    # Lengths 1, 2 at every clip; then 4, 6 (two apart) at every second one.
    anchors = {(int(i), int(j) - int(i) + 1) for i, j in sparse_anchor_mask(6, (2, 2)).nonzero()}
    assert anchors == {(i, 1) for i in range(6)} | {(i, 2) for i in range(5)} | {(0, 4), (2, 4), (0, 6)}


def test_anchor_masks_of_2d_tan() -> None:
    """ActivityNet: lengths 1..16 everywhere, 18..32 at every second clip, 36..64 at every fourth."""
    expected = {(i, n) for n in range(1, 17) for i in range(64 - n + 1)}
    expected |= {(i, n) for n in range(18, 33, 2) for i in range(0, 64 - n + 1, 2)}
    expected |= {(i, n) for n in range(36, 65, 4) for i in range(0, 64 - n + 1, 4)}
    assert {(int(i), int(j - i + 1)) for i, j in sparse_anchor_mask(64, (16, 8, 8)).nonzero()} == expected
    assert torch.equal(sparse_anchor_mask(16, (16,)), dense_anchor_mask(16))


def test_anchor_masks_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="T is -1"):
        dense_anchor_mask(-1)
    with pytest.raises(ValueError, match="layers is"):
        sparse_anchor_mask(4, ())
