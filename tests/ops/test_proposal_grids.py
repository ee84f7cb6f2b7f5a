from __future__ import annotations

import pytest
import torch

from vpgfast.ops import (
    ProposalGrid,
    boundary_matching_grid,
    marn_stride,
    multi_scale_grid,
    sliding_windows,
    temporal_iou_map,
)


def test_boundary_matching_by_hand() -> None:
    grid = boundary_matching_grid(3, 2)
    assert grid.spans.tolist() == [[0, 1], [1, 2], [2, 3], [0, 2], [1, 3]]
    # One clip at 0 is widened by half a clip, two clips 0 and 1 by one clip, on both sides.
    assert grid.proposals.tolist() == [[-0.5, 0.5], [0.5, 1.5], [1.5, 2.5], [-1, 2], [0, 3]]
    assert grid.cells.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]
    assert grid.shape == (2, 3)
    assert grid.mask.tolist() == [[True, True, True], [True, True, False]]


def test_boundary_matching_start_end_by_hand() -> None:
    grid = boundary_matching_grid(3, 2, boundary_ratio=0, layout="start_end")
    assert grid.cells.tolist() == [[0, 0], [0, 1], [1, 1], [1, 2], [2, 2]]
    assert torch.equal(grid.proposals, grid.cells.double())
    assert grid.spans.tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]
    assert grid.mask.tolist() == [[True, True, False], [False, True, True], [False, False, True]]


@pytest.mark.parametrize("T", [0, 1, 7])
def test_every_moment_of_the_video(T: int) -> None:
    for layout in ("duration_start", "start_end"):
        grid = boundary_matching_grid(T, layout=layout)
        assert len(grid) == T * (T + 1) // 2
        assert grid.shape == (T, T)


def test_marn_on_charades() -> None:
    """Six scales within 6 ... 12 at every clip; of 192 cells, those that end within 32 clips."""
    grid = multi_scale_grid(32, (6, 7, 8, 9, 10, 12))
    assert len(grid) == 27 + 26 + 25 + 24 + 23 + 21 == 146
    assert grid.shape == (6, 32)
    assert grid.mask.sum(1).tolist() == [27, 26, 25, 24, 23, 21]


