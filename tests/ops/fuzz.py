"""Random calls of every public op: shapes, dtypes, memory layouts, optional arguments and edge values.

A case is drawn from its seed alone, so a failure is repeated by its number (see test_fuzz.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from vpgfast import ops

T = TypeVar("T")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WIDE_DTYPES = DTYPES[:2]
# What sums that torch forms in a dtype leave uncertain, as a share of the largest.
OF_SUMS = {torch.float32: 1e-5, torch.float64: 0.0, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@dataclass
class Case:
    """``function(*inputs)`` is to be compared with the reference, differentiated by all floating inputs."""

    function: Callable[..., Tensor]
    inputs: list[Tensor]
    tolerance: dict[str, Any] = field(default_factory=dict)  # for `compare`

    def __str__(self) -> str:
        values = dict(zip(self.function.__code__.co_freevars, self._closure(), strict=True))
        options = {k: v for k, v in values.items() if not isinstance(v, Draw | Tensor)}
        inputs = [f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}/{list(t.stride())}" for t in self.inputs]
        return f"inputs (shape/strides) {', '.join(inputs)}; {options}"

    def _closure(self) -> list[Any]:
        return [cell.cell_contents for cell in self.function.__closure__ or ()]


class Draw:
    """Random choices, all from one seed. ``finite`` leaves out NaN and infinities, ``factor`` makes larger sizes."""

    def __init__(self, seed: int, finite: bool = False, factor: int = 1) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.finite = finite
        self.factor = factor

    def integer(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def chance(self, probability: float = 0.5) -> bool:
        return float(torch.rand((), generator=self.generator)) < probability

    def choice(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]

    def size(self, most: int) -> int:
        """Up to ``most``, zero and one more often than their share."""
        return self.integer(0, 1) if self.chance(0.12) else self.integer(1, most * self.factor)

    def dtype(self, options: Sequence[torch.dtype] = DTYPES) -> torch.dtype:
        return self.choice(options)

    def uniform(self, *sizes: int) -> Tensor:
        return torch.rand(sizes, generator=self.generator, dtype=torch.float64)

    def numbers(self, *sizes: int) -> Tensor:
        """Normal float64 numbers, some of them equal and some exactly zero, of either sign."""
        x = torch.randn(sizes, generator=self.generator, dtype=torch.float64)
        return torch.where(self.uniform(*sizes) < 0.2, (x * 2).round() / 2, x)

    def with_specials(self, x: Tensor) -> Tensor:
        """Now and then NaN and infinities among the numbers."""
        if self.finite or self.chance(0.8):
            return x
        special = torch.tensor([math.nan, -math.nan, math.inf, -math.inf])[
            torch.randint(0, 4, x.shape, generator=self.generator)
        ]
        return torch.where(self.uniform(*x.shape) < 0.1, special.to(x.dtype), x)

    def mask(self, *sizes: int) -> Tensor:
        """Mostly mixed; all true, or all false, now and then."""
        share = self.choice((0.0, 1.0, 0.1, 0.5, 0.5, 0.9))
        return torch.rand(sizes, generator=self.generator) < share

    def intervals(self, *lead: int, low: float, high: float, step: float) -> Tensor:
        """Float64 [..., 2], rising. Some ends lie on a lattice, so that ends meet; some intervals are empty."""
        ends = self.uniform(*lead, 2) * (high - low) + low
        ends = torch.where(self.uniform(*lead, 1) < 0.4, (ends / step).round() * step, ends)
        ends = torch.where(self.uniform(*lead, 1) < 0.1, ends[..., :1], ends)
        return ends.sort(-1).values

    def layout(self, t: Tensor) -> Tensor:
        """The same numbers in another place; rarely, the first along a dimension in the place of all (expanded)."""
        if t.dim() == 0:
            return t
        dim = self.integer(0, t.dim() - 1)
        kind = self.choice(("contiguous", "transposed", "strided", "offset", "expanded"))
        if kind == "transposed":
            return t.transpose(0, dim).contiguous().transpose(0, dim)
        if kind == "strided":
            wide = t.new_zeros(*t.shape[:dim], 3 * t.shape[dim], *t.shape[dim + 1 :])
            view = wide.narrow(dim, 0, wide.shape[dim])[(slice(None),) * dim + (slice(1, None, 3),)]
            return view.copy_(t)
        if kind == "offset":
            return torch.cat([t.new_ones(3), t.flatten()])[3:].view(t.shape)
        if kind == "expanded" and t.shape[dim] > 0:
            return t.narrow(dim, 0, 1).expand_as(t)
        return t.contiguous()


CASES: dict[str, Callable[[Draw], Case]] = {}


def case(function: Callable[[Draw], Case]) -> Callable[[Draw], Case]:
    CASES[function.__name__] = function
    return function


def _iou(draw: Draw, function: Callable[..., Tensor]) -> Case:
    pairwise, dtype, mixed = draw.chance(0.7), draw.dtype(), draw.chance(0.2)
    lead = [draw.size(4) for _ in range(draw.integer(0, 2))]
    other = [1 if draw.chance(0.2) else n for n in lead][draw.integer(0, len(lead)) if draw.chance(0.2) else 0 :]
    counts = (draw.size(40), draw.size(40)) if pairwise else None
    low = draw.choice((-0.5, 0.0, 100.0))

    def side(lead: list[int], count: int | None, dtype: torch.dtype) -> Tensor:
        sizes = lead if count is None else [*lead, count]
        spans = draw.intervals(*sizes, low=low, high=low + 2, step=0.25).to(dtype)
        return draw.layout(spans) if spans.dim() < 2 else layout_of_pairs(draw, spans)

    a = side(lead, counts and counts[0], dtype)
    b = side(other, counts and counts[1], draw.dtype() if mixed else dtype)
    # Torch sums the gradients of what was broadcast in the dtype that they have.
    return Case(lambda a, b: function(a, b, pairwise), [a, b], {"of_scale": OF_SUMS[dtype]})


def layout_of_pairs(draw: Draw, pairs: Tensor) -> Tensor:
    """As ``layout``, but an interval's two ends stay two."""
    laid = draw.layout(pairs)
    return laid if laid.stride(-1) != 0 else pairs


