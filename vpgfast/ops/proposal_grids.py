"""Lists of candidate moments, and their places in a dense map: BMN's and MARN's grids, WSRA's and TALL's windows.

Coordinates, the same everywhere in this package:

- A moment of s clips starting at clip i covers clips i ... i+s-1. Its **span** is [i, i+s]: from the start of its first
  clip to the end of its last one. Divided by T that is a share of the duration, so that cell (i, j) of a temporal
  map, clips i ... j, is i/T ... (j+1)/T.
- Where it is sampled, its **proposal**, is [i, i+s-1]: clip t's feature lies at t, so the first and the last sample are
  the first and the last clip themselves (Eq. 5 of MARN). BMN widens this on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["duration_start", "start_end"]


@dataclass(frozen=True)
class ProposalGrid:
    """P moments in the order of their cells (row by row), each with its place in a dense map.

    Attributes:
        proposals: float64 [P, 2], where ``sample_proposals`` and ``proposal_conv`` sample each: first and last point in
            clips.
        spans: float64 [P, 2], what each covers, in clips: divide by T for shares of the duration.
        cells: int64 [P, 2], row and column of each in the map. No two are the same.
        shape: rows and columns of the map. Cells that no moment has are invalid: ``mask`` is false there.
    """

    proposals: Tensor
    spans: Tensor
    cells: Tensor
    shape: tuple[int, int]

    def __len__(self) -> int:
        return self.cells.shape[0]

    @property
    def mask(self) -> Tensor:
        """bool [rows, columns]: which cells a moment has."""
        mask = torch.zeros(self.shape, dtype=torch.bool)
        mask[self.cells[:, 0], self.cells[:, 1]] = True
        return mask

    def within(self, lengths: Tensor) -> Tensor:
        """bool [B, P]: which moments lie within videos of ``lengths`` [B] clips, on their device."""
        return self.spans[:, 1].to(lengths.device) <= lengths.unsqueeze(1)

    def to_map(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """One value a moment to the dense map: [..., P] to [..., rows, columns], ``fill`` in invalid cells."""
        if values.shape[-1:] != (len(self),):
            raise ValueError(f"values has shape {list(values.shape)}; it must be [..., {len(self)}], one a moment")
        rows, columns = self.shape
        flat = values.new_full((*values.shape[:-1], rows * columns), fill)
        return flat.index_copy(-1, self._flat(values.device), values).unflatten(-1, self.shape)

    def to_list(self, values: Tensor) -> Tensor:
        """The other way: [..., rows, columns] to [..., P]."""
        if tuple(values.shape[-2:]) != self.shape:
            raise ValueError(
                f"values has shape {list(values.shape)}; it must be [..., {self.shape[0]}, {self.shape[1]}]"
            )
        return values.flatten(-2).index_select(-1, self._flat(values.device))

    def _flat(self, device: torch.device) -> Tensor:
        return (self.cells[:, 0] * self.shape[1] + self.cells[:, 1]).to(device)


def _check_clips(T: int) -> None:
    if T < 0:
        raise ValueError(f"T is {T}; it must be a number of clips, 0 or more")


def extend_spans(spans: Tensor, boundary_ratio: float) -> Tensor:
    """BMN's sampling range of moments given by their first and last clip: float64 [..., 2].

    A moment of s clips is widened by ``boundary_ratio * s`` clips on both sides of its first and last clip, so that
    the features before and after it are read too; ``boundary_ratio`` 0 samples from the first to the last clip.
    """
    first, last = spans.double().unbind(-1)
    margin = (last - first + 1) * boundary_ratio
    return torch.stack([first - margin, last + margin], -1)


def boundary_matching_grid(
    T: int, max_duration: int | None = None, boundary_ratio: float = 0.5, layout: Layout = "duration_start"
) -> ProposalGrid:
    """Every moment of 1 to ``max_duration`` clips that lies within the video: BMN's grid.

    The moment that starts at clip i and lasts s clips is sampled from i - r*s to i + s - 1 + r*s, with r =
    ``boundary_ratio``: parts before clip 0 or behind clip T-1 read nothing. Moments that would end outside the video
    (i + s > T) are invalid cells of the map.

    Source: BMN (Lin et al., ICCV 2019), section 4.2, and the sample mask its authors released.

    Args:
        T: number of clips.
        max_duration: longest moment in clips, 1 to T; ``None`` for T.
        boundary_ratio: what is added on each side, in lengths of the moment.
        layout: ``"duration_start"``: the moment's cell is (s - 1, i) of [max_duration, T], BMN's map;
            ``"start_end"``: (i, i + s - 1) of [T, T], 2D-TAN's and DMR-JRG's map.

    Raises:
        ValueError: a number out of range, an unknown layout.
    """
    _check_clips(T)
    max_duration = T if max_duration is None else max_duration
    if not (0 <= max_duration <= T) or (T > 0 and max_duration == 0):
        raise ValueError(f"max_duration is {max_duration}; it must be from 1 to T = {T}")
    if not 0 <= boundary_ratio < math.inf:
        raise ValueError(f"boundary_ratio is {boundary_ratio}; it must be a number, 0 or more")
    return _grid(T, range(1, max_duration + 1), lambda s: 1, boundary_ratio, layout)


def marn_stride(scale: int) -> int:
    """MARN's stride on ActivityNet: a quarter of the moment's length, at least one clip."""
    return max(1, scale // 4)


def multi_scale_grid(
    T: int, scales: Sequence[int], stride: int | Callable[[int], int] = 1, layout: Layout = "duration_start"
) -> ProposalGrid:
    """Moments of given lengths, at every ``stride``-th clip: MARN's grid. Those that end outside the video are dropped.

    Charades: ``multi_scale_grid(32, (6, 7, 8, 9, 10, 12))``, 146 moments. ActivityNet: ``multi_scale_grid(128,
    range(2, 129, 2), marn_stride)``, 942 moments where the dense map has 8,192 cells.

    Source: MARN (Song et al., 2020), sections 3.1 and 4.2.

    Args:
        T: number of clips.
        scales: lengths in clips, each 1 or more, rising.
        stride: clips from one start to the next, or a function of the length that gives it.
        layout: ``"duration_start"``: the cell of the moment with the k-th length that starts at clip i is (k, i) of
            [len(scales), T]; ``"start_end"``: (first clip, last clip) of [T, T].

    Raises:
        ValueError: a number out of range, an unknown layout.
    """
    scales = list(scales)
    if any(s < 1 for s in scales) or sorted(set(scales)) != scales:
        raise ValueError(f"scales is {scales}; it must be rising numbers of clips, each 1 or more")
    return _grid(T, scales, stride if callable(stride) else lambda s: stride, 0.0, layout)


def _grid(
    T: int, scales: Sequence[int], stride: Callable[[int], int], boundary_ratio: float, layout: Layout
) -> ProposalGrid:
    _check_clips(T)
    if layout not in ("duration_start", "start_end"):
        raise ValueError(f"layout is {layout!r}; it must be duration_start or start_end")
    first, last, row = [], [], []
    for k, scale in enumerate(scales):
        step = stride(scale)
        if step < 1:
            raise ValueError(f"stride is {step} at scale {scale}; it must be 1 clip or more")
        starts = torch.arange(0, max(T - scale + 1, 0), step)
        first.append(starts)
        last.append(starts + scale - 1)
        row.append(torch.full_like(starts, k))
    none = torch.zeros(0, dtype=torch.int64)
    clips = torch.stack([torch.cat([none, *first]), torch.cat([none, *last])], 1)
    cells, shape = torch.stack([torch.cat([none, *row]), clips[:, 0]], 1), (len(scales), T)
    if layout == "start_end":
        order = torch.argsort(clips[:, 0] * T + clips[:, 1])
        clips, shape = clips[order], (T, T)
        cells = clips
    spans = torch.stack([clips[:, 0], clips[:, 1] + 1], 1).double()
    return ProposalGrid(extend_spans(clips, boundary_ratio), spans, cells, shape)


def sliding_windows(T: int, lengths: Sequence[float], overlap: float = 0.8) -> ProposalGrid:
    """Windows of given lengths, each shifted until it reaches the end of the video.

    Neighbouring windows of one length share ``overlap`` of it. WSRA: 20, 30, 40 and 50% of the video with 80% overlap,
    ``sliding_windows(T, [0.2 * T, 0.3 * T, 0.4 * T, 0.5 * T])``; TALL: fixed lengths in clips. A window's ends need
    not be whole clips: its span is [start, start + length], and it is sampled from start to start + length - 1 (its
    middle, where it is shorter than a clip).

    Source: WSRA (Fang et al., 2020), section 4; TALL (Gao et al., ICCV 2017), section 4.

    Args:
        T: number of clips.
        lengths: in clips, above 0; longer ones than T have no window.
        overlap: share of its length that a window has in common with the next, from 0 to below 1.

    Returns:
        A grid whose rows are the lengths and whose columns are the windows of that length, in their order.

    Raises:
        ValueError: a number out of range.
    """
    _check_clips(T)
    if any(not length > 0 for length in lengths):
        raise ValueError(f"lengths is {list(lengths)}; it must be numbers of clips above 0")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}; it must be from 0 to below 1")
    spans, cells = [torch.zeros(0, 2, dtype=torch.float64)], [torch.zeros(0, 2, dtype=torch.int64)]
    for k, length in enumerate(lengths):
        step = length * (1 - overlap)
        # The last window may end at T itself, whichever way 0.2 and 0.8 were rounded.
        count = int((T - length) / step + 1 + 1e-9) if length <= T else 0
        start = torch.arange(count, dtype=torch.float64) * step
        spans.append(torch.stack([start, start + length], 1))
        cells.append(torch.stack([torch.full((count,), k), torch.arange(count)], 1))
    start, end = torch.cat(spans).unbind(1)
    half = (end - start - 1).clamp(min=0) / 2
    middle = (start + end - 1) / 2
    shape = (len(lengths), max(map(len, cells)))
    return ProposalGrid(torch.stack([middle - half, middle + half], 1), torch.cat(spans), torch.cat(cells), shape)
