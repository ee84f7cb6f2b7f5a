"""The cells of a temporal map that count, as lists on the device, and their numbers as rows with channels side by side.

The lists are as long as the map, padded with -1, so that the host never waits for a mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import on_device

LISTED = 2048
"""Cells that are looked at at a time where a list is made."""
TILE = 64
"""Rows and columns of a tile that is transposed."""


@triton.jit
def _list_cells(mask, places, row_of_cell, number, size, BLOCK: tl.constexpr):
    """places: the cells of the mask in order, then -1; row_of_cell: which of them a cell is, or -1; number: of them."""
    listed = tl.zeros((), dtype=tl.int32)
    for first in range(0, size, BLOCK):
        cell = first + tl.arange(0, BLOCK)
        valid = (tl.load(mask + cell, mask=cell < size, other=0) != 0).to(tl.int32)
        row = listed + tl.cumsum(valid, 0) - 1
        tl.store(row_of_cell + cell, tl.where(valid != 0, row, -1), mask=cell < size)
        tl.store(places + row, cell, mask=valid != 0)
        listed += tl.sum(valid, 0)
    for first in range(0, size, BLOCK):
        cell = first + tl.arange(0, BLOCK)
        tl.store(places + cell, -1, mask=(cell >= listed) & (cell < size))
    tl.store(number, listed)


@triton.jit
def _by_diagonal(row_of_cell, cells, rows, T, count, BLOCK: tl.constexpr):
    """The listed cells and their rows, diagonal by diagonal, whose cells mostly read through the same taps; then -1."""
    found = tl.zeros((), dtype=tl.int32)
    for first in range(0, T * T, BLOCK):
        place = first + tl.arange(0, BLOCK)
        i = place % T
        cell = i * T + (i + place // T) % T
        row = tl.load(row_of_cell + cell, mask=place < T * T, other=-1)
        valid = (row >= 0).to(tl.int32)
        position = found + tl.cumsum(valid, 0) - 1
        tl.store(cells + position, cell, mask=valid != 0)
        tl.store(rows + position, row, mask=valid != 0)
        found += tl.sum(valid, 0)
    for first in range(0, count, BLOCK):
        position = first + tl.arange(0, BLOCK)
        tl.store(cells + position, -1, mask=(position >= found) & (position < count))
        tl.store(rows + position, -1, mask=(position >= found) & (position < count))


@triton.jit
def source_row(place, tap, row_of_cell, T_from, T_to, K, padding, FORWARD: tl.constexpr):
    """The row that ``tap`` reads for the cell at ``place``, -1 where there is none; both may be blocks.

    Backward (not FORWARD) a cell of the input asks which result read it through the tap.
    """
    r, s = tap // K, tap % K
    if FORWARD:
        i, j = place // T_to + r - padding, place % T_to + s - padding
    else:
        i, j = place // T_to - r + padding, place % T_to - s + padding
    inside = (place >= 0) & (tap < K * K) & (i >= 0) & (j >= 0) & (i < T_from) & (j < T_from)
    return tl.load(row_of_cell + i * T_from + j, mask=inside, other=-1)


@triton.jit(do_not_specialize=["count", "T_from", "T_to", "K", "padding"])
def _scale(places, row_of_cell, scale, count, T_from, T_to, K, padding, TAPS: tl.constexpr, BLOCK: tl.constexpr):
    """scale[n]: one over the number of valid taps of cell ``places[n]``, 0 where there is none."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(places + n, mask=n < count, other=-1)
    taps = tl.arange(0, TAPS)[:, None]
    valid = source_row(place[None, :], taps, row_of_cell, T_from, T_to, K, padding, True) >= 0
    number = tl.sum(valid.to(tl.float32), 0)
    tl.store(scale + n, tl.where(number > 0, 1 / tl.maximum(number, 1), 0), mask=n < count)


