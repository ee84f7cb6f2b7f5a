"""The reader on files as people have them: cut, damaged, lying, of odd formats, names and kinds."""

from __future__ import annotations

import logging
import os
import re
import shutil
import struct
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from test_video import shown, times
from video_files import clip, numbered, numbers, quarters, tone, turn, write

from vpgfast.errors import VideoError
from vpgfast.find.clips import cut
from vpgfast.video import Picture, Video, source


@pytest.fixture(autouse=True)
def _as_in_a_program(caplog):
    caplog.set_level(logging.DEBUG, "vpgfast.video")


def refused(path: Path | str, **arguments: object) -> str:
    """The message with which a file is refused: one line that names it."""
    with pytest.raises(VideoError) as error:
        list(Video(path, **arguments).frames(2.0))
    message = str(error.value)
    assert "\n" not in message
    return message


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


# Clocks


@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4", "flv"])
def test_clock_jumps_forward(tmp_path, caplog, suffix):
    path = clip(tmp_path / f"v.{suffix}", 40, shift=lambda t: t if t < 1 else t + 20000)
    video = Video(path)
    assert numbers(video.frames(5.0)) == list(range(0, 40, 2))
    assert video.duration == pytest.approx(4.0)
    assert video.problems == ["its clock jumps by +20000.0 s at 1.0 s; closed, as if there were no jump"]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"video {path}: {video.problems[0]}"
    ]


@pytest.mark.parametrize(("starts", "jumps"), [((500, 3), 1), ((3, 500, 3), 2), ((0, 0), 1), ((0, 1.4), 1)])
@pytest.mark.parametrize("sound", [None, (0, 2)])
def test_pieces_with_clocks_of_their_own(tmp_path, starts, jumps, sound):
    parts = [
        clip(tmp_path / f"{i}.ts", 20, shift=lambda t, start=start: t + start, sound=sound)
        for i, start in enumerate(starts)
    ]
    video = Video(joined(tmp_path / "v.ts", *parts))
    chunks = list(video.frames(None))
    assert numbers(chunks) == list(range(20)) * len(starts)
    np.testing.assert_allclose(np.diff(times(chunks)), 0.1, atol=0.01)
    assert video.duration == pytest.approx(2.0 * len(starts), abs=0.05)
    (problem,) = video.problems
    assert problem.startswith("its clock jumps by ")
    assert ("times more" in problem) == (jumps > 1)


def test_a_still_picture_is_no_jump(tmp_path):
    """Where the sound goes on, or the format has one clock, the picture may stand still."""
    stamps = [*(i / 10 for i in range(10)), *(16 + i / 10 for i in range(10))]
    for suffix, sound in (("ts", (0, 17)), ("mkv", None), ("mp4", None)):
        video = Video(clip(tmp_path / f"v.{suffix}", 20, times=stamps, sound=sound))
        assert numbers(video.frames(1.0))[:16] == [0, *[9] * 15]
        assert (video.duration, video.problems) == (pytest.approx(17.0, abs=0.1), [])


def test_stamps_in_disorder(tmp_path):
    """One stamp that is a little late does not move the clock, and time never goes back."""
    path = clip(tmp_path / "v.mkv", 30, shift=lambda t: t + 0.15 * (t == 1.0), bf="0")
    video = Video(path)
    chunks = list(video.frames(None))
    assert numbers(chunks) == list(range(30))
    assert (np.diff(times(chunks)) >= 0).all()
    assert (video.duration, video.problems) == (pytest.approx(3.0), [])


@pytest.mark.parametrize(
    ("name", "codec"),
    [("v.h264", "libx264"), ("v.mjpeg", "mjpeg"), ("v.mpeg4", "mpeg4"), ("v.hevc", "libx265"), ("v.m2v", "mpeg2video")],
)
def test_no_stamps(tmp_path, name, codec):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    format = {"v.mpeg4": "m4v", "v.m2v": "mpeg2video"}.get(name)
    video = Video(clip(tmp_path / name, 20, codec=codec, rate=25, pix_fmt=pix_fmt, format=format, **options))
    chunks = list(video.frames(None))
    assert numbers(chunks) == list(range(20))
    np.testing.assert_allclose(times(chunks), np.arange(20) / 25)
    assert video.problems == ["holds no time stamps; that it has 25 frames a second is a guess"]


