"""2D-TAN's convolution over the map of moments: only cells that count are computed, only valid ones are read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from ._checks import accumulate_dtype, check_floating, check_same_device, check_same_dtype, check_shape
from ._registry import autocast_like_conv, define, differentiable, no_second_derivative


def temporal_map_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    in_mask: Tensor | None = None,
    out_mask: Tensor | None = None,
    padding: int = 0,
    activation: Literal["relu"] | None = None,
    normalize: bool = False,
) -> Tensor:
    """2D convolution over a temporal map that computes listed cells and reads valid ones.

    At every cell of ``out_mask``::

        out[b, d, i, j] = scale[i, j] * activation(
            bias[d] + sum_{c,r,s} weight[d, c, r, s] * x[b, c, i + r - padding, j + s - padding])

    where the sum runs over the taps that lie in ``in_mask``, whatever ``x`` holds elsewhere (NaN too), and ``scale`` is
    1, or with ``normalize`` one over the number of those taps (0 where there is none). Every other cell is exactly 0.
    With ``in_mask`` a mask and ``out_mask`` all cells this is 2D-TAN's ``relu(conv2d(x)) * masked_weight``.

    The CPU kernel multiplies about a tenth of the numbers that a full convolution does: it skips what the masks leave
    out, and computes 4 x 4 cells at a time from 8 x 8 (Winograd's algorithm F(4x4, 5x5)). In float32 the result is
    within about 1e-5 of its largest value, sums being formed of larger terms than its own; and a valid NaN or infinity
    spreads to the cells that are computed together with those it reaches. On CUDA float32 is multiplied as TF32 where
    torch's own convolutions are (``torch.backends.cudnn.allow_tf32``, on by default).

    Source: 2D-TAN (Zhang et al., AAAI 2020), section 3.3, and the mask weights of its released code; Winograd, 1980;
    Lavin and Gray, CVPR 2016.

    Args:
        x: floating [B, C, T, T] map.
        weight: [D, C, k, k], of the dtype of ``x``.
        bias: [D], of the dtype of ``x``.
        in_mask: bool [T, T], the cells of ``x`` that hold something; none: all.
        out_mask: bool [T', T'], T' = T + 2 padding - k + 1, the cells to compute; none: all.
        padding: cells of zeros around ``x``, 0 or more.
        activation: ``"relu"`` or ``None``.
        normalize: divide, after bias and activation, by the number of valid taps.

    Returns:
        [B, D, T', T'], dtype of ``x``; under autocast the autocast dtype, as ``conv2d``. Differentiable by ``x``,
        ``weight`` and ``bias``.

    Raises:
        ValueError: wrong shape, dtype, device, padding or activation.
    """
    check_floating("x", x)
    check_shape("x", x, ("B", "C", "T", "T"))
    B, C, T = x.shape[:3]
    check_shape("x", x, (B, C, T, T))
    out_T = check_layer(x, C, weight, bias, T, padding, activation)
    for name, mask, size in (("in_mask", in_mask, T), ("out_mask", out_mask, out_T)):
        if mask is not None:
            check_shape(name, mask, (size, size))
            check_same_device(name, mask, "x", x)
            if mask.dtype != torch.bool:
                raise ValueError(f"{name} has dtype {mask.dtype}; it must be bool")
    return torch.ops.vpgfast.temporal_map_conv2d(
        x, weight, bias, in_mask, out_mask, padding, activation == "relu", normalize
    )


def check_layer(
    x: Tensor, C: int, weight: Tensor, bias: Tensor | None, T: int, padding: int, activation: str | None
) -> int:
    """What makes up a layer on C channels of maps of T clips, whichever way they are laid out; returns T'."""
    check_shape("weight", weight, ("D", C, "k", "k"))
    D, k = weight.shape[0], weight.shape[2]
    check_shape("weight", weight, (D, C, k, k))
    if bias is not None:
        check_shape("bias", bias, (D,))
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            check_same_device(name, parameter, "x", x)
            check_same_dtype(name, parameter, "x", x)
    if k < 1 or padding < 0 or T < 0 or out_size(T, k, padding) < 0:
        raise ValueError(
            f"the kernel is {k} wide, padding is {padding} and T is {T}; it must hold that k >= 1, padding >= 0, "
            "T >= 0 and k <= T + 2 padding + 1"
        )
    if activation not in (None, "relu"):
        raise ValueError(f"activation is {activation!r}; it must be 'relu' or None")
    return out_size(T, k, padding)


def temporal_map_masks(
    mask: Tensor, kernel_sizes: Sequence[int], paddings: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """The cells that matter at every layer of a stack of convolutions over a temporal map.

    A cell matters if a valid cell of the input reaches it and a valid cell of the result needs it. The stack's result
    at the cells of ``mask`` is then the same as with every cell computed, since 2D-TAN's layers are zero where no valid
    cell reaches; so are the numbers of valid taps.

    Args:
        mask: bool [T, T], the valid cells of the first layer's input and of the result.
        kernel_sizes: of each layer.
        paddings: of each layer; together they must bring the map back to T x T (2D-TAN puts all on the first layer).

    Returns:
        For each layer ``(in_mask, out_mask)``, bool; the ``out_mask`` of one is the ``in_mask`` of the next.

    Raises:
        ValueError: wrong shape or dtype, or sizes that do not lead back to T x T.
    """
    check_shape("mask", mask, ("T", "T"))
    T = mask.shape[0]
    check_shape("mask", mask, (T, T))
    if mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}; it must be bool")
    kernel_sizes, paddings = list(kernel_sizes), list(paddings)
    if len(kernel_sizes) != len(paddings) or not kernel_sizes:
        raise ValueError(
            f"kernel_sizes is {kernel_sizes} and paddings {paddings}; it must be one of each a layer, and one or more"
        )
    sizes = [T]
    for k, padding in zip(kernel_sizes, paddings, strict=True):
        sizes.append(sizes[-1] + 2 * padding - k + 1)
    if min(kernel_sizes) < 1 or min(paddings) < 0 or min(sizes) < 0 or sizes[-1] != T:
        raise ValueError(
            f"kernel_sizes is {kernel_sizes} and paddings {paddings}, which take a map of {T} clips through sizes "
            f"{sizes[1:]}; kernels must be 1 or wider, paddings 0 or more, and the last size {T}"
        )
    reached = [mask]
    for k, padding in zip(kernel_sizes, paddings, strict=True):
        reached.append(valid_taps(reached[-1], k, padding) > 0)
    needed = [reached[-1] & mask]
    for k, padding in zip(reversed(kernel_sizes), reversed(paddings), strict=True):
        needed.insert(0, valid_taps(needed[0], k, k - 1 - padding) > 0)
    used = [a & b for a, b in zip(reached, needed, strict=True)]
    return list(pairwise(used))


def valid_taps(mask: Tensor, k: int, padding: int) -> Tensor:
    """How many of the k x k taps of every output cell are in ``mask``: int64 [T', T']. ``padding`` may be negative."""
    padded = torch.nn.functional.pad(mask.to(torch.int64), [padding] * 4)
    for axis in (0, 1):  # a sliding sum along either axis, as a difference of running sums
        running = torch.nn.functional.pad(padded.cumsum(axis), (0, 0, 1, 0) if axis == 0 else (1, 0))
        length = running.shape[axis] - k
        padded = running.narrow(axis, k, length) - running.narrow(axis, 0, length)
    return padded


def out_size(T: int, k: int, padding: int) -> int:
    return T + 2 * padding - k + 1


def _scale(in_mask: Tensor | None, x: Tensor, k: int, padding: int) -> Tensor:
    """2D-TAN's masked weight: one over the number of valid taps, 0 where there is none; [T', T']."""
    everywhere = torch.ones(x.shape[2:], dtype=torch.bool, device=x.device)
    count = valid_taps(everywhere if in_mask is None else in_mask, k, padding)
    return torch.where(count > 0, 1 / count.clamp(min=1).to(x.dtype), 0)


def _channels_last(x: Tensor, mask: Tensor | None, padding: int) -> Tensor:
    """[B, T + 2 padding, T + 2 padding, C] in the dtype to accumulate in, zero outside the mask."""
    wide = x.to(accumulate_dtype(x.dtype))
    if mask is not None:
        wide = torch.where(mask, wide, 0)
    return torch.nn.functional.pad(wide, [padding] * 4).permute(0, 2, 3, 1).contiguous()


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_mask: Tensor | None,
    out_mask: Tensor | None,
    padding: int,
    relu: bool,
    normalize: bool,
) -> Tensor:
    k, T = weight.shape[2], out_size(x.shape[2], weight.shape[2], padding)
    padded = _channels_last(x, in_mask, padding)
    out = padded.new_zeros(x.shape[0], T, T, weight.shape[0])
    for r in range(k):
        for s in range(k):
            out += padded[:, r : r + T, s : s + T] @ weight[:, :, r, s].to(padded.dtype).T
    if bias is not None:
        out += bias
    if relu:
        out = out.relu()
    if normalize:
        out *= _scale(in_mask, padded.new_empty(x.shape), k, padding)[:, :, None]
    if out_mask is not None:
        out = torch.where(out_mask[:, :, None], out, 0)
    return out.permute(0, 3, 1, 2).to(x.dtype).contiguous()


