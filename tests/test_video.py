"""The reader on files that are in order: which frame at which time, of what shape, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import clip, numbered, numbers, quarters, turn, write

from vpgfast.errors import VideoError
from vpgfast.video import Frames, Picture, Video
from vpgfast.video.picture import Converter


def times(chunks: list[Frames]) -> list[float]:
    return [time for chunk in chunks for time in chunk.times.tolist()]


CODECS = {
    "mp4": "libx264", "mkv": "libx264", "mov": "libx264", "avi": "libx264", "ts": "libx264", "flv": "libx264",
    "nut": "libx264", "webm": "libvpx-vp9", "ogv": "libvpx", "wmv": "wmv2",
}  # fmt: skip


@pytest.mark.parametrize("suffix", CODECS)
def test_every_frame_in_every_container(tmp_path, suffix):
    """Frames that are decoded in another order than they are shown, except where the codec has none."""
    more = {"bf": "2"} if CODECS[suffix] == "libx264" else {}
    video = Video(clip(tmp_path / f"v.{suffix}", 20, codec=CODECS[suffix], **more))
    chunks = list(video.frames(None))
    assert numbers(chunks) == list(range(20))
    np.testing.assert_allclose(times(chunks), np.arange(20) / 10, atol=1e-3)
    assert video.duration == pytest.approx(2.0, abs=1e-3)
    assert (video.width, video.height, video.count, video.problems) == (64, 48, 20, [])
    assert video.rate == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi", "webm"])
@pytest.mark.parametrize(("fps", "offset"), [(2.0, 0.0), (2.0, 0.5), (7.3, 0.25), (0.3, 0.0), (40.0, 0.0)])
def test_the_frame_on_show(tmp_path, suffix, fps, offset):
    """Between variable stamps a frame stays on show until the next one."""
    stamps = [0, 0.1, 0.2, 3, 3.1, 7, 7.05, 7.5]
    codec = "libvpx-vp9" if suffix == "webm" else "libx264"
    video = Video(clip(tmp_path / f"v.{suffix}", 8, times=stamps, codec=codec))
    chunks = list(video.frames(fps, offset=offset))
    count = sum((k + offset) / fps < video.duration - 1e-6 for k in range(1000))
    expected = (np.arange(max(1, count)) + offset) / fps
    np.testing.assert_array_equal(times(chunks), expected)
    assert numbers(chunks) == [max(i for i, stamp in enumerate(stamps) if stamp <= t + 2e-6) for t in expected]
    assert 7.5 < video.duration <= 7.7


def test_at_least_one_frame(tmp_path):
    video = Video(clip(tmp_path / "v.mp4", 3))
    (chunk,) = video.frames(0.1, offset=0.5)
    assert chunk.pixels.shape == (1, 48, 64, 3)
    assert chunk.times.tolist() == [5.0]
    (chunk,) = Video(clip(tmp_path / "one.mp4", 1)).frames(25.0)
    assert numbers([chunk]) == [0, 0, 0]  # on show for a tenth of a second


def test_chunks_and_types(tmp_path):
    video = Video(clip(tmp_path / "v.mp4", 25))
    chunks = list(video.frames(10.0, chunk=8))
    assert [len(chunk.times) for chunk in chunks] == [8, 8, 8, 1]
    assert {chunk.pixels.dtype for chunk in chunks} == {np.dtype(np.uint8)}
    assert {chunk.times.dtype for chunk in chunks} == {np.dtype(np.float64)}
    assert numbers(chunks) == list(range(25))
    assert numbers(video.frames(10.0)) == list(range(25))  # as often as one likes
    assert video.problems == []


def test_numbers_out_of_range(tmp_path):
    video = Video(clip(tmp_path / "v.mp4", 2))
    for arguments in ({"fps": 0}, {"fps": float("nan")}, {"fps": 1, "offset": -1}, {"fps": 1, "chunk": 0}):
        with pytest.raises(ValueError, match="must be"):
            video.frames(**arguments)
    with pytest.raises(ValueError, match="unknown backend"):
        Video(tmp_path / "v.mp4", backend="opencv")


SOUND_FIRST = ["mp4", "mkv", "mov", "ts", "flv"]


@pytest.mark.parametrize("suffix", SOUND_FIRST)
@pytest.mark.parametrize("late", [5, 15])
def test_picture_starts_after_the_sound(tmp_path, suffix, late):
    """The clock is the container's; until the first picture comes it stands in. No jump, however late."""
    path = clip(tmp_path / f"v.{suffix}", 20, times=[late + i / 10 for i in range(20)], sound=(0, late + 3))
    video = Video(path)
    chunks = list(video.frames(2.0))
    assert video.duration == pytest.approx(late + 2, abs=0.1)
    assert video.problems == []
    found = numbers(chunks)
    assert found[: 2 * late] == [0] * (2 * late)
    np.testing.assert_allclose(found[2 * late + 1 : 2 * late + 4], [5, 10, 15], atol=1)
    assert times(list(video.frames(None)))[0] == pytest.approx(late, abs=0.1)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("by", [100, -1.0])
