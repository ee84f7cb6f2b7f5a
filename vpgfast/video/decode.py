"""Every frame of an opened file with its time, past packets that are damaged."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any

import av

from vpgfast.errors import VideoError
from vpgfast.video.clock import Clock, Heard
from vpgfast.video.source import Source, printable, reason

_TRIES = 100  # errors of the demuxer in a row, after which a file is taken to have ended


class Decoder:
    """Iterates over (frame, time) of a source.

    Args:
        source: just opened.
        stop: ends the iteration when set.

    Attributes, of what was seen so far:
        clock: its ``time`` is that of the last frame.
        end: of the last frame; seconds since the container's start.
        count: frames decoded.
        damaged: packets and frames that were damaged.
    """

    def __init__(self, source: Source, stop: Event | None = None) -> None:
        self.source, self.stop = source, stop
        self.heard = Heard()
        self.clock = Clock(source.start, 1 / source.rate, source.broadcast, self.heard)
        self.end = 0.0
        self.count = self.damaged = 0

    def __iter__(self) -> Iterator[tuple[av.VideoFrame, float]]:
        stream = self.source.stream
        for packet in self._packets():
            if self.stop is not None and self.stop.is_set():
                return
            if packet is not None and packet.stream is not stream:
                self._hear(packet)
                continue
            for frame in self._decode(packet):
                self.count += 1
                self.damaged += bool(frame.is_corrupt)
                time = self.clock.tick(self._stamp(frame))
                self.end = time + self._shown_for(frame)
                yield frame, time

    def _packets(self) -> Iterator[Any]:
        """Packets of the picture and of sound; ``None`` at the end."""
        container = self.source.container
        streams = [self.source.stream, *container.streams.audio]
        errors = 0
        while errors < _TRIES:
            try:
                for packet in container.demux(streams):
                    if packet.size:  # those without data only say that the end is reached
                        errors = 0
                        yield packet
                break
            except av.FFmpegError:
                errors += 1
                self.damaged += errors == 1
            except OSError as error:
                raise VideoError(
                    f"video {printable(self.source.path)}: can't be read after {self.count} frames ({reason(error)})"
                ) from None
        yield None

    def _decode(self, packet: Any) -> Iterator[av.VideoFrame]:
        context = self.source.stream.codec_context
        if packet is not None:
            try:
                yield from context.decode(packet)
            except av.FFmpegError:
                self.damaged += 1
            return
        for _ in range(_TRIES):  # one damaged packet must not hide the frames behind it
            try:
                yield from context.decode(None)
            except av.EOFError:
                return
            except av.FFmpegError:
                self.damaged += 1

    def _hear(self, packet: Any) -> None:
        if packet.dts is not None and packet.time_base:
            start = packet.dts * packet.time_base.numerator / packet.time_base.denominator
            self.heard.add(start, start + float((packet.duration or 0) * packet.time_base))

    def _stamp(self, frame: av.VideoFrame) -> float | None:
        stamp = frame.pts if frame.pts is not None else frame.dts
        base = self.source.stream.time_base
        if stamp is None or base is None or self.source.guessed_rate:
            return None
        return stamp * base.numerator / base.denominator

    def _shown_for(self, frame: av.VideoFrame) -> float:
        """Seconds for which the frame is on show, if it is the last."""
        base = self.source.stream.time_base
        stated = float(frame.duration * base) if frame.duration and base and not self.source.guessed_rate else 0.0
        return stated if 0 < stated <= self.clock.longest_still else self.clock.usual_gap
