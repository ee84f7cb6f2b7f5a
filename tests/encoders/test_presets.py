"""Rows and times of the published ways to make features, worked out by hand; and the windows that they need."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from vpgfast.encoders.base import get_encoder
from vpgfast.encoders.presets import PRESETS
from vpgfast.encoders.sampling import Sampling, clips
from vpgfast.errors import ConfigError

OURS = ("c3d", "i3d", "s3d_howto100m", "slowfast")


def windows(preset: str) -> Sampling:
    kind = get_encoder(PRESETS[preset].family)
    return import_module(kind.__module__).windows(kind.Options(**PRESETS[preset].options))


def rows(preset: str, frames: int, rate: float) -> np.ndarray:
    """Times [T, 2] of the rows of a video of so many frames, looked at ``rate`` times a second."""
    sampling = windows(preset)
    assert sampling.fps in (None, rate)
    return sampling.times(np.arange(frames) / rate, frames / rate)


def windows_of(sampling: Sampling, frames: int, chunk: int = 7, batch: int = 3) -> list[list[int]]:
    """Numbers of the frames in each window, of a stream in chunks."""

    def stream() -> Iterator[np.ndarray]:
        for begin in range(0, frames, chunk):
            numbers = np.arange(begin, min(begin + chunk, frames))
            yield (numbers[:, None, None, None] % 256).astype(np.uint8)

    return [window[:, 0, 0, 0].tolist() for part in clips(stream(), sampling, batch) for window in part]


def test_vslnet_charades() -> None:
    """Windows of 24 begin at every multiple of 24 that there is a frame at; the last end before the last frame at most.

    30 s at 24 a second are 720 frames: begins at 0, 24, ..., 696, of which 696 + 24 = 720 > 719 and is moved to 695. 30
    windows of 2 rows of 12 frames, which is 0.5 s.
    """
    times = rows("vslnet_charades", 720, 24)
    assert times.shape == (60, 2)
    np.testing.assert_allclose(times[:3], [[0, 0.5], [0.5, 1], [1, 1.5]])
    np.testing.assert_allclose(times[57:], [[28.5, 29], [695 / 24, 707 / 24], [707 / 24, 719 / 24]])


@pytest.mark.parametrize("count", range(25, 150))
def test_vslnets_windows(count: int) -> None:
    """As its extractor: for start in 0, 24, ... below count: end = min(count - 1, start + 24), start = end - 24."""
    sampling = windows("vslnet_charades")
    ends = [min(count - 1, start + 24) for start in range(0, count, 24)]
    assert sampling.starts(count) == [end - 24 for end in ends]
    assert windows_of(sampling, count) == [list(range(end - 24, end)) for end in ends]


def test_vslnet_of_less_than_a_second() -> None:
    """24 frames or fewer: the extractor makes one shorter window, here it is filled up: 2 rows all the same."""
    sampling = windows("vslnet_charades")
    assert windows_of(sampling, 20) == [[*range(20), 19, 19, 19, 19]]
    assert rows("vslnet_charades", 20, 24).shape == (2, 2)


def test_vslnet_activitynet() -> None:
    """100 frames of a file with 25 a second: begins at 0, 16, ..., 80, and at 96, which is moved to 99 - 16 = 83."""
    times = rows("vslnet_activitynet", 100, 25)
    np.testing.assert_allclose(times[:, 0] * 25, [0, 16, 32, 48, 64, 80, 83])
    np.testing.assert_allclose(times[:, 1] * 25, [16, 32, 48, 64, 80, 96, 99])


def test_video_features_i3d() -> None:
    """Stacks of 64 that one frame more follows: 128 frames have 1, 129 have 2; 871 have floor(870 / 64) = 13."""
    assert [len(rows("video_features_i3d", frames, 25)) for frames in (65, 128, 129, 871)] == [1, 1, 2, 13]
    np.testing.assert_allclose(rows("video_features_i3d", 129, 25), [[0, 2.56], [2.56, 5.12]])


def test_bmt_i3d() -> None:
    """The sample that BMT publishes has 14 rows of a video of 35.08 s, which are 877 frames at 25 a second.

    (877 - 65) // 64 + 1 = 13 stacks of 64 that one frame more follows, the last of 768 to 831; 877 % 65 = 32 is more
    than a fifth of 65, so frames 832 to 876, 45 of them, make a 14th: they, and their first 19 again.
    """
    times = rows("bmt_i3d", 877, 25)
    assert times.shape == (14, 2)
    np.testing.assert_allclose(times[-2:], [[30.72, 33.28], [33.28, 35.08]])
    assert windows_of(windows("bmt_i3d"), 877)[-1] == [n % 256 for n in [*range(832, 877), *range(832, 851)]]
    # 845 = 13 * 65: no rest, though 13 frames follow the 13 stacks. 857 % 65 = 12 < 13; 858 % 65 = 13, 0.2 * 65.
    assert [len(rows("bmt_i3d", frames, 25)) for frames in (845, 857, 858)] == [13, 13, 14]


def test_a_video_shorter_than_a_stack_is_repeated() -> None:
    assert windows_of(Sampling(1, 8, 8, tail="cycle", spare=1), 3) == [[0, 1, 2, 0, 1, 2, 0, 1]]


def test_c3d() -> None:
    """100 frames, 16 each, 8 apart: begins at 0, 8, ..., 80 (88 + 16 > 100), 11 rows."""
    for preset in ("activitynet_c3d", "viga_charades_c3d"):
        times = rows(preset, 100, 25)
        np.testing.assert_allclose(times * 25, [[begin, begin + 16] for begin in range(0, 81, 8)])


def test_tacos_tall() -> None:
    """64 frames, 12 apart, as the files' names have it (1_65, 13_77, ...). 200 have 0, 12, ..., 132 (144 + 64 > 200).

    Of the 64, 16: floor of linspace(0, 63, 16), which is every 4.2th.
    """
    times = rows("tacos_tall", 200, 29.4)
    np.testing.assert_allclose(times * 29.4, [[begin, begin + 64] for begin in range(0, 133, 12)])
    picked = [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63]
    assert windows("tacos_tall").picked().tolist() == picked


def test_marn() -> None:
    """A row a second, of the frames on show at 0, 1/16, ..., 15/16 of it; the last may be shorter: 10.3 s have 11."""
    sampling = windows("marn")
    assert (sampling.fps, sampling.picked().tolist()) == (16, list(range(16)))
    times = sampling.times(np.arange(165) / 16, 10.3)
    np.testing.assert_allclose(times, [[t, min(t + 1, 10.3)] for t in range(11)])


def test_moment_detr_slowfast() -> None:
    """150 s at 30 a second: 75 rows of 2 s. 9.5 s are 285 frames: 5 rows, the last of 45 frames filled up to 60."""
    np.testing.assert_allclose(rows("moment_detr_slowfast", 4500, 30), [[2 * t, 2 * t + 2] for t in range(75)])
    times = rows("moment_detr_slowfast", 285, 30)
    np.testing.assert_allclose(times, [[0, 2], [2, 4], [4, 6], [6, 8], [8, 9.5]])


def test_howto100m() -> None:
    """10 s at 10 a second: windows of 32 begin at 0, 32, 64 and 96; the last is filled up from frame 100 on."""
    times = rows("howto100m", 100, 10)
    np.testing.assert_allclose(times, [[0, 3.2], [3.2, 6.4], [6.4, 9.6], [9.6, 10]])


def test_a_span() -> None:
    """Frames spread over less than the window, and over more, where the last one is all that there is."""
    assert Sampling(30, 10, 10, frames=4, span=7).picked().tolist() == [0, 2, 4, 6]
    assert Sampling(30, 10, 10, frames=4, span=16.9).picked().tolist() == [0, 5, 9, 9]  # 0, 5.3, 10.6, 15.9


@pytest.mark.parametrize("tail", ["drop", "pad", "back", "cycle"])
@pytest.mark.parametrize("spare", [0, 1, 3])
@pytest.mark.parametrize(("window", "stride"), [(5, 5), (6, 2), (3, 7)])
def test_streams_and_starts_agree(tail, spare: int, window: int, stride: int) -> None:
    """Whatever the chunks and batches, the windows of a stream are those that ``starts`` and ``times`` speak of."""
    sampling = Sampling(2.0, window, stride, tail=tail, spare=spare)
    for count in range(1, 31):
        starts = sampling.starts(count)
        expected = []
        for start in starts:
            held = list(range(start, min(start + window, count)))
            missing = window - len(held)
            filler = [held[i % len(held)] for i in range(missing)] if tail == "cycle" else [count - 1] * missing
            expected.append(held + filler)
        for chunk, batch in ((1, 1), (4, 2), (50, 9)):
            assert windows_of(sampling, count, chunk, batch) == expected
        assert len(sampling.times(np.arange(count) / 2, count / 2)) == len(starts)


def test_presets_are_options_of_their_family() -> None:
    page = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text("utf-8")
    for name, preset in PRESETS.items():
        if preset.family in OURS:
            windows(name)
            assert f"| `{name}` | {preset.family} |" in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 0}, "option stride must be 1 or more, got 0"),
        ({"fps": 0.0}, "option fps must be above 0"),
        ({"fps": float("nan")}, "option fps must be above 0"),
        ({"spare": -1}, "option spare must be 0 or more, got -1"),
        ({"frames": 0}, "option frames must be 1 or more, got 0"),
    ],
)
def test_windows_that_cannot_be(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**{"fps": 1.0} | change)
