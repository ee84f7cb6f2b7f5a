"""What is left out of decoding changes nothing: the same frames at the same times as when every frame is decoded."""

from __future__ import annotations

import numpy as np
import pytest
from test_video import times
from test_video_files import joined, spoiled
from video_files import numbered, write

from vpgfast.video import Video, decode

COUNT = 100
X265 = "log-level=none:keyint=30:bframes=4"
FILES = {  # name: settings; whether something can be left out at 2 and at 0.4 frames a second
    "b.mp4": ({"preset": "medium", "bf": "3", "g": "30"}, True, True),
    "pyramid.mkv": ({"x264-params": "bframes=8:b-pyramid=normal:ref=6:keyint=250"}, True, True),
    "b.ts": ({"preset": "medium", "bf": "3", "g": "30"}, True, True),
    "b.flv": ({"preset": "medium", "bf": "2", "g": "30"}, True, True),
    "open.mkv": ({"x264-params": "open-gop=1:bframes=3:keyint=12:min-keyint=12"}, True, True),
    "refresh.mp4": ({"x264-params": "intra-refresh=1:keyint=25:bframes=2"}, True, True),
    "p.mp4": ({"x264-params": "bframes=0:keyint=20:min-keyint=20:scenecut=0"}, True, True),
    "interlaced.mp4": ({"x264-params": "bframes=3:interlaced=1:keyint=30"}, True, True),
    "hevc.mp4": ({"codec": "libx265", "x265-params": X265}, True, True),
    "closed.mkv": ({"codec": "libx265", "x265-params": X265 + ":open-gop=0"}, True, True),
    "layers.mp4": ({"codec": "libx265", "x265-params": X265 + ":temporal-layers=3"}, False, False),
    "hevc.ts": ({"codec": "libx265", "x265-params": X265 + ":open-gop=0"}, True, True),
    "mpeg2.ts": ({"codec": "mpeg2video", "bf": "2", "g": "15"}, True, True),
    "mpeg4.mp4": ({"codec": "mpeg4", "bf": "2", "g": "20"}, True, True),
    "mpeg4.avi": ({"codec": "mpeg4", "bf": "2", "g": "20"}, False, False),
    "vp8.webm": ({"codec": "libvpx", "g": "30", "auto-alt-ref": "1", "lag-in-frames": "10"}, False, False),
    "vp9.webm": ({"codec": "libvpx-vp9", "g": "25", "auto-alt-ref": "1", "lag-in-frames": "20"}, True, True),
    "mjpeg.mov": ({"codec": "mjpeg", "pix_fmt": "yuvj420p"}, True, True),
    "prores.mov": ({"codec": "prores_ks", "pix_fmt": "yuv422p10le"}, True, True),
    "ffv1.mkv": ({"codec": "ffv1", "g": "10"}, False, False),
}  # fmt: skip


def moving() -> list[np.ndarray]:
    """Frames with detail that moves, so that every prediction counts."""
    texture = np.random.default_rng(1).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    frames = []
    for i in range(COUNT):
        x, y = int(100 + 90 * np.sin(i / 9)), int(60 + 55 * np.sin(i / 6))
        picture = texture[y : y + 64, x : x + 96] // 3
        picture[8:40] = np.maximum(picture[8:40], numbered(i, 96, 32))
        frames.append(picture)
    return frames


def assert_same(path, fps: float, offset: float = 0.0) -> Video:
    """Frames at instants are those that are picked from all frames."""
    whole, video = Video(path), Video(path)
    every = list(whole.frames(None))
    pixels, stamps = np.concatenate([chunk.pixels for chunk in every]), np.array(times(every))
    found = list(video.frames(fps, offset=offset))
    instants = np.array(times(found))
    np.testing.assert_array_equal(instants, (np.arange(len(instants)) + offset) / fps)
    shown = np.maximum(np.searchsorted(stamps - 1e-6, instants, side="right") - 1, 0)
    np.testing.assert_array_equal(np.concatenate([chunk.pixels for chunk in found]), pixels[shown])
    assert video.duration == whole.duration
    assert video.count <= whole.count
    return video


@pytest.mark.parametrize("name", FILES)
def test_same_frames(tmp_path, name):
    settings, often, seldom = FILES[name]
    path = write(tmp_path / name, moving(), rate=25, **settings)
    for fps, offset, less in ((2.0, 0.0, often), (2.0, 0.5, often), (0.4, 0.0, seldom), (9.7, 0.3, None)):
        video = assert_same(path, fps, offset)
        assert video.problems == []
        if less is not None:
            assert (video.count < COUNT) == less


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_same_frames_of_a_variable_rate(tmp_path, suffix):
    gaps = np.random.default_rng(0).choice([0.02, 0.04, 0.04, 0.3, 1.5], COUNT)
    stamps = np.cumsum(gaps) - gaps[0]
    path = write(tmp_path / f"v.{suffix}", moving(), stamps.tolist(), preset="medium", bf="3", g="40", sound=(0, 9))
    for fps in (0.2, 1.0, 5.0):
        video = assert_same(path, fps)
        assert video.count < COUNT or fps > video.rate


@pytest.mark.parametrize("suffix", ["mp4", "ts", "mkv"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_same_frames_of_damaged_files(tmp_path, suffix, seed):
    """What a decoder makes of damage depends on all that it has seen: then all is decoded."""
    damage = spoiled(np.random.default_rng(seed).integers(0, COUNT, 5).tolist(), keep=0.5)
    path = write(tmp_path / f"v.{suffix}", moving(), rate=25, preset="medium", bf="3", g="30", damage=damage)
    for fps in (2.0, 9.7):
        assert_same(path, fps)


def test_same_frames_across_jumps(tmp_path):
    parts = [
        write(tmp_path / f"{i}.ts", moving(), rate=25, preset="medium", bf="3", g="30", shift=lambda t, by=by: t + by)
        for i, by in enumerate((0, 7000, 100))
    ]
    path = joined(tmp_path / "v.ts", *parts)
    for fps in (1.0, 2.0):
        video = assert_same(path, fps)
        assert video.duration == pytest.approx(12.0)


def test_a_wrong_plan_is_noticed(tmp_path, monkeypatch, caplog):
    """If every packet but key frames is left out, whatever the reason, the frames are still the right ones."""
    caplog.set_level("DEBUG", "vpgfast.video")
    path = write(tmp_path / "v.mp4", moving(), rate=25, preset="medium", bf="3", g="30")
    decide = decode.Plan.decide

    def careless(self, packets):
        for packet, is_needed in decide(self, packets):
            leave_out = is_needed and packet is not None and not packet.is_keyframe
            self._left_out |= leave_out
            yield packet, is_needed and not leave_out

    monkeypatch.setattr(decode.Plan, "decide", careless)
    assert_same(path, 2.0)
    assert "its packets are not as they say; all are decoded" in caplog.text
