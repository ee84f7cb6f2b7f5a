from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vpgfast import ops
from vpgfast.ops import ordered_candidates, ordered_spans

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

options = pytest.mark.parametrize(
    "options",
    [{}, {"overlap": "starts"}, {"skip_penalty": 0.5}, {"overlap": "starts", "skip_penalty": 0.0}],
    ids=str,
)


def candidates(B: int, M: int, P: int, size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Spans on a lattice, some empty; scores that are multiples of 1/2, with some empty places."""
    generator = torch.Generator().manual_seed(seed)
    spans = torch.randint(0, size + 1, (B, M, P, 2), generator=generator, dtype=torch.float64).sort(-1).values / 4
    scores = torch.randint(-3, 4, (B, M, P), generator=generator, dtype=torch.float64) / 2
    empty = torch.tensor([math.nan, math.inf, -math.inf])[torch.randint(0, 3, (B, M, P), generator=generator)]
    return spans, torch.where(torch.rand(B, M, P, generator=generator) < 0.15, empty.double(), scores)


def by_brute_force(
    spans: list[list[list[float]]],
    scores: list[list[float]],
    present: list[bool],
    by_starts: bool,
    penalty: float | None,
) -> tuple[list[int], float]:
    """The best choice and, of equals, the docstring's: compared from the last sentence to the first."""
    lists = [
        [-1]
        if not is_there
        else [i for i, score in enumerate(row) if math.isfinite(score)] + [-1] * (penalty is not None)
        for row, is_there in zip(scores, present, strict=True)
    ]
    best: tuple[Any, list[int]] | None = None
    for choice in itertools.product(*lists):
        total, rank, reached, in_order = 0.0, [], -math.inf, True
        for m, i in enumerate(choice):
            length = 0.0
            if i >= 0:
                start, end = spans[m][i]
                total, length = total + scores[m][i], end - start
                in_order = in_order and start >= reached
                reached = start if by_starts else end
            elif present[m]:
                total -= penalty or 0.0
            rank.append((reached, i < 0, length, i))  # smaller is better
        key = (-total, rank[::-1])
        if in_order and (best is None or key < best[0]):
            best = key, list(choice)
    return (best[1], -best[0][0]) if best else ([-1] * len(present), -math.inf)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_by_hand(backend: str) -> None:
    """The best of the first sentence lies after all of the second's: its second best is taken."""
    spans = torch.tensor([[[[6.0, 9.0], [0.0, 2.0], [0.0, 0.0]], [[1.0, 4.0], [2.0, 5.0], [0.0, 1.0]]]])
    scores = torch.tensor([[[5.0, 2.0, -math.inf], [4.0, 3.0, 1.0]]])
    with ops.backend(backend):
        chosen, score = ordered_candidates(spans, scores)
        assert (chosen.tolist(), score.tolist()) == ([[1, 1]], [5.0])
        chosen, score = ordered_candidates(spans, scores, "starts")
        assert (chosen.tolist(), score.tolist()) == ([[1, 0]], [6.0])
        chosen, score = ordered_candidates(spans, scores, skip_penalty=0.0)
        assert (chosen.tolist(), score.tolist()) == ([[1, 1]], [5.0])
        chosen, score = ordered_candidates(spans, scores, sentence_mask=torch.tensor([[True, False]]))
        assert (chosen.tolist(), score.tolist()) == ([[0, -1]], [5.0])
        chosen, score = ordered_candidates(spans[:, :, :1], scores[:, :, :1])
        assert (chosen.tolist(), score.tolist()) == ([[-1, -1]], [-math.inf])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_ties(backend: str) -> None:
    spans = torch.tensor([[[[0, 3], [1, 2], [0, 2], [1, 2]]]])
    with ops.backend(backend):
        assert ordered_candidates(spans, torch.zeros(1, 1, 4))[0].item() == 1  # ends first, shortest, first of the list
        assert ordered_candidates(spans, torch.zeros(1, 1, 4), "starts")[0].item() == 2
        assert ordered_candidates(spans, torch.zeros(1, 1, 4), skip_penalty=0.0)[0].item() == -1  # over before any


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_brute_force(backend: str) -> None:
    """2,000 small cases, sums exact: the sum and the choice among equals."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(2000):
        M, P = (int(torch.randint(0, most + 1, (), generator=generator)) for most in (4, 4))
        spans, scores = candidates(1, M, P, seed=seed)
        present = torch.rand(1, M, generator=generator) < 0.8
        by_starts, penalty = bool(seed % 2), (None, 0.0, 0.5, 1.0)[seed // 2 % 4]
        with ops.backend(backend):
            chosen, score = ordered_candidates(spans, scores, "starts" if by_starts else "none", present, penalty)
        arguments = spans[0].tolist(), scores[0].tolist(), present[0].tolist(), by_starts, penalty
        assert (chosen[0].tolist(), score.item()) == by_brute_force(*arguments), f"seed {seed}: {arguments}"


@pytest.mark.parametrize("overlap", ["none", "starts"])
@pytest.mark.parametrize("skip_penalty", [None, 0.5])
def test_equals_ordered_spans_on_all_spans(overlap: Any, skip_penalty: float | None) -> None:
    gains = torch.randint(-4, 5, (3, 4, 12), generator=torch.Generator().manual_seed(0)).float()
    spans = torch.combinations(torch.arange(13))
    sums = torch.nn.functional.pad(gains.cumsum(-1), (1, 0))
    scores = sums[..., spans[:, 1]] - sums[..., spans[:, 0]]
    options = {"overlap": overlap, "skip_penalty": skip_penalty}
    chosen, score = ordered_candidates(spans.expand(3, 4, -1, 2), scores, **options)
    expected_spans, expected = ordered_spans(gains, **options)
    assert torch.equal(score, expected)
    assert torch.equal(torch.where(chosen[..., None] >= 0, spans[chosen], -1), expected_spans)


@implementations()
@dtypes
@layouts
@options
@pytest.mark.parametrize(
    ("B", "M", "P"), [(2, 3, 20), (1, 1, 1), (0, 2, 4), (2, 0, 4), (2, 3, 0), (3, 8, 300)], ids=str
)
def test_grid(device: str, backend: str, dtype: torch.dtype, layout: str, B: int, M: int, P: int, options) -> None:
    spans, scores = candidates(B, M, P, size=64)
    spans = spans.to(dtype) if layout == "contiguous" else LAYOUTS[layout](spans.flatten(2)).unflatten(2, (P, 2))
    scores = LAYOUTS[layout](scores.to(dtype))
    sentences = (torch.rand(B, M, generator=torch.Generator().manual_seed(2)) < 0.8).to(device)
    inputs = [spans.to(device), scores.to(device)]
    for part in (0, 1):
        compare(
            lambda spans, scores, part=part: ordered_candidates(
                spans.detach(), scores, sentence_mask=sentences, **options
            )[part],
            inputs,
            backend,
            exact=True,
        )


@implementations()
def test_many_paragraphs(device: str, backend: str) -> None:
    inputs = [t.to(device) for t in candidates(2100, 2, 3)]
    compare(lambda spans, scores: ordered_candidates(spans.detach(), scores)[0], inputs, backend, exact=True)


@implementations()
@options
def test_gradcheck(device: str, backend: str, options: dict[str, Any]) -> None:
    spans = (candidates(2, 3, 6)[0] + torch.arange(3).view(3, 1, 1)).to(device)  # there is a choice
    scores = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    with ops.backend(backend):
        assert torch.autograd.gradcheck(lambda s: ordered_candidates(spans, s, **options)[1], scores.requires_grad_())


@implementations()
def test_whole_numbers_and_their_empty_places(device: str, backend: str) -> None:
    """What temporal_contrast_spans returns goes in as it is: int64 spans, (-1, -1) with a score of -inf for none."""
    spans = torch.tensor([[[[0, 3], [-1, -1]], [[2, 4], [5, 7]]]], device=device)
    scores = torch.tensor([[[1.0, -math.inf], [2.0, 1.0]]], device=device)
    with ops.backend(backend):
        chosen, score = ordered_candidates(spans, scores)
    assert (chosen.tolist(), score.tolist()) == ([[0, 1]], [2.0])


@implementations()
@options
def test_deterministic_and_fully_written(device: str, backend: str, options: dict[str, Any]) -> None:
    spans, scores = (t.to(device) for t in candidates(40, 4, 100, size=64))
    with ops.backend(backend):
        for part in (0, 1):
            check_deterministic(lambda s, part=part: ordered_candidates(spans, s, **options)[part], scores)


def test_registration() -> None:
    spans, scores = candidates(2, 3, 5)
    present = torch.tensor([[True, False, True], [True, True, True]])
    check_registration(
        "ordered_candidates",
        [
            (spans, scores, present, False, math.inf),
            (spans, scores.nan_to_num(0.0, 0.0, 0.0).requires_grad_(), present, True, 0.5),
        ],
    )


def test_compiles_without_graph_break() -> None:
    spans, scores = candidates(2, 3, 5)
    check_compiles(lambda s: ordered_candidates(spans, s, skip_penalty=0.5)[1], scores)


def test_autocast_computes_in_float32() -> None:
    spans, scores = candidates(2, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert ordered_candidates(spans, scores.bfloat16())[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overlap": "some"}, "overlap is 'some'; it must be 'none' or 'starts'"),
        ({"skip_penalty": -1.0}, "skip_penalty is -1.0; it must be 0 or more, or None"),
        ({"scores": torch.zeros(2, 3, 5)}, r"scores has shape \[2, 3, 5\]; it must be \[2, 3, 4\]"),
        (
            {"spans": torch.zeros(2, 3, 4, 2, dtype=torch.int32)},
            "spans has dtype torch.int32; it must be float32, .*int64",
        ),
        ({"sentence_mask": torch.ones(2, 3)}, "sentence_mask has dtype torch.float32; it must be torch.bool"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    valid = {"spans": torch.zeros(2, 3, 4, 2), "scores": torch.zeros(2, 3, 4)}
    with pytest.raises(ValueError, match=message):
        ordered_candidates(**valid | arguments)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_inverted_span_is_named(backend: str) -> None:
    with ops.backend(backend), pytest.raises(RuntimeError, match="interval 1 of spans"):
        ordered_candidates(torch.tensor([[[[0.0, 1.0], [2.0, 1.0]]]]), torch.zeros(1, 1, 2))