def test_stamps_that_start_elsewhere(tmp_path, suffix, by):
    path = clip(tmp_path / f"v.{suffix}", 20, shift=lambda t: t + by, container={"avoid_negative_ts": "make_zero"})
    video = Video(path)
    assert numbers(video.frames(10.0)) == list(range(20))
    assert (video.duration, video.problems) == (pytest.approx(2.0), [])


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_edit_list_hides_the_start(tmp_path, suffix):
    """What comes before zero is not shown."""
    path = clip(
        tmp_path / f"v.{suffix}", 20, shift=lambda t: t - 1, container={"avoid_negative_ts": "disabled"}, bf="0"
    )
    video = Video(path)
    assert numbers(video.frames(10.0)) == list(range(10, 20))
    assert (video.duration, video.problems) == (pytest.approx(1.0), [])


def shown(pixels: np.ndarray) -> str:
    """The colours of a picture's quarters, by rows."""
    names = {(1, 0, 0): "R", (0, 1, 0): "G", (0, 0, 1): "B", (1, 1, 1): "W"}
    height, width = pixels.shape[:2]
    spots = [pixels[height * y // 4, width * x // 4] for y in (1, 3) for x in (1, 3)]
    return "".join(names.get(tuple((spot > 115).astype(int)), "?") for spot in spots)


TURNS = {  # the display matrix and what is to be seen of RG / BW
    "as it is": ((1, 0, 0, 1), "RGBW"), "90": ((0, 1, -1, 0), "BRWG"), "180": ((-1, 0, 0, -1), "WBGR"),
    "270": ((0, -1, 1, 0), "GWRB"), "mirrored": ((-1, 0, 0, 1), "GRWB"), "upside down": ((1, 0, 0, -1), "BWRG"),
    "transposed": ((0, 1, 1, 0), "RBGW"), "90 mirrored": ((0, -1, -1, 0), "WGBR"),
}  # fmt: skip


@pytest.mark.parametrize("name", TURNS)
def test_turned(tmp_path, name):
    matrix, expected = TURNS[name]
    video = Video(turn(write(tmp_path / "v.mp4", [quarters()] * 2, aspect=Fraction(2)), matrix))
    size = (128, 48) if matrix[0] else (48, 128)
    assert (video.width, video.height) == size
    (chunk,) = video.frames(None)
    assert chunk.pixels.shape == (2, size[1], size[0], 3)
    assert shown(chunk.pixels[0]) == expected
    (small,) = video.frames(None, Picture(short_side=24))
    assert min(small.pixels.shape[1:3]) == 24
    assert max(small.pixels.shape[1:3]) == 64
    assert shown(small.pixels[0]) == expected


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "mov"])
def test_pixels_that_are_not_square(tmp_path, suffix):
    video = Video(write(tmp_path / f"v.{suffix}", [quarters()], aspect=Fraction(16, 11)))
    assert (video.width, video.height) == (93, 48)
    (chunk,) = video.frames(None)
    assert chunk.pixels.shape == (1, 48, 93, 3)
    assert shown(chunk.pixels[0]) == "RGBW"


def test_scaled_and_cropped(tmp_path):
    path = write(tmp_path / "v.mp4", [quarters(100, 60)])

    def pixels(**picture: object) -> np.ndarray:
        return next(iter(Video(path).frames(None, Picture(**picture)))).pixels[0]

    assert pixels(short_side=32).shape == (32, 53, 3)  # 100 * 32 / 60 = 53.3, rounded down
    assert pixels(size=(20, 90)).shape == (20, 90, 3)
    whole, cut = pixels(short_side=32), pixels(short_side=32, crop=(31, 32))
    np.testing.assert_array_equal(cut, whole[0:31, 10:42])  # (32 - 31) // 2, (53 - 32) // 2
    assert pixels(short_side=32, enlarge_only=True).shape == (60, 100, 3)
    assert pixels(short_side=90, enlarge_only=True).shape == (90, 150, 3)
    np.testing.assert_array_equal(pixels(crop=(10, 10)), pixels()[25:35, 45:55])
    ways = [pixels(size=(25, 35), interpolation=how) for how in ("bilinear", "bicubic", "area", "lanczos", "nearest")]
    assert all((a != b).any() for i, a in enumerate(ways) for b in ways[:i])
    assert {shown(way) for way in ways} == {"RGBW"}
    with pytest.raises(VideoError, match=r"v\.mp4: a crop of 61 x 10 .* does not fit into a picture of 60 x 100"):
        Video(path).frames(None, Picture(crop=(61, 10)))


