"""WSRA's relevance of every snippet to every query of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import accumulate_dtype, check_floating, check_same_device, check_same_dtype, check_shape
from ._registry import define, differentiable, float32_under_autocast, no_second_derivative


def pairwise_relevance(a: Tensor, b: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    """``sigmoid(sum_h w[h] * relu(a[n, h] + b[m, h]) + bias)`` for every n and m, without an [N, M, H] tensor.

    That is a two-layer perceptron on the concatenation of a snippet and a query: its first layer is linear, so it is
    applied to snippets (giving ``a``) and to queries (giving ``b``) by themselves, with its bias in one of the two.

    Source: WSRA, section 3.1 (phi), with the hidden layer without which the ranking of snippets would not depend on
    the query.

    Args:
        a: floating [N, H], first layer of N snippets.
        b: [M, H], first layer of M queries.
        w: [H], weight of the second layer.
        bias: [] or [1], its bias.

    Returns:
        [N, M], dtype of ``a`` (float32 under autocast); differentiable by all four. As in torch, ReLU has derivative 0
        at 0.

    Raises:
        ValueError: wrong shape, dtype or device.
    """
    check_floating("a", a)
    check_shape("a", a, ("N", "H"))
    check_shape("b", b, ("M", a.shape[1]))
    check_shape("w", w, (a.shape[1],))
    if bias.numel() != 1:
        raise ValueError(f"bias has shape {list(bias.shape)}; it must be one number")
    for name, tensor in (("b", b), ("w", w), ("bias", bias)):
        check_same_device(name, tensor, "a", a)
        check_same_dtype(name, tensor, "a", a)
    return torch.ops.vpgfast.pairwise_relevance(a, b, w, bias.reshape(()))


def _reference(a: Tensor, b: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    wide_a, wide_b, wide_w, wide_bias = (t.to(accumulate_dtype(a.dtype)) for t in (a, b, w, bias))
    hidden = (wide_a[:, None] + wide_b[None]).relu()
    return (hidden @ wide_w + wide_bias).sigmoid().to(a.dtype)


def _reference_backward(
    grad: Tensor, a: Tensor, b: Tensor, w: Tensor, bias: Tensor, out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    compute = accumulate_dtype(a.dtype)
    grad, wide_a, wide_b, wide_w, p = (t.to(compute) for t in (grad, a, b, w, out))
    by_logit = grad * p * (1 - p)
    hidden = wide_a[:, None] + wide_b[None]
    by_hidden = by_logit[..., None] * (hidden > 0) * wide_w
    by_w = (by_logit[..., None] * hidden.relu()).sum((0, 1))
    return by_hidden.sum(1).to(a.dtype), by_hidden.sum(0).to(a.dtype), by_w.to(a.dtype), by_logit.sum().to(a.dtype)


define(
    "pairwise_relevance(Tensor a, Tensor b, Tensor w, Tensor bias) -> Tensor",
    reference=_reference,
    fake=lambda a, b, w, bias: a.new_empty(a.shape[0], b.shape[0]),
)
define(
    "pairwise_relevance_backward(Tensor grad, Tensor a, Tensor b, Tensor w, Tensor bias, Tensor out) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    reference=_reference_backward,
    fake=lambda grad, a, b, w, bias, out: tuple(t.new_empty(t.shape) for t in (a, b, w, bias)),
)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.vpgfast.pairwise_relevance_backward(grad, *ctx.saved_tensors)


differentiable("pairwise_relevance", _backward, _save)
float32_under_autocast("pairwise_relevance")
no_second_derivative("pairwise_relevance_backward")
