"""2D-TAN's scaled-IoU binary cross-entropy over a 2D temporal map, without a target map in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import accumulate_dtype, check_floating, check_same_device, check_shape
from ._registry import define, differentiable, float32_under_autocast, no_second_derivative
from .temporal_iou import check_intervals, plain_iou
from .temporal_iou_map import map_cells


def temporal_map_bce(
    logits: Tensor,
    spans: Tensor,
    mask: Tensor,
    min_iou: float = 0.5,
    max_iou: float = 1.0,
    sentence_mask: Tensor | None = None,
) -> Tensor:
    """Mean over the valid cells of the binary cross-entropy between sigmoid(logits) and the scaled IoU.

    The target of cell (i, j) is its IoU with the sentence's span (see :func:`temporal_iou_map`), mapped so that
    ``min_iou`` becomes 0 and ``max_iou`` 1, and clamped to that range.

    Source: 2D-TAN (Zhang et al., AAAI 2020), Eq. 7 and 8.

    Args:
        logits: floating [B, M, T, T], before the sigmoid.
        spans: floating [B, M, 2], start and end as fractions of the duration; gets no gradient.
        mask: bool [T, T], [B, 1, T, T] or [B, M, T, T], true on anchors; cells below the diagonal never count.
        min_iou: IoU at and below which the target is 0.
        max_iou: IoU at and above which it is 1; 0 <= min_iou < max_iou <= 1.
        sentence_mask: bool [B, M], false on padded sentences.

    Returns:
        The loss, a scalar; 0 where no cell is valid. Differentiable by ``logits``.

    Raises:
        ValueError: wrong shape, dtype, device or bounds.
        RuntimeError: a span whose end lies before its start (on CUDA: a device-side assertion).
    """
    check_floating("logits", logits)
    check_floating("spans", spans)
    check_shape("logits", logits, ("B", "M", "T", "T"))
    B, M, T = logits.shape[:3]
    check_shape("logits", logits, (B, M, T, T))
    check_shape("spans", spans, (B, M, 2))
    if not 0 <= min_iou < max_iou <= 1:
        raise ValueError(f"min_iou is {min_iou} and max_iou {max_iou}; it must hold that 0 <= min_iou < max_iou <= 1")
    masks = {"mask": mask} if sentence_mask is None else {"mask": mask, "sentence_mask": sentence_mask}
    for name, tensor in {"spans": spans, **masks}.items():
        check_same_device(name, tensor, "logits", logits)
    for name, tensor in masks.items():
        if tensor.dtype != torch.bool:
            raise ValueError(f"{name} has dtype {tensor.dtype}; it must be bool")
    if sentence_mask is not None:
        check_shape("sentence_mask", sentence_mask, (B, M))
    if mask.shape not in {(T, T), (1, 1, T, T), (B, 1, T, T), (1, M, T, T), (B, M, T, T)}:
        raise ValueError(
            f"mask has shape {list(mask.shape)}; it must be [{T}, {T}], [{B}, 1, {T}, {T}] or [{B}, {M}, {T}, {T}]"
        )
    dtype = torch.promote_types(logits.dtype, spans.dtype)
    mask = mask[None, None] if mask.dim() == 2 else mask
    loss, _ = torch.ops.vpgfast.temporal_map_bce(
        logits.to(dtype), spans.detach().to(dtype), mask, sentence_mask, min_iou, max_iou
    )
    return loss


def _targets(logits: Tensor, spans: Tensor, min_iou: float, max_iou: float) -> Tensor:
    check_intervals("temporal_map_bce", "spans", spans)
    wide = spans.to(accumulate_dtype(spans.dtype))
    iou = plain_iou(wide[:, :, None, None], map_cells(logits.shape[-1], wide), generalized=False)
    return ((iou - min_iou) / (max_iou - min_iou)).clamp(0, 1)


def _valid(logits: Tensor, mask: Tensor, sentence_mask: Tensor | None) -> Tensor:
    T = logits.shape[-1]
    valid = mask & torch.ones(T, T, dtype=torch.bool, device=logits.device).triu()
    if sentence_mask is not None:
        valid = valid & sentence_mask[:, :, None, None]
    return valid.expand(logits.shape)


def _reference(
    logits: Tensor, spans: Tensor, mask: Tensor, sentence_mask: Tensor | None, min_iou: float, max_iou: float
) -> tuple[Tensor, Tensor]:
    valid = _valid(logits, mask, sentence_mask)
    target = _targets(logits, spans, min_iou, max_iou)
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits.to(target.dtype), target, reduction="none")
    count = valid.sum()
    return (each[valid].sum() / count.clamp(min=1)).to(logits.dtype), count


def _reference_backward(
    grad_loss: Tensor,
    logits: Tensor,
    spans: Tensor,
    mask: Tensor,
    sentence_mask: Tensor | None,
    min_iou: float,
    max_iou: float,
    count: Tensor,
) -> Tensor:
    target = _targets(logits, spans, min_iou, max_iou)
    difference = torch.sigmoid(logits.to(target.dtype)) - target
    factor = grad_loss.to(target.dtype) / count.clamp(min=1)
    return torch.where(_valid(logits, mask, sentence_mask), difference * factor, 0).to(logits.dtype)


define(
    "temporal_map_bce(Tensor logits, Tensor spans, Tensor mask, Tensor? sentence_mask, float min_iou, float max_iou)"
    " -> (Tensor, Tensor)",
    reference=_reference,
    fake=lambda logits, *_: (logits.new_empty(()), logits.new_empty((), dtype=torch.int64)),
)
define(
    "temporal_map_bce_backward(Tensor grad_loss, Tensor logits, Tensor spans, Tensor mask, Tensor? sentence_mask,"
    " float min_iou, float max_iou, Tensor count) -> Tensor",
    reference=_reference_backward,
    fake=lambda grad_loss, logits, *_: logits.new_empty(logits.shape),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, spans, mask, sentence_mask, ctx.min_iou, ctx.max_iou = inputs
    ctx.save_for_backward(logits, spans, mask, sentence_mask, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    logits, spans, mask, sentence_mask, count = ctx.saved_tensors
    grad = torch.ops.vpgfast.temporal_map_bce_backward(
        grad_loss, logits, spans, mask, sentence_mask, ctx.min_iou, ctx.max_iou, count
    )
    return grad, None, None, None, None, None


differentiable("temporal_map_bce", _backward, _save)
float32_under_autocast("temporal_map_bce")
no_second_derivative("temporal_map_bce_backward")
