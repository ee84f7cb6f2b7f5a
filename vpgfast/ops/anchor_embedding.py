"""Sinusoidal embedding of anchors (centre, width)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._checks import accumulate_dtype, check_floating, check_shape
from ._registry import define, differentiable, float32_under_autocast, no_second_derivative


def anchor_embedding(anchors: Tensor, D: int, temperature: float = 10000.0) -> Tensor:
    """Sines and cosines of centre and width at D / 4 frequencies each.

    Channel 2i of a half is ``sin(2 pi x / temperature^(2i / (D / 2)))``, channel 2i + 1 the cosine; the first half is
    of x = centre, the second of x = width.

    Source: DAB-DETR (Liu et al., ICLR 2022), section 4.2, on a line; SiamGTR, Eq. 6-7 (F_a).

    Args:
        anchors: floating [..., 2], centre and width, usually as fractions of the duration.
        D: channels, a multiple of 4, from 0.
        temperature: ratio between the longest and the shortest wavelength, above 0.

    Returns:
        [..., D], dtype of ``anchors`` (float32 under autocast); differentiable by ``anchors``.

    Raises:
        ValueError: wrong shape, dtype, D or temperature.
    """
    check_floating("anchors", anchors)
    check_shape("anchors", anchors, ("...", 2))
    if D < 0 or D % 4:
        raise ValueError(f"D is {D}; it must be a multiple of 4: a sine and a cosine of centre and of width")
    if not (0 < temperature < math.inf):
        raise ValueError(f"temperature is {temperature}; it must be a positive number")
    return torch.ops.vpgfast.anchor_embedding(anchors.reshape(-1, 2), D, temperature).reshape(*anchors.shape[:-1], D)


def frequencies(D: int, temperature: float, like: Tensor) -> Tensor:
    """Angles per unit of centre or width, [D / 4]."""
    i = torch.arange(D // 4, device=like.device, dtype=torch.float64)
    return (2 * math.pi / temperature ** (4 * i / max(D, 1))).to(like.dtype)


def _angles(anchors: Tensor, D: int, temperature: float) -> Tensor:
    """[N, 2, D / 4]"""
    wide = anchors.to(accumulate_dtype(anchors.dtype))
    return wide[..., None] * frequencies(D, temperature, wide)


def _reference(anchors: Tensor, D: int, temperature: float) -> Tensor:
    angles = _angles(anchors, D, temperature)
    return torch.stack([angles.sin(), angles.cos()], -1).reshape(anchors.shape[0], D).to(anchors.dtype)


def _reference_backward(grad: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    D = grad.shape[1]
    angles = _angles(anchors, D, temperature)
    by_sine, by_cosine = grad.reshape(anchors.shape[0], 2, D // 4, 2).to(angles.dtype).unbind(-1)
    by_angle = by_sine * angles.cos() - by_cosine * angles.sin()
    return (by_angle * frequencies(D, temperature, angles)).sum(-1).to(anchors.dtype)


define(
    "anchor_embedding(Tensor anchors, int D, float temperature) -> Tensor",
    reference=_reference,
    fake=lambda anchors, D, temperature: anchors.new_empty(anchors.shape[0], D),
)
define(
    "anchor_embedding_backward(Tensor grad, Tensor anchors, float temperature) -> Tensor",
    reference=_reference_backward,
    fake=lambda grad, anchors, temperature: anchors.new_empty(anchors.shape),
)


def _save(ctx: Any, inputs: tuple[Tensor, int, float], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.temperature = inputs[2]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return torch.ops.vpgfast.anchor_embedding_backward(grad, *ctx.saved_tensors, ctx.temperature), None, None


differentiable("anchor_embedding", _backward, _save)
float32_under_autocast("anchor_embedding")
no_second_derivative("anchor_embedding_backward")