def _reference_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    out: Tensor | None,
    in_mask: Tensor | None,
    out_mask: Tensor | None,
    padding: int,
    normalize: bool,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    k, T = weight.shape[2], out_size(x.shape[2], weight.shape[2], padding)
    if out is not None:  # of a ReLU
        grad = torch.where(out <= 0, 0, grad)
    padded, results = _channels_last(x, in_mask, padding), _channels_last(grad, out_mask, 0)
    if normalize:
        results = results * _scale(in_mask, padded.new_empty(x.shape), k, padding)[:, :, None]

    grad_padded, grad_weight = torch.zeros_like(padded), torch.zeros_like(weight, dtype=padded.dtype)
    for r in range(k):
        for s in range(k):
            if needs_x:
                grad_padded[:, r : r + T, s : s + T] += results @ weight[:, :, r, s].to(padded.dtype)
            if needs_weight:
                taps = padded[:, r : r + T, s : s + T]
                grad_weight[:, :, r, s] = results.flatten(0, 2).T @ taps.flatten(0, 2)
    grad_x = torch.nn.functional.pad(grad_padded.permute(0, 3, 1, 2), [-padding] * 4)
    if in_mask is not None:
        grad_x = torch.where(in_mask, grad_x, 0)
    return _only((grad_x, grad_weight, results.sum((0, 1, 2))), (needs_x, needs_weight, needs_bias), x)


