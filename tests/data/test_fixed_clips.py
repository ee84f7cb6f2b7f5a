"""Clips of a fixed length in seconds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpgfast.data.batches import make_loader, stack_clips
from vpgfast.data.fixed_clips import clip_edges, fixed_clips
from vpgfast.data.text import WordVectors
from vpgfast.data.types import BatchNeeds, Paragraph


@pytest.mark.parametrize(
    ("duration", "edges"),
    [
        (5.0, [0, 2, 4, 5]),  # a remainder of half a clip or more is a clip
        (4.9, [0, 2, 4.9]),  # a shorter one belongs to the last
        (6.0, [0, 2, 4, 6]),
        (3.0, [0, 1.5, 3]),  # too short for two
        (40.0, [0, 8, 16, 24, 32, 40]),  # too long for five
    ],
)
def test_edges_by_hand(duration: float, edges: list[float]) -> None:
    np.testing.assert_allclose(clip_edges(duration, 2.0, 2, 5), edges)


@given(
    duration=st.floats(0.05, 5000),
    seconds=st.floats(0.1, 20),
    least=st.integers(1, 8),
    more=st.integers(0, 120),
    frames=st.integers(1, 60),
)
def test_clips_cover_the_video_and_are_means(
    duration: float, seconds: float, least: int, more: int, frames: int
) -> None:
    most = least + more
    edges = clip_edges(duration, seconds, least, most)
    assert least <= len(edges) - 1 <= most
    assert edges[0] == 0
    assert edges[-1] == duration
    assert (np.diff(edges) > 0).all()
    if least <= duration / seconds <= most:
        np.testing.assert_allclose(np.diff(edges)[:-1], seconds)
    features = np.random.default_rng(0).normal(size=(frames, 3)).astype(np.float32)
    clips = fixed_clips(features, duration, seconds, least, most)
    assert clips.dtype == np.float32
    # Overlaps by loops: each clip is the mean of the features in it, by how much of each is.
    bounds = np.linspace(0, duration, frames + 1)
    for clip, (low, high) in zip(clips, pairwise(edges), strict=True):
        share = np.maximum(np.minimum(bounds[1:], high) - np.maximum(bounds[:-1], low), 0) / (high - low)
        np.testing.assert_allclose(clip, share @ features, atol=2e-5)


def test_whole_frames_are_taken_as_they_are() -> None:
    features = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.testing.assert_array_equal(fixed_clips(features, 6.0, 1.0, 1, 10), features)
    np.testing.assert_allclose(fixed_clips(features, 6.0, 2.0, 1, 10), features.reshape(3, 2, 2).mean(1))


def test_batches_are_padded_and_masked() -> None:
    needs = BatchNeeds(max_clips=5, fixed_length=True, clip_seconds=2.0, min_clips=2)
    features = [np.ones((7, 3), np.float32), np.ones((3, 3), np.float32)]
    video, mask = stack_clips(features, needs, [10.0, 4.4])
    assert video.shape == (2, 5, 3)
    assert mask.sum(1).tolist() == [5, 2]
    assert not video[1, 2:].any()
    with pytest.raises(ValueError, match="need the videos' durations"):
        stack_clips(features, needs)


def test_a_loader_gives_each_video_its_own_clips() -> None:
    class Features:
        dim, source, encoder = 2, "test", None

        def __getitem__(self, video_id: str) -> np.ndarray:
            return np.ones((9, 2), np.float32)

    paragraphs = [Paragraph(f"v{d}", float(d), ("word",), np.array([[0.0, 1.0]])) for d in (3, 9, 6)]
    vectors = WordVectors(["<pad>", "<unk>", "word"], np.zeros((3, 4), np.float32), "test")
    needs = BatchNeeds(max_clips=8, fixed_length=True, clip_seconds=1.0)
    (batch,) = make_loader(paragraphs, Features(), vectors, needs, 3, training=False)  # type: ignore[arg-type]
    assert batch.video_mask.sum(1).tolist() == [3, 8, 6]
