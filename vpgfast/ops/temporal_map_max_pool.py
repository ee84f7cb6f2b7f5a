"""Max-pooled features of every moment of a video: 2D-TAN's and DMR-JRG's 2D temporal map, and its anchor sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import accumulate_dtype, check_floating, check_same_device, check_shape
from ._registry import define, differentiable, no_second_derivative


def temporal_map_max_pool(x: Tensor, spans: Tensor | None = None) -> Tensor:
    """Maximum over the clips of every moment, or of the listed moments.

    ``out[b, c, i, j] = max(x[b, c, i], ..., x[b, c, j])`` for i <= j, and zero below the diagonal. With ``spans``,
    ``out[b, c, p]`` is the maximum from clip ``spans[p, 0]`` to clip ``spans[p, 1]``, both included, and no T x T map
    is made. NaN propagates. The gradient of a cell goes to its largest clip: the first on ties, the last NaN where
    there are several (as ``torch.nn.MaxPool1d`` has it).

    Source: 2D-TAN (Zhang et al., AAAI 2020), section 3.2; DMR-JRG's moment map.

    Args:
        x: floating [B, C, T] clip features.
        spans: int64 [P, 2] first and last clip of each moment, 0 <= first <= last < T; on the device of ``x``.

    Returns:
        [B, C, T, T], or [B, C, P] with ``spans``; dtype of ``x``.

    Raises:
        ValueError: wrong shape, dtype or device.
        RuntimeError: a span outside the video or with last < first (on CUDA: a device-side assertion).
    """
    check_floating("x", x)
    check_shape("x", x, ("B", "C", "T"))
    if spans is None:
        return torch.ops.vpgfast.temporal_map_max_pool(x)
    check_shape("spans", spans, ("P", 2))
    check_same_device("spans", spans, "x", x)
    if spans.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"spans has dtype {spans.dtype}; it must be int64 (first and last clip)")
    return torch.ops.vpgfast.temporal_map_max_pool_spans(x, spans.long())


def dense_anchor_mask(T: int) -> Tensor:
    """Every moment is an anchor: bool [T, T], true on and above the diagonal.

    Source: 2D-TAN's dense anchors (Charades, T = 16).
    """
    if T < 0:
        raise ValueError(f"T is {T}; it must be a number of clips, 0 or more")
    return torch.ones(T, T, dtype=torch.bool).triu()


def sparse_anchor_mask(T: int, layers: Sequence[int] = (16, 8, 8)) -> Tensor:
    """2D-TAN's sparse anchors: all short moments, longer ones ever more coarsely.

    Layer k adds ``layers[k]`` lengths, 2^k clips apart, of moments that start at every 2^k-th clip. ``(16, 8, 8)`` is
    for ActivityNet (T = 64), ``(16, 8, 8, 8)`` for TACoS (T = 128), ``(16,)`` for Charades (T = 16: all of them).

    Source: 2D-TAN (Zhang et al., AAAI 2020), Fig. 3 and its released sparse pooling.

    Returns:
        bool [T, T], true where moment (i, j) is an anchor.
    """
    if T < 0:
        raise ValueError(f"T is {T}; it must be a number of clips, 0 or more")
    if not layers or min(layers) < 0:
        raise ValueError(f"layers is {tuple(layers)}; it must be numbers of lengths, each 0 or more")
    mask = torch.zeros(T, T, dtype=torch.bool)
    offset = -1
    for k, lengths in enumerate(layers):
        stride = 2**k
        for _ in range(lengths):
            offset += stride
            starts = torch.arange(0, max(T - offset, 0), stride)
            mask[starts, starts + offset] = True
    return mask


def _argmax_update(x: Tensor) -> Tensor:
    """Position of the maximum of every moment, [B, C, T, T]: a later clip takes over if it is larger or NaN."""
    B, C, T = x.shape
    position = torch.zeros(B, C, T, T, dtype=torch.int64, device=x.device)
    for i in range(T):
        best = torch.full((B, C), i, dtype=torch.int64, device=x.device)
        for j in range(i, T):
            largest = x.gather(2, best[..., None])[..., 0]
            best = torch.where((x[:, :, j] > largest) | x[:, :, j].isnan(), j, best)
            position[:, :, i, j] = best
    return position


def _reference(x: Tensor) -> Tensor:
    B, C, T = x.shape
    rows = [torch.cummax(x[:, :, i:], dim=2).values for i in range(T)]
    rows = [torch.nn.functional.pad(row, (T - row.shape[2], 0)) for row in rows]
    return torch.stack(rows, dim=2) if rows else x.new_empty(B, C, T, T)


def _reference_backward(grad: Tensor, x: Tensor) -> Tensor:
    B, C, T = x.shape
    accumulate = accumulate_dtype(x.dtype)
    upper = torch.ones(T, T, dtype=torch.bool, device=x.device).triu()
    weight = torch.where(upper, grad, 0).to(accumulate)
    grad_x = torch.zeros(B, C, T, dtype=accumulate, device=x.device)
    return grad_x.scatter_add(2, _argmax_update(x).flatten(2), weight.flatten(2)).to(x.dtype)


def _check_spans(spans: Tensor, T: int) -> None:
    first, last = spans.unbind(1)
    bad = ((first < 0) | (first > last) | (last >= T)).nonzero()
    if bad.numel():
        p = int(bad[0])
        raise RuntimeError(
            f"temporal_map_max_pool: spans[{p}] is ({int(first[p])}, {int(last[p])}); "
            f"it must be first and last clip with 0 <= first <= last < T = {T}"
        )


def _span_argmax(x: Tensor, spans: Tensor) -> Tensor:
    """Position of the maximum of every listed moment, [B, C, P]."""
    _check_spans(spans, x.shape[2])
    best = spans[:, 0].expand(*x.shape[:2], -1)
    longest = int((spans[:, 1] - spans[:, 0]).max()) if spans.numel() else 0
    for step in range(1, longest + 1):
        candidate = torch.minimum(spans[:, 0] + step, spans[:, 1]).expand_as(best)
        value, largest = x.gather(2, candidate), x.gather(2, best)
        best = torch.where((value > largest) | value.isnan(), candidate, best)
    return best


def _reference_spans(x: Tensor, spans: Tensor) -> Tensor:
    return x.gather(2, _span_argmax(x, spans))


def _reference_spans_backward(grad: Tensor, x: Tensor, spans: Tensor, deterministic: bool) -> Tensor:
    accumulate = accumulate_dtype(x.dtype)
    grad_x = torch.zeros(x.shape, dtype=accumulate, device=x.device)
    return grad_x.scatter_add(2, _span_argmax(x, spans), grad.to(accumulate)).to(x.dtype)


def _like_x(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


define(
    "temporal_map_max_pool(Tensor x) -> Tensor",
    reference=_reference,
    fake=lambda x: x.new_empty(*x.shape, x.shape[2]),
)
define(
    "temporal_map_max_pool_backward(Tensor grad, Tensor x) -> Tensor",
    reference=_reference_backward,
    fake=_like_x,
)
define(
    "temporal_map_max_pool_spans(Tensor x, Tensor spans) -> Tensor",
    reference=_reference_spans,
    fake=lambda x, spans: x.new_empty(x.shape[0], x.shape[1], spans.shape[0]),
)
define(
    "temporal_map_max_pool_spans_backward(Tensor grad, Tensor x, Tensor spans, bool deterministic) -> Tensor",
    reference=_reference_spans_backward,
    fake=_like_x,
)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    return torch.ops.vpgfast.temporal_map_max_pool_backward(grad, *ctx.saved_tensors)


def _backward_spans(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    return torch.ops.vpgfast.temporal_map_max_pool_spans_backward(grad, *ctx.saved_tensors, deterministic), None


differentiable("temporal_map_max_pool", _backward, _save)
differentiable("temporal_map_max_pool_spans", _backward_spans, _save)
no_second_derivative("temporal_map_max_pool_backward")
no_second_derivative("temporal_map_max_pool_spans_backward")
