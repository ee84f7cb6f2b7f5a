"""ordered_spans and ordered_candidates against a plain Python loop and against running maxima in PyTorch.

Nobody has published code for either; in the place of the field's code stands the dynamic programme as one writes it in
Python, with the same choice and the same O(M T) steps.
"""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import Tensor

from vpgfast.ops import ordered_candidates, ordered_spans

from .measure import Provider, measure


def packed(choice: Tensor, score: Tensor) -> Tensor:
    return torch.cat([choice.flatten().double(), score.flatten().double()])


def python_loop(gains: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """The textbook's: the best sum for every end, the candidates for its start in a monotone queue."""
    B, M, T = gains.shape
    spans, scores = torch.zeros(B, M, 2, dtype=torch.int64), torch.zeros(B, dtype=torch.float64)
    for b in range(B):
        best, choices = [0.0] * (T + 1), []
        for row in gains[b].tolist():
            total, highest, new, choice = 0.0, float("-inf"), [float("-inf")] * (T + 1), [(0, 0)] * (T + 1)
            starts: deque[tuple[float, int]] = deque()
            for end in range(1, T + 1):
                value = best[end - 1] - total
                while starts and starts[-1][0] <= value:
                    starts.pop()
                starts.append((value, end - 1))
                if starts[0][1] < end - longest:
                    starts.popleft()
                total += row[end - 1]
                if starts[0][0] + total > highest:
                    highest, choice[end] = starts[0][0] + total, (starts[0][1], end)
                else:
                    choice[end] = choice[end - 1]
                new[end] = highest
            best = new
            choices.append(choice)
        scores[b], at = best[T], T
        for m in range(M - 1, -1, -1):
            spans[b, m] = torch.tensor(choices[m][at])
            at = choices[m][at][0]
    return spans, scores


def running_maxima(gains: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """All paragraphs at once, a few passes a sentence: the best plain PyTorch that we found."""
    B, M, T = gains.shape
    best = gains.new_zeros(B, T + 1, dtype=torch.float64)
    starts, ends = [], []
    for m in range(M):
        sums = torch.nn.functional.pad(gains[:, m].double().cumsum(-1), (1, 0))
        values = (best - sums)[:, :-1]
        if longest >= T:
            value, start = values.cummax(-1)
        else:
            padded = torch.nn.functional.pad(values, (longest - 1, 0), value=-torch.inf)
            value, start = torch.nn.functional.max_pool1d(padded, longest, 1, return_indices=True)
            start = start - (longest - 1)
        best, end = (value + sums[:, 1:]).cummax(-1)
        best = torch.nn.functional.pad(best, (1, 0), value=-torch.inf)
        starts.append(start)
        ends.append(torch.nn.functional.pad(end + 1, (1, 0)))
    at = torch.full((B, 1), T)
    spans = []
    for m in range(M - 1, -1, -1):
        end = ends[m].gather(1, at)
        at = starts[m].gather(1, (end - 1).clamp(min=0))
        spans.append(torch.cat([at, end], 1))
    return torch.stack(spans[::-1], 1), best[:, -1]


@pytest.mark.parametrize(
    ("B", "M", "T", "longest"),
    [
        *((16, 4, 200, 200), (128, 4, 200, 200), (4, 8, 2000, 2000), (4, 8, 2000, 200), (32, 8, 2000, 200)),
        (1, 8, 100_000, 100_000),
    ],
)
def test_ordered_spans(B: int, M: int, T: int, longest: int, record) -> None:
    gains = torch.randn(B, M, T, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(running_maxima)
    providers = [
        Provider("Python loop", lambda g: python_loop(g, longest), is_fields=True),
        Provider("running maxima", lambda g: running_maxima(g, longest)),
        Provider("running maxima, compiled", lambda g: compiled(g, longest)),
        Provider("vpgfast", lambda g: ordered_spans(g, max_length=longest), is_ours=True),
    ]
    floors = {"forward": 4 * gains.numel()}
    shape = f"B={B} M={M} T={T} up to {longest}"
    record(measure("ordered_spans", shape, providers, [gains], floor_bytes=floors, tolerance=1e-6, packed=packed))


def python_loop_over_candidates(spans: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """For every candidate, the best of the sentence before that ends by its start."""
    B, M, _ = scores.shape
    chosen, total = torch.zeros(B, M, dtype=torch.int64), torch.zeros(B, dtype=torch.float64)
    for b in range(B):
        before, links = [(0.0, 0.0)], []
        for pairs, row in zip(spans[b].tolist(), scores[b].tolist(), strict=True):
            values, link = [], []
            for (start, _), score in zip(pairs, row, strict=True):
                value, best = max(
                    ((value, i) for i, (end, value) in enumerate(before) if end <= start), default=(float("-inf"), 0)
                )
                values.append(value + score)
                link.append(best)
            before = [(end, value) for (_, end), value in zip(pairs, values, strict=True)]
            links.append(link)
        total[b], at = max((value, i) for i, (_, value) in enumerate(before))
        for m in range(M - 1, -1, -1):
            chosen[b, m] = at
            at = links[m][at]
    return chosen, total


def pairs_of_candidates(spans: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The same of all pairs of candidates at once."""
    _, M, _ = scores.shape
    value, links = scores[:, 0].double(), []
    for m in range(1, M):
        allowed = spans[:, m - 1, None, :, 1] <= spans[:, m, :, None, 0]
        before, link = torch.where(allowed, value[:, None], -torch.inf).max(-1)
        value = before + scores[:, m]
        links.append(link)
    total, at = value.max(-1, keepdim=True)
    chosen = [at]
    for link in reversed(links):
        chosen.append(link.gather(1, chosen[-1]))
    return torch.cat(chosen[::-1], 1), total[:, 0]


@pytest.mark.parametrize(("B", "M", "P"), [(16, 4, 100), (4, 8, 1000)])
def test_ordered_candidates(B: int, M: int, P: int, record) -> None:
    generator = torch.Generator().manual_seed(0)
    spans = torch.rand(B, M, P, 2, generator=generator).sort(-1).values
    scores = torch.randn(B, M, P, generator=generator)
    compiled = torch.compile(pairs_of_candidates)
    providers = [
        Provider("Python loop", python_loop_over_candidates, is_fields=True),
        Provider("all pairs", pairs_of_candidates),
        Provider("all pairs, compiled", compiled),
        Provider("vpgfast", ordered_candidates, is_ours=True),
    ]
    floors = {"forward": 4 * 3 * scores.numel()}
    shape = f"B={B} M={M} P={P}"
    record(measure("ordered_candidates", shape, providers, [spans, scores], floor_bytes=floors, packed=packed))
