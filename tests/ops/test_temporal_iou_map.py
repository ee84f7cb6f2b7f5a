from __future__ import annotations

import pytest
import torch

from vpgfast import ops
from vpgfast.ops import temporal_iou, temporal_iou_map

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

shapes = pytest.mark.parametrize(
    ("B", "M", "T"), [(2, 3, 8), (1, 1, 1), (2, 2, 33), (0, 2, 4), (2, 0, 4), (2, 3, 0), (3, 1, 5)]
)


def spans_for(B: int, M: int, dtype: torch.dtype = torch.float64, seed: int = 0):
    """On the lattice of quarters among others: ends then coincide with cells' ends."""
    generator = torch.Generator().manual_seed(seed)
    spans = random_spans(B, M, generator=generator)
    return torch.where(torch.rand(B, M, 1, generator=generator) < 0.5, (spans * 4).round() / 4, spans).to(dtype)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_by_hand(backend: str) -> None:
    with ops.backend(backend):
        out = temporal_iou_map(torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]), 2)
    # Cells: (0, 0.5), (0, 1), (0.5, 1). The second span is empty.
    assert out.tolist() == [[[[pytest.approx(1 / 3), 0.5], [0, pytest.approx(1 / 3)]], [[0, 0], [0, 0]]]]


def test_equals_temporal_iou_of_the_cells() -> None:
    spans, T = spans_for(2, 3), 7
    out = temporal_iou_map(spans, T)
    for i in range(T):
        for j in range(T):
            cell = torch.tensor([i / T, (j + 1) / T], dtype=torch.float64)
            expected = temporal_iou(spans, cell, pairwise=False) if j >= i else torch.zeros(2, 3, dtype=torch.float64)
            torch.testing.assert_close(out[:, :, i, j], expected)


@implementations()
@dtypes
@layouts
@shapes
def test_grid(device: str, backend: str, dtype: torch.dtype, layout: str, B: int, M: int, T: int) -> None:
    spans = LAYOUTS[layout](spans_for(B, M, dtype).to(device))
    compare(lambda s: temporal_iou_map(s, T), [spans], backend)


@implementations()
@dtypes
@pytest.mark.parametrize(("B", "M", "T"), [(2, 2, 64), (5, 3, 16), (1, 2, 132), (1, 1, 272), (300, 1, 2)])
def test_blocks_of_every_shape(device: str, backend: str, dtype: torch.dtype, B: int, M: int, T: int) -> None:
    """Maps that share a block, maps that several blocks share, packs that cross the diagonal or a row's end."""
    compare(lambda s: temporal_iou_map(s, T), [spans_for(B, M, dtype).to(device)], backend, of_scale=2e-6)


@implementations()
def test_gradcheck(device: str, backend: str) -> None:
    spans = random_spans(2, 2, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
    with ops.backend(backend):
        assert torch.autograd.gradcheck(lambda s: temporal_iou_map(s, 4), (spans,))


@implementations()
def test_deterministic_and_fully_written(device: str, backend: str) -> None:
    with ops.backend(backend):
        check_deterministic(lambda s: temporal_iou_map(s, 33), spans_for(8, 3, torch.float32).to(device))


def test_registration() -> None:
    spans = spans_for(2, 3, torch.float32)
    check_registration("temporal_iou_map", [(spans, 4), (spans.clone().requires_grad_(), 4)])
    check_registration("temporal_iou_map_backward", [(torch.randn(2, 3, 4, 4), spans)])


def test_compiles_without_graph_break() -> None:
    check_compiles(lambda s: temporal_iou_map(s, 5), spans_for(2, 3, torch.float32))


def test_autocast_computes_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert temporal_iou_map(spans_for(1, 1, torch.bfloat16), 4).dtype == torch.float32


def test_second_derivative_is_refused() -> None:
    spans = spans_for(1, 2).requires_grad_()
    (grad,) = torch.autograd.grad(temporal_iou_map(spans, 4).sum(), spans, create_graph=True)
    with pytest.raises(RuntimeError, match="temporal_iou_map has no second derivative"):
        grad.sum().backward()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"spans has shape \[2\]; it must be \[B, M, 2\]"):
        temporal_iou_map(torch.zeros(2), 4)
    with pytest.raises(ValueError, match="T is -1"):
        temporal_iou_map(torch.zeros(1, 1, 2), -1)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_inverted_span_is_named(backend: str) -> None:
    with ops.backend(backend), pytest.raises(RuntimeError, match="interval 1 of spans"):
        temporal_iou_map(torch.tensor([[[0.0, 1.0], [0.5, 0.25]]]), 4)
