from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from vpgfast import ops
from vpgfast.ops import temporal_contrast_spans, temporal_nms

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
    [
        {},
        {"top_k": 4},
        {"min_length": 2, "max_length": 9, "top_k": 3, "threshold": 0.0},
        {"min_length": 3, "top_k": 8, "threshold": 1.0, "max_length": 5},
    ],
    ids=str,
)


def lattice(*sizes: int, seed: int = 0, holes: float = 0.0) -> Tensor:
    """Multiples of 1/2, whose sums every dtype here holds exactly; some that are not finite."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, sizes, generator=generator, dtype=torch.float64) / 2
    special = torch.tensor([math.nan, math.inf, -math.inf])[torch.randint(0, 3, sizes, generator=generator)]
    return torch.where(torch.rand(sizes, generator=generator) < holes, special.double(), x)


def by_brute_force(
    values: list[float], weights: list[float], shortest: int, longest: int, top_k: int, threshold: float
) -> list[tuple[int, int, Fraction]]:
    """Every window in exact arithmetic, sorted, and the textbook's greedy suppression. Weight 0: not usable."""
    T = len(values)
    w = [
        Fraction(weight) if math.isfinite(value) else Fraction(0) for value, weight in zip(values, weights, strict=True)
    ]
    x = [Fraction(value) if math.isfinite(value) else Fraction(0) for value in values]
    windows = []
    for start in range(T):
        for end in range(start + shortest, min(start + longest, T) + 1):
            if all(w[start:end]):
                inside, outside = range(start, end), [*range(start), *range(end, T)]
                A, rest = sum(w[t] for t in inside), sum(w[t] for t in outside)
                score = Fraction(0)
                if rest:
                    score = sum(w[t] * x[t] for t in inside) / A - sum(w[t] * x[t] for t in outside) / rest
                windows.append((start, end, score))
    kept: list[tuple[int, int, Fraction]] = []
    for start, end, score in sorted(windows, key=lambda window: (-window[2], window[0], window[1])):
        if len(kept) < top_k and all(_iou(w, start, end, a, b) <= Fraction(threshold) for a, b, _ in kept):
            kept.append((start, end, score))
    return kept


