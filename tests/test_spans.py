"""Span conversions: hand-worked cases and round trips."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vpgfast import spans


def test_seconds_and_fractions_of_two_videos() -> None:
    seconds = torch.tensor([[[0.0, 5.0], [5.0, 10.0]], [[10.0, 40.0], [0.0, 20.0]]])
    durations = torch.tensor([10.0, 40.0], dtype=torch.float64)
    fractions = spans.to_fractions(seconds, durations)
    torch.testing.assert_close(fractions, torch.tensor([[[0, 0.5], [0.5, 1]], [[0.25, 1], [0, 0.5]]]))
    assert fractions.dtype == torch.float32
    torch.testing.assert_close(spans.to_seconds(fractions, durations), seconds)


def test_clips_are_inclusive_and_borders_belong_to_the_inside() -> None:
    clips = torch.tensor(4)
    # [0.25, 0.5] is exactly clip 1; [0.2, 0.55] touches clips 0 to 2; an empty span is the clip it stands in
    fractions = torch.tensor([[0.25, 0.5], [0.2, 0.55], [0.6, 0.6], [0.0, 1.0], [1.0, 1.0]])
    expected = torch.tensor([[1, 1], [0, 2], [2, 2], [0, 3], [3, 3]])
    assert torch.equal(spans.fractions_to_clips(fractions, clips), expected)
    back = spans.clips_to_fractions(torch.tensor([1, 0]), torch.tensor([1, 2]), clips)
    torch.testing.assert_close(back, torch.tensor([[0.25, 0.5], [0.0, 0.75]]))


@given(st.integers(1, 300).flatmap(lambda t: st.tuples(st.just(t), st.integers(0, t - 1), st.integers(0, t - 1))))
def test_clip_indices_survive_the_round_trip(case: tuple[int, int, int]) -> None:
    clips, a, b = case
    first, last = torch.tensor(min(a, b)), torch.tensor(max(a, b))
    fractions = spans.clips_to_fractions(first, last, torch.tensor(clips))
    assert spans.fractions_to_clips(fractions, torch.tensor(clips)).tolist() == [first.item(), last.item()]


def test_each_video_has_its_own_number_of_clips() -> None:
    fractions = torch.tensor([[0.0, 0.5], [0.0, 0.5]])
    assert spans.fractions_to_clips(fractions, torch.tensor([4, 10])).tolist() == [[0, 1], [0, 4]]


def test_centre_width_and_back() -> None:
    span = torch.tensor([[0.25, 0.75], [0.0, 0.1]])
    torch.testing.assert_close(spans.to_centre_width(span), torch.tensor([[0.5, 0.5], [0.05, 0.1]]))
    torch.testing.assert_close(spans.to_start_end(spans.to_centre_width(span)), span)


def test_clamp_cuts_at_both_ends() -> None:
    seconds = torch.tensor([[[-1.0, 5.0], [12.0, 15.0]], [[-1.0, 5.0], [12.0, 15.0]]])
    expected = torch.tensor([[[0.0, 5.0], [10.0, 10.0]], [[0.0, 5.0], [12.0, 14.0]]])
    torch.testing.assert_close(spans.clamp(seconds, torch.tensor([10.0, 14.0])), expected)
    torch.testing.assert_close(spans.clamp(torch.tensor([[-0.5, 1.5]])), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("convert", [spans.to_centre_width, spans.to_start_end, spans.clamp])
def test_conversions_are_differentiable(convert) -> None:
    span = torch.tensor([[0.3, 0.6], [0.2, 0.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(convert, (span,))
