from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vpgfast import ops
from vpgfast.ops import temporal_nms

from .grid import (
    LAYOUTS,
    check_compiles,
    check_deterministic,
    check_registration,
    dtypes,
    implementations,
    layouts,
    random_spans,
)


def by_loops(spans: list, scores: list, threshold: float, top_k: int) -> list[int]:
    """The textbook's greedy loop, in Python."""
    order = sorted((n for n, s in enumerate(scores) if s > -math.inf), key=lambda n: -scores[n])  # sorted is stable
    kept: list[int] = []
    for n in order:
        if len(kept) == top_k:
            break
        (start, end), apart = spans[n], True
        for k in kept:
            shared = max(0.0, min(end, spans[k][1]) - max(start, spans[k][0]))
            joined = (end - start) + (spans[k][1] - spans[k][0]) - shared
            apart = apart and (shared / joined if joined > 0 else 0.0) <= threshold
        if apart:
            kept.append(n)
    return kept + [-1] * (top_k - len(kept))


def random_list(lead: tuple[int, ...], N: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Spans on a lattice of 1/64 (IoU then rounds alike everywhere), scores with ties and some empty places."""
    generator = torch.Generator().manual_seed(seed)
    spans = (random_spans(*lead, N, generator=generator) * 64).round() / 64
    scores = (torch.randn(*lead, N, generator=generator, dtype=torch.float64) * 8).round() / 8
    scores[torch.rand(*lead, N, generator=generator) < 0.1] = -math.inf
    return spans.to(dtype), scores.to(dtype)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_by_hand(backend: str) -> None:
    spans = torch.tensor([[0.0, 4.0], [0.0, 3.0], [6.0, 8.0], [2.0, 6.0], [6.0, 8.0]])
    scores = torch.tensor([0.9, 0.8, 0.5, 0.7, 0.5])
    with ops.backend(backend):
        # (0, 3) has IoU 0.75 with the best, (2, 6) has 1/3; of the two equals the first stays.
        assert temporal_nms(spans, scores, 0.5).tolist() == [0, 3, 2, -1, -1]
        assert temporal_nms(spans, scores, 0.75, top_k=2).tolist() == [0, 1]  # kept at equality
        assert temporal_nms(spans, scores, 0.0, top_k=3).tolist() == [0, 2, -1]
        assert temporal_nms(spans, scores, 1.0).tolist() == [0, 1, 3, 2, 4]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_places_without_a_span(backend: str) -> None:
    spans = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    with ops.backend(backend):
        assert temporal_nms(spans, torch.tensor([-math.inf, 1.0, math.nan]), 0.5).tolist() == [1, -1, -1]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_an_end_that_is_nan_holds_no_span(backend: str) -> None:
    n = math.nan
    spans, scores = torch.tensor([[n, n], [0.0, 5.0], [10.0, 15.0], [n, 2.0], [0.0, n]]), torch.arange(5, 0, -1.0)
    with ops.backend(backend):
        assert temporal_nms(spans, scores, 0.5).tolist() == [1, 2, -1, -1, -1]
        assert temporal_nms(spans.flip(0), scores, 0.0).tolist() == [2, 3, -1, -1, -1]


@implementations()
@dtypes
@pytest.mark.parametrize(("N", "top_k"), [(40, 9), (40, None), (300, 8), (1500, None), (2500, 200)])
def test_spans_that_are_no_numbers(device: str, backend: str, dtype: torch.dtype, N: int, top_k: int | None) -> None:
    """NaN and infinite ends among others: one answer on every floor."""
    spans, scores = random_list((2,), N, dtype)
    spans[:, ::7, 0] = math.nan
    spans[:, 3::11, 1] = math.nan
    spans[:, 5::13, 1] = math.inf
    spans[:, 6::29] = math.inf
    spans[0, 8::31, 0] = -math.inf
    with ops.backend(backend):
        ours = temporal_nms(spans.to(device), scores.to(device), 0.45, top_k).cpu()
    with ops.backend("reference"):
        assert torch.equal(ours, temporal_nms(spans, scores, 0.45, top_k))


@implementations()
@dtypes
@pytest.mark.parametrize(
    ("L", "N", "top_k", "threshold", "length"),
    [
        (2, 3000, None, 0.5, 0.3),  # three tiles
        (1, 2100, 150, 0.2, 0.01),  # the second tile is the last that is needed
        (2, 2049, 1500, 1.0, 1.0),  # nothing overlaps too much: a tile's every span is kept
        (2, 1025, None, 0.0, 0.0),  # spans of no length
        (3, 257, 129, 0.4, 0.1),
        (1, 20_000, 20, 0.5, 0.2),  # more than shared memory holds
        (300, 5, 5, 0.5, 1.0),
        (2, 1025, 128, 0.9, 0.2),
    ],
    ids=str,
)
def test_long_lists(
    device: str, backend: str, dtype: torch.dtype, L: int, N: int, top_k: int | None, threshold: float, length: float
) -> None:
    spans, scores = random_list((L,), N, dtype)
    centres = (spans[..., :1].double() * 64).round() / 64
    spans = torch.cat([centres, centres + (spans.double().diff(dim=-1) * length * 64).round() / 64], -1).to(dtype)
    with ops.backend(backend):
        ours = temporal_nms(spans.to(device), scores.to(device), threshold, top_k).cpu()
    with ops.backend("reference"):
        assert torch.equal(ours, temporal_nms(spans, scores, threshold, top_k))


@implementations()
@dtypes
@layouts
@pytest.mark.parametrize(
    ("lead", "N", "top_k"),
    [((3,), 40, 5), ((), 1, 1), ((2, 2), 17, None), ((0,), 4, 3), ((2,), 0, 3), ((2,), 5, 0), ((2,), 300, 9)],
    ids=str,
)
def test_grid(device: str, backend: str, dtype: torch.dtype, layout: str, lead, N: int, top_k: int | None) -> None:
    spans, scores = random_list(lead, N, dtype)
    if lead:
        spans, scores = LAYOUTS[layout](spans), LAYOUTS[layout](scores)
    with ops.backend(backend):
        ours = temporal_nms(spans.to(device), scores.to(device), 0.45, top_k).cpu()
    with ops.backend("reference"):
        assert torch.equal(ours, temporal_nms(spans, scores, 0.45, top_k))
    k = N if top_k is None else top_k
    L = math.prod(lead)
    rows = zip(spans.reshape(L, N, 2).tolist(), scores.reshape(L, N).tolist(), strict=True)
    assert ours.reshape(L, k).tolist() == [by_loops(s, c, 0.45, k) for s, c in rows]


@implementations()
def test_deterministic_and_fully_written(device: str, backend: str) -> None:
    spans, scores = (t.to(device) for t in random_list((64,), 100, torch.float32))
    with ops.backend(backend):
        check_deterministic(lambda a, s: temporal_nms(a, s, 0.5, 20), spans, scores)


def test_registration() -> None:
    spans, scores = random_list((2,), 6, torch.float32)
    check_registration("temporal_nms", [(spans, scores, 0.5, 3)])


def test_compiles_without_graph_break() -> None:
    spans, scores = random_list((2,), 6, torch.float32)
    check_compiles(lambda a, s: temporal_nms(a, s, 0.5, 3), spans, scores)


def test_needs_no_gradient() -> None:
    spans, scores = (t.requires_grad_() for t in random_list((2,), 6, torch.float32))
    assert not temporal_nms(spans, scores, 0.5).requires_grad


@pytest.mark.parametrize(
    ("spans", "scores", "threshold", "top_k", "message"),
    [
        (torch.zeros(3), torch.zeros(3), 0.5, None, r"spans has shape \[3\]"),
        (torch.zeros(3, 2), torch.zeros(2), 0.5, None, r"scores has shape \[2\]; it must be \[3\]"),
        (torch.zeros(3, 2), torch.zeros(3), 1.5, None, "threshold is 1.5"),
        (torch.zeros(3, 2), torch.zeros(3), math.nan, None, "threshold is nan"),
        (torch.zeros(3, 2), torch.zeros(3), 0.5, -1, "top_k is -1"),
        (torch.zeros(3, 2).long(), torch.zeros(3), 0.5, 1, "spans has dtype torch.int64"),
    ],
)
def test_wrong_arguments(spans: Tensor, scores: Tensor, threshold: float, top_k: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        temporal_nms(spans, scores, threshold, top_k)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_inverted_span_is_named(backend: str) -> None:
    with ops.backend(backend), pytest.raises(RuntimeError, match="interval 1 of spans"):
        temporal_nms(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.zeros(2), 0.5)
