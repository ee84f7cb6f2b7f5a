"""temporal_map_conv2d and its form on listed cells, in Triton. See ``vpgfast/ops/temporal_map_conv2d.py``.

An implicit matrix product: a block of rows (listed cell, video) times a block of output channels, summed over the taps
that read something valid for a row of the block, and over the input channels. Rows hold their channels side by side,
since Hopper's tensor cores want the factors of float32 that way.

Steps of this sum are shared out evenly: each program takes as many, whichever blocks they belong to (stream-K, Osama et
al., PPoPP 2023). What several programs have a share in is added up afterwards, in a fixed order. How many steps there
are is worked out on the device, from lists as long as the masks allow: the host never waits for a mask, and a call can
be captured in a CUDA graph.

float32 is multiplied as TF32 where torch's own convolutions may be (``torch.backends.cudnn.allow_tf32``), else in
three TF32 products that together keep float32's digits. float64 has no kernel: it runs on the reference.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from vpgfast.ops import OPS
from vpgfast.ops._registry import interpreted
from vpgfast.ops.temporal_map_conv2d import out_size

from ._launch import architecture, on_device
from .cells import LISTED, Cells, source_row, transposed


@dataclass(frozen=True)
class Blocks:
    """How a sum is cut up.

    Attributes:
        rows, columns: of a block of results.
        warps: of a block.
        stages: of Triton's pipeline; what is read through a list takes two for each step that is under way.
        per_processor: how many programs a multiprocessor runs at once.
        bytes_summed: of a row of either factor, in a step.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    per_processor: int
    bytes_summed: int = 128


HOPPER = {
    "tf32": (Blocks(128, 256, 8, 6, 1), Blocks(128, 256, 8, 6, 1)),
    "tf32x3": (Blocks(64, 128, 4, 6, 2), Blocks(64, 64, 4, 6, 2)),
}
"""Of the convolution and of the weight's gradient, by precision: what was fastest on an H100 at the largest shape
tried, and what fits into the registers where three products stand in for one. At small shapes 128 x 128 was up to an
eighth faster (benchmarks/results/cuda)."""
AMPERE = {
    "tf32": (Blocks(128, 128, 8, 6, 1), Blocks(128, 128, 8, 6, 1)),
    "tf32x3": (Blocks(64, 64, 4, 6, 2), Blocks(64, 64, 4, 6, 2)),
}
"""Not measured: what fits into the registers."""


@triton.jit(do_not_specialize=["B", "count", "rows_from", "T_from", "T_to", "K", "padding"])
def _plan(cells, row_of_cell, sources, taps, active, B, count, rows_from, T_from, T_to, K, padding,
          FORWARD: tl.constexpr, ROWS: tl.constexpr, TAPS: tl.constexpr):  # fmt: skip
    """For a block of rows: ``taps`` [blocks, K * K], those that read something, first; how many, ``active`` [blocks];
    and ``sources`` [blocks, K * K, ROWS], the row (of all videos') that each reads for each row, or -1."""
    block = tl.program_id(0)
    row = block * ROWS + tl.arange(0, ROWS)
    n = row // B
    place = tl.load(cells + n, mask=n < count, other=-1)
    before = tl.zeros((), dtype=tl.int32)
    if tl.max(place, 0) >= 0:
        for first in range(0, K * K, TAPS):
            tap = first + tl.arange(0, TAPS)
            source = source_row(place[None, :], tap[:, None], row_of_cell, T_from, T_to, K, padding, FORWARD)
            reads = (tl.max(source, 1) >= 0).to(tl.int32)
            position = block.to(tl.int64) * (K * K) + before + tl.cumsum(reads, 0) - 1
            tl.store(taps + position, tap, mask=reads != 0)
            source = tl.where(source >= 0, (row % B)[None, :] * rows_from + source, -1)
            tl.store(sources + position[:, None] * ROWS + tl.arange(0, ROWS)[None, :], source,
                     mask=(reads != 0)[:, None])  # fmt: skip
            before += tl.sum(reads, 0)
    tl.store(active + block, before)


@triton.jit
def _begin(active, begin, blocks, BLOCK: tl.constexpr):
    """begin[b]: how many taps the blocks before b have; begin[blocks]: all."""
    before = tl.zeros((), dtype=tl.int32)
    for first in range(0, blocks, BLOCK):
        block = first + tl.arange(0, BLOCK)
        taps = tl.load(active + block, mask=block < blocks, other=0)
        tl.store(begin + block, before + tl.cumsum(taps, 0) - taps, mask=block < blocks)
        before += tl.sum(taps, 0)
    tl.store(begin + blocks, before)