def test_some_stamps_are_missing(tmp_path):
    """Matroska drops the ones below zero."""
    path = clip(tmp_path / "v.mkv", 20, shift=lambda t: t - 1, container={"avoid_negative_ts": "disabled"}, bf="0")
    video = Video(path)
    chunks = list(video.frames(None))
    assert numbers(chunks) == list(range(20))
    np.testing.assert_allclose(times(chunks), np.arange(20) / 10)


# What a file says of its length


def lying(path: Path) -> Path:
    """An AVI whose header speaks of 2^31 - 1 frames."""
    data = bytearray(clip(path, 20, codec="mpeg4").read_bytes())
    for name, place in ((b"avih", 24), (b"strh", 40)):
        start = data.index(name) + place
        data[start : start + 4] = struct.pack("<I", 2**31 - 1)
    path.write_bytes(data)
    return path


def test_absurd_length(tmp_path):
    video = Video(lying(tmp_path / "v.avi"))
    assert numbers(video.frames(5.0)) == list(range(0, 20, 2))
    assert video.duration == pytest.approx(2.0)
    assert video.stated_duration == pytest.approx((2**31 - 1) / 10)
    assert video.problems == ["ends after 2.0 of 214748364.7 s; was it fetched whole?"]


def noisy(path: Path, **settings: object) -> Path:
    """Ten seconds whose frames all take about the same room."""
    noise = np.random.default_rng(0).integers(0, 60, (100, 48, 64, 3), dtype=np.uint8)
    return write(path, [numbered(i) // 2 + noise[i] for i in range(100)], **settings)


CUT = {
    "mkv": {}, "webm": {"codec": "libvpx-vp9"}, "flv": {}, "avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mp4": {"container": {"movflags": "faststart"}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("suffix", "sound"),
    [*((suffix, None) for suffix in CUT), *((suffix, (0.0, 10.0)) for suffix in CUT if suffix != "webm")],  # has no AAC
)
def test_cut_short(tmp_path, suffix, sound):
    path = noisy(tmp_path / f"v.{suffix}", sound=sound, **CUT[suffix])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    video = Video(path)
    found = numbers(video.frames(2.0))
    assert 8 <= len(found) <= 13
    # Sound of AAC starts a little before zero, where the container's clock starts, if it has no edit list to hide that.
    np.testing.assert_allclose(found, np.arange(0, 5 * len(found), 5), atol=1 if sound else 0)
    assert 4.5 < video.duration < 6.5
    expected = rf"ends after {video.duration:.1f} of 10.\d s; was it fetched whole\?"
    assert sum(re.fullmatch(expected, problem) is not None for problem in video.problems) == 1
    message = refused(path, strict=True)
    assert "was it fetched whole?" in message
    assert str(path) in message


def test_cut_where_nothing_says_how_long_it_was(tmp_path):
    path = noisy(tmp_path / "v.ts")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    video = Video(path)
    assert len(numbers(video.frames(2.0))) >= 8
    assert video.stated_duration is None


def test_whole_files_pass_strict(tmp_path):
    """Also one whose sound goes on after the picture."""
    for suffix in ("mp4", "mkv", "flv", "ts", "avi"):
        video = Video(clip(tmp_path / f"v.{suffix}", 20, sound=(0, 6)), strict=True)
        np.testing.assert_allclose(numbers(video.frames(2.0))[:4], [0, 5, 10, 15], atol=1)
        assert video.problems == []


def test_says_less_than_it_holds(tmp_path):
    path = clip(tmp_path / "v.mkv", 60)
    data = bytearray(path.read_bytes())
    place = data.index(b"\x44\x89\x88") + 3  # the segment's duration, a double
    assert struct.unpack(">d", data[place : place + 8]) == (6000.0,)
    data[place : place + 8] = struct.pack(">d", 2000.0)
    tag = data.index(b"00:00:06.000")
    data[tag : tag + 8] = b"00:00:02"
    path.write_bytes(data)
    video = Video(path)
    assert numbers(video.frames(1.0)) == list(range(0, 60, 10))
    assert video.problems == ["says that it lasts 2.0 s, but holds 6.0 s; the latter counts"]


# Damage


def spoiled(bad: Sequence[int], keep: float):
    """Packets of which the rest is noise, or missing."""

    def damage(index: int, data: bytes) -> bytes:
        kept = int(len(data) * keep)
        if index not in bad:
            return data
        return data[:kept] + np.random.default_rng(index).integers(0, 256, len(data) - kept, dtype=np.uint8).tobytes()

    return damage


@pytest.mark.parametrize("keep", [0.0, 0.5])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("v.mkv", {"g": "10"}), ("v.mp4", {"g": "10", "bf": "2"}), ("v.ts", {"g": "10"}), ("v.avi", {"codec": "mpeg4"}),
        ("v.webm", {"codec": "libvpx-vp9", "g": "10"}), ("j.mkv", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("fps", [None, 10.0])
def test_damaged_packets(tmp_path, name, settings, keep, fps):
    """Frames before the damage and long after it are right, at the right times; the warning has a number."""
    path = write(tmp_path / name, [numbered(i) for i in range(60)], damage=spoiled((20, 21, 40), keep), **settings)
    video = Video(path)
    chunks = list(video.frames(fps))
    seen = dict(zip(np.round(np.array(times(chunks)) * 10).astype(int).tolist(), numbers(chunks), strict=True))
    right = [*range(19), *range(31, 38), *range(52, 60)]
    assert [seen.get(i) for i in right] == right
    assert video.duration == pytest.approx(6.0)
    (problem,) = video.problems
    damaged = int(problem.split(" of ")[0])
    assert problem.endswith("packets are damaged or gave no picture; what could be decoded is used")
    assert 1 <= damaged <= 24


def test_noise_in_the_middle_of_a_file(tmp_path):
    for suffix, settings in (("mkv", {}), ("mp4", {}), ("ts", {}), ("avi", {"codec": "mpeg4"}), ("flv", {})):
        path = noisy(tmp_path / f"v.{suffix}", g="10", **settings)
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 500] = np.random.default_rng(1).bytes(500)
        path.write_bytes(data)
        video = Video(path)
        found = numbers(video.frames(2.0))
        assert len(found) == 20
        assert found[:8] == list(range(0, 40, 5))
        assert found[-6:] == list(range(70, 100, 5))
        assert video.duration == pytest.approx(10.0)


# Which stream


def with_streams(path: Path, *kinds: str) -> Path:
    """Streams in this order; only ``main`` shows numbers below 100."""
    sizes = {"cover": (160, 120), "preview": (32, 32), "main": (64, 48)}
    with av.open(str(path), "w") as file:
        streams = []
        for kind in kinds:
            stream = file.add_stream("mjpeg" if kind == "cover" else "libx264", rate=10)
            stream.width, stream.height = sizes[kind]
            stream.pix_fmt = "yuvj420p" if kind == "cover" else "yuv420p"
            if kind == "cover":
                stream.disposition = av.stream.Disposition.attached_pic.value
            streams.append(stream)
        for kind, stream in zip(kinds, streams, strict=True):
            for index in range(1 if kind == "cover" else 10):
                picture = numbered(index + (0 if kind == "main" else 100), *sizes[kind])
                frame = av.VideoFrame.from_ndarray(picture, "rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 10)
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_moving_picture(tmp_path, suffix):
    for kinds in (("cover", "main"), ("main", "cover"), ("preview", "main"), ("cover", "preview", "main")):
        path = with_streams(tmp_path / f"{'-'.join(kinds)}.{suffix}", *kinds)
        video = Video(path)
        assert numbers(video.frames(None)) == list(range(10))
        assert video.problems == []
    with av.open(str(path)) as file:  # mp4 has covers after all other streams
        place = {stream.width: stream.index for stream in file.streams.video}
    other = Video(path, stream=place[32])
    assert (other.width, numbers(other.frames(None))) == (32, list(range(100, 110)))
    cover = Video(path, stream=place[160])
    assert (cover.width, numbers(cover.frames(2.0))) == (160, [100])
    message = refused(path, stream=7)
    assert "no video stream 7; it has 0: video " in message
    assert f"{place[160]}: video mjpeg 160x120" in message
    assert f"{place[64]}: video h264 64x48" in message


def test_only_a_cover(tmp_path):
    path = with_streams(tmp_path / "song.mp4", "cover")
    assert "holds no moving picture, only 0: video mjpeg 160x120 (cover art)" in refused(path)
    assert numbers(Video(path, stream=0).frames(None)) == [100]


# Shapes and formats


@pytest.mark.parametrize("suffix", ["ts", "h264"])
def test_size_changes(tmp_path, suffix):
    """All frames are made to fit the first; where the rule gives one shape anyway, nothing is stretched."""
    sizes = ((64, 48), (96, 96), (48, 64))
    parts = [
        write(
            tmp_path / f"{i}.{suffix}",
            [numbered(10 * i + j, *size) for j in range(10)],
            shift=(lambda t, i=i: t + i) if suffix == "ts" else None,
        )
        for i, size in enumerate(sizes)
    ]
    video = Video(joined(tmp_path / f"v.{suffix}", *parts))
    chunks = list(video.frames(None))
    assert {chunk.pixels.shape[1:] for chunk in chunks} == {(48, 64, 3)}
    assert numbers(chunks) == list(range(30))
    assert "its pictures change their size (64x48, 96x96, 48x64); all are made to fit the first" in video.problems
    (square,) = video.frames(None, Picture(short_side=48, crop=(48, 48)))
    (upright,) = Video(parts[2]).frames(None, Picture(short_side=48, crop=(48, 48)))
    np.testing.assert_array_equal(square.pixels[20:], upright.pixels)


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (64, 1), (3, 5), (33, 17), (101, 1)])
@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("v.nut", "rawvideo", "yuv420p"), ("v.avi", "mjpeg", "yuvj420p"), ("v.mov", "png", "rgb24")],
)
def test_odd_sizes(tmp_path, size, name, codec, pix_fmt):
    width, height = size
    video = Video(write(tmp_path / name, [quarters(width, height)] * 2, codec=codec, pix_fmt=pix_fmt))
    (chunk,) = video.frames(None)
    assert chunk.pixels.shape == (2, height, width, 3)
    if min(size) > 4:
        assert shown(chunk.pixels[1]) == "RGBW"
    (small,) = video.frames(None, Picture(size=(9, 7)))
    assert small.pixels.shape == (2, 9, 7, 3)
    (even,) = video.frames(None, Picture(short_side=8))
    assert min(even.pixels.shape[1:3]) == 8


