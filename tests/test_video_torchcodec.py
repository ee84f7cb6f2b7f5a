"""The second decoder gives the same frames at the same times, or leaves the file to PyAV and says why."""

from __future__ import annotations

import logging
import sys
from fractions import Fraction

import numpy as np
import pytest
from test_video import TURNS, times
from test_video_files import joined, lying
from test_video_plan import moving
from video_files import clip, numbered, numbers, turn, write

from vpgfast.errors import VideoError
from vpgfast.video import Picture, Video, torchcodec_backend
from vpgfast.video.plan import Instants
from vpgfast.video.source import Source

needs_torchcodec = pytest.mark.skipif(
    torchcodec_backend.why_not() is not None, reason=f"torchcodec {torchcodec_backend.why_not()}"
)


def make(tmp_path, name: str):
    """One of many files, most of them odd, by name."""
    path, _, matrix = tmp_path / name, *name.partition("_")[1:]
    makers = {
        "plain.mp4": lambda: write(path, moving(), rate=25, preset="medium", bf="3", g="30"),
        "plain.mkv": lambda: write(path, moving(), rate=25, preset="medium", bf="3", g="30", sound=(0, 4)),
        "hevc.mp4": lambda: write(path, moving(), rate=25, codec="libx265", **{"x265-params": "log-level=none"}),
        "vp9.webm": lambda: write(path, moving(), rate=25, codec="libvpx-vp9", g="30"),
        "gif.gif": lambda: clip(path, 20, codec="gif", pix_fmt="rgb8"),
        "vfr.mp4": lambda: clip(path, 8, times=[0, 0.1, 0.2, 3, 3.1, 7, 7.05, 7.5]),
        "vfr.mkv": lambda: clip(path, 8, times=[0, 0.1, 0.2, 3, 3.1, 7, 7.05, 7.5]),
        "late.mp4": lambda: clip(path, 20, times=[5 + i / 10 for i in range(20)], sound=(0, 8)),
        "late.mkv": lambda: clip(path, 20, times=[5 + i / 10 for i in range(20)], sound=(0, 8)),
        "shifted.mkv": lambda: clip(path, 20, shift=lambda t: t + 100),
        "sizes.mkv": lambda: clip(path, 20, codec="ffv1"),
        "wide.mp4": lambda: clip(path, 20, aspect=Fraction(16, 11)),
        "edited.mp4": lambda: clip(
            path, 20, shift=lambda t: t - 1, container={"avoid_negative_ts": "disabled"}, bf="0"
        ),
        "jump.mkv": lambda: clip(path, 40, shift=lambda t: t if t < 1 else t + 20000),
        "plain.ts": lambda: clip(path, 20),
        "two.ts": lambda: joined(
            path, *(clip(tmp_path / f"{i}.ts", 20, shift=lambda t, i=i: t + 99 * i) for i in (3, 1))
        ),
        "b.avi": lambda: clip(path, 20, bf="2"),
        "lying.avi": lambda: lying(path),
        "raw.h264": lambda: clip(path, 20),
        "still.mp4": lambda: clip(path, 1),
    }
    if name.startswith("turned"):
        return turn(write(path, [numbered(i) for i in range(10)]), TURNS[matrix.removesuffix(".mp4")][0])
    return makers[name]()


PLAIN = ["plain.mp4", "plain.mkv", "hevc.mp4", "vp9.webm", "gif.gif", "vfr.mp4", "vfr.mkv", "late.mp4", "late.mkv",
         "shifted.mkv", "sizes.mkv", "still.mp4"]  # fmt: skip
ODD = ["wide.mp4", "edited.mp4", "jump.mkv", "plain.ts", "two.ts", "b.avi", "lying.avi", "raw.h264",
       *(f"turned_{name}.mp4" for name in TURNS if name != "as it is")]  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_times_from_packets_alone(tmp_path, name):
    """What is worked out for torchcodec is what PyAV gives; needs no torchcodec."""
    path = make(tmp_path, name)
    with Source(path) as source:
        scan = torchcodec_backend.Scan(source)
    video = Video(path)
    np.testing.assert_array_equal(scan.times, times(list(video.frames(None))))
    assert scan.end == video.duration
    for fps, offset in ((2.0, 0.0), (7.3, 0.25), (0.1, 0.5)):
        pairs = list(scan.on_show(Instants(fps, offset), 0))
        chunks = list(video.frames(fps, offset=offset))
        assert [time for _, time in pairs] == times(chunks)
        if name.startswith(("vfr", "late")):
            assert [number for number, _ in pairs] == numbers(chunks)


@needs_torchcodec
@pytest.mark.parametrize("name", PLAIN + ODD)
def test_same_frames_at_the_same_times(tmp_path, caplog, name):
    """Pixels may differ a little: torchcodec has the system's FFmpeg, and frames become RGB before they are scaled."""
    path = make(tmp_path, name)
    caplog.set_level(logging.DEBUG, "vpgfast.video")
    for fps, picture in ((2.0, Picture()), (7.3, Picture(short_side=40, crop=(40, 40))), (None, Picture())):
        caplog.clear()
        one, other = Video(path), Video(path, backend="torchcodec")
        expected, found = list(one.frames(fps, picture)), list(other.frames(fps, picture))
        assert times(found) == times(expected)
        for a, b in zip(expected, found, strict=True):
            assert np.abs(a.pixels.astype(int) - b.pixels).mean() < 4
        assert other.duration == one.duration
        assert other.problems == one.problems
        left = "decoded by PyAV, not torchcodec: " in caplog.text
        assert left == (name in ODD)


def test_where_torchcodec_is_not_there(tmp_path, monkeypatch):
    path = clip(tmp_path / "v.mp4", 3)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    torchcodec_backend.why_not.cache_clear()
    try:
        with pytest.raises(VideoError, match=r"v\.mp4: torchcodec is not installed \(pip install torchcodec\)"):
            Video(path, backend="torchcodec")
        assert numbers(Video(path, backend="auto").frames(None)) == [0, 1, 2]
    finally:
        torchcodec_backend.why_not.cache_clear()