@triton.jit
def _first_of(program, programs, total):
    """The first step of a program's share."""
    return (total.to(tl.int64) * program // programs).to(tl.int32)


@triton.jit
def _write(values, block, column_block, first, bias, rows, scale, out, B, D, count, HAS_BIAS: tl.constexpr,
           HAS_SCALE: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
           COLUMNS: tl.constexpr):  # fmt: skip
    """``SIZE`` rows of a block of sums, from its row ``first``, as results."""
    row = block * ROWS + first + tl.arange(0, SIZE)
    column = column_block * COLUMNS + tl.arange(0, COLUMNS)
    to = tl.load(rows + row // B, mask=row // B < count, other=-1)
    if HAS_BIAS:
        values += tl.load(bias + column, mask=column < D, other=0).to(tl.float32)[None, :]
    if RELU:
        values = tl.where(values < 0, 0.0, values)
    if HAS_SCALE:
        values *= tl.load(scale + to, mask=to >= 0, other=0)[:, None]
    place = ((row % B).to(tl.int64) * count + to) * D
    tl.store(out + place[:, None] + column[None, :], values.to(out.dtype.element_ty),
             mask=(to >= 0)[:, None] & (column < D)[None, :])  # fmt: skip


@triton.jit(do_not_specialize=["B", "count", "taps_at_most", "row_blocks"])
def _products(x, kernel, sources, taps, begin, parts, bias, rows, scale, out, B, C, D, count, taps_at_most, row_blocks,
              HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, RELU: tl.constexpr, WHOLE: tl.constexpr,
              PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
              STAGES: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """out[video, rows[n]] = scale(relu(bias + sum over taps of x[video, source of tap and n] kernel[tap].T)).

    Blocks of columns lie behind one another, in them blocks of rows, in them taps, in them steps of CHANNELS. A block
    that this program sums from end to end is written; of others the sum goes to ``parts`` [2 * programs, ROWS,
    COLUMNS]: to the first place of the program's two if its share begins there, else to the second. WHOLE: C and D
    are multiples of a block's.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    chunks = tl.cdiv(C, CHANNELS)
    of_column_block = tl.load(begin + row_blocks) * chunks
    total = of_column_block * tl.cdiv(D, COLUMNS)
    start, end = _first_of(program, programs, total), _first_of(program + 1, programs, total)
    step = start
    while step < end:
        column_block, tap_of_all = step // of_column_block, (step % of_column_block) // chunks
        block = tl.full((), -1, dtype=tl.int32)
        for first in range(0, row_blocks, BLOCK):
            candidate = first + tl.arange(0, BLOCK)
            starts = tl.load(begin + candidate, mask=candidate < row_blocks, other=2147483647)
            block += tl.sum((starts <= tap_of_all).to(tl.int32), 0)
        block_start = column_block * of_column_block + tl.load(begin + block) * chunks
        block_end = column_block * of_column_block + tl.load(begin + block + 1) * chunks
        until = tl.minimum(end, block_end)

        listed = block.to(tl.int64) * taps_at_most
        column = column_block * COLUMNS + tl.arange(0, COLUMNS)
        sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for position in tl.range(step - block_start, until - block_start, num_stages=STAGES):
            active = listed + position // chunks
            channel = position % chunks * CHANNELS + tl.arange(0, CHANNELS)
            source = tl.load(sources + active * ROWS + tl.arange(0, ROWS))
            tap = tl.load(taps + active)
            a_mask, w_mask = (source >= 0)[:, None], None
            if not WHOLE:
                a_mask = a_mask & (channel < C)[None, :]
                w_mask = (channel < C)[:, None] & (column < D)[None, :]
            a = tl.load(x + source.to(tl.int64)[:, None] * C + channel[None, :], mask=a_mask, other=0)
            w_at = kernel + tap.to(tl.int64) * D * C + column[None, :] * C + channel[:, None]
            w = tl.load(w_at) if WHOLE else tl.load(w_at, mask=w_mask, other=0)
            sums = tl.dot(a, w, sums, input_precision=PRECISION)

        if step == block_start and until == block_end:
            _write(sums, block, column_block, 0, bias, rows, scale, out, B, D, count, HAS_BIAS, HAS_SCALE, RELU, ROWS,
                   ROWS, COLUMNS)  # fmt: skip
        else:
            part = tl.cast(2 * program + (step != start), tl.int64) * (ROWS * COLUMNS)
            at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
            tl.store(parts + part + at, sums)
        step = until


@triton.jit(do_not_specialize=["B", "count", "row_blocks", "programs"])
def _add_parts(begin, parts, number, bias, rows, scale, out, B, C, D, count, row_blocks, programs,
               HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr,
               COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """Adds up what several programs of ``_products`` summed of a block, in their order; a block without taps is 0."""
    block, column_block, first = tl.program_id(0), tl.program_id(1), tl.program_id(2) * SIZE
    if block * ROWS < tl.load(number) * B:
        chunks = tl.cdiv(C, CHANNELS)
        of_column_block = tl.load(begin + row_blocks) * chunks
        total = of_column_block * tl.cdiv(D, COLUMNS)
        block_start = (column_block * of_column_block + tl.load(begin + block) * chunks).to(tl.int64)
        block_end = (column_block * of_column_block + tl.load(begin + block + 1) * chunks).to(tl.int64)
        # Step s is in the share of program floor(((s + 1) * programs - 1) / total).
        program = ((block_start + 1) * programs - 1) // tl.maximum(total, 1)
        last = (block_end * programs - 1) // tl.maximum(total, 1)
        last = tl.where(block_end > block_start, last, program - 1)
        if program != last:
            sums = tl.zeros((SIZE, COLUMNS), dtype=tl.float32)
            at = (first + tl.arange(0, SIZE))[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
            while program <= last:
                start = _first_of(program, programs, total)
                if start < _first_of(program + 1, programs, total):
                    part = 2 * program + (start < block_start).to(tl.int64)
                    sums += tl.load(parts + part * (ROWS * COLUMNS) + at)
                program += 1
            _write(sums, block, column_block, first, bias, rows, scale, out, B, D, count, HAS_BIAS, HAS_SCALE, RELU,
                   ROWS, SIZE, COLUMNS)  # fmt: skip


@triton.jit(do_not_specialize=["count", "T_from", "T_to", "K", "padding"])
def _pairs(places, row_of_cell, read, written, pairs, count, T_from, T_to, K, padding, BLOCK: tl.constexpr):
    """For each tap the rows that it reads and those that it writes, side by side and in order, ``read`` and ``written``
    [taps, count]; and how many there are, ``pairs`` [taps]."""
    tap = tl.program_id(0)
    found = tl.zeros((), dtype=tl.int32)
    for first in range(0, count, BLOCK):
        n = first + tl.arange(0, BLOCK)
        place = tl.load(places + n, mask=n < count, other=-1)
        source = source_row(place, tl.zeros_like(place) + tap, row_of_cell, T_from, T_to, K, padding, True)
        valid = (source >= 0).to(tl.int32)
        position = tap * count + found + tl.cumsum(valid, 0) - 1
        tl.store(read + position, source, mask=valid != 0)
        tl.store(written + position, n, mask=valid != 0)
        found += tl.sum(valid, 0)
    tl.store(pairs + tap, found)


@triton.jit(do_not_specialize=["count", "groups"])
def _backward_weight(grad, x, read, written, pairs, grad_kernel, C, D, count, groups, grad_row, grad_group, grad_column,
                     x_row, x_group, x_channel, PRECISION: tl.constexpr, VIDEOS: tl.constexpr, ROWS: tl.constexpr,
                     COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """One tap's gradient between a block of output channels and one of input channels: a sum over all rows that the
    tap reads. Videos lie in ``groups`` of VIDEOS, those of a group side by side."""
    tap = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    sums = tl.zeros((COLUMNS, CHANNELS), dtype=tl.float32)
    grad_at, x_at = grad + column.to(tl.int64) * grad_column, x + channel.to(tl.int64) * x_channel
    listed = tl.load(pairs + tap)
    for first in tl.range(0, listed * groups * VIDEOS, ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)
        video = row % VIDEOS
        n, group = row // VIDEOS // groups, row // VIDEOS % groups
        inside = n < listed
        result = tl.load(written + tap * count + n, mask=inside, other=0).to(tl.int64)
        source = tl.load(read + tap * count + n, mask=inside, other=0).to(tl.int64)
        g_at = (result * grad_row + group * grad_group) * VIDEOS + video
        a_at = (source * x_row + group * x_group) * VIDEOS + video
        g = tl.load(grad_at[:, None] + g_at[None, :], mask=inside[None, :] & (column < D)[:, None], other=0)
        a = tl.load(x_at[None, :] + a_at[:, None], mask=inside[:, None] & (channel < C)[None, :], other=0)
        sums = tl.dot(g, a, sums, input_precision=PRECISION)
    place = (tap * D + column).to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(grad_kernel + place, sums.to(grad_kernel.dtype.element_ty),
             mask=(column < D)[:, None] & (channel < C)[None, :])  # fmt: skip


@triton.jit(do_not_specialize=["B", "count"])
def _sum_rows(rows, number, sums, B, count, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """sums[part, D]: over a share of the first ``number`` rows of each video."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    part, parts, listed = tl.program_id(1), tl.num_programs(1), tl.load(number)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for first in range(part * ROWS, listed * B, parts * ROWS):
        row = first + tl.arange(0, ROWS)
        at = ((row % B).to(tl.int64) * count + row // B) * D
        mask = (row < listed * B)[:, None] & (column < D)[None, :]
        total += tl.load(rows + at[:, None] + column[None, :], mask=mask, other=0).to(tl.float32)
    tl.store(sums + part * D + column, tl.sum(total, 0), mask=column < D)


def _operand(tensor: Tensor) -> Tensor:
    """The interpreter computes 16-bit products wrongly: there they are formed of float32 copies."""
    return tensor.float() if interpreted() else tensor


def _block(size: int, largest: int) -> int:
    return min(largest, max(16, triton.next_power_of_2(size)))


def _precision(x: Tensor) -> str:
    tf32 = x.dtype != torch.float32 or torch.backends.cudnn.allow_tf32
    return "tf32" if tf32 else "tf32x3"


def _blocks(precision: str) -> tuple[Blocks, Blocks]:
    return (HOPPER if architecture() >= 90 else AMPERE)[precision]


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _convolve(
    x: Tensor, kernel: Tensor, bias: Tensor | None, of: Cells, to: Cells, k: int, padding: int, forward: bool,
    relu: bool, scale: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Rows x [B, N of ``of``, C] and kernel [taps, D, C], both contiguous, to rows [B, N of ``to``, D]."""
    B, rows_from, C = x.shape
    D, count = kernel.shape[1], len(to.places)
    out = torch.empty(B, count, D, dtype=dtype, device=x.device)
    if not out.numel():
        return out
    precision = _precision(x)
    blocks, _ = _blocks(precision)
    height, width = _block(count * B, blocks.rows), _block(D, blocks.columns)
    depth = _block(C, blocks.bytes_summed // x.element_size())
    row_blocks, programs = triton.cdiv(count * B, height), _processors(x.device) * blocks.per_processor
    numbers = functools.partial(torch.empty, dtype=torch.int32, device=x.device)
    sources, taps = numbers(row_blocks, k * k, height), numbers(row_blocks, k * k)
    active, begin = numbers(row_blocks), numbers(row_blocks + 1)
    parts = torch.empty(2 * programs, height, width, device=x.device)
    cells, rows = to.by_diagonal()
    result = x if bias is None else bias, rows, x if scale is None else scale, out, B, C, D, count
    options = bias is not None, scale is not None, relu
    with on_device(x):
        _plan[(row_blocks,)](
            cells, of.row_of_cell, sources, taps, active, B, count, rows_from, of.T, to.T, k, padding, forward,
            height, min(32, triton.next_power_of_2(k * k)),
        )  # fmt: skip
        _begin[(1,)](active, begin, row_blocks, LISTED)
        if C:
            _products[(programs,)](
                x, kernel, sources, taps, begin, parts, *result, k * k, row_blocks, *options,
                C % depth == 0 and D % width == 0, precision, height, width, depth, blocks.stages,
                min(LISTED, triton.next_power_of_2(row_blocks)), num_warps=blocks.warps,
            )  # fmt: skip
        size = min(8, height)
        _add_parts[(row_blocks, triton.cdiv(D, width), height // size)](
            begin, parts, to.number, *result, row_blocks, programs, *options, height, width, depth, size
        )
    return out


def _weight_gradient(grad: Tensor, x: Tensor, of: Cells, to: Cells, k: int, padding: int) -> Tensor:
    """Rows grad [B, N of ``to``, D] and x [B, N of ``of``, C] to [D, C, k, k]."""
    (B, rows_from, C), D, count = x.shape, grad.shape[2], len(to.places)
    if not grad.numel() or not x.numel():
        return torch.zeros(D, C, k, k, dtype=x.dtype, device=x.device)
    by_tap = torch.empty(k * k, D, C, dtype=x.dtype, device=x.device)
    numbers = functools.partial(torch.empty, dtype=torch.int32, device=x.device)
    read, written, pairs = numbers(k * k, count), numbers(k * k, count), numbers(k * k)
    if x.element_size() == 4:  # tensor cores sum up float32 along what lies side by side only
        grad, x, videos = to.videos_last(grad), of.videos_last(x), min(16, B & -B)  # a power of two that divides B
        strides = (B // videos, 1, count * B, B // videos, 1, rows_from * B)
    else:
        videos, strides = 1, (D, count * D, 1, C, rows_from * C, 1)
    precision = _precision(x)
    _, blocks = _blocks(precision)
    height, width = _block(D, blocks.rows), _block(C, blocks.columns)
    depth = _block(count * B, blocks.bytes_summed // x.element_size())
    with on_device(x):
        _pairs[(k * k,)](to.places, of.row_of_cell, read, written, pairs, count, of.T, to.T, k, padding, LISTED)
        _backward_weight[(k * k, triton.cdiv(D, height), triton.cdiv(C, width))](
            grad, x, read, written, pairs, by_tap, C, D, count, B // videos, *strides, precision, videos, depth,
            height, width, blocks.stages, num_warps=blocks.warps,
        )  # fmt: skip
    return transposed(by_tap, k * k, D * C, 1, (D, C, k, k), 0, D * C, 0, k * k)


def _bias_gradient(grad: Tensor, to: Cells) -> Tensor:
    """Rows [B, N, D] to their sum [D]."""
    B, N, D = grad.shape
    sums = torch.zeros(32, D, device=grad.device)
    if grad.numel():
        with on_device(grad):
            _sum_rows[(triton.cdiv(D, 64), len(sums))](grad, to.number, sums, B, N, D, 32, 64)
    return sums.sum(0).to(grad.dtype)


def convolve_rows(
    x: Tensor, weight: Tensor, bias: Tensor | None, of: Cells, to: Cells, padding: int, relu: bool, normalize: bool
) -> Tensor:
    """Rows [B, N of ``of``, C] to rows [B, N of ``to``, D]."""
    D, C, k, _ = weight.shape
    kernel = transposed(_operand(weight.contiguous()), D * C, k * k, 1, (k * k, D, C), 0, k * k, 0, D * C)
    bias = None if bias is None else _operand(bias.contiguous())
    scale = to.scale(of, k, padding) if normalize else None
    return _convolve(_operand(x.contiguous()), kernel, bias, of, to, k, padding, True, relu, scale, x.dtype)


def backward_rows(
    grad: Tensor, x: Tensor, weight: Tensor, of: Cells, to: Cells, padding: int, needs_x: bool, needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by x as rows, by the weight and by the bias, from rows of ``grad`` by the sums before the ReLU."""
    (D, C, k, _), results = weight.shape, _operand(grad)
    grad_x, grad_weight, grad_bias = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if needs_x:
        weight = _operand(weight.contiguous())
        kernel = transposed(weight, D, k * k, C, (k * k, C, D), k * k, C * k * k, D, C * D)
        grad_x = _convolve(results, kernel, None, to, of, k, padding, False, False, None, x.dtype)
    if needs_weight:
        grad_weight = _weight_gradient(results, _operand(x), of, to, k, padding).to(x.dtype)
    if needs_bias:
        grad_bias = _bias_gradient(grad, to)
    return grad_x, grad_weight, grad_bias


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
    return to.to_map(convolve_rows(of.from_map(x), weight, bias, of, to, padding, relu, normalize))


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
    of, to = Cells.of_map(in_mask, x.shape[2], x.device), Cells.of_map(out_mask, grad.shape[2], x.device)
    scale = to.scale(of, weight.shape[2], padding) if normalize else None
    results = to.from_map(grad, out, scale)
    by_x, by_weight, by_bias = backward_rows(results, of.from_map(x), weight, of, to, padding, *needs)
    return of.to_map(by_x) if needs_x else by_x, by_weight, by_bias


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
    return convolve_rows(x, weight, bias, of, to, padding, relu, normalize)


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
    if out is not None:  # of a ReLU
        grad = torch.where(out <= 0, 0, grad)
    if normalize:
        grad = (grad * to.scale(of, weight.shape[2], padding)[:, None]).to(x.dtype)
    return backward_rows(grad.contiguous(), x.contiguous(), weight, of, to, padding, *needs)