@case
def temporal_iou(draw: Draw) -> Case:
    return _iou(draw, ops.temporal_iou)


@case
def temporal_giou(draw: Draw) -> Case:
    return _iou(draw, ops.temporal_giou)


@case
def temporal_iou_map(draw: Draw) -> Case:
    # Where a span's end meets a cell's is a kink: ends on a lattice only where every dtype holds i / T.
    size, dtype = draw.size(40), draw.dtype()
    spans = draw.uniform(draw.size(3), draw.size(3), 2).sort(-1).values
    if draw.chance(0.4):
        size, dtype = 2 ** draw.integer(0, 5), draw.dtype()
        spans = (spans * size).round() / size
    spans = layout_of_pairs(draw, spans.to(dtype))
    return Case(lambda spans: ops.temporal_iou_map(spans, size), [spans], {"of_scale": 1e-5})


@case
def temporal_nms(draw: Draw) -> Case:
    lead, N, dtype = [draw.size(3) for _ in range(draw.integer(0, 2))], draw.size(60), draw.dtype()
    # On a lattice of 1/64 IoU is formed without rounding but the division's: equal in every dtype.
    spans = (draw.uniform(*lead, N, 2).sort(-1).values * 64).round() / 64
    scores = (draw.numbers(*lead, N) * 4).round() / 4
    scores = torch.where(draw.uniform(*lead, N) < 0.1, -math.inf, draw.with_specials(scores))
    threshold = draw.choice((0.0, 1.0, 0.5, 0.25, float(draw.uniform())))
    top_k = draw.choice((None, draw.integer(0, 2 * N)))
    inputs = [layout_of_pairs(draw, spans.to(dtype)), draw.layout(scores.to(draw.choice((dtype, torch.float32))))]
    return Case(lambda spans, scores: ops.temporal_nms(spans, scores, threshold, top_k), inputs)


@case
def temporal_map_bce(draw: Draw) -> Case:
    B, M, size, dtype = draw.size(3), draw.size(3), draw.size(40), draw.dtype()
    logits = draw.numbers(B, M, size, size) * draw.choice((1, 4, 200))
    spans = draw.intervals(B, M, low=-0.2, high=1.2, step=0.125)
    mask_sizes = draw.choice(((), (1, 1), (B, 1), (1, M), (B, M)))
    sentence_mask = draw.mask(B, M) if draw.chance() else None
    bounds = draw.choice(((0.5, 1.0), (0.0, 1.0), (0.3, 0.7)))
    inputs = [draw.layout(logits.to(dtype)), layout_of_pairs(draw, spans.to(draw.choice((dtype, torch.float32))))]
    inputs += [draw.layout(draw.mask(*mask_sizes, size, size))]
    inputs += [] if sentence_mask is None else [draw.layout(sentence_mask)]

    def function(logits: Tensor, spans: Tensor, mask: Tensor, sentence_mask: Tensor | None = None) -> Tensor:
        return ops.temporal_map_bce(logits, spans, mask, *bounds, sentence_mask)

    return Case(function, inputs)