FORMATS = {
    ("ffv1", "mkv"): ["gray", "gray16le", "yuv422p", "yuv420p10le", "yuva420p", "gbrp16le", "bgra", "rgb48le"],
    ("png", "mov"): ["rgba", "gray", "rgb48be", "monob", "ya8", "gray16be"],
    ("rawvideo", "nut"): ["yuyv422", "nv12", "rgb24", "bgr0", "rgb565le"],
    ("libvpx-vp9", "webm"): ["yuva420p", "gbrp"],
    ("libx264", "mp4"): ["yuv420p10le", "yuvj420p", "gray", "yuv444p"],
    ("prores_ks", "mov"): ["yuv422p10le", "yuva444p10le"],
    ("gif", "gif"): ["rgb8", "gray"],
    ("apng", "apng"): ["rgba", "rgb24"],
    ("huffyuv", "avi"): ["rgb24"],
}


@pytest.mark.parametrize(("kind", "pix_fmt"), [(kind, name) for kind, names in FORMATS.items() for name in names])
def test_pixel_formats(tmp_path, kind, pix_fmt):
    codec, suffix = kind
    frames = [av.VideoFrame.from_ndarray(quarters(), "rgb24").reformat(format=pix_fmt) for _ in range(2)]
    check_quarters(write(tmp_path / f"v.{suffix}", frames, codec=codec, pix_fmt=pix_fmt), pix_fmt)


