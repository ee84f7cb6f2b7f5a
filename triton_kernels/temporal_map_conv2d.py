"""temporal_map_conv2d and its form on listed cells, in Triton. See ``vpgfast/ops/temporal_map_conv2d.py``.

An implicit matrix product: a block of rows (listed cell, video) times a block of output channels, summed over the taps
and the input channels. Which row of the input a tap reads for a listed cell is worked out once, in a table
``sources`` [taps, cells] with -1 where nothing valid lies; a tap that no row of a block finds valid is skipped.
Rows hold their channels side by side. The list of cells stays on the device, padded with -1, and blocks past its end
leave at once: the host never waits for a mask, and a call can be captured in a CUDA graph.

float32 is multiplied as TF32 where torch's own convolutions may be (``torch.backends.cudnn.allow_tf32``), else in
three TF32 products that together keep float32's digits. float64 has no kernel: it runs on the reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from vpgfast.ops import OPS
from vpgfast.ops._registry import interpreted
from vpgfast.ops.temporal_map_conv2d import out_size

from ._launch import on_device

BLOCKS = ((128, 128, 8), (64, 128, 4), (64, 64, 4), (32, 64, 4))
"""Rows and channels of a block of results and its warps: the largest of which there are enough is taken."""
PROGRAMS = 256  # are enough
BYTES_SUMMED = 128  # of a row or column of its factors at a time


@triton.jit(do_not_specialize=["count", "T_from", "T_to", "K", "padding"])
def _sources(places, row_of_cell, sources, count, T_from, T_to, K, padding, FORWARD: tl.constexpr, BLOCK: tl.constexpr):
    """sources[tap, n]: the row that ``tap`` reads for cell ``places[n]``, -1 where there is none.

    Backward (not FORWARD) a cell of the input asks which result read it through the tap.
    """
    tap = tl.program_id(1)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    cell = tl.load(places + n, mask=n < count, other=-1)
    r, s = tap // K, tap % K
    if FORWARD:
        i, j = cell // T_to + r - padding, cell % T_to + s - padding
    else:
        i, j = cell // T_to - r + padding, cell % T_to - s + padding
    inside = (cell >= 0) & (i >= 0) & (j >= 0) & (i < T_from) & (j < T_from)
    source = tl.load(row_of_cell + i * T_from + j, mask=inside, other=-1)
    tl.store(sources + tap * count + n, source, mask=n < count)


@triton.jit
def _rows(first, B, count, ROWS: tl.constexpr):
    """Number in the list and video of a block of rows; videos lie side by side, so that a block sees few cells."""
    row = first + tl.arange(0, ROWS)
    n = row // B
    return n, (row % B).to(tl.int64), n < count


@triton.jit(do_not_specialize=["B", "count", "rows_from", "rows_to", "taps"])
def _forward(x, kernel, bias, sources, row_of, scale, out, B, C, D, count, rows_from, rows_to, taps,
             HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
             ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """out[video, row_of[n]] = scale(relu(bias + sum over taps of x[video, sources[tap, n]] kernel[tap].T))."""
    n, video, inside = _rows(tl.program_id(0) * ROWS, B, count, ROWS)
    to = tl.load(row_of + n, mask=inside, other=-1)
    if tl.max(to, 0) >= 0:
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for tap in range(0, taps):
            source = tl.load(sources + tap * count + n, mask=inside, other=-1)
            if tl.max(source, 0) >= 0:
                a_row = x + (video * rows_from + source) * C
                w_row = kernel + (tap * D + column).to(tl.int64) * C
                for start in range(0, C, CHANNELS):
                    channel = start + tl.arange(0, CHANNELS)
                    a = tl.load(a_row[:, None] + channel[None, :],
                                mask=(source >= 0)[:, None] & (channel < C)[None, :], other=0)  # fmt: skip
                    w = tl.load(w_row[None, :] + channel[:, None],
                                mask=(channel < C)[:, None] & (column < D)[None, :], other=0)  # fmt: skip
                    sums = tl.dot(a, w, sums, input_precision=PRECISION)
        if HAS_BIAS:
            sums += tl.load(bias + column, mask=column < D, other=0).to(tl.float32)[None, :]
        if RELU:
            sums = tl.where(sums < 0, 0.0, sums)
        if HAS_SCALE:
            sums *= tl.load(scale + n, mask=inside, other=0)[:, None]
        place = (video * rows_to + to) * D
        tl.store(out + place[:, None] + column[None, :], sums.to(out.dtype.element_ty),
                 mask=(to >= 0)[:, None] & (column < D)[None, :])  # fmt: skip


@triton.jit(do_not_specialize=["B", "count", "rows_from", "rows_to"])
def _backward_weight(grad, x, read, written, pairs, grad_kernel, B, C, D, count, rows_from, rows_to,
                     PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                     CHANNELS: tl.constexpr):  # fmt: skip
    """One tap's gradient between a block of output channels and one of input channels: a sum over all rows that the
    tap reads. ``read`` and ``written`` [taps, count] list them, ``pairs`` [taps] says how many there are."""
    tap = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    sums = tl.zeros((COLUMNS, CHANNELS), dtype=tl.float32)
    listed = tl.load(pairs + tap).to(tl.int32)
    for first in range(0, listed * B, ROWS):
        n, video, inside = _rows(first, B, listed, ROWS)
        result = (video * rows_to + tl.load(written + tap * count + n, mask=inside, other=0)) * D
        source = (video * rows_from + tl.load(read + tap * count + n, mask=inside, other=0)) * C
        g = tl.load(grad + result[None, :] + column[:, None], mask=inside[None, :] & (column < D)[:, None], other=0)
        a = tl.load(x + source[:, None] + channel[None, :], mask=inside[:, None] & (channel < C)[None, :], other=0)
        sums = tl.dot(g, a, sums, input_precision=PRECISION)
    place = (tap * D + column).to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(grad_kernel + place, sums.to(grad_kernel.dtype.element_ty),
             mask=(column < D)[:, None] & (channel < C)[None, :])  # fmt: skip


def _operand(tensor: Tensor) -> Tensor:
    """The interpreter computes 16-bit products wrongly: there they are formed of float32 copies."""
    return tensor.float() if interpreted() else tensor


def _block(size: int, largest: int) -> int:
    return min(largest, max(16, triton.next_power_of_2(size)))


def _at_a_time(x: Tensor) -> int:
    return BYTES_SUMMED // x.element_size()


def _precision(x: Tensor) -> str:
    tf32 = x.dtype != torch.float32 or torch.backends.cudnn.allow_tf32
    return "tf32" if tf32 else "tf32x3"


@dataclass
class Cells:
    """The cells of a map that count, and the rows of a tensor [B, rows, channels] that hold them.

    Attributes:
        T: width of the map.
        places: int32 [N], the cells, i * T + j, padded with -1.
        row_of: int32 [N], the row of each.
        row_of_cell: int32 [T * T], the row that holds a cell; -1 where none does.
        rows: how many rows there are.
    """

    T: int
    places: Tensor
    row_of: Tensor
    row_of_cell: Tensor
    rows: int

    @classmethod
    def of_map(cls, mask: Tensor | None, T: int, device: torch.device) -> Cells:
        """Every cell has its row."""
        every = torch.arange(T * T, dtype=torch.int32, device=device)
        if mask is None:
            return cls(T, every, every, every, T * T)
        flat = mask.flatten()
        places = torch.nonzero_static(flat, size=T * T, fill_value=-1).flatten().int()
        return cls(T, places, places, torch.where(flat, every, -1), T * T)

    @classmethod
    def of_list(cls, cells: Tensor, T: int) -> Cells:
        """Row n holds cell ``cells[n]``."""
        rows = torch.arange(len(cells), dtype=torch.int32, device=cells.device)
        row_of_cell = torch.full((T * T,), -1, dtype=torch.int32, device=cells.device).index_copy_(0, cells, rows)
        return cls(T, cells.int(), rows, row_of_cell, len(cells))

    def sources(self, of: Cells, k: int, padding: int, forward: bool) -> Tensor:
        """int32 [k * k, N]: the row of ``of`` that each tap reads for each of these cells; -1 where none."""
        count = len(self.places)
        table = torch.empty(k * k, count, dtype=torch.int32, device=self.places.device)
        if table.numel():
            with on_device(table):
                _sources[(triton.cdiv(count, 256), k * k)](
                    self.places, of.row_of_cell, table, count, of.T, self.T, k, padding, forward, 256
                )
        return table


def _convolve(
    x: Tensor, kernel: Tensor, bias: Tensor | None, sources: Tensor, to: Cells, relu: bool, scale: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """x [B, rows, C] and kernel [taps, D, C], both contiguous, to [B, rows of ``to``, D], zero where none is listed."""
    B, rows, C = x.shape
    taps, D, count = kernel.shape[0], kernel.shape[1], len(to.places)
    out = torch.zeros(B, to.rows, D, dtype=dtype, device=x.device)
    if out.numel():
        # Half of a list that was made on the device may be padding: a rough guess of how many blocks have work.
        height, width, warps = next(
            (b for b in BLOCKS if triton.cdiv(count * B // 2, b[0]) * triton.cdiv(D, b[1]) >= PROGRAMS), BLOCKS[-1]
        )
        height, width = _block(count * B, height), _block(D, width)
        with on_device(x):
            _forward[(triton.cdiv(count * B, height), triton.cdiv(D, width))](
                x, kernel, x if bias is None else bias, sources, to.row_of, x if scale is None else scale, out,
                B, C, D, count, rows, to.rows, taps, bias is not None, scale is not None, relu, _precision(x),
                height, width, _block(C, _at_a_time(x)), num_warps=warps,
            )  # fmt: skip
    return out


def _inverse_counts(sources: Tensor) -> Tensor:
    """One over the number of valid taps of each listed cell, 0 where there is none."""
    count = (sources >= 0).sum(0)
    return torch.where(count > 0, 1 / count.clamp(min=1).float(), 0)


def _pairs(sources: Tensor, row_of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each tap the rows that it reads and those that it writes, in the cells' order and side by side: int32
    [taps, N] each; and how many there are, [taps]."""
    valid = sources >= 0
    end = valid.shape[1]
    place = torch.where(valid, valid.cumsum(1) - 1, end)  # behind the last: what is left out

    def gathered(rows: Tensor) -> Tensor:
        return rows.new_zeros(valid.shape[0], end + 1).scatter_(1, place, rows)[:, :end].contiguous()

    return gathered(sources), gathered(row_of.expand_as(sources).contiguous()), valid.sum(1)