def test_marn_on_activitynet() -> None:
    grid = multi_scale_grid(128, range(2, 129, 2), marn_stride)
    assert len(grid) == 942
    assert grid.shape == (64, 128)
    expected = [(i, i + s) for s in range(2, 129, 2) for i in range(0, 128 - s + 1, max(1, s // 4))]
    assert grid.spans.tolist() == [list(map(float, span)) for span in expected]
    # Sampled from the first clip's feature to the last one's.
    assert torch.equal(grid.proposals, grid.spans - torch.tensor([0.0, 1.0]))


def test_layouts_hold_the_same_moments() -> None:
    a = multi_scale_grid(20, (2, 5, 9), 2)
    b = multi_scale_grid(20, (2, 5, 9), 2, layout="start_end")
    assert {tuple(span) for span in a.spans.tolist()} == {tuple(span) for span in b.spans.tolist()}
    assert torch.equal(b.cells[:, 1] + 1, b.spans[:, 1].long())
    assert b.cells.tolist() == sorted(b.cells.tolist())
    assert a.cells.tolist() == sorted(a.cells.tolist())


def test_cells_agree_with_the_temporal_map() -> None:
    """Cell (i, j) of a start-end grid is the moment that temporal_iou_map's cell (i, j) is."""
    T, grid = 6, boundary_matching_grid(6, layout="start_end")
    iou = temporal_iou_map(grid.spans[None] / T, T)[0]
    assert torch.equal(iou[torch.arange(len(grid)), grid.cells[:, 0], grid.cells[:, 1]], torch.ones(len(grid)).double())


@pytest.mark.parametrize("layout", ["duration_start", "start_end"])
def test_to_map_and_back(layout: str) -> None:
    grid = multi_scale_grid(9, (2, 4), 3, layout)  # type: ignore[arg-type]
    values = torch.randn(2, 3, len(grid), requires_grad=True)
    dense = grid.to_map(values, fill=-torch.inf)
    assert dense.shape == (2, 3, *grid.shape)
    assert torch.equal(dense[:, :, ~grid.mask], torch.full((2, 3, int((~grid.mask).sum())), -torch.inf))
    assert torch.equal(dense[:, :, grid.mask], values)  # row by row, as the list is ordered
    assert torch.equal(grid.to_list(dense), values)
    (grad,) = torch.autograd.grad(grid.to_list(dense).sum(), values)
    assert torch.equal(grad, torch.ones_like(values))


def test_map_of_another_size_is_refused() -> None:
    grid = boundary_matching_grid(3)
    with pytest.raises(ValueError, match=r"values has shape \[5\]; it must be \[..., 6\]"):
        grid.to_map(torch.zeros(5))
    with pytest.raises(ValueError, match=r"values has shape \[3, 4\]; it must be \[..., 3, 3\]"):
        grid.to_list(torch.zeros(3, 4))


def test_windows_of_wsra() -> None:
    """20, 30, 40 and 50% of the video with 80% overlap: steps of 4, 6, 8 and 10%, up to the end of the video."""
    T = 50
    grid = sliding_windows(T, [share * T for share in (0.2, 0.3, 0.4, 0.5)])
    assert grid.mask.sum(1).tolist() == [21, 12, 8, 6]
    shares = grid.spans / T
    expected = [
        (step * k, step * k + 5 * step)
        for step, count in ((0.04, 21), (0.06, 12), (0.08, 8), (0.1, 6))
        for k in range(count)
    ]
    torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(grid.proposals, grid.spans - torch.tensor([0.0, 1.0]))
    assert grid.cells[20].tolist() == [0, 20]
    assert grid.cells[21].tolist() == [1, 0]


@pytest.mark.parametrize("T", range(5, 130))
def test_the_last_window_ends_with_the_video(T: int) -> None:
    """20% and 50% windows fill the video exactly, whatever the rounding of T * 0.2 and of 1 - 0.8."""
    grid = sliding_windows(T, [0.2 * T, 0.5 * T])
    assert grid.mask.sum(1).tolist() == [21, 6]
    assert grid.spans[[20, 26], 1].tolist() == pytest.approx([T, T])


def test_windows_by_hand() -> None:
    grid = sliding_windows(4, [3, 0.5, 5], overlap=0)
    assert grid.spans.tolist() == [[0, 3], *([k / 2, k / 2 + 0.5] for k in range(8))]
    assert grid.proposals[:2].tolist() == [[0, 2], [-0.25, -0.25]]  # half a clip: its middle, a quarter clip in
    assert grid.shape == (3, 8)
    assert len(sliding_windows(4, [])) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: boundary_matching_grid(-1), "max_duration is -1|T is -1"),
        (lambda: boundary_matching_grid(4, 5), "max_duration is 5; it must be from 1 to T = 4"),
        (lambda: boundary_matching_grid(4, 0), "max_duration is 0"),
        (lambda: boundary_matching_grid(-1), "T is -1"),
        (lambda: boundary_matching_grid(4, 4, -0.1), r"boundary_ratio is -0.1; it must be a number, 0 or more"),
        (lambda: boundary_matching_grid(4, 4, float("nan")), "boundary_ratio is nan"),
        (lambda: boundary_matching_grid(4, layout="end_start"), "layout is 'end_start'"),  # type: ignore[arg-type]
        (lambda: multi_scale_grid(-2, [1]), "T is -2"),
        (lambda: multi_scale_grid(4, [0, 2]), r"scales is \[0, 2\]"),
        (lambda: multi_scale_grid(4, [2, 2]), r"scales is \[2, 2\]; it must be rising"),
        (lambda: multi_scale_grid(4, [1, 2], lambda s: s // 2), "stride is 0 at scale 1; it must be 1 clip or more"),
        (lambda: sliding_windows(-1, [1]), "T is -1"),
        (lambda: sliding_windows(4, [0]), r"lengths is \[0\]"),
        (lambda: sliding_windows(4, [1], 1.0), "overlap is 1.0; it must be from 0 to below 1"),
    ],
)
def test_nonsense_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_scales_longer_than_the_video_have_no_moment() -> None:
    grid: ProposalGrid = multi_scale_grid(3, (2, 4))
    assert grid.mask.sum(1).tolist() == [2, 0]


def test_moments_within_videos_of_their_own_length() -> None:
    grid = multi_scale_grid(8, [2, 5])
    lengths = torch.tensor([8, 5, 3, 1, 0])
    within = grid.within(lengths)
    for b, length in enumerate(lengths.tolist()):
        assert within[b].tolist() == [end <= length for _, end in grid.spans.tolist()]
        assert within[b].sum() == len(multi_scale_grid(length, [2, 5]))