# Written once by libx265, which can't write these on every processor.
@pytest.mark.parametrize("pix_fmt", ["yuv420p12le", "gray10le"])
def test_pixel_formats_of_hevc(pix_fmt):
    path = Path(__file__).parent / f"videos/hevc_{pix_fmt}.mp4"
    with av.open(str(path)) as file:
        assert file.streams.video[0].pix_fmt == pix_fmt
    check_quarters(path, pix_fmt)


def check_quarters(path: Path, pix_fmt: str) -> None:
    (chunk,) = Video(path).frames(None)
    assert chunk.pixels.shape == (2, 48, 64, 3)
    if "gray" in pix_fmt or pix_fmt in ("ya8", "monob"):
        bright = chunk.pixels[0].mean(axis=2)
        assert bright[36, 48] > 220
        assert bright[36, 16] < 60
        assert (np.ptp(chunk.pixels[0].astype(int), axis=2) <= 2).all()
    else:
        assert shown(chunk.pixels[0]) == "RGBW"
        white = chunk.pixels[0][36, 48].astype(int)
        assert abs(white - 230).max() < (40 if pix_fmt == "rgb8" else 14)  # neither range nor depth is mistaken


def test_interlaced(tmp_path):
    for name, settings in (
        ("v.mp4", {"flags": "+ilme+ildct", "x264-params": "interlaced=1"}),
        ("v.mpg", {"flags": "+ilme+ildct", "codec": "mpeg2video", "rate": 25}),
    ):
        video = Video(clip(tmp_path / name, 30, **settings))
        assert numbers(video.frames(None)) == list(range(30))
        assert video.problems == []