def convolve_cells(
    x: Tensor, weight: Tensor, bias: Tensor | None, of: Cells, to: Cells, padding: int, relu: bool, normalize: bool
) -> Tensor:
    """x [B, rows of ``of``, C] to [B, rows of ``to``, D]."""
    D, C, k, _ = weight.shape
    sources = to.sources(of, k, padding, forward=True)
    kernel = _operand(weight.permute(2, 3, 0, 1).reshape(k * k, D, C).contiguous())
    bias = None if bias is None else _operand(bias.contiguous())
    scale = _inverse_counts(sources) if normalize else None
    return _convolve(_operand(x.contiguous()), kernel, bias, sources, to, relu, scale, x.dtype)


def backward_cells(
    grad: Tensor, x: Tensor, weight: Tensor, out: Tensor | None, of: Cells, to: Cells, padding: int, normalize: bool,
    needs_x: bool, needs_weight: bool, needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients from ``grad`` [B, rows of ``to``, D], whose unlisted rows nobody reads; by x as [B, rows of ``of``, C].

    The gradient of the bias is summed over all rows: unlisted ones must be zero.
    """
    (B, rows, C), (D, _, k, _) = x.shape, weight.shape
    if out is not None:  # of a ReLU
        grad = torch.where(out <= 0, 0, grad)
    sources = to.sources(of, k, padding, forward=True)
    if normalize:
        scale = torch.zeros(to.rows + 1, device=x.device)  # the last for the padding of the list
        scale.index_copy_(0, torch.where(to.row_of < 0, to.rows, to.row_of).long(), _inverse_counts(sources))
        grad = (grad * scale[: to.rows, None]).to(x.dtype)
    results = _operand(grad.contiguous())

    grad_x, grad_weight, grad_bias = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if needs_x:
        kernel = _operand(weight.permute(2, 3, 1, 0).reshape(k * k, C, D).contiguous())
        grad_x = _convolve(results, kernel, None, of.sources(to, k, padding, forward=False), of, False, None, x.dtype)
    if needs_weight:
        by_tap = torch.zeros(k * k, D, C, dtype=weight.dtype, device=x.device)
        if by_tap.numel() and grad.numel() and rows:
            height, width = _block(D, BLOCKS[0][0]), _block(C, BLOCKS[0][1])
            block = _block(len(to.places) * B, _at_a_time(results))
            with on_device(x):
                _backward_weight[(k * k, triton.cdiv(D, height), triton.cdiv(C, width))](
                    results, _operand(x.contiguous()), *_pairs(sources, to.row_of), by_tap, B, C, D, len(to.places),
                    rows, to.rows, _precision(x), block, height, width, num_warps=BLOCKS[0][2],
                )  # fmt: skip
        grad_weight = by_tap.unflatten(0, (k, k)).permute(2, 3, 0, 1).contiguous()
    if needs_bias:
        grad_bias = grad.sum((0, 1), dtype=torch.float32).to(x.dtype)
    return grad_x, grad_weight, grad_bias


def _as_rows(x: Tensor) -> Tensor:
    """[B, C, T, T] as [B, T * T, C]."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def _as_map(rows: Tensor, T: int) -> Tensor:
    return rows.unflatten(1, (T, T)).permute(0, 3, 1, 2).contiguous()


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_mask: Tensor | None,
    out_mask: Tensor | None,
    padding: int,
    relu: bool,
    normalize: bool,
) -> Tensor:
    if x.dtype == torch.float64:
        return OPS["temporal_map_conv2d"].reference(x, weight, bias, in_mask, out_mask, padding, relu, normalize)
    T, out_T = x.shape[2], out_size(x.shape[2], weight.shape[2], padding)
    of, to = Cells.of_map(in_mask, T, x.device), Cells.of_map(out_mask, out_T, x.device)
    return _as_map(convolve_cells(_as_rows(x), weight, bias, of, to, padding, relu, normalize), out_T)


