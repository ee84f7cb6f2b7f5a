"""A video file as a stream of RGB frames at given times."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Literal

from vpgfast.errors import VideoError
from vpgfast.video import torchcodec_backend
from vpgfast.video.background import in_a_thread
from vpgfast.video.decode import Decoder
from vpgfast.video.picture import Converter, Picture, Turn, displayed_size, is_sane
from vpgfast.video.plan import Instants, NotAsPlanned, Plan
from vpgfast.video.sampling import Chunks, Frames, Sampling
from vpgfast.video.source import Source, printable
from vpgfast.video.torchcodec_backend import NotForTorchcodec, Scan

log = logging.getLogger("vpgfast.video")

_SMALL = 320 * 320  # pixels of a frame that gains nothing from several threads
_MOST_THREADS = 8


class Video:
    """A video file.

    Args:
        path: of anything that FFmpeg decodes.
        stream: number of the stream to read, as FFmpeg counts all streams of the file; default: the moving picture.
        backend: what decodes. ``"auto"``: PyAV, or torchcodec where that is known to give the same and is faster.
        strict: a file that ends before the time that it states is an error, not a warning.

    Attributes:
        width, height: as displayed, after rotation and sample aspect ratio; pixels.
        rate: average frames a second, as far as known.
        stated_duration: what the file says of its length, in seconds; ``None`` if it does not say.
        duration: seconds from the container's start to the end of the last picture; known after the last chunk of
            :meth:`frames`, not a number before.
        count: frames decoded by then; less than the file holds where frames that nobody asked for were left out.
        problems: what is odd about the file, a line each; also logged as warnings by the logger ``vpgfast.video``.

    Raises:
        VideoError: missing, unreadable, or without a moving picture; names the file and the cause.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        stream: int | None = None,
        backend: Literal["auto", "pyav", "torchcodec"] = "auto",
        strict: bool = False,
    ) -> None:
        if backend not in ("auto", "pyav", "torchcodec"):
            raise ValueError(f"unknown backend {backend!r}; it is auto, pyav or torchcodec")
        self.path, self.strict, self._stream, self.backend = Path(path), strict, stream, backend
        if backend == "torchcodec" and (missing := torchcodec_backend.why_not()):
            raise VideoError(
                f"video {printable(self.path)}: torchcodec {missing}; see docs/videos.md, or leave out backend=..."
            )
        self.duration, self.count = math.nan, 0
        self.problems: list[str] = []
        with Source(self.path, stream) as source:
            source.stream.codec_context.thread_count = 1
            first = next(iter(Decoder(source)), None)
            if first is None:
                raise VideoError(f"video {printable(self.path)}: holds no frame that can be decoded")
            frame = first[0]
            self.rate = source.rate
            self.stated_duration = source.stated_whole if source.stated_picture is None else source.stated_picture
            turn = source.turn(frame)
            self._turned = turn != Turn()
            self.height, self.width = displayed_size(frame.width, frame.height, source.aspect, turn)
            if not is_sane(source.aspect):
                self._problem(f"says that its pixels are {source.aspect} times as wide as high; taken as square")
            if source.guessed_rate and "image" not in source.container.format.name:
                self._problem(f"holds no time stamps; that it has {self.rate:g} frames a second is a guess")

    def frames(
        self, fps: float | None, picture: Picture | None = None, *, chunk: int = 32, offset: float = 0.0
    ) -> Iterator[Frames]:
        """The frames on show at ``(k + offset) / fps`` seconds, k = 0, 1, ..., up to the end; or every frame.

        Before the first picture the first one stands in. There is at least one frame. Frames are decoded in a thread of
        their own, at most three chunks ahead; it ends with the iterator.

        Args:
            fps: frames a second; ``None``: every frame of the file, with its own time.
            picture: what to make of a frame; default: its displayed size.
            chunk: most frames given at a time.
            offset: of the instants; 0.5 for the middle of each 1/fps seconds.

        Raises:
            ValueError: a number is out of range.
            VideoError: the crop does not fit; the file can't be read on; with ``strict``, it ends early.
        """
        if fps is not None and not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps must be above 0, got {fps}")
        if not (math.isfinite(offset) and offset >= 0):
            raise ValueError(f"offset must be at least 0, got {offset}")
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        try:
            converter = Converter(picture or Picture(), self.height, self.width)
        except ValueError as error:
            raise VideoError(f"video {printable(self.path)}: {error}") from None
        return in_a_thread(lambda give, stop: self._read(fps, offset, converter, chunk, give, stop))

    def _read(
        self,
        fps: float | None,
        offset: float,
        converter: Converter,
        chunk: int,
        give: Callable[[Frames], None],
        stop: Event,
    ) -> None:
        instants = None if fps is None else Instants(fps, offset)
        sampling = Sampling(instants, Chunks(converter, chunk, give))
        if self.backend == "torchcodec":
            try:
                return self._read_torchcodec(sampling, stop)
            except NotForTorchcodec as why:
                log.debug("video %s: decoded by PyAV, not torchcodec: %s", printable(self.path), why)
        if instants is not None:
            try:
                with self._opened() as source:
                    plan = Plan(source, instants)
                    return self._finish(source, sampling, Decoder(source, stop, plan), plan)
            except NotAsPlanned:
                log.debug("video %s: its packets are not as they say; all are decoded", printable(self.path))
        with self._opened() as source:
            self._finish(source, sampling, Decoder(source, stop), None)

    def _finish(self, source: Source, sampling: Sampling, decoder: Decoder, plan: Plan | None) -> None:
        sampling.run(source, decoder, plan)
        if decoder.count == 0 and not decoder.stopped:
            raise VideoError(f"video {printable(self.path)}: holds no frame that can be decoded")
        self._end(source, sampling, decoder)

    def _read_torchcodec(self, sampling: Sampling, stop: Event) -> None:
        if self._turned:
            raise NotForTorchcodec("it is to be turned")
        with self._opened() as source:
            scan = Scan(source)
            frames = torchcodec_backend.Frames(source, scan, source.stream.codec_context.thread_count)
            try:
                sampling.run_torchcodec(source, scan, frames)
            finally:
                frames.close()
            self._end(source, sampling, scan)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Source]:
        with Source(self.path, self._stream) as source:
            context = source.stream.codec_context
            context.thread_type = "AUTO"
            context.thread_count = 1 if context.width * context.height <= _SMALL else _threads()
            yield source

    def _end(self, source: Source, sampling: Sampling, seen: Decoder | Scan) -> None:
        sampling.chunks.flush()
        self.duration, self.count = float(seen.end), seen.count
        self._judge(source, seen, sampling.chunks.converter)

    def _judge(self, source: Source, decoder: Decoder | Scan, converter: Converter) -> None:
        """Say what was odd, now that all of the file was seen."""
        if len(converter.displayed) > 1:
            sizes = ", ".join(f"{width}x{height}" for height, width in list(converter.displayed)[:4])
            self._problem(f"its pictures change their size ({sizes}); all are made to fit the first")
        if damaged := decoder.damaged + decoder.without_picture:
            self._problem(
                f"{damaged} of {decoder.packets} packets are damaged or gave no picture; what could be decoded is used"
            )
        if decoder.clock.jumps:
            time, by = decoder.clock.jumps[0]
            more = f" (and {len(decoder.clock.jumps) - 1} times more)" if len(decoder.clock.jumps) > 1 else ""
            self._problem(f"its clock jumps by {by:+.1f} s at {time:.1f} s{more}; closed, as if there were no jump")
        stated, slack = self.stated_duration, max(0.5, 2 * decoder.clock.usual_gap)
        if stated is None:
            return
        closed, open_ = decoder.end, decoder.end - decoder.clock.shift  # a file may state its length either way
        start = source.start or 0.0
        sound_goes_on = source.stated_picture is None and decoder.heard.end - start >= stated - slack
        if max(closed, open_) < stated - slack and not sound_goes_on:
            text = f"ends after {closed:.1f} of {stated:.1f} s; was it fetched whole?"
            if self.strict:
                raise VideoError(f"video {printable(self.path)}: {text}")
            self._problem(text)
        elif min(closed, open_) > max(stated, source.stated_whole or 0.0) + slack + start:
            self._problem(f"says that it lasts {stated:.1f} s, but holds {closed:.1f} s; the latter counts")

    def _problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)
            log.warning("video %s: %s", printable(self.path), text)


def _threads() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _MOST_THREADS)