SHOWN_FOR = [100, 200, 300, 400, 1000]  # milliseconds


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animations(tmp_path, suffix):
    images = [Image.fromarray(numbered(i)) for i in range(5)]
    path = tmp_path / f"v.{suffix}"
    more = {"lossless": True} if suffix == "webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=SHOWN_FOR, loop=0, **more)
    video = Video(path)
    chunks = list(video.frames(None))
    assert numbers(chunks) == list(range(5))
    np.testing.assert_allclose(times(chunks), [0, 0.1, 0.3, 0.6, 1.0])
    assert (video.duration, video.problems) == (pytest.approx(2.0), [])
    assert numbers(video.frames(4.0)) == [0, 1, 2, 3, 4, 4, 4, 4]


def test_animated_webp_without_pillow(tmp_path, monkeypatch):
    images = [Image.fromarray(numbered(i)) for i in range(2)]
    images[0].save(tmp_path / "v.webp", save_all=True, append_images=images[1:])
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "is an animated WebP, which needs Pillow: pip install pillow" in refused(tmp_path / "v.webp")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tiff", "webp"])
def test_still_images(tmp_path, suffix):
    Image.fromarray(quarters()).save(tmp_path / f"v.{suffix}")
    video = Video(tmp_path / f"v.{suffix}")
    (chunk,) = video.frames(2.0)
    assert shown(chunk.pixels[0]) == "RGBW"
    assert chunk.times.tolist() == [0]
    assert 0 < video.duration <= 0.1
    assert video.problems == []