def _iou(w: list[Fraction], start: int, end: int, other_start: int, other_end: int) -> Fraction:
    shared = sum(w[max(start, other_start) : min(end, other_end)], Fraction(0))
    return shared / (sum(w[start:end]) + sum(w[other_start:other_end]) - shared)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_by_hand(backend: str) -> None:
    curve = torch.tensor([[[0.0, 4.0, 4.0, 0.0, 2.0]]])
    with ops.backend(backend):
        spans, scores = temporal_contrast_spans(curve, top_k=3)
        # 4 - 2/3; (1, 4), 8/3 - 1, overlaps it by 2/3; three with IoU 1/2 are equal: 4 - 6/4 and 10/4 - 0.
        assert spans.tolist() == [[[[1, 3], [1, 2], [1, 5]]]]
        torch.testing.assert_close(scores, torch.tensor([[[4 - 2 / 3, 2.5, 2.5]]]))
        spans, _ = temporal_contrast_spans(curve, top_k=4, threshold=0.0)
        assert spans.tolist() == [[[[1, 3], [4, 5], [0, 1], [3, 4]]]]  # 0, then twice 0 - 10/4
        # One clip weighs three: the mean inside (1, 5) is (4 + 4 + 0 + 3 * 2) / 6 and outside 0.
        weights = torch.tensor([[1.0, 1.0, 1.0, 1.0, 3.0]])
        spans, scores = temporal_contrast_spans(curve, min_length=4, weights=weights)
        assert spans.tolist() == [[[[1, 5]]]]
        torch.testing.assert_close(scores, torch.tensor([[[14 / 6]]]))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_equals_and_empty_places(backend: str) -> None:
    with ops.backend(backend):
        # Nothing stands out: the earliest, then the shortest; the first two do not overlap more than half.
        spans, scores = temporal_contrast_spans(torch.full((1, 1, 4), 0.1), top_k=3)
        assert (spans.tolist(), scores.tolist()) == ([[[[0, 1], [0, 2], [0, 4]]]], [[[0.0, 0.0, 0.0]]])
        # Only the window of all clips is long enough.
        spans, scores = temporal_contrast_spans(torch.tensor([[[1.0, 2.0, 5.0]]]), min_length=3, top_k=2)
        assert (spans.tolist(), scores.tolist()) == ([[[[0, 3], [-1, -1]]]], [[[0.0, -math.inf]]])
        # Every other window falls short: all of the clips, at 0, come before them.
        spans, scores = temporal_contrast_spans(torch.tensor([[[1.0, -1.0, 1.0]]]), min_length=2)
        assert (spans.tolist(), scores.tolist()) == ([[[[0, 3]]]], [[[0.0]]])
        # More places than windows.
        spans, _ = temporal_contrast_spans(torch.tensor([[[2.0, 1.0]]]), top_k=5, threshold=1.0)
        assert spans.tolist() == [[[[0, 1], [0, 2], [1, 2], [-1, -1], [-1, -1]]]]
        # No usable clip, and too short a video.
        spans, scores = temporal_contrast_spans(torch.full((1, 1, 3), math.nan))
        assert (spans.tolist(), scores.tolist()) == ([[[[-1, -1]]]], [[[-math.inf]]])
        spans, scores = temporal_contrast_spans(torch.zeros(1, 1, 3), min_length=4)
        assert (spans.tolist(), scores.tolist()) == ([[[[-1, -1]]]], [[[-math.inf]]])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_clip_that_is_not_there_is_neither_inside_nor_outside(backend: str) -> None:
    curve = torch.tensor([[[1.0, 9.0, 3.0, math.nan, 0.0, 2.0]]])
    mask = torch.tensor([[True, False, True, True, True, True]])
    with ops.backend(backend):
        spans, scores = temporal_contrast_spans(curve, mask, top_k=9, threshold=0.0)
        # Usable: 1 | 3 | 0 2.
        assert spans[0, 0, :5].tolist() == [[2, 3], [5, 6], [0, 1], [4, 5], [-1, -1]]
        torch.testing.assert_close(scores[0, 0, :4], torch.tensor([2.0, 2 / 3, -2 / 3, -2.0]))
        weights = torch.tensor([[1.0, -1.0, 1.0, 1.0, 1.0, 1.0]])  # masks the same clip
        assert torch.equal(temporal_contrast_spans(curve, None, top_k=9, threshold=0.0, weights=weights)[0], spans)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_brute_force(backend: str) -> None:
    """2,000 small cases in exact arithmetic: the windows, the order of equals, the suppression, the scores."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for seed in range(2000):
        T = draw(0, 11)
        curve = lattice(1, 1, T, seed=seed, holes=0.15 * draw(0, 1))
        mask = torch.rand(1, T, generator=generator) < 0.9 if draw(0, 1) else None
        weights = torch.randint(0, 5, (1, T), generator=generator) / 4 if draw(0, 1) else None
        shortest = draw(1, 3)
        longest = draw(shortest, shortest + 4) if draw(0, 1) else None
        top_k, threshold = draw(0, 5), (0.0, 0.25, 0.5, 0.75, 1.0)[draw(0, 4)]
        with ops.backend(backend):
            spans, scores = temporal_contrast_spans(curve, mask, shortest, longest, top_k, threshold, weights)
        clip_weights = (torch.ones(T) if weights is None else weights[0]) * (1 if mask is None else mask[0])
        expected = by_brute_force(
            curve.flatten().tolist(), clip_weights.tolist(), shortest, longest or T, top_k, threshold
        )
        places = top_k - len(expected)
        assert spans[0, 0].tolist() == [[s, e] for s, e, _ in expected] + [[-1, -1]] * places, f"seed {seed}"
        assert scores[0, 0].tolist() == [float(score) for _, _, score in expected] + [-math.inf] * places


@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_reference_to_the_bit(weighted: bool) -> None:
    """Numbers whose sums round: all is computed in the same order."""
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        T = int(torch.randint(1, 90, (), generator=generator))
        curves = torch.randn(1, 2, T, generator=generator) + (1000 if seed % 3 == 0 else 0)
        if seed % 4 == 0:
            curves = curves.cumsum(-1)
        weights = torch.rand(1, T, generator=generator) if weighted else None
        options = {"min_length": 1 + seed % 5, "top_k": 4, "threshold": 0.3, "weights": weights}
        ours = temporal_contrast_spans(curves.double(), **options)
        with ops.backend("reference"):
            expected = temporal_contrast_spans(curves.double(), **options)
        assert torch.equal(ours[0], expected[0]), f"seed {seed}"
        assert torch.equal(ours[1], expected[1]), f"seed {seed}"


@implementations()
@dtypes
@layouts
@options
@pytest.mark.parametrize(("B", "M", "T"), [(2, 3, 20), (1, 1, 1), (0, 2, 4), (2, 0, 4), (2, 3, 0), (1, 2, 70)], ids=str)
def test_grid(device: str, backend: str, dtype: torch.dtype, layout: str, B: int, M: int, T: int, options) -> None:
    curves = LAYOUTS[layout](lattice(B, M, T, holes=0.02).to(dtype)).to(device)
    mask = (torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.95).to(device)
    weights = torch.randint(1, 5, (B, T), generator=torch.Generator().manual_seed(2)).to(device, dtype)
    options = options | {"mask": mask, "weights": weights if layout == "strided" else None}
    for part in (0, 1):
        compare(lambda c, part=part: temporal_contrast_spans(c, **options)[part], [curves], backend, exact=True)


@implementations()
@pytest.mark.parametrize(
    ("T", "options"),
    [
        (300, {"top_k": 3}),
        (1000, {"min_length": 40, "max_length": 200, "top_k": 4, "threshold": 0.25}),
        (5000, {"max_length": 40, "top_k": 3}),
    ],
    ids=str,
)
def test_more_blocks(device: str, backend: str, T: int, options: dict[str, Any]) -> None:
    """Enough positions for several levels of blocks; equals at every distance."""
    curves = torch.cat([lattice(1, 2, T, holes=0.005), lattice(1, 2, T, seed=1).cumsum(-1)]).to(device)
    compare(lambda c: temporal_contrast_spans(c, **options)[0], [curves], backend, exact=True)
    compare(lambda c: temporal_contrast_spans(c, **options)[1], [curves], backend, exact=True)


@implementations()
def test_many_curves(device: str, backend: str) -> None:
    curves = lattice(600, 2, 6, holes=0.02).to(device)
    compare(lambda c: temporal_contrast_spans(c, top_k=2)[0], [curves], backend, exact=True)


@implementations()
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(device: str, backend: str, weighted: bool) -> None:
    curves = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(device)
    weights = torch.rand(2, 9, generator=torch.Generator().manual_seed(4)).to(device) + 0.1 if weighted else None
    mask = torch.ones(2, 9, dtype=torch.bool, device=device)
    mask[1, 4] = False
    with ops.backend(backend):
        assert torch.autograd.gradcheck(
            lambda c: temporal_contrast_spans(c, mask, 1, 5, 3, 0.4, weights)[1], curves.requires_grad_()
        )


@implementations()
def test_gradient_of_what_has_no_outside_and_of_empty_places(device: str, backend: str) -> None:
    curves = torch.tensor([[[1.0, 2.0, math.nan], [math.nan, math.nan, math.nan]]], device=device, requires_grad=True)
    with ops.backend(backend):
        spans, scores = temporal_contrast_spans(curves, min_length=2, top_k=2)
        assert spans.tolist() == [[[[0, 2], [-1, -1]], [[-1, -1], [-1, -1]]]]
        (grad,) = torch.autograd.grad(scores, curves, torch.ones_like(scores))
    assert grad.tolist() == [[[0.0] * 3] * 2]


@implementations()
@options
def test_deterministic_and_fully_written(device: str, backend: str, options: dict[str, Any]) -> None:
    curves = lattice(5, 4, 120, holes=0.01).to(device)
    with ops.backend(backend):
        for part in (0, 1):
            check_deterministic(lambda c, part=part: temporal_contrast_spans(c, **options)[part], curves)


def test_keeps_what_temporal_nms_keeps() -> None:
    """Of all windows of a curve, scored one by one."""
    curve = lattice(1, 1, 40)
    spans = torch.combinations(torch.arange(41))[None, None].double()
    sums = torch.nn.functional.pad(curve[0, 0].cumsum(0), (1, 0))
    start, end = spans[0, 0].long().unbind(-1)
    inside = sums[end] - sums[start]
    scores = inside / (end - start) - (sums[-1] - inside) / (40 - (end - start)).clamp(min=1)
    scores[(end - start) == 40] = 0.0
    order = torch.argsort(torch.round(scores, decimals=9), descending=True, stable=True)  # rows are in order of start
    kept = temporal_nms(spans[0, 0, order], torch.arange(len(order), 0, -1).double(), 0.4, 6)
    assert torch.equal(temporal_contrast_spans(curve, top_k=6, threshold=0.4)[0][0, 0], spans[0, 0, order][kept].long())


def curves_of(T: int) -> dict[str, Tensor]:
    """Curves that are hard on a search that leaves out what it can bound: flat, smooth, or full of equals."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(T, generator=generator, dtype=torch.float64)
    time = torch.arange(T, dtype=torch.float64) / T
    return {
        "constant": torch.full((T,), 0.1, dtype=torch.float64),
        "linear": time,
        "falling": -time,
        "alternating": (torch.arange(T) % 2).double(),
        "spike": (torch.arange(T) == T // 3).double(),
        "step": (time > 0.6).double(),
        "two levels": ((time * 50).long() % 2).double(),
        "parabola": (time - 0.5) ** 2,
        "hill": -((time - 0.5) ** 2),
        "waves": torch.sin(20 * math.pi * time),
        "noisy waves": torch.sin(6 * math.pi * time) + 0.3 * noise,
        "random walk": noise.cumsum(0) / T**0.5,
        "noise": noise,
        "lattice": torch.randint(-3, 4, (T,), generator=generator).double(),
    }


@pytest.mark.parametrize("shortest", [1, 100])
@pytest.mark.parametrize("name", list(curves_of(1)))
def test_pairs_looked_at(name: str, shortest: int) -> None:
    """100,000 clips have two thousand million windows of up to 20,000: a few pairs of blocks a clip are looked at."""
    T = 100_000
    curve = curves_of(T)[name][None, None]
    scores, spans, pairs = torch.ops.vpgfast.temporal_contrast_spans(curve, None, None, shortest, 20_000, 2, 0.5)
    assert 2 <= int(pairs) <= 20 * T
    assert (scores[0, 0, :-1] >= scores[0, 0, 1:]).all()
    for (start, end), score in zip(spans[0, 0].tolist(), scores[0, 0].tolist(), strict=True):
        assert shortest <= end - start <= 20_000
        outside = torch.cat([curve[0, 0, :start], curve[0, 0, end:]])
        assert score == pytest.approx(float(curve[0, 0, start:end].mean() - outside.mean()), rel=1e-7, abs=1e-9)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["linear", "step", "random walk"])
