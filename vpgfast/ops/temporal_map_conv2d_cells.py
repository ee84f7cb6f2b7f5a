"""2D-TAN's convolution on the listed cells of a map alone: what does not count is not even stored."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ._checks import check_floating, check_same_device, check_shape
from ._registry import autocast_like_conv, define, differentiable, no_second_derivative
from .temporal_map_conv2d import check_layer, fake_backward, out_size


def temporal_map_conv2d_cells(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_cells: Tensor,
    out_cells: Tensor,
    T: int,
    padding: int = 0,
    activation: Literal["relu"] | None = None,
    normalize: bool = False,
) -> Tensor:
    """:func:`temporal_map_conv2d` from the listed cells of a map to the listed cells of the next, channels last.

    A stack of layers that hands its cells on in this form keeps about half of the numbers that maps would be, where
    only moments count, and the kernels compute on them where they lie. Results are those of
    :func:`temporal_map_conv2d` with the masks that hold ``in_cells`` and ``out_cells``.

    Source: as :func:`temporal_map_conv2d`.

    Args:
        x: floating [B, P, C], the listed cells.
        weight: [D, C, k, k], of the dtype of ``x``.
        bias: [D], of the dtype of ``x``.
        in_cells: int64 [P], rising, the cells that ``x`` holds: i * T + j for cell (i, j).
        out_cells: int64 [P'], rising, the cells to compute: i * T' + j, T' = T + 2 padding - k + 1.
        T: width of the map that ``in_cells`` are of.
        padding: cells of zeros around that map, 0 or more.
        activation: ``"relu"`` or ``None``.
        normalize: divide, after bias and activation, by the number of valid taps.

    Returns:
        [B, P', D], dtype of ``x``; under autocast the autocast dtype, as ``conv2d``. Differentiable by ``x``,
        ``weight`` and ``bias``.

    Raises:
        ValueError: wrong shape, dtype, device, padding or activation.
        RuntimeError: cells outside the map or not rising (on CUDA: a device-side assertion, for cells outside alone).
    """
    check_floating("x", x)
    check_shape("x", x, ("B", "P", "C"))
    check_shape("in_cells", in_cells, (x.shape[1],))
    check_shape("out_cells", out_cells, ("P'",))
    check_layer(x, x.shape[2], weight, bias, T, padding, activation)
    for name, cells in (("in_cells", in_cells), ("out_cells", out_cells)):
        check_same_device(name, cells, "x", x)
        if cells.dtype != torch.int64:
            raise ValueError(f"{name} has dtype {cells.dtype}; it must be int64")
    return torch.ops.vpgfast.temporal_map_conv2d_cells(
        x, weight, bias, in_cells, out_cells, T, padding, activation == "relu", normalize
    )


def _check_rising(name: str, cells: Tensor, size: int) -> None:
    bounded = torch.cat([cells.new_tensor([-1]), cells, cells.new_tensor([size])])
    if cells.device.type == "cpu" and (bounded.diff() <= 0).any():
        raise RuntimeError(f"{name} is {cells.tolist()}; it must hold rising numbers of the {size} cells")


def _mask(cells: Tensor, T: int) -> Tensor:
    return torch.zeros(T * T, dtype=torch.bool, device=cells.device).index_fill(0, cells, True).view(T, T)


def on_map(x: Tensor, cells: Tensor, T: int) -> Tensor:
    """[B, P, C] -> [B, C, T, T], zero elsewhere."""
    return x.new_zeros(x.shape[0], x.shape[2], T * T).index_copy(2, cells, x.transpose(1, 2)).unflatten(2, (T, T))


def at_cells(x: Tensor, cells: Tensor) -> Tensor:
    """[B, C, T, T] -> [B, P, C]."""
    return x.flatten(2).index_select(2, cells).transpose(1, 2).contiguous()


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_cells: Tensor,
    out_cells: Tensor,
    T: int,
    padding: int,
    relu: bool,
    normalize: bool,
) -> Tensor:
    out_T = out_size(T, weight.shape[2], padding)
    _check_rising("in_cells", in_cells, T * T)
    _check_rising("out_cells", out_cells, out_T * out_T)
    masks = _mask(in_cells, T), _mask(out_cells, out_T)
    maps = on_map(x, in_cells, T)
    out = torch.ops.vpgfast.temporal_map_conv2d(maps, weight, bias, *masks, padding, relu, normalize)
    return at_cells(out, out_cells)


def _reference_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    out: Tensor | None,
    in_cells: Tensor,
    out_cells: Tensor,
    T: int,
    padding: int,
    normalize: bool,
    *needs: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    out_T = out_size(T, weight.shape[2], padding)
    masks = _mask(in_cells, T), _mask(out_cells, out_T)
    maps = on_map(grad, out_cells, out_T), on_map(x, in_cells, T)
    results = None if out is None else on_map(out, out_cells, out_T)
    grad_x, grad_weight, grad_bias = torch.ops.vpgfast.temporal_map_conv2d_backward(
        *maps, weight, results, *masks, padding, normalize, *needs
    )
    return at_cells(grad_x, in_cells) if needs[0] else grad_x, grad_weight, grad_bias


def _fake(x: Tensor, weight: Tensor, bias: Any, in_cells: Tensor, out_cells: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], out_cells.shape[0], weight.shape[0])


define(
    "temporal_map_conv2d_cells(Tensor x, Tensor weight, Tensor? bias, Tensor in_cells, Tensor out_cells, int T,"
    " int padding, bool relu, bool normalize) -> Tensor",
    reference=_reference,
    fake=_fake,
    triton="temporal_map_conv2d:forward_cells",
)
define(
    "temporal_map_conv2d_cells_backward(Tensor grad, Tensor x, Tensor weight, Tensor? out, Tensor in_cells,"
    " Tensor out_cells, int T, int padding, bool normalize, bool needs_x, bool needs_weight, bool needs_bias)"
    " -> (Tensor, Tensor, Tensor)",
    reference=_reference_backward,
    fake=fake_backward,
    triton="temporal_map_conv2d:backward_of_cells",
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, in_cells, out_cells, ctx.T, ctx.padding, relu, ctx.normalize = inputs
    ctx.save_for_backward(x, weight, output if relu else None, in_cells, out_cells)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[:3]
    grads = torch.ops.vpgfast.temporal_map_conv2d_cells_backward(
        grad, *ctx.saved_tensors, ctx.T, ctx.padding, ctx.normalize, *needed
    )
    return *(g if n else None for g, n in zip(grads, needed, strict=True)), *(None,) * 6


differentiable("temporal_map_conv2d_cells", _backward, _save)
autocast_like_conv("temporal_map_conv2d_cells")
no_second_derivative("temporal_map_conv2d_cells_backward")