@triton.jit
def _transpose(source, rows_of, columns_of, gate, scale, number, target, rows, columns, inner, from_batch, from_inner,
               from_row, to_batch, to_column, ROWS_OF: tl.constexpr, COLUMNS_OF: tl.constexpr, GATED: tl.constexpr,
               SCALED: tl.constexpr, NUMBERED: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """target[batch, column, row] = source[batch, row, column], in tiles, so that both sides are read and written in
    stretches. Columns of the source and rows of the target lie side by side.

    A row is ``inner`` rows, ``from_inner`` apart, of one that ``from_row`` is for.
    ROWS_OF: row r of the source is its ``rows_of[r]``, and zero where that is -1.
    COLUMNS_OF: column k of the source is its ``columns_of[k]``; where that is -1, nothing is written.
    GATED: 0 where ``gate``, laid out as the source, is not above 0. SCALED: times scale[column].
    NUMBERED: no more rows than ``number`` times ``inner``.
    """
    # One axis of programs: the others of a grid end at 65,535.
    column_tiles = tl.cdiv(columns, SIZE)
    tiles = tl.cdiv(rows, SIZE) * column_tiles
    tile = tl.program_id(0) % tiles
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    row = tile // column_tiles * SIZE + tl.arange(0, SIZE)
    column = tile % column_tiles * SIZE + tl.arange(0, SIZE)
    if NUMBERED:
        rows = tl.load(number) * inner
    wanted, here, place = column < columns, row < rows, column
    outer = row // inner
    if COLUMNS_OF:
        place = tl.load(columns_of + column, mask=wanted, other=-1)
        wanted = place >= 0
    if ROWS_OF:
        outer = tl.load(rows_of + outer, mask=here, other=-1)
        here = outer >= 0
    at = outer.to(tl.int64) * from_row + (row % inner).to(tl.int64) * from_inner
    at = batch * from_batch + at[:, None] + place[None, :]
    read = here[:, None] & wanted[None, :]
    value = tl.load(source + at, mask=read, other=0)
    if GATED:
        value = tl.where(tl.load(gate + at, mask=read, other=0) <= 0, 0, value)
    if SCALED:
        value = value * tl.load(scale + column, mask=wanted, other=0)[None, :]
    to = batch * to_batch + column.to(tl.int64)[:, None] * to_column + row[None, :]
    tl.store(target + to, tl.trans(value).to(target.dtype.element_ty), mask=wanted[:, None] & (row < rows)[None, :])


def transposed(
    source: Tensor, rows: int, columns: int, batches: int, shape: tuple[int, ...], from_batch: int, from_row: int,
    to_batch: int, to_column: int, inner: int = 1, from_inner: int = 0, rows_of: Tensor | None = None,
    columns_of: Tensor | None = None, gate: Tensor | None = None, scale: Tensor | None = None,
    number: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """A new tensor of ``shape``; what the numbers mean is said at ``_transpose``."""
    target = source.new_empty(shape)
    if target.numel():
        options = rows_of, columns_of, gate, scale, number
        grid = (triton.cdiv(rows, TILE) * triton.cdiv(columns, TILE) * batches,)
        with on_device(source):
            _transpose[grid](
                source, *(source if t is None else t for t in options), target, rows, columns, inner, from_batch,
                from_inner, from_row, to_batch, to_column, *(t is not None for t in options), TILE,
            )  # fmt: skip
    return target


@dataclass
class Cells:
    """The cells of a map that count. A tensor of theirs holds rows [B, N, channels], the n-th of cell ``places[n]``.

    Attributes:
        T: width of the map.
        places: int32 [N], the cells, i * T + j, rising; on the device padded with -1, whose rows nobody reads.
        row_of_cell: int32 [T * T], which of them a cell is; -1 where none.
        number: int32 [], how many cells there are.
    """

    T: int
    places: Tensor
    row_of_cell: Tensor
    number: Tensor

    @classmethod
    def of_map(cls, mask: Tensor | None, T: int, device: torch.device) -> Cells:
        if mask is None or T == 0:
            every = torch.arange(T * T, dtype=torch.int32, device=device)
            return cls(T, every, every, torch.full((), T * T, dtype=torch.int32, device=device))
        places, row_of_cell = torch.empty(2, T * T, dtype=torch.int32, device=device)
        number = torch.empty((), dtype=torch.int32, device=device)
        with on_device(mask):
            flags = mask.contiguous().view(torch.uint8)
            _list_cells[(1,)](flags, places, row_of_cell, number, T * T, LISTED, num_warps=8)
        return cls(T, places, row_of_cell, number)

    @classmethod
    def of_list(cls, cells: Tensor, T: int) -> Cells:
        rows = torch.arange(len(cells), dtype=torch.int32, device=cells.device)
        row_of_cell = torch.full((T * T,), -1, dtype=torch.int32, device=cells.device).index_copy_(0, cells, rows)
        return cls(T, cells.int(), row_of_cell, torch.full((), len(cells), dtype=torch.int32, device=cells.device))

    def by_diagonal(self) -> tuple[Tensor, Tensor]:
        """Cells and their rows, int32 [N] each, in the order in which they are computed."""
        cells, rows = torch.empty_like(self.places), torch.empty_like(self.places)
        with on_device(cells):
            _by_diagonal[(1,)](self.row_of_cell, cells, rows, self.T, len(cells), LISTED, num_warps=8)
        return cells, rows

    def scale(self, of: Cells, k: int, padding: int) -> Tensor:
        """float32 [N]: one over the number of valid taps, 0 where there is none."""
        scale = torch.empty(len(self.places), device=self.places.device)
        if scale.numel():
            with on_device(scale):
                _scale[(triton.cdiv(len(scale), 32),)](
                    self.places, of.row_of_cell, scale, len(scale), of.T, self.T, k, padding,
                    triton.next_power_of_2(k * k), 32,
                )  # fmt: skip
        return scale

    def from_map(self, x: Tensor, gate: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """The rows [B, N, C] of a map [B, C, T, T]; 0 where ``gate`` is not above 0, and times ``scale`` [N]."""
        B, C, size, N = x.shape[0], x.shape[1], self.T**2, len(self.places)
        gate = None if gate is None else gate.contiguous()
        return transposed(
            x.contiguous(), C, N, B, (B, N, C), C * size, size, N * C, C,
            columns_of=self.places, gate=gate, scale=scale,
        )  # fmt: skip

    def to_map(self, rows: Tensor) -> Tensor:
        """Rows [B, N, D] as a map [B, D, T, T], zero where no cell is listed."""
        B, N, D = rows.shape
        size = self.T**2
        shape = (B, D, self.T, self.T)
        return transposed(rows, size, D, B, shape, N * D, D, D * size, size, rows_of=self.row_of_cell)

    def videos_last(self, rows: Tensor) -> Tensor:
        """Rows [B, N, C] as [C, N, B]."""
        B, N, C = rows.shape
        return transposed(rows, N * B, C, 1, (C, N, B), 0, C, 0, N * B, inner=B, from_inner=N * C, number=self.number)