def _only(grads: tuple[Tensor, ...], needed: tuple[bool, ...], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What was asked for, in the dtype of ``like``; empty tensors in the place of the rest."""
    kept = [g.to(like.dtype).contiguous() if n else like.new_empty(0) for g, n in zip(grads, needed, strict=True)]
    return kept[0], kept[1], kept[2]


def _fake(x: Tensor, weight: Tensor, bias: Any, in_mask: Any, out_mask: Any, padding: int, *_: Any) -> Tensor:
    T = out_size(x.shape[2], weight.shape[2], padding)
    return x.new_empty(x.shape[0], weight.shape[0], T, T)


def fake_backward(grad: Tensor, x: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    needed = options[-3:]
    shapes = (x.shape, weight.shape, weight.shape[:1])
    kept = [x.new_empty(shape) if n else x.new_empty(0) for shape, n in zip(shapes, needed, strict=True)]
    return kept[0], kept[1], kept[2]


define(
    "temporal_map_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? in_mask, Tensor? out_mask, int padding,"
    " bool relu, bool normalize) -> Tensor",
    reference=_reference,
    fake=_fake,
    triton="temporal_map_conv2d:forward",
)
define(
    "temporal_map_conv2d_backward(Tensor grad, Tensor x, Tensor weight, Tensor? out, Tensor? in_mask, Tensor? out_mask,"
    " int padding, bool normalize, bool needs_x, bool needs_weight, bool needs_bias) -> (Tensor, Tensor, Tensor)",
    reference=_reference_backward,
    fake=fake_backward,
    triton="temporal_map_conv2d:backward",
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, in_mask, out_mask, ctx.padding, relu, ctx.normalize = inputs
    ctx.save_for_backward(x, weight, output if relu else None, in_mask, out_mask)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[:3]
    grads = torch.ops.vpgfast.temporal_map_conv2d_backward(
        grad, *ctx.saved_tensors, ctx.padding, ctx.normalize, *needed
    )
    return *(g if n else None for g, n in zip(grads, needed, strict=True)), None, None, None, None, None


differentiable("temporal_map_conv2d", _backward, _save)
autocast_like_conv("temporal_map_conv2d")
no_second_derivative("temporal_map_conv2d_backward")
