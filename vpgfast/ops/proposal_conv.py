"""Features of listed proposals by sampling and convolution: the boundary-matching layer of BMN, MARN and DMR-JRG."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import accumulate_dtype, check_floating, check_same_device, check_same_dtype, check_shape
from ._registry import autocast_like_conv, define, differentiable, no_second_derivative
from .sample_proposals import check_proposals, plain_samples, plain_samples_backward, sample_proposals


def proposal_conv(
    x: Tensor,
    proposals: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    samples_per_bin: int = 1,
    lengths: Tensor | None = None,
) -> Tensor:
    """``sample_proposals`` and, over the samples of each proposal, BMN's convolution with kernel (N, 1, 1).

    ``out[b, d, p] = bias[d] + sum over c, n of weight[d, c, n] * sample_proposals(x, proposals, N)[b, c, n, p]``.
    Sampling acts on time alone and the convolution on channels and samples alone, so the kernels convolve the clips
    first and sample the result: the cost of the products grows with the clips, not with the proposals. (Where there
    are fewer than half as many proposals as clips the samples come first.)

    Under autocast ``x``, ``weight`` and ``bias`` are cast to its dtype, as a convolution's are; proposals are not:
    positions never lose precision.

    Source: BMN (Lin et al., ICCV 2019), section 4.2; MARN (Song et al., 2020), Eq. 2 to 5.

    Args:
        x: floating [B, C, T] clip features.
        proposals: floating [P, 2] or [B, P, 2] in clips, as ``sample_proposals`` takes them; any floating dtype.
        weight: [D, C, N], dtype of ``x``; a Conv3d's [D, C, N, 1, 1] without its last two dimensions.
        bias: [D], dtype of ``x``.
        samples_per_bin: points of which each of the N samples is the mean, 1 or more.
        lengths: integer [B], how many clips of each video are real: behind them nothing is read, as behind clip T-1,
            whatever stands there; ``None``: all are.

    Returns:
        [B, D, P], dtype of ``x``; differentiable by ``x``, ``weight`` and ``bias``.

    Raises:
        ValueError: wrong shape, dtype, device or number; proposals that require a gradient.
        RuntimeError: a proposal that is not finite, or whose end lies before its start (on CUDA: a device-side
            assertion).
    """
    check_floating("x", x)
    check_shape("x", x, ("B", "C", "T"))
    check_shape("weight", weight, ("D", x.shape[1], "N"))
    if lengths is not None:
        x = x.masked_fill(_behind(lengths, x), 0)
    proposals = check_proposals(x, proposals, weight.shape[2], samples_per_bin)
    parts = {"weight": weight}
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
        parts["bias"] = bias
    for name, part in parts.items():
        check_same_device(name, part, "x", x)
        check_same_dtype(name, part, "x", x)
    if 2 * proposals.shape[-2] < x.shape[2]:
        samples = sample_proposals(x, proposals, weight.shape[2], samples_per_bin)
        out = torch.matmul(weight.flatten(1), samples.flatten(1, 2))
        return out if bias is None else out + bias[:, None].to(out.dtype)
    return torch.ops.vpgfast.proposal_conv(x, proposals, weight, bias, samples_per_bin)


def _behind(lengths: Tensor, x: Tensor) -> Tensor:
    """bool [B, 1, T]: the clips of ``x`` [B, C, T] that are not real."""
    if lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"lengths has dtype {lengths.dtype}; it must be an integer one")
    check_shape("lengths", lengths, (x.shape[0],))
    check_same_device("lengths", lengths, "x", x)
    return torch.arange(x.shape[2], device=x.device) >= lengths[:, None, None]


def _reference(x: Tensor, proposals: Tensor, weight: Tensor, bias: Tensor | None, samples_per_bin: int) -> Tensor:
    samples = plain_samples("proposal_conv", x, proposals, weight.shape[2], samples_per_bin)
    out = torch.einsum("dcn,bcnp->bdp", weight.to(samples.dtype), samples)
    return (out if bias is None else out + bias[:, None].to(out.dtype)).to(x.dtype).contiguous()


def _reference_backward(
    grad: Tensor, x: Tensor, proposals: Tensor, weight: Tensor, samples_per_bin: int, by_x: bool, by_weight: bool
) -> tuple[Tensor, Tensor]:
    op, wide = "proposal_conv", grad.to(accumulate_dtype(grad.dtype))
    grad_x, grad_weight = x.new_empty(0), x.new_empty(0)
    if by_x:
        by_samples = torch.einsum("bdp,dcn->bcnp", wide, weight.to(wide.dtype))
        grad_x = plain_samples_backward(op, by_samples, proposals, x.shape[2], samples_per_bin).to(x.dtype)
    if by_weight:
        samples = plain_samples(op, x, proposals, weight.shape[2], samples_per_bin)
        grad_weight = torch.einsum("bdp,bcnp->dcn", wide, samples).to(x.dtype).contiguous()
    return grad_x, grad_weight


define(
    "proposal_conv(Tensor x, Tensor proposals, Tensor weight, Tensor? bias, int samples_per_bin) -> Tensor",
    reference=_reference,
    fake=lambda x, proposals, weight, bias, samples_per_bin: x.new_empty(
        x.shape[0], weight.shape[0], proposals.shape[-2]
    ),
)
define(
    "proposal_conv_backward(Tensor grad, Tensor x, Tensor proposals, Tensor weight, int samples_per_bin, bool by_x, "
    "bool by_weight) -> (Tensor, Tensor)",
    reference=_reference_backward,
    fake=lambda grad, x, proposals, weight, samples_per_bin, by_x, by_weight: (
        x.new_empty(x.shape if by_x else (0,)),
        x.new_empty(weight.shape if by_weight else (0,)),
    ),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, proposals, weight, _, ctx.samples_per_bin = inputs
    ctx.save_for_backward(x, proposals, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
    x, proposals, weight = ctx.saved_tensors
    by_x, _, by_weight, by_bias, _ = ctx.needs_input_grad
    grad_x = grad_weight = None
    if by_x or by_weight:
        both = torch.ops.vpgfast.proposal_conv_backward(
            grad, x, proposals, weight, ctx.samples_per_bin, by_x, by_weight
        )
        grad_x, grad_weight = both[0] if by_x else None, both[1] if by_weight else None
    # First along memory, then over the videos: on CUDA half the time of one sum over both.
    grad_bias = grad.sum(2, dtype=accumulate_dtype(grad.dtype)).sum(0).to(grad.dtype) if by_bias else None
    return grad_x, None, grad_weight, grad_bias, None


differentiable("proposal_conv", _backward, _save)
autocast_like_conv("proposal_conv")
no_second_derivative("proposal_conv_backward")
