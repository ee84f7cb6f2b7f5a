"""Intersection over union of time intervals, plain and generalised, for all pairs or pair by pair."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import accumulate_dtype, check_floating, check_same_device, check_shape
from ._registry import define, differentiable, float32_under_autocast, no_second_derivative


def temporal_iou(a: Tensor, b: Tensor, pairwise: bool = True) -> Tensor:
    """Intersection over union of intervals (start, end), in any one unit. Two empty intervals have IoU 0, never NaN.

    Args:
        a: floating [..., N, 2]; with ``pairwise=False`` [..., 2].
        b: floating [..., M, 2], leading sizes broadcast with those of ``a``; with ``pairwise=False`` [..., 2]. Mixed
            dtypes are promoted.
        pairwise: every interval of ``a`` with every one of ``b``, or each with its own.

    Returns:
        [..., N, M], or [...] with ``pairwise=False``. Differentiable by ``a`` and ``b``; where two ends coincide the
        gradient is shared half and half.

    Raises:
        ValueError: wrong shape, dtype or device.
        RuntimeError: an interval whose end lies before its start (on CUDA: a device-side assertion).
    """
    return _iou("temporal_iou", a, b, pairwise, generalized=False)


def temporal_giou(a: Tensor, b: Tensor, pairwise: bool = True) -> Tensor:
    """Generalised IoU: IoU minus the share of the hull that neither interval covers, from -1 to 1.

    Two equal empty intervals have GIoU 0 with zero gradient. Arguments, result and errors as :func:`temporal_iou`.

    Source: Rezatofighi et al., CVPR 2019, on a line.
    """
    return _iou("temporal_giou", a, b, pairwise, generalized=True)


def _iou(op: str, a: Tensor, b: Tensor, pairwise: bool, generalized: bool) -> Tensor:
    for name, tensor, count in (("a", a, "N"), ("b", b, "M")):
        check_floating(name, tensor)
        check_shape(name, tensor, ("...", count, 2) if pairwise else ("...", 2))
    check_same_device("b", b, "a", a)
    if a.dtype != b.dtype:
        dtype = torch.promote_types(a.dtype, b.dtype)
        a, b = a.to(dtype), b.to(dtype)
    inner = 2 if pairwise else 1
    lead = a.shape[:-inner]
    if b.shape[:-inner] != lead:
        try:
            lead = torch.broadcast_shapes(lead, b.shape[:-inner])
        except RuntimeError:
            raise ValueError(
                f"{op}: leading sizes of a {list(a.shape)} and b {list(b.shape)} do not broadcast; "
                f"they must agree or be 1 in all but the last {inner}"
            ) from None
        a, b = a.expand(*lead, *a.shape[-inner:]), b.expand(*lead, *b.shape[-inner:])
    if not pairwise:
        flat = a.reshape(-1, 2), b.reshape(-1, 2)
        return torch.ops.vpgfast.temporal_iou_elementwise(*flat, generalized).reshape(lead)
    L, N, M = lead.numel(), a.shape[-2], b.shape[-2]
    flat = a.reshape(L, N, 2), b.reshape(L, M, 2)
    return torch.ops.vpgfast.temporal_iou(*flat, generalized).reshape(*lead, N, M)


def check_intervals(op: str, name: str, intervals: Tensor) -> None:
    """References call this; the kernels have a check of their own."""
    inverted = (intervals[..., 1] < intervals[..., 0]).flatten()
    if inverted.any():
        k = int(inverted.nonzero()[0])
        start, end = intervals.reshape(-1, 2)[k].tolist()
        raise RuntimeError(f"{op}: interval {k} of {name} is ({start}, {end}); its end must not lie before its start")


def plain_iou(a: Tensor, b: Tensor, generalized: bool) -> Tensor:
    """Element-wise IoU of a [..., 2] and b [..., 2], differentiable and broadcasting: the definition of correct."""
    start_a, end_a = a.unbind(-1)
    start_b, end_b = b.unbind(-1)
    shared = torch.relu(torch.minimum(end_a, end_b) - torch.maximum(start_a, start_b))
    joined = (end_a - start_a) + (end_b - start_b) - shared
    iou = torch.where(joined <= 0, 0, shared / torch.where(joined <= 0, 1, joined))
    if not generalized:
        return iou
    hull = torch.maximum(end_a, end_b) - torch.minimum(start_a, start_b)
    uncovered = (hull - joined) / torch.where(hull <= 0, 1, hull)
    return iou - torch.where(hull <= 0, 0, uncovered)


def plain_iou_gradient(a: Tensor, b: Tensor, generalized: bool) -> Tensor:
    """Derivatives of :func:`plain_iou` by the two ends of ``a``, [..., 2]."""
    start_a, end_a = a.unbind(-1)
    start_b, end_b = b.unbind(-1)
    overlap = torch.minimum(end_a, end_b) - torch.maximum(start_a, start_b)
    shared = torch.relu(overlap)
    joined = (end_a - start_a) + (end_b - start_b) - shared
    # Share of a's ends in min(end_a, end_b) and in max(start_a, start_b): one, none, or half of a tie.
    lower_end = ((end_a < end_b).to(a) + (end_a <= end_b).to(a)) / 2
    upper_start = ((start_a > start_b).to(a) + (start_a >= start_b).to(a)) / 2
    touches = (overlap > 0).to(a)
    shared_by = torch.stack([-upper_start * touches, lower_end * touches], -1)
    joined_by = torch.stack([torch.full_like(overlap, -1), torch.ones_like(overlap)], -1) - shared_by
    inverse = torch.where(joined > 0, 1 / torch.where(joined > 0, joined, 1), 0)
    gradient = (shared_by - (shared * inverse)[..., None] * joined_by) * inverse[..., None]
    if not generalized:
        return gradient
    hull = torch.maximum(end_a, end_b) - torch.minimum(start_a, start_b)
    inverse_hull = torch.where(hull > 0, 1 / torch.where(hull > 0, hull, 1), 0)
    hull_by = torch.stack([-(1 - upper_start), 1 - lower_end], -1)
    filled = joined * inverse_hull
    return gradient + (joined_by - filled[..., None] * hull_by) * inverse_hull[..., None]


def _reference_elementwise(a: Tensor, b: Tensor, generalized: bool) -> Tensor:
    check_intervals("temporal_iou", "a", a)
    check_intervals("temporal_iou", "b", b)
    wide = accumulate_dtype(a.dtype)
    return plain_iou(a.to(wide), b.to(wide), generalized).to(a.dtype)


def _reference_elementwise_backward(grad: Tensor, a: Tensor, b: Tensor, generalized: bool) -> tuple[Tensor, Tensor]:
    wide = accumulate_dtype(a.dtype)
    g, a_wide, b_wide = grad.to(wide)[..., None], a.to(wide), b.to(wide)
    grad_a = g * plain_iou_gradient(a_wide, b_wide, generalized)
    grad_b = g * plain_iou_gradient(b_wide, a_wide, generalized)
    return grad_a.to(a.dtype), grad_b.to(b.dtype)


def _reference(a: Tensor, b: Tensor, generalized: bool) -> Tensor:
    check_intervals("temporal_iou", "a", a)
    check_intervals("temporal_iou", "b", b)
    wide = accumulate_dtype(a.dtype)
    return plain_iou(a.to(wide)[:, :, None], b.to(wide)[:, None], generalized).to(a.dtype)


def _reference_backward(grad: Tensor, a: Tensor, b: Tensor, generalized: bool) -> tuple[Tensor, Tensor]:
    wide = accumulate_dtype(a.dtype)
    g, a_wide, b_wide = grad.to(wide)[..., None], a.to(wide)[:, :, None], b.to(wide)[:, None]
    grad_a = (g * plain_iou_gradient(a_wide, b_wide, generalized)).sum(2)
    grad_b = (g * plain_iou_gradient(b_wide, a_wide, generalized)).sum(1)
    return grad_a.to(a.dtype), grad_b.to(b.dtype)


def _like_both(grad: Tensor, a: Tensor, b: Tensor, generalized: bool) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape), b.new_empty(b.shape)


define(
    "temporal_iou(Tensor a, Tensor b, bool generalized) -> Tensor",
    reference=_reference,
    fake=lambda a, b, generalized: a.new_empty(a.shape[0], a.shape[1], b.shape[1]),
)
define(
    "temporal_iou_backward(Tensor grad, Tensor a, Tensor b, bool generalized) -> (Tensor, Tensor)",
    reference=_reference_backward,
    fake=_like_both,
)
define(
    "temporal_iou_elementwise(Tensor a, Tensor b, bool generalized) -> Tensor",
    reference=_reference_elementwise,
    fake=lambda a, b, generalized: a.new_empty(a.shape[0]),
)
define(
    "temporal_iou_elementwise_backward(Tensor grad, Tensor a, Tensor b, bool generalized) -> (Tensor, Tensor)",
    reference=_reference_elementwise_backward,
    fake=_like_both,
)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.generalized = inputs[2]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *torch.ops.vpgfast.temporal_iou_backward(grad, *ctx.saved_tensors, ctx.generalized), None


def _backward_elementwise(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *torch.ops.vpgfast.temporal_iou_elementwise_backward(grad, *ctx.saved_tensors, ctx.generalized), None


differentiable("temporal_iou", _backward, _save)
differentiable("temporal_iou_elementwise", _backward_elementwise, _save)
for _name in ("temporal_iou", "temporal_iou_elementwise"):
    float32_under_autocast(_name)
    no_second_derivative(f"{_name}_backward")
