"""DMR-JRG's ordered suppression: each sentence is scored on what the sentences before it have left of the map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import accumulate_dtype, check_floating, check_same_device, check_same_dtype, check_shape
from ._registry import define, differentiable, float32_under_autocast, no_second_derivative


def ordered_suppression_scan(
    z: Tensor, bias: Tensor, sentence_mask: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """Score maps of a paragraph's sentences, one after the other.

    ``P_m = sigmoid(s * z_m + bias)``, then ``s = s - P_m``, from s = 1 in every cell. That is DMR-JRG's prediction
    layer (a linear layer and a sigmoid) on features multiplied by 1 minus the maps before: the factor is one number a
    cell, so the layer's product with the unmultiplied features, ``z = w . F``, is all that it needs.

    Source: DMR-JRG, Eq. 18 (forward) and Eq. 19 (reverse).

    Args:
        z: floating [B, M, ...], the prediction layer's product with each sentence's features, without bias; usually
            [B, M, T, T].
        bias: [] or [1], the prediction layer's bias.
        sentence_mask: bool [B, M], true on real sentences; the others get P = 0 and suppress nothing. All if None.
        reverse: from the last sentence to the first.

    Returns:
        P, shape and dtype of ``z`` (float32 under autocast); differentiable by ``z`` and ``bias``.

    Raises:
        ValueError: wrong shape, dtype or device.
    """
    check_floating("z", z)
    if z.dim() < 2:
        raise ValueError(f"z has shape {list(z.shape)}; it must be [B, M, ...]")
    if bias.numel() != 1:
        raise ValueError(f"bias has shape {list(bias.shape)}; it must be one number")
    check_same_device("bias", bias, "z", z)
    check_same_dtype("bias", bias, "z", z)
    if sentence_mask is not None:
        check_shape("sentence_mask", sentence_mask, tuple(z.shape[:2]))
        check_same_device("sentence_mask", sentence_mask, "z", z)
        if sentence_mask.dtype != torch.bool:
            raise ValueError(f"sentence_mask has dtype {sentence_mask.dtype}; it must be bool, true on real sentences")
    cells = z.reshape(*z.shape[:2], z.shape[2:].numel())
    out = torch.ops.vpgfast.ordered_suppression_scan(cells, bias.reshape(()), sentence_mask, reverse)
    return out.reshape(z.shape)


def _order(M: int, reverse: bool) -> list[int]:
    return list(range(M - 1, -1, -1) if reverse else range(M))


def _keep(sentence_mask: Tensor | None, m: int, like: Tensor) -> Tensor:
    """Which videos have a sentence m, [B, 1]."""
    if sentence_mask is None:
        return torch.ones(like.shape[0], 1, dtype=torch.bool, device=like.device)
    return sentence_mask[:, m, None]


def _reference(z: Tensor, bias: Tensor, sentence_mask: Tensor | None, reverse: bool) -> Tensor:
    wide, b = z.to(accumulate_dtype(z.dtype)), bias.to(accumulate_dtype(z.dtype))
    P = torch.zeros_like(wide)
    s = wide.new_ones(z.shape[0], z.shape[2])
    for m in _order(z.shape[1], reverse):
        P[:, m] = torch.where(_keep(sentence_mask, m, z), torch.sigmoid(s * wide[:, m] + b), 0)
        s = s - P[:, m]
    return P.to(z.dtype)


def _reference_backward(
    grad: Tensor, z: Tensor, bias: Tensor, P: Tensor, sentence_mask: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    grad, wide, p = (t.to(accumulate_dtype(z.dtype)) for t in (grad, z, P))
    by_z, by_bias = torch.zeros_like(wide), wide.new_zeros(())
    s = 1 - p.sum(1)
    by_s = torch.zeros_like(s)
    for m in reversed(_order(z.shape[1], reverse)):
        s = s + p[:, m]  # as it was before sentence m
        by_logit = (grad[:, m] - by_s) * p[:, m] * (1 - p[:, m])  # 0 where there is no sentence: P is 0 there
        by_z[:, m] = by_logit * s
        by_bias = by_bias + by_logit.sum()
        by_s = by_s + torch.where(_keep(sentence_mask, m, z), by_logit * wide[:, m], 0)
    return by_z.to(z.dtype), by_bias.to(z.dtype)


define(
    "ordered_suppression_scan(Tensor z, Tensor bias, Tensor? sentence_mask, bool reverse) -> Tensor",
    reference=_reference,
    fake=lambda z, bias, sentence_mask, reverse: z.new_empty(z.shape),
)
define(
    "ordered_suppression_scan_backward(Tensor grad, Tensor z, Tensor bias, Tensor P, Tensor? sentence_mask, "
    "bool reverse) -> (Tensor, Tensor)",
    reference=_reference_backward,
    fake=lambda grad, z, bias, P, sentence_mask, reverse: (z.new_empty(z.shape), bias.new_empty(())),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, bias, sentence_mask, ctx.reverse = inputs
    ctx.save_for_backward(z, bias, output, sentence_mask)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    by_z, by_bias = torch.ops.vpgfast.ordered_suppression_scan_backward(grad, *ctx.saved_tensors, ctx.reverse)
    return by_z, by_bias, None, None


differentiable("ordered_suppression_scan", _backward, _save)
float32_under_autocast("ordered_suppression_scan")
no_second_derivative("ordered_suppression_scan_backward")