def test_long_video_against_every_window(name: str) -> None:
    """100,000 clips and windows of up to 20,000, all of them, length by length."""
    T, longest = 100_000, 20_000
    curve = curves_of(T)[name]
    centred = torch.nn.functional.pad((curve - curve.mean()).cumsum(0), (1, 0))
    best, window = -math.inf, (-1, -1)
    for length in range(1, longest + 1):
        value, start = (centred[length:] - centred[:-length]).max(0)
        score = float(value) * T / (length * (T - length))
        if score > best * (1 + 1e-12):
            best, window = score, (int(start), int(start) + length)
    spans, scores = temporal_contrast_spans(curve[None, None], max_length=longest)
    assert scores.item() == pytest.approx(best, rel=1e-9)
    if name == "random walk":  # of the others thousands of windows are equal but for rounding
        assert tuple(spans[0, 0, 0].tolist()) == window


def test_registration() -> None:
    curves, mask = lattice(2, 3, 8).float(), torch.ones(2, 8, dtype=torch.bool)
    weights = torch.rand(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    check_registration(
        "temporal_contrast_spans",
        [
            (curves, mask, None, 1, 8, 3, 0.5),
            (curves.clone().requires_grad_(), None, weights, 2, 4, 2, 0.0),
        ],
    )


def test_compiles_without_graph_break() -> None:
    curves, mask = lattice(2, 3, 8).float(), torch.ones(2, 8, dtype=torch.bool)
    check_compiles(lambda c: temporal_contrast_spans(c, mask, top_k=2)[1], curves)


def test_autocast_computes_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        spans, scores = temporal_contrast_spans(lattice(1, 1, 9).bfloat16())
    assert (spans.dtype, scores.dtype) == (torch.int64, torch.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_length": 0}, "min_length is 0; it must be 1 or more"),
        ({"min_length": 3, "max_length": 2}, r"max_length is 2; it must be min_length \(3\) or more"),
        ({"top_k": -1}, "top_k is -1; it must be 0 or more"),
        ({"threshold": 1.5}, "threshold is 1.5; it must be from 0 to 1"),
        ({"threshold": math.nan}, "threshold is nan; it must be from 0 to 1"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, r"mask has shape \[2, 3\]; it must be \[2, 5\]"),
        ({"weights": torch.ones(2, 3)}, r"weights has shape \[2, 3\]; it must be \[2, 5\]"),
        ({"weights": torch.ones(2, 5, dtype=torch.int64)}, "weights has dtype torch.int64; it must be float32"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        temporal_contrast_spans(torch.zeros(2, 3, 5), **arguments)
