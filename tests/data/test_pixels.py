from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vpgfast.data.pixels import PixelFeatures, motion_columns
from vpgfast.errors import VideoError


def write_video(
    path: Path, levels: list[int], times: list[int], fps: int = 10, size: tuple[int, int] = (48, 32)
) -> Path:
    """Grey frames of the given levels, shown from ``times`` (in frames of ``fps``) on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "5"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for level, time in zip(levels, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def brightness(features: np.ndarray) -> np.ndarray:
    """Mean grey level of each clip, 0 to 1."""
    return features[:, -32:-16].mean(axis=1) / 2


def test_clips_follow_the_clock(tmp_path):
    """Two seconds dark, two bright: four clips of a second each."""
    video = write_video(tmp_path / "v.mp4", [20] * 20 + [120] * 20, list(range(40)))
    extractor = PixelFeatures(clips_per_second=1.0)
    features, duration = extractor.extract(video)
    assert duration == pytest.approx(4.0)
    assert features.shape == (4, extractor.dim)
    assert features.dtype == np.float32
    np.testing.assert_allclose(brightness(features), np.array([20, 20, 120, 120]) / 255, atol=0.02)
    motion = features[:, -16:].mean(axis=1)
    assert motion.argmax() == 1  # it gets bright between the last frame of the first two seconds and their end
    assert motion[[0, 2, 3]].max() < 0.05 * motion[1]


def test_variable_frame_rate(tmp_path):
    """A frame stays on show until the next one: one frame for the first three seconds, many after."""
    video = write_video(tmp_path / "v.mp4", [20] + [120] * 10, [0, *range(30, 40)])
    features, duration = PixelFeatures(clips_per_second=1.0).extract(video)
    assert duration == pytest.approx(4.0)
    np.testing.assert_allclose(brightness(features)[:4], np.array([20, 20, 20, 120]) / 255, atol=0.02)


def test_motion_alone(tmp_path):
    """What stands still shows nothing; what happens shows the same as in the whole features."""
    still = PixelFeatures(motion=True).extract(write_video(tmp_path / "still.mp4", [90] * 20, list(range(20))))[0]
    assert still.shape[1] == PixelFeatures(motion=True).dim == 65
    assert np.abs(still).max() < 0.05
    video = write_video(tmp_path / "v.mp4", [20] * 10 + [120] * 10, list(range(20)))
    whole, moving = (PixelFeatures(motion=motion).extract(video)[0] for motion in (False, True))
    np.testing.assert_array_equal(moving, whole[:, motion_columns()])
    assert np.abs(moving).max() > 0.5


def test_one_frame(tmp_path):
    features, duration = PixelFeatures().extract(write_video(tmp_path / "v.mp4", [50], [0]))
    assert features.shape == (1, PixelFeatures().dim)
    assert np.isfinite(features).all()
    assert 0 < duration <= 0.2


@pytest.mark.parametrize(
    ("name", "duration"), [("activitynet/v_GGSY1Qvo990.mp4", 18.09), ("women_long_jump/women_long_jump.mp4", 35.08)]
)
def test_real_videos(shared, name, duration):
    extractor = PixelFeatures()
    features, seconds = extractor.extract(shared / "samples" / name)
    assert seconds == pytest.approx(duration, abs=0.01)
    assert features.shape == (round(2 * seconds), extractor.dim)
    assert np.isfinite(features).all()
    assert (features[:, -32:].std(axis=0) > 0.01).all()  # brightness and motion
    assert features[:, :-32].any()  # some colour is there
    again, _ = extractor.extract(shared / "samples" / name)
    np.testing.assert_array_equal(features, again)


def test_not_a_video(tmp_path):
    with pytest.raises(VideoError, match=r"none\.mp4: no such file"):
        PixelFeatures().extract(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(VideoError, match=r"text\.mp4: can't be decoded after 0 frames") as error:
        PixelFeatures().extract(tmp_path / "text.mp4")
    assert "\n" not in str(error.value)


def test_cut_video(tmp_path):
    """An mp4 keeps its index at the end: a file that was cut short can't be decoded at all."""
    whole = write_video(tmp_path / "v.mp4", [20] * 40, list(range(40))).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VideoError, match=r"cut\.mp4: can't be decoded"):
        PixelFeatures().extract(tmp_path / "cut.mp4")


def test_no_picture(tmp_path):
    """A file with sound only, and one whose video stream holds no frame."""
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=r"sound\.mp4: holds no video stream"):
        PixelFeatures().extract(tmp_path / "sound.mp4")
    with pytest.raises(VideoError, match=r"empty\.mkv"):
        PixelFeatures().extract(write_video(tmp_path / "empty.mkv", [], []))


def test_what_moves_is_seen_when_it_moves() -> None:
    """A square that moves at a steady pace from one moment to another: where the middle of its motion lies."""
    extractor = PixelFeatures(clips_per_second=2.0, motion=True)
    centres, middles = [], []
    for begin in np.linspace(1.0, 2.0, 17):
        end = begin + 2.0
        at = np.clip(np.arange(8 * 5) / 8.0, begin, end) - begin  # the instants of the frames
        frames = np.zeros((len(at), 64, 64, 3), np.uint8)
        for frame, seconds in zip(frames, at, strict=True):
            left = round(4 + 20 * seconds)
            frame[28:36, left : left + 8, 0] = 255
        speed = np.abs(extractor.clips(extractor.measure(frames), 5.0)).sum(1)
        centres.append((speed * (np.arange(10) + 0.5) / 2.0).sum() / speed.sum())
        middles.append((begin + end) / 2)
    assert np.mean(np.subtract(centres, middles)) == pytest.approx(0.0, abs=0.02)
