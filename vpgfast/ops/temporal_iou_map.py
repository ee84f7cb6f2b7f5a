"""IoU of every cell of a 2D temporal map with given spans."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import accumulate_dtype, check_floating, check_shape
from ._registry import define, differentiable, float32_under_autocast, no_second_derivative
from .temporal_iou import check_intervals, plain_iou, plain_iou_gradient


def temporal_iou_map(spans: Tensor, T: int) -> Tensor:
    """IoU of every moment of a T-clip video with each span.

    Cell (i, j) of the map is the moment from the start of clip i to the end of clip j: (i / T, (j + 1) / T) as
    fractions of the duration. Cells below the diagonal are zero. An empty span has IoU 0 with every cell.

    Source: 2D-TAN (Zhang et al., AAAI 2020), section 3.4: the IoU that its targets are made of.

    Args:
        spans: floating [B, M, 2], start and end as fractions of the duration, start <= end.
        T: number of clips, from 0 to 2^24 - 1.

    Returns:
        [B, M, T, T], dtype of ``spans``; differentiable by ``spans``.

    Raises:
        ValueError: wrong shape, dtype or T.
        RuntimeError: a span whose end lies before its start (on CUDA: a device-side assertion).
    """
    check_floating("spans", spans)
    check_shape("spans", spans, ("B", "M", 2))
    if not 0 <= T < 2**24:
        raise ValueError(f"T is {T}; it must be from 0 to 2^24 - 1")
    return torch.ops.vpgfast.temporal_iou_map(spans, T)


def map_cells(T: int, like: Tensor) -> Tensor:
    """Start and end of every cell as fractions of the duration, [T, T, 2], dtype and device of ``like``."""
    starts = torch.arange(T, device=like.device, dtype=like.dtype) / T
    ends = torch.arange(1, T + 1, device=like.device, dtype=like.dtype) / T
    return torch.stack([starts[:, None].expand(T, T), ends[None].expand(T, T)], -1)


def _upper(T: int, device: torch.device) -> Tensor:
    return torch.ones(T, T, dtype=torch.bool, device=device).triu()


def _reference(spans: Tensor, T: int) -> Tensor:
    check_intervals("temporal_iou_map", "spans", spans)
    wide = spans.to(accumulate_dtype(spans.dtype))
    iou = plain_iou(wide[:, :, None, None], map_cells(T, wide), generalized=False)
    return torch.where(_upper(T, spans.device), iou, 0).to(spans.dtype)


def _reference_backward(grad: Tensor, spans: Tensor) -> Tensor:
    T = grad.shape[-1]
    wide = spans.to(accumulate_dtype(spans.dtype))
    by_ends = plain_iou_gradient(wide[:, :, None, None], map_cells(T, wide), generalized=False)
    weight = torch.where(_upper(T, spans.device), grad.to(wide.dtype), 0)
    return (weight[..., None] * by_ends).sum((2, 3)).to(spans.dtype)


define(
    "temporal_iou_map(Tensor spans, int T) -> Tensor",
    reference=_reference,
    fake=lambda spans, T: spans.new_empty(spans.shape[0], spans.shape[1], T, T),
)
define(
    "temporal_iou_map_backward(Tensor grad, Tensor spans) -> Tensor",
    reference=_reference_backward,
    fake=lambda grad, spans: spans.new_empty(spans.shape),
)


def _save(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.vpgfast.temporal_iou_map_backward(grad, *ctx.saved_tensors), None


differentiable("temporal_iou_map", _backward, _save)
float32_under_autocast("temporal_iou_map")
no_second_derivative("temporal_iou_map_backward")