@pytest.mark.parametrize(
    "picture",
    [
        {"short_side": 10, "size": (5, 5)}, {"short_side": 0}, {"size": (0, 5)}, {"crop": (5, 0)},
        {"size": (5, 5), "crop": (6, 5)}, {"short_side": 5, "crop": (6, 6)}, {"enlarge_only": True},
        {"interpolation": "cubic"},
    ],
)  # fmt: skip
def test_pictures_that_can_not_be(picture):
    with pytest.raises(ValueError, match="Picture: "):
        Picture(**picture)


def test_the_thread_ends(tmp_path):
    """Closed, failed or forgotten: nothing goes on decoding."""
    video = Video(clip(tmp_path / "v.mp4", 200))

    def readers() -> int:
        return sum(thread.name == "vpgfast.video" for thread in threading.enumerate())

    frames = video.frames(10.0, chunk=2)
    next(frames)
    assert readers() == 1
    frames.close()
    assert readers() == 0
    for _ in video.frames(10.0, chunk=2):
        break  # the generator is forgotten
    assert readers() == 0
    (tmp_path / "v.mp4").unlink()
    with pytest.raises(VideoError, match="no such file"):
        next(video.frames(10.0))
    assert readers() == 0


def test_decodes_ahead_and_no_further(tmp_path, monkeypatch):
    """A reader that waits for its consumer has at most three chunks beside the consumer's in hand."""
    converted = []
    convert = Converter.convert
    monkeypatch.setattr(Converter, "convert", lambda self, *rest: (converted.append(1), convert(self, *rest)))
    frames = Video(clip(tmp_path / "v.mp4", 200)).frames(None, chunk=4)
    next(frames)
    time.sleep(0.3)
    assert 4 < len(converted) <= 16
    assert sum(len(chunk.times) for chunk in frames) == 196
    assert len(converted) == 200


def test_imports_no_torch():
    code = "import sys, vpgfast.video; assert not {'torch', 'PIL', 'torchcodec'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def repeated(path: Path, seconds: int) -> Path:
    """A long film with sound, its packets those of a short one over and over."""
    short = clip(path.with_name("short.mkv"), 20, rate=2, g="4", sound=(0, 10))
    with av.open(str(short)) as source, av.open(str(path), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        packets = [packet for packet in source.demux() if packet.size]
        copies = [(bytes(p), p.pts, p.dts, p.duration, p.is_keyframe, p.time_base, p.stream.index) for p in packets]
        for turn_ in range(seconds // 10):
            for data, pts, dts, duration, is_key, base, index in copies:
                packet, by = av.Packet(data), round(10 * turn_ / base)
                packet.pts, packet.dts, packet.duration, packet.time_base = pts + by, dts + by, duration, base
                packet.is_keyframe, packet.stream = is_key, streams[index]
                target.mux(packet)
    return path


PEAK = """
import sys
from vpgfast.video import Picture, Video
video = Video(sys.argv[1])
count = sum(len(chunk.times) for chunk in video.frames(1.0, Picture(size=(224, 224))))
assert video.problems == [], video.problems
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(count, video.duration, int(peak) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory where Linux tells it")
def test_memory_does_not_grow_with_the_length(tmp_path):
    peaks = []
    for seconds in (600, 10800):
        path = repeated(tmp_path / f"{seconds}.mkv", seconds)
        done = subprocess.run([sys.executable, "-c", PEAK, path], stdout=subprocess.PIPE, text=True, check=True)
        count, duration, peak = map(float, done.stdout.split())
        assert count == pytest.approx(seconds, abs=1)
        assert duration == pytest.approx(seconds, abs=0.5)
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 50
    assert peaks[1] < 300


def test_numbered_frames_can_be_read():
    """The tests' own writing and reading of numbers."""
    assert [numbered(i)[0, ::8, 0].tolist() for i in (0, 5)] == [[0] * 8, [255, 0, 255, 0, 0, 0, 0, 0]]
    assert numbers([Frames(np.stack([numbered(i, 17, 5) for i in range(256)]), np.arange(256.0))]) == list(range(256))
