from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from vpgfast import ops
from vpgfast.ops import ordered_spans

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

Span = tuple[int, int] | None
options = pytest.mark.parametrize(
    "options",
    [
        {},
        {"overlap": "starts"},
        {"min_length": 2, "max_length": 4},
        {"min_length": 2, "max_length": 4, "overlap": "starts", "skip_penalty": 0.5},
        {"max_length": 3, "skip_penalty": 0.0},
    ],
    ids=str,
)


def lattice(*sizes: int, seed: int = 0, holes: float = 0.0) -> Tensor:
    """Multiples of 1/2, whose sums every dtype here holds exactly; some that are not finite."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, sizes, generator=generator, dtype=torch.float64) / 2
    special = torch.tensor([math.nan, math.inf, -math.inf])[torch.randint(0, 3, sizes, generator=generator)]
    return torch.where(torch.rand(sizes, generator=generator) < holes, special.double(), x)


def every_choice(
    gains: list[list[float]], present: list[bool], shortest: int, longest: int, by_starts: bool, may_skip: bool
) -> Iterator[list[Span]]:
    """Every choice of spans that the docstring allows."""
    T = len(gains[0]) if gains else 0
    options: list[list[Span]] = []
    for row, is_there in zip(gains, present, strict=True):
        spans: list[Span] = [
            (s, e)
            for s in range(T + 1)
            for e in range(s + shortest, min(s + longest, T) + 1)
            if all(map(math.isfinite, row[s:e]))
        ]
        options.append([None] if not is_there else spans + [None] * may_skip)
    for choice in itertools.product(*options):
        chosen = [span for span in choice if span]
        if all((a[0] if by_starts else a[1]) <= b[0] for a, b in itertools.pairwise(chosen)):
            yield list(choice)


def by_brute_force(
    gains: list[list[float]], present: list[bool], shortest: int, longest: int, by_starts: bool, penalty: float | None
) -> tuple[list[Span], float]:
    """The best choice and, of equals, the docstring's: compared from the last sentence to the first."""
    best: tuple[Any, list[Span]] | None = None
    for choice in every_choice(gains, present, shortest, longest, by_starts, penalty is not None):
        total, rank = 0.0, []
        reached = 0  # where the spans so far are over
        for row, is_there, span in zip(gains, present, choice, strict=True):
            if span:
                total += sum(row[slice(*span)])
                reached = span[0] if by_starts else span[1]
            elif is_there:
                total -= penalty or 0.0
            # Smaller is better: over first, then with a span, then the shorter one.
            rank.append((reached, span is None, span[1] - span[0] if span else 0))
        key = (-total, rank[::-1])
        if best is None or key < best[0]:
            best = key, choice
    return (best[1], -best[0][0]) if best else ([None] * len(gains), -math.inf)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_by_hand(backend: str) -> None:
    """Alone, each sentence would take clips 2 and 3; in order, the first has to do with clip 0."""
    gains = torch.tensor([[[2.0, -1.0, 3.0, 0.5, -1.0], [-1.0, -1.0, 4.0, 1.0, -1.0]]])
    with ops.backend(backend):
        spans, score = ordered_spans(gains)
        assert (spans.tolist(), score.tolist()) == ([[[0, 1], [2, 4]]], [7.0])
        spans, score = ordered_spans(gains, overlap="starts")
        assert (spans.tolist(), score.tolist()) == ([[[0, 4], [2, 4]]], [9.5])
        spans, score = ordered_spans(gains, min_length=3)
        assert (spans.tolist(), score.tolist()) == ([[[-1, -1], [-1, -1]]], [-math.inf])
        spans, score = ordered_spans(gains, min_length=3, skip_penalty=0.25)
        assert (spans.tolist(), score.tolist()) == ([[[0, 4], [-1, -1]]], [4.25])
        spans, score = ordered_spans(gains, sentence_mask=torch.tensor([[False, True]]))
        assert (spans.tolist(), score.tolist()) == ([[[-1, -1], [2, 4]]], [5.0])
        spans, score = ordered_spans(gains, mask=torch.tensor([[True, True, False, True, True]]))
        assert (spans.tolist(), score.tolist()) == ([[[0, 1], [3, 4]]], [3.0])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_ties(backend: str) -> None:
    with ops.backend(backend):
        # All equal: over first, and shortest.
        assert ordered_spans(torch.zeros(1, 2, 5))[0].tolist() == [[[0, 1], [1, 2]]]
        assert ordered_spans(torch.zeros(1, 2, 5), overlap="starts")[0].tolist() == [[[0, 1], [0, 1]]]
        # The sum of no span is as good, and over before: the first sentence, and so the second, has none.
        assert ordered_spans(torch.zeros(1, 2, 5), skip_penalty=0.0)[0].tolist() == [[[-1, -1], [-1, -1]]]
        # Without a sentence, over at once; a span as good as the penalty that is over no later is preferred to none.
        assert ordered_spans(torch.tensor([[[-1.0]]]), skip_penalty=1.0)[0].tolist() == [[[-1, -1]]]
        gains = torch.tensor([[[1.0], [-1.0]]])
        assert ordered_spans(gains, overlap="starts", skip_penalty=1.0)[0].tolist() == [[[0, 1], [0, 1]]]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_brute_force(backend: str) -> None:
    """2,000 small cases, sums exact: the sum and the choice among equals."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for seed in range(2000):
        M, T = (draw(0, 2), draw(0, 7)) if seed % 2 else (3, draw(1, 5))
        gains = lattice(1, M, T, seed=seed, holes=0.15 * draw(0, 1))
        present = torch.rand(1, M, generator=generator) < 0.8
        shortest = draw(1, 3)
        longest = draw(shortest, shortest + 3) if draw(0, 1) else None
        by_starts, penalty = bool(draw(0, 1)), (None, 0.0, 0.5, 1.0)[draw(0, 3)]
        with ops.backend(backend):
            overlap = "starts" if by_starts else "none"
            spans, score = ordered_spans(gains, shortest, longest, overlap, present, None, penalty)
        arguments = gains[0].tolist(), present[0].tolist(), shortest, longest or T, by_starts, penalty
        expected, total = by_brute_force(*arguments)
        found = [tuple(span) if span[0] >= 0 else None for span in spans[0].tolist()]
        assert (found, score.item()) == (expected, total), f"seed {seed}: {arguments}"


@implementations()
@dtypes
@layouts
@options
@pytest.mark.parametrize(
    ("B", "M", "T"), [(2, 3, 20), (1, 1, 1), (0, 2, 4), (2, 0, 4), (2, 3, 0), (3, 8, 70), (1, 2, 300)], ids=str
)
def test_grid(device: str, backend: str, dtype: torch.dtype, layout: str, B: int, M: int, T: int, options) -> None:
    gains = LAYOUTS[layout](lattice(B, M, T, holes=0.02).to(dtype)).to(device)
    mask = torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.95
    sentences = torch.rand(B, M, generator=torch.Generator().manual_seed(2)) < 0.8
    masks = {"mask": mask.to(device), "sentence_mask": sentences.to(device)}
    for part in (0, 1):
        compare(lambda g, part=part: ordered_spans(g, **options, **masks)[part], [gains], backend, exact=True)


@implementations()
@options
def test_equals_the_reference_on_any_numbers(device: str, backend: str, options: dict[str, Any]) -> None:
    """On the CPU to the bit, sums that round included; on CUDA the sum of the chosen spans is as large."""
    gains = torch.randn(3, 4, 200, generator=torch.Generator().manual_seed(0))
    with ops.backend(backend):
        spans, score = (t.cpu() for t in ordered_spans(gains.to(device), **options))
    with ops.backend("reference"):
        expected_spans, expected = ordered_spans(gains, **options)
    if device == "cpu":
        assert torch.equal(spans, expected_spans)
        assert torch.equal(score, expected)
    torch.testing.assert_close(score, expected)


@implementations()
def test_many_paragraphs(device: str, backend: str) -> None:
    gains = lattice(600, 2, 6, holes=0.02).to(device)
    compare(lambda g: ordered_spans(g, skip_penalty=0.5)[0], [gains], backend, exact=True)


@implementations()
def test_score_is_the_sum_inside_the_spans(device: str, backend: str) -> None:
    gains = torch.randn(2, 5, 3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    with ops.backend(backend):
        spans, score = ordered_spans(gains, 2, 900, skip_penalty=0.5)
    for b in range(2):
        inside = [float(gains[b, m, s:e].sum()) if s >= 0 else -0.5 for m, (s, e) in enumerate(spans[b].tolist())]
        assert float(score[b]) == pytest.approx(sum(inside))


@implementations()
@options
def test_gradcheck(device: str, backend: str, options: dict[str, Any]) -> None:
    gains = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(device)
    with ops.backend(backend):
        assert torch.autograd.gradcheck(lambda g: ordered_spans(g, **options)[1], gains.requires_grad_())


@implementations()
def test_gradient_is_one_inside(device: str, backend: str) -> None:
    gains = torch.tensor([[[1.0, -3.0, 2.0, 2.0], [math.nan, 0.0, 0.0, 4.0]]], device=device, requires_grad=True)
    with ops.backend(backend):
        (grad,) = torch.autograd.grad(ordered_spans(gains)[1].sum() * 3, gains)
    assert grad.tolist() == [[[0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 3.0]]]


@implementations()
@options
def test_deterministic_and_fully_written(device: str, backend: str, options: dict[str, Any]) -> None:
    gains = lattice(9, 4, 300, holes=0.01).to(device)
    with ops.backend(backend):
        for part in (0, 1):
            check_deterministic(lambda g, part=part: ordered_spans(g, **options)[part], gains)


@pytest.mark.parametrize("by_starts", [False, True])
@pytest.mark.parametrize("longest", [700, None])
def test_long_video(by_starts: bool, longest: int | None) -> None:
    """100,000 clips against a dynamic programme written with torch's running maxima and pooling."""
    M, T, shortest = 3, 100_000, 20
    gains = lattice(1, M, T)
    spans, score = ordered_spans(gains, shortest, longest, "starts" if by_starts else "none")
    best = torch.zeros(T + 1, dtype=torch.float64)
    for m in range(M):
        sums = torch.nn.functional.pad(gains[0, m].cumsum(0), (1, 0))
        values = sums.flip(0) if by_starts else best - sums
        values = values[: T + 1 - shortest]
        if longest is None:
            top = values.cummax(0).values
        else:
            width = longest - shortest + 1
            padded = torch.nn.functional.pad(values, (width - 1, 0), value=-math.inf)
            top = torch.nn.functional.max_pool1d(padded[None], width, 1)[0]
        top = torch.nn.functional.pad(top, (shortest, 0), value=-math.inf)
        best = (top.flip(0) - sums + best if by_starts else top + sums).cummax(0).values
    assert float(score) == float(best[-1])
    lengths = spans[0, :, 1] - spans[0, :, 0]
    assert ((lengths >= shortest) & (lengths <= (longest or T))).all()
    assert (spans[0, 1:, 0] >= spans[0, :-1, 0 if by_starts else 1]).all()
    inside = sum(float(gains[0, m, s:e].sum()) for m, (s, e) in enumerate(spans[0].tolist()))
    assert inside == float(score)


