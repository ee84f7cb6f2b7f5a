"""Features at points spread evenly over each proposal: the sampling of BMN's boundary-matching layer, and of MARN's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import accumulate_dtype, check_floating, check_same_device, check_shape
from ._registry import define, differentiable, no_second_derivative


def sample_proposals(x: Tensor, proposals: Tensor, num_samples: int, samples_per_bin: int = 1) -> Tensor:
    """Samples every proposal's features at ``num_samples`` places.

    N * ``samples_per_bin`` points lie evenly from the proposal's start to its end, both included (a single point lies
    in the middle), and each output is the mean of ``samples_per_bin`` neighbouring points. A point at t is the linear
    interpolation of the clips beside it: with lower = trunc(t) and fraction = t - lower, clip ``lower`` has weight
    1 - fraction and clip ceil(t) has weight ``fraction``, each where it is one of 0 ... T-1, else nothing. So within
    the video this is Eq. 5 of MARN; a point in (-1, 0) reads clip 0 whole, one in (T-1, T) fades, others outside are
    zero, as in the sample mask that BMN's authors released. Positions are computed in float64, as theirs are.

    Source: BMN (Lin et al., ICCV 2019), section 4.2; MARN (Song et al., 2020), Eq. 2 and 5.

    Args:
        x: floating [B, C, T] clip features.
        proposals: floating [P, 2], or [B, P, 2] for other proposals in every video: first and last point in clips, any
            finite numbers, start <= end; clip t's feature lies at t. They are constants.
        num_samples: N, 1 or more.
        samples_per_bin: points of which each sample is the mean, 1 or more.

    Returns:
        [B, C, N, P], dtype of ``x``; differentiable by ``x``.

    Raises:
        ValueError: wrong shape, dtype, device or number; proposals that require a gradient.
        RuntimeError: a proposal that is not finite, or whose end lies before its start (on CUDA: a device-side
            assertion).
    """
    check_floating("x", x)
    check_shape("x", x, ("B", "C", "T"))
    proposals = check_proposals(x, proposals, num_samples, samples_per_bin)
    return torch.ops.vpgfast.sample_proposals(x, proposals, num_samples, samples_per_bin)


def check_proposals(x: Tensor, proposals: Tensor, num_samples: int, samples_per_bin: int) -> Tensor:
    """The proposals in float64, of fitting shape and on the device of ``x``."""
    check_floating("proposals", proposals)
    check_shape("proposals", proposals, ("P", 2) if proposals.dim() == 2 else (x.shape[0], "P", 2))
    check_same_device("proposals", proposals, "x", x)
    if proposals.requires_grad:
        raise ValueError("proposals requires a gradient, but positions are constants here; pass proposals.detach()")
    for name, number in (("num_samples", num_samples), ("samples_per_bin", samples_per_bin)):
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be 1 or more")
    return proposals.double()


def sampling_points(proposals: Tensor, count: int) -> Tensor:
    """``count`` points from start to end: float64 [..., P, 2] to [..., P, count]."""
    start, end = proposals.unbind(-1)
    if count == 1:
        return ((start + end) / 2)[..., None]
    # Divided by a tensor: on CUDA torch multiplies by the inverse of a number, which may differ in the last bit.
    step = (end - start) / torch.full_like(start, count - 1)
    # Product and sum are rounded one after the other: a point at -1 and one just above it read different clips.
    return start[..., None] + step[..., None] * torch.arange(count, dtype=proposals.dtype, device=proposals.device)


def _check_values(op: str, proposals: Tensor) -> None:
    start, end = proposals.reshape(-1, 2).unbind(1)
    bad = (~(start.isfinite() & end.isfinite() & (start <= end))).nonzero()
    if bad.numel():
        p = int(bad[0])
        raise RuntimeError(
            f"{op}: proposal {p} is ({start[p]:g}, {end[p]:g}); "
            "it must be two finite numbers, its end not before its start"
        )


def _taps(op: str, proposals: Tensor, T: int, count: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """The two clips that each point reads and their weights, each [B or 1, 1, P * count]."""
    _check_values(op, proposals)
    t = sampling_points(proposals, count).flatten(-2)
    t = t[:, None] if t.dim() == 2 else t[None, None]
    lower, upper, fraction = t.trunc(), t.ceil(), t - t.trunc()
    taps = []
    for clip, weight in ((lower, 1 - fraction), (upper, fraction)):
        inside = (clip >= 0) & (clip < T)
        taps.append((torch.where(inside, clip, 0).long(), torch.where(inside, weight, 0).to(dtype)))
    return taps


def plain_samples(op: str, x: Tensor, proposals: Tensor, num_samples: int, per_bin: int) -> Tensor:
    """[B, C, N, P] in the dtype of sums."""
    (B, C, T), P = x.shape, proposals.shape[-2]
    wide = x.to(accumulate_dtype(x.dtype))
    points = wide.new_zeros(B, C, P * num_samples * per_bin)
    for clip, weight in _taps(op, proposals, T, num_samples * per_bin, wide.dtype):
        if T > 0:
            points = points + wide.gather(2, clip.expand_as(points)) * weight
    return points.reshape(B, C, P, num_samples, per_bin).mean(-1).transpose(2, 3)


def plain_samples_backward(op: str, grad: Tensor, proposals: Tensor, T: int, per_bin: int) -> Tensor:
    """Gradient by x, [B, C, T], for ``grad`` [B, C, N, P] in the dtype of sums."""
    B, C, N, P = grad.shape
    points = (grad.transpose(2, 3)[..., None] / per_bin).expand(B, C, P, N, per_bin).reshape(B, C, P * N * per_bin)
    grad_x = grad.new_zeros(B, C, T)
    for clip, weight in _taps(op, proposals, T, N * per_bin, grad.dtype):
        if T > 0:
            grad_x.scatter_add_(2, clip.expand_as(points), points * weight)
    return grad_x


def _reference(x: Tensor, proposals: Tensor, num_samples: int, samples_per_bin: int) -> Tensor:
    return plain_samples("sample_proposals", x, proposals, num_samples, samples_per_bin).to(x.dtype).contiguous()


def _reference_backward(grad: Tensor, proposals: Tensor, T: int, samples_per_bin: int) -> Tensor:
    wide = grad.to(accumulate_dtype(grad.dtype))
    return plain_samples_backward("sample_proposals", wide, proposals, T, samples_per_bin).to(grad.dtype)


define(
    "sample_proposals(Tensor x, Tensor proposals, int num_samples, int samples_per_bin) -> Tensor",
    reference=_reference,
    fake=lambda x, proposals, num_samples, samples_per_bin: x.new_empty(
        x.shape[0], x.shape[1], num_samples, proposals.shape[-2]
    ),
)
define(
    "sample_proposals_backward(Tensor grad, Tensor proposals, int T, int samples_per_bin) -> Tensor",
    reference=_reference_backward,
    fake=lambda grad, proposals, T, samples_per_bin: grad.new_empty(grad.shape[0], grad.shape[1], T),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, proposals, _, ctx.samples_per_bin = inputs
    ctx.T = x.shape[2]
    ctx.save_for_backward(proposals)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (proposals,) = ctx.saved_tensors
    grad_x = torch.ops.vpgfast.sample_proposals_backward(grad, proposals, ctx.T, ctx.samples_per_bin)
    return grad_x, None, None, None


differentiable("sample_proposals", _backward, _save)
no_second_derivative("sample_proposals_backward")