@case
def temporal_map_max_pool(draw: Draw) -> Case:
    x = draw.with_specials(draw.numbers(draw.size(4), draw.size(6), draw.size(24)))
    return Case(lambda x: ops.temporal_map_max_pool(x), [draw.layout(x.to(draw.dtype()))], {"exact": True})


@case
def temporal_map_max_pool_of_spans(draw: Draw) -> Case:
    size = draw.size(70)
    x = draw.with_specials(draw.numbers(draw.size(4), draw.size(6), size))
    ends = torch.randint(0, max(1, size), (draw.size(60) if size else 0, 2), generator=draw.generator)
    spans = layout_of_pairs(draw, ends.sort(-1).values.to(draw.choice((torch.int64, torch.int32))))
    x = draw.layout(x.to(draw.dtype()))
    return Case(lambda x, spans: ops.temporal_map_max_pool(x, spans), [x, spans], {"exact": True})


@case
def temporal_map_conv2d(draw: Draw) -> Case:
    k, padding = draw.integer(1, 10), draw.integer(0, 8)
    size = max(draw.size(13), k - 1 - 2 * padding)
    out_size = size + 2 * padding - k + 1
    B, C, D, dtype = draw.size(3), draw.size(36), draw.size(36), draw.dtype()
    x = draw.numbers(B, C, size, size)
    weight = draw.numbers(D, C, k, k) / max(1, C * k * k) ** 0.5
    # Sums on the ReLU's kink differ by a rounding only: the bias keeps sums of nothing off it.
    bias = draw.uniform(D) + 0.1 if draw.chance(0.7) else None
    activation = "relu" if bias is not None and dtype in WIDE_DTYPES and draw.chance() else None
    normalize, has_in, has_out = draw.chance(), draw.chance(0.7), draw.chance(0.7)
    inputs = [draw.layout(t.to(dtype)) for t in (x, weight, *(() if bias is None else (bias,)))]
    masks = [draw.layout(draw.mask(n, n)) for n, has in ((size, has_in), (out_size, has_out)) if has]

    def function(x: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        left = list(rest)
        given = [left.pop(0) if has else None for has in (bias is not None, has_in, has_out)]
        return ops.temporal_map_conv2d(x, weight, *given, padding, activation, normalize)  # type: ignore[arg-type]

    return Case(function, [*inputs, *masks], {"of_scale": 2e-5})


@case
def temporal_map_conv2d_cells(draw: Draw) -> Case:
    k, padding = draw.integer(1, 10), draw.integer(0, 8)
    size = max(draw.size(13), k - 1 - 2 * padding)
    out_size = size + 2 * padding - k + 1
    B, C, D, dtype = draw.size(3), draw.size(36), draw.size(36), draw.dtype()
    cells = [draw.mask(n, n).flatten().nonzero()[:, 0] for n in (size, out_size)]
    x = draw.numbers(B, len(cells[0]), C)
    weight = draw.numbers(D, C, k, k) / max(1, C * k * k) ** 0.5
    bias = draw.uniform(D) + 0.1  # as above
    activation = "relu" if dtype in WIDE_DTYPES and draw.chance() else None
    options = size, padding, activation, draw.chance()
    inputs = [draw.layout(t.to(dtype)) for t in (x, weight, bias)]
    return Case(lambda *t: ops.temporal_map_conv2d_cells(*t, *options), [*inputs, *cells], {"of_scale": 2e-5})


def _proposals(draw: Draw, B: int, P: int, size: int) -> Tensor:
    """Within and around the video, now and then far from it or enormous."""
    lead = (B, P) if draw.chance(0.3) else (P,)
    ends = draw.intervals(*lead, low=-0.3 * size - 3, high=1.3 * size + 3, step=0.5)
    scale, dtype = draw.choice(((1, torch.float64), (1, torch.bfloat16), (1e6, torch.float32), (1e300, torch.float64)))
    return layout_of_pairs(draw, (ends * scale).to(dtype))


@case
def sample_proposals(draw: Draw) -> Case:
    B, C, size, P, N, per_bin = (*(draw.size(n) for n in (3, 70, 40, 150)), draw.integer(1, 6), draw.integer(1, 4))
    inputs = [draw.layout(draw.numbers(B, C, size).to(draw.dtype())), _proposals(draw, B, P, size)]
    return Case(lambda x, proposals: ops.sample_proposals(x, proposals.detach(), N, per_bin), inputs)


@case
def proposal_conv(draw: Draw) -> Case:
    B, C, D, size, P = (draw.size(n) for n in (3, 20, 140, 30, 150))
    N, per_bin = draw.integer(1, 6), draw.integer(1, 4)
    # Where the samples come first their product runs in the tensors' dtype: not as exact in 16 bits.
    dtype = draw.dtype(WIDE_DTYPES if size > 2 * P else DTYPES)
    weight = draw.numbers(D, C, N) / max(1, C * N) ** 0.5
    inputs = [draw.numbers(B, C, size), weight, *([draw.numbers(D)] if draw.chance(0.7) else [])]
    inputs = [draw.layout(t.to(dtype)) for t in inputs]

    def function(proposals: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return ops.proposal_conv(x, proposals.detach(), weight, bias, per_bin)

    return Case(function, [_proposals(draw, B, P, size), *inputs], {"of_scale": 1e-5})


@case
def anchor_cross_attention(draw: Draw) -> Case:
    B, H, Q, size, d, e, f = (draw.size(n) for n in (5, 3, 11, 150, 40, 40, 40))
    H, e = max(H, int(draw.finite)), max(e, 1 - d)  # the mean over no heads is NaN
    sizes = ((B, H, Q, d), (B, H, Q, e), (B, H, size, d), (draw.choice((1, B)), H, size, e), (B, H, size, f))
    dtype, need_weights = draw.dtype(), draw.chance()
    inputs = [draw.layout(draw.numbers(*n).to(dtype)) for n in sizes]
    mask = draw.layout(draw.mask(B, size)) if draw.chance() else None
    intervals = None
    if draw.chance():
        intervals = draw.intervals(B, Q, low=-0.2 * size, high=1.2 * size, step=1.0)
        intervals = layout_of_pairs(draw, intervals.to(draw.choice((torch.float64, torch.float32))))

    def function(*inputs: Tensor) -> Tensor:
        key_mask = None if mask is None else mask.to(inputs[0].device)
        within = None if intervals is None else intervals.to(inputs[0].device)
        out, stats = ops.anchor_cross_attention(*inputs, key_mask, within, need_weights)  # type: ignore[misc]
        parts = [out, stats.centroid / max(1, size)]
        parts += [part for part in (stats.mass, stats.weights) if part is not None]
        return torch.cat([part.flatten().to(inputs[4].dtype) for part in parts])

    # Tensor cores round the attention to 10 bits before it is multiplied with v.
    return Case(function, inputs, {"of_scale": 2**-10 if dtype == torch.float16 else 1e-5})


@case
def anchor_embedding(draw: Draw) -> Case:
    lead = [draw.size(8) for _ in range(draw.integer(0, 2))]
    anchors = draw.numbers(*lead, 2) * draw.choice((0.3, 3)) if draw.chance(0.9) else torch.zeros(*lead, 2).double()
    D, temperature = 4 * draw.size(40), draw.choice((10000.0, 20.0, 1.0, 0.5))
    # An angle of many turns has as many roundings in float32 as it has radians.
    return Case(
        lambda anchors: ops.anchor_embedding(anchors, D, temperature),
        [draw.layout(anchors.to(draw.dtype()))],
        {"of_scale": 2e-5},
    )


def without_gradient(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Backward starts from the rounded probability p: where that is near 1, 16 bits say little of 1 - p."""
    return tuple(t.detach() for t in inputs)


@case
def ordered_suppression_scan(draw: Draw) -> Case:
    B, M, dtype = draw.size(3), draw.size(8), draw.dtype()
    z = draw.numbers(B, M, *(draw.size(30) for _ in range(draw.integer(0, 2)))) * draw.choice((1, 3, 30))
    masked, reverse, narrow = draw.chance(), draw.chance(), dtype not in WIDE_DTYPES
    inputs = [draw.layout(z.to(dtype)), draw.numbers(*draw.choice(((), (1,)))).to(dtype)]
    inputs += [draw.layout(draw.mask(B, M))] if masked else []

    def function(z: Tensor, bias: Tensor, sentence_mask: Tensor | None = None) -> Tensor:
        z, bias = without_gradient((z, bias)) if narrow else (z, bias)
        return ops.ordered_suppression_scan(z, bias, sentence_mask, reverse)

    return Case(function, inputs, {"of_scale": 1e-4})


@case
def pairwise_relevance(draw: Draw) -> Case:
    N, M, H, dtype = draw.size(40), draw.size(40), draw.size(70), draw.dtype()
    scale = 1 / max(1, H) ** 0.5
    inputs = [draw.numbers(N, H), draw.numbers(M, H), draw.numbers(H) * scale, draw.numbers(*draw.choice(((), (1,))))]
    narrow = dtype not in WIDE_DTYPES

    def function(*inputs: Tensor) -> Tensor:
        return ops.pairwise_relevance(*(without_gradient(inputs) if narrow else inputs))

    return Case(function, [draw.layout(t.to(dtype)) for t in inputs], {"of_scale": 1e-5})


def halves(draw: Draw, *sizes: int) -> Tensor:
    """Small multiples of 1/2, now and then among what is not finite: their sums are exact in any order."""
    return draw.with_specials((draw.numbers(*sizes) * 2).round() / 2)


@case
def ordered_spans(draw: Draw) -> Case:
    B, M, size, part = draw.size(3), draw.size(6), draw.size(60), draw.integer(0, 1)
    shortest = draw.choice((1, 1, 2, draw.integer(1, 70)))
    longest = draw.choice((None, shortest, draw.integer(shortest, 80)))
    overlap, penalty = draw.choice(("none", "starts")), draw.choice((None, 0.0, 0.5, 3.0))
    inputs = [draw.layout(halves(draw, B, M, size).to(draw.dtype()))]
    inputs += [draw.layout(draw.mask(B, M)), draw.layout(draw.uniform(B, size) < 0.95)]

    def function(gains: Tensor, sentences: Tensor, mask: Tensor) -> Tensor:
        return ops.ordered_spans(gains, shortest, longest, overlap, sentences, mask, penalty)[part]  # type: ignore[arg-type]

    return Case(function, inputs, {"exact": True})


@case
def ordered_candidates(draw: Draw) -> Case:
    B, M, P, part = draw.size(3), draw.size(6), draw.size(60), draw.integer(0, 1)
    overlap, penalty = draw.choice(("none", "starts")), draw.choice((None, 0.0, 0.5, 3.0))
    spans = draw.intervals(B, M, P, low=-1, high=3, step=0.25)
    spans = spans.to(draw.dtype()) if draw.chance() else (spans * 4).round().long()
    inputs = [layout_of_pairs(draw, spans), draw.layout(halves(draw, B, M, P).to(draw.dtype()))]
    inputs += [draw.layout(draw.mask(B, M))]

    def function(spans: Tensor, scores: Tensor, sentences: Tensor) -> Tensor:
        return ops.ordered_candidates(spans.detach(), scores, overlap, sentences, penalty)[part]  # type: ignore[arg-type]

    return Case(function, inputs, {"exact": True})


@case
def temporal_contrast_spans(draw: Draw) -> Case:
    B, M, size, part, top_k = draw.size(2), draw.size(3), draw.size(40), draw.integer(0, 1), draw.size(4)
    shortest = draw.choice((1, 1, 2, draw.integer(1, 45)))
    longest = draw.choice((None, shortest, draw.integer(shortest, 60)))
    threshold = draw.choice((0.0, 1.0, 0.5, 0.25, float(draw.uniform())))
    inputs = [draw.layout(halves(draw, B, M, size).to(draw.dtype())), draw.layout(draw.uniform(B, size) < 0.95)]
    if draw.chance():
        inputs += [draw.layout(draw.with_specials((draw.uniform(B, size) * 4).round() / 4).to(draw.dtype()))]

    def function(curves: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
        return ops.temporal_contrast_spans(curves, mask, shortest, longest, top_k, threshold, weights)[part]

    return Case(function, inputs, {"exact": True})