def backward(
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
    needs = needs_x, needs_weight, needs_bias
    if x.dtype == torch.float64:
        reference = OPS["temporal_map_conv2d_backward"].reference
        return reference(grad, x, weight, out, in_mask, out_mask, padding, normalize, *needs)
    T, out_T = x.shape[2], grad.shape[2]
    of, to = Cells.of_map(in_mask, T, x.device), Cells.of_map(out_mask, out_T, x.device)
    if out_mask is not None:
        grad = torch.where(out_mask, grad, 0)
    results = None if out is None else _as_rows(out)
    by_x, by_weight, by_bias = backward_cells(
        _as_rows(grad), _as_rows(x), weight, results, of, to, padding, normalize, *needs
    )
    return _as_map(by_x, T) if needs_x else by_x, by_weight, by_bias


def forward_cells(
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
    if x.dtype == torch.float64:
        reference = OPS["temporal_map_conv2d_cells"].reference
        return reference(x, weight, bias, in_cells, out_cells, T, padding, relu, normalize)
    of, to = Cells.of_list(in_cells, T), Cells.of_list(out_cells, out_size(T, weight.shape[2], padding))
    return convolve_cells(x, weight, bias, of, to, padding, relu, normalize)


def backward_of_cells(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    out: Tensor | None,
    in_cells: Tensor,
    out_cells: Tensor,
    T: int,
    padding: int,
    normalize: bool,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    needs = needs_x, needs_weight, needs_bias
    if x.dtype == torch.float64:
        reference = OPS["temporal_map_conv2d_cells_backward"].reference
        return reference(grad, x, weight, out, in_cells, out_cells, T, padding, normalize, *needs)
    of, to = Cells.of_list(in_cells, T), Cells.of_list(out_cells, out_size(T, weight.shape[2], padding))
    return backward_cells(grad, x, weight, out, of, to, padding, normalize, *needs)
