"""A video file that is opened: which of its streams is the moving picture, and what the file says of itself."""

from __future__ import annotations

import os
import re
import stat
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from vpgfast.errors import VideoError
from vpgfast.video.images import exif_turn, is_animated_webp, webp_as_film
from vpgfast.video.picture import Turn

_USUAL_RATE = 25.0
_IMAGE_CODECS = ("mjpeg", "png", "bmp", "tiff", "webp", "gif", "jpeg2000")  # of covers that are not marked as such
_TEXT_CODECS = ("ansi", "bintext", "xbin", "idf")  # FFmpeg draws any file that is called .txt
_BUFFER = 2**18  # bytes read at a time
ANY_TAG: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
"""For ``av.open``, so that no tag that is not UTF-8 makes a file unreadable; PyAV 19 takes them all by itself."""


def printable(path: Path) -> str:
    """The file's name for a message of one line, also where it has bytes that are no text."""
    name = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in name)


class Source:
    """An opened file, to be closed after use.

    Attributes:
        container, stream: PyAV's.
        rate: frames a second, as far as known.
        start: the container's first stamp in seconds, ``None`` if it is not known.
        stated_picture, stated_whole: seconds from the container's start to the end of the picture, and of all, as the
            file says; ``None`` if it does not say.
        guessed_rate: the format has no time stamps, so ``rate`` is a guess.
        broadcast: a format whose clock may start again.

    Raises:
        VideoError: it can't be opened, or has no such stream; names the file and the cause.
    """

    def __init__(self, path: Path, stream: int | None = None) -> None:
        self.path = path
        file = self._file = open_file(path)
        try:
            if is_animated_webp(file):
                file = webp_as_film(file)
            options = {"protocol_whitelist": "none"}
            self.container = av.open(file, container_options=options, buffer_size=_BUFFER, **ANY_TAG)
        except ImportError:
            self._file.close()
            raise VideoError(
                f"video {printable(path)}: is an animated WebP, which needs Pillow: pip install pillow"
            ) from None
        except (av.FFmpegError, OSError, ValueError) as error:
            self._file.close()
            raise VideoError(
                f"video {printable(path)}: can't be decoded after 0 frames ({reason(error)}); is it a video, "
                "and was it fetched whole?"
            ) from None
        try:
            self.stream = self._choose(stream)
        except BaseException:
            self.close()
            raise
        format_flags = av.format.Flags(self.container.format.flags)
        self.guessed_rate = av.format.Flags.no_timestamps in format_flags or bool(
            self.container.format.name in ("h264", "hevc", "vvc", "m4v", "mpegvideo", "mjpeg", "h263", "h261", "vc1")
        )
        self.broadcast = av.format.Flags.ts_discont in format_flags
        rate = self.stream.guessed_rate if self.guessed_rate else self.stream.average_rate or self.stream.base_rate
        self.rate = float(rate) if rate and 0 < rate <= 1000 else _USUAL_RATE
        start = self.container.start_time
        self.start = None if start is None or self.guessed_rate else start / av.time_base
        self.stated_picture, self.stated_whole = self._stated()
        base = self.stream.time_base
        self._ticks = (base.numerator, base.denominator) if base else None  # reading a Fraction's parts takes long
        self._photograph: Turn | None = None
        self._own_aspect = self.stream.sample_aspect_ratio
        self._follows_codec = self._own_aspect == self.stream.codec_context.sample_aspect_ratio

    def close(self) -> None:
        self.container.close()
        self._file.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def seconds(self, ticks: int) -> float:
        """Of a number of ticks of the stream's clock; 0 if that is not known."""
        return ticks * self._ticks[0] / self._ticks[1] if self._ticks else 0.0

    @property
    def aspect(self) -> Fraction | None:
        """Width of a stored pixel over its height, by the container, else by the codec, where it may change."""
        aspect = self.stream.codec_context.sample_aspect_ratio if self._follows_codec else self._own_aspect
        # PyAV 19 has numbers of its own, and says 0 / 1 where it is not known.
        return Fraction(aspect.numerator, aspect.denominator) if aspect else None

    def turn(self, frame: av.VideoFrame) -> Turn:
        """How a frame is to be turned to be shown."""
        try:
            return Turn.of(frame)
        except ValueError:  # PyAV 18 knows fewer kinds of side data than FFmpeg has and then shows none of them
            if self._photograph is None:
                self._photograph = exif_turn(self.path) or Turn.by(frame.rotation)
            return self._photograph

    def _choose(self, number: int | None) -> Any:
        streams = self.container.streams
        pictures = [one for one in streams if one.type == "video"]
        if number is not None:
            for one in pictures:
                if one.index == number:
                    return self._decodable(one)
            listed = "; ".join(_describe(one) for one in streams)
            raise VideoError(f"video {printable(self.path)}: no video stream {number}; it has {listed}")
        if not pictures:
            found = ", ".join(sorted({one.type for one in streams})) or "nothing"
            raise VideoError(f"video {printable(self.path)}: holds no video stream, only {found}")
        moving = [one for one in pictures if not _is_cover(one)]
        if not moving:
            raise VideoError(
                f"video {printable(self.path)}: holds no moving picture, only "
                + "; ".join(_describe(one) for one in pictures)
                + " (stream=NUMBER takes one of them)"
            )
        longest = max((length for one in moving if (length := _own_length(one)) < float("inf")), default=0.0)
        return self._decodable(max(moving, key=lambda one: _likely(one, longest)))

    def _decodable(self, stream: Any) -> Any:
        if stream.codec_context is None:
            raise VideoError(
                f"video {printable(self.path)}: stream {stream.index} is in a format that this FFmpeg can't decode"
            )
        if stream.codec_context.name in _TEXT_CODECS:
            raise VideoError(f"video {printable(self.path)}: is text, not a video")
        return stream

    def _stated(self) -> tuple[float | None, float | None]:
        if self.guessed_rate or self.broadcast:
            return None, None  # not from a header, but reckoned by FFmpeg from the last stamps or the file's size
        start = self.start or 0.0
        whole = self.container.duration / av.time_base if self.container.duration else None
        stream = self.stream
        if "matroska" in self.container.format.name:  # says at which stamps they end
            end = _seconds(stream.metadata.get("DURATION", ""))
            return None if end is None else end - start, None if whole is None else whole - start
        if not stream.duration or not stream.time_base:
            return None, whole
        if self.container.format.name == "avi" and stream.frames:  # FFmpeg shortens its duration where the file is cut
            return stream.frames / self.rate, whole
        first = (stream.start_time or 0) * stream.time_base
        return float(first + stream.duration * stream.time_base) - start, whole