def test_registration() -> None:
    gains, present = lattice(2, 3, 8).float(), torch.tensor([[True, False, True], [True, True, True]])
    check_registration(
        "ordered_spans",
        [
            (gains, present, 1, 8, False, math.inf),
            (gains.clone().requires_grad_(), present, 2, 4, True, 0.5),
        ],
    )


def test_compiles_without_graph_break() -> None:
    gains, mask = lattice(2, 3, 8).float(), torch.ones(2, 8, dtype=torch.bool)
    check_compiles(lambda g: ordered_spans(g, 2, mask=mask)[1], gains)


def test_autocast_computes_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        spans, score = ordered_spans(torch.full((1, 1, 300), 1.0, dtype=torch.bfloat16))
    assert (spans.tolist(), score.dtype, score.tolist()) == ([[[0, 300]]], torch.float32, [300.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_length": 0}, "min_length is 0; it must be 1 or more"),
        ({"min_length": 3, "max_length": 2}, r"max_length is 2; it must be min_length \(3\) or more"),
        ({"overlap": "some"}, "overlap is 'some'; it must be 'none' or 'starts'"),
        ({"skip_penalty": -1.0}, "skip_penalty is -1.0; it must be 0 or more, or None"),
        ({"skip_penalty": math.inf}, "skip_penalty is inf; it must be 0 or more, or None"),
        ({"skip_penalty": math.nan}, "skip_penalty is nan; it must be 0 or more, or None"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, r"mask has shape \[2, 3\]; it must be \[2, 5\]"),
        ({"mask": torch.ones(2, 5)}, r"mask has dtype torch.float32; it must be torch.bool"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ordered_spans(torch.zeros(2, 3, 5), **arguments)