@pytest.mark.parametrize(
    ("orientation", "expected"),
    list(enumerate(("RGBW", "GRWB", "WBGR", "BWRG", "RBGW", "BRWG", "WGBR", "GWRB"), start=1)),
)
def test_photographs_are_turned(tmp_path, orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(quarters()).save(tmp_path / "v.jpg", exif=exif.tobytes(), quality=95)
    video = Video(tmp_path / "v.jpg")
    (chunk,) = video.frames(None)
    assert shown(chunk.pixels[0]) == expected
    assert (video.width, video.height) == ((64, 48) if orientation < 5 else (48, 64))


# No videos


def test_no_picture(tmp_path):
    for name, codec in (("v.m4a", "aac"), ("v.mkv", "aac"), ("v.mp3", "mp3"), ("v.ts", "mp2")):
        with av.open(str(tmp_path / name), "w") as file:
            file.mux(tone(file.add_stream(codec, rate=32000, layout="mono"), 0, 1))
        assert f"{name}: holds no video stream, only audio" in refused(tmp_path / name)
    (tmp_path / "v.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nhello\n")
    assert "holds no video stream, only subtitle" in refused(tmp_path / "v.srt")
    assert "v.mkv" in refused(write_empty(tmp_path / "v.mkv"))


def write_empty(path: Path) -> Path:
    """A file with a video stream that has no frame."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        file.mux(stream.encode())
    return path


def test_no_videos(tmp_path):
    noise = np.random.default_rng(0).bytes(50_000)
    apple_double = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(4000)
    contents = {
        "text.mp4": b"not a video", "text.txt": b"hello world " * 1000, "zeros.mp4": bytes(5000), "noise.mkv": noise,
        "table.json": b"{}", "page.html": b"<html><body>Not found</body></html>", "._v.mp4": apple_double,
        "archive.zip": b"PK\3\4" + noise, "list.m3u8": b"#EXTM3U\n#EXTINF:10,\nv.mp4\n#EXT-X-ENDLIST\n",
        "list.ffconcat": b"ffconcat version 1.0\nfile v.mp4\n",
    }  # fmt: skip
    clip(tmp_path / "v.mp4", 5)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert f"video {tmp_path / name}: " in refused(tmp_path / name)
    assert "is text, not a video" in refused(tmp_path / "text.txt")
    assert "is it a video, and was it fetched whole?" in refused(tmp_path / "text.mp4")
    (tmp_path / "empty.mp4").touch()
    assert "is empty (0 bytes); was it fetched whole?" in refused(tmp_path / "empty.mp4")
    assert "is a folder, not a video" in refused(tmp_path)
    assert "no such file" in refused(tmp_path / "none.mp4")
    assert "can't be opened" in refused(tmp_path / "v.mp4" / "x.mp4")
    assert "can't be opened" in refused("a\0b.mp4")


def test_index_that_never_came(tmp_path):
    """An mp4 whose index would be at its end, but was cut off."""
    path = noisy(tmp_path / "v.mp4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "was it fetched whole?" in refused(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_devices(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "is a pipe or a device, not a file; write the video to a file first" in refused(tmp_path / "pipe.mp4")
    assert "is a pipe or a device" in refused("/dev/zero")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_not_permitted(tmp_path):
    path = clip(tmp_path / "v.mp4", 2)
    path.chmod(0)
    assert "can't be opened (Permission denied)" in refused(path)


# Names

NAMES = [
    "2024-05-01T12:30:00.mp4", "-v.mp4", "concat:v.mp4", "file:v.mp4", "http:v", "a%03d.mp4", "100%.mp4", "no suffix",
    "v.png", "v.txt", "v.h264", "naïve 映像.mp4", "two\nlines.mp4", "$HOME.mp4", "~.mp4", "|cat.mp4", "v.mp4 ",
]  # fmt: skip


def test_names(tmp_path, monkeypatch):
    """A name is a name, relative or absolute: never a protocol, an option or a pattern."""
    clip(tmp_path / "plain.mp4", 5)
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        shutil.copy("plain.mp4", name)
        for path in (name, Path(name), tmp_path / name):
            assert numbers(Video(path).frames(10.0)) == list(range(5))
        (tmp_path / name).unlink()
        message = refused(name)
        assert "no such file" in message
    Image.fromarray(quarters()).save("image%03d.png")
    assert len(numbers(Video("image%03d.png").frames(None))) == 1


def test_name_that_is_no_text(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.mp4")
    try:
        shutil.copy(clip(tmp_path / "plain.mp4", 5), name)
    except OSError:
        pytest.skip("this file system takes only names that are text")
    video = Video(name)
    assert numbers(video.frames(10.0)) == list(range(5))
    Path(name).write_bytes(Path(name).read_bytes()[:300])
    message = refused(name)
    assert r"\xff\xfe.mp4" in message
    message.encode()  # can be printed and logged


def test_turned_and_cut(tmp_path):
    """Several at once."""
    path = turn(noisy(tmp_path / "v.mp4", container={"movflags": "faststart"}, sound=(0, 10)), (0, 1, -1, 0))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    video = Video(path)
    chunks = list(video.frames(2.0))
    assert (video.width, video.height) == (48, 64)
    back = [chunk.pixels.swapaxes(1, 2)[:, ::-1] for chunk in chunks]
    found = [n for pixels in back for n in numbers([type(chunks[0])(pixels, chunks[0].times)])]
    assert found == list(range(0, 5 * len(found), 5))
    assert any("was it fetched whole?" in problem for problem in video.problems)


def test_files_damaged_at_random(tmp_path):
    """Whatever happens to a file, it gives frames or one line that says why not, and ends."""
    sources = [
        clip(tmp_path / "a.mp4", 30, bf="2", g="10", sound=(0, 3)), clip(tmp_path / "b.mkv", 30, g="10", sound=(0, 3)),
        clip(tmp_path / "c.ts", 30, g="10", sound=(0, 3)), clip(tmp_path / "d.avi", 30, codec="mpeg4"),
        clip(tmp_path / "e.webm", 30, codec="libvpx-vp9"), clip(tmp_path / "f.flv", 30),
        clip(tmp_path / "g.gif", 30, codec="gif", pix_fmt="rgb8"), clip(tmp_path / "h.h264", 30),
    ]  # fmt: skip
    images = [Image.fromarray(numbered(i)) for i in range(4)]
    images[0].save(tmp_path / "i.webp", save_all=True, append_images=images[1:])
    sources.append(tmp_path / "i.webp")
    rng = np.random.default_rng(0)
    read, messages = 0, []
    for case in range(180):
        whole = sources[case % len(sources)]
        data = bytearray(whole.read_bytes())
        place = int(rng.integers(len(data)))
        match case // len(sources) % 5:
            case 0:
                del data[place:]
            case 1:
                for at in rng.integers(len(data), size=20):
                    data[at] = rng.integers(256)
            case 2:
                del data[place : place + int(rng.integers(1, 3000))]
            case 3:
                at = place % 600
                data[at : at + 4] = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4))[int(rng.integers(3))]
            case 4:
                data[place:place] = data[:place]
        path = tmp_path / f"damaged{whole.suffix}"
        path.write_bytes(data)
        try:
            video = Video(path)
            count = 0
            for chunk in video.frames((None, 2.0, 0.3)[case % 3], Picture(size=(8, 8))):
                count += len(chunk.times)
                assert count < 10_000, f"case {case} runs on"
                assert (np.diff(chunk.times) >= 0).all()
            assert 0 <= video.duration < 4000
            read += 1
        except VideoError as error:
            messages.append(str(error))
    assert not any("\n" in message for message in messages)
    assert read > 60


def test_read_errors(tmp_path, monkeypatch):
    """A disk or a network that fails in the middle is not taken for the end of the file."""
    path = noisy(tmp_path / "v.mkv")
    video = Video(path)
    opened = source.open_file

    def failing(path):
        file = opened(path)

        class Failing:
            name, seek, tell, close = file.name, file.seek, file.tell, file.close

            def read(self, size):
                if file.tell() > path.stat().st_size * 0.5:
                    raise OSError(5, "Input/output error")
                return file.read(min(size, 4096))

        return Failing()

    monkeypatch.setattr(source, "open_file", failing)
    with pytest.raises(VideoError, match=r"v\.mkv: can't be read after \d+ frames \(Input/output error\)"):
        list(video.frames(2.0))


def test_tags_that_are_not_utf8(tmp_path):
    """Old cameras write Latin-1."""
    path = clip(tmp_path / "v.mkv", 60)
    data = path.read_bytes()
    assert data.count(b"Lavf") > 1
    path.write_bytes(data.replace(b"Lavf", b"L\xe9vf"))
    assert numbers(Video(path).frames(1.0)) == list(range(0, 60, 10))
    cut(path, 0.0, 2.0, tmp_path / "c.mkv")
    assert numbers(Video(tmp_path / "c.mkv").frames(1.0))[:2] == [0, 10]