def reason(error: BaseException) -> str:
    """What an error says, without the number and the made-up file name that it comes with."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def open_file(path: Path) -> Any:
    """The file, for FFmpeg to read.

    Raises:
        VideoError: it is missing, or nothing to read a video from.
    """
    name = f"video {printable(path)}"
    try:
        file = open(path, "rb", buffering=0, opener=_without_waiting)  # noqa: SIM115 - closed by Source.close
    except FileNotFoundError:
        raise VideoError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise VideoError(f"{name}: is a folder, not a video") from None
    except (OSError, ValueError) as error:
        raise VideoError(f"{name}: can't be opened ({reason(error)})") from None
    kind = os.fstat(file.fileno())
    if not stat.S_ISREG(kind.st_mode) or not kind.st_size:
        file.close()
        if stat.S_ISREG(kind.st_mode):
            raise VideoError(f"{name}: is empty (0 bytes); was it fetched whole?")
        raise VideoError(f"{name}: is a pipe or a device, not a file; write the video to a file first")
    # FFmpeg reads through this object and never sees the real name, which it would take apart: `a:b` names a protocol,
    # `%d` a series of images. The suffix alone helps it to tell formats.
    suffix = path.suffix.lower()
    file.name = "video" + (suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else "")
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # else opening a pipe waits for its other end


def _is_cover(stream: Any) -> bool:
    return any(_disposed(stream, name) for name in ("attached_pic", "timed_thumbnails", "still_image"))


def _likely(stream: Any, longest: float) -> tuple[Any, ...]:
    """Larger for what a player would show: a film as long as the others, large, the default, the first."""
    if stream.codec_context is None:
        return (False,)
    is_long = _own_length(stream) >= longest / 2
    is_film = stream.codec_context.name not in _IMAGE_CODECS
    area, default = stream.width * stream.height, _disposed(stream, "default")
    return (True, stream.frames != 1, is_long, is_film, area, default, -stream.index)


def _own_length(stream: Any) -> float:
    """Seconds that a stream says that it lasts, endless if it does not say."""
    tag = _seconds(stream.metadata.get("DURATION", ""))
    if tag is not None:
        return tag
    return float(stream.duration * stream.time_base) if stream.duration and stream.time_base else float("inf")


def _disposed(stream: Any, name: str) -> bool:
    kinds = type(stream.disposition)
    return bool(stream.disposition & kinds[name]) if name in kinds.__members__ else False


def _describe(stream: Any) -> str:
    context = stream.codec_context
    text = f"{stream.index}: {stream.type}" + (f" {context.name}" if context is not None else "")
    if stream.type == "video" and context is not None:
        text += f" {stream.width}x{stream.height}" + (" (cover art)" if _is_cover(stream) else "")
    return text


def _seconds(clock: str) -> float | None:
    """Seconds of ``hours:minutes:seconds``."""
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", clock.strip())
    return None if found is None else 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3])
