"""Every frame of an opened file with its time, past packets that are damaged."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from threading import Event
from typing import Any

import av

from vpgfast.errors import VideoError
from vpgfast.video.clock import Clock, Heard
from vpgfast.video.plan import Plan
from vpgfast.video.source import Source, printable, reason

_TRIES = 100  # errors of the demuxer in a row, after which a file is taken to have ended
_LONGEST_REORDERING = 24  # frames; those that wait in decoding threads included


class Decoder:
    """Iterates over (frame, time) of a source.

    Args:
        source: just opened.
        stop: ends the iteration when set.
        plan: which packets to decode; default: all.

    Attributes, of what was seen so far:
        clock: its ``time`` is that of the last frame.
        end: of the last frame; seconds since the container's start.
        count: frames decoded.
        packets: of the picture.
        damaged: of these, how many were damaged.
    """

    def __init__(self, source: Source, stop: Event | None = None, plan: Plan | None = None) -> None:
        self.source, self.stop, self.plan = source, stop, plan
        self.heard = Heard()
        self.clock = Clock(source.start, 1 / source.rate, source.broadcast, self.heard)
        self.end = 0.0
        self.count = self.packets = self.damaged = 0
        self._pictures = _Pictures(source)
        # AVI knows only the order in which packets are decoded; what FFmpeg makes of it as presentation stamps is wrong
        # where frames are reordered. The n-th frame shown then has the n-th stamp.
        self._by_order = source.container.format.name == "avi"
        self._last_dts: int | None = None
        self._waiting: list[int] = []  # a heap: stamps of packets whose frames are to come

    @property
    def stopped(self) -> bool:
        return self.stop is not None and self.stop.is_set()

    @property
    def without_picture(self) -> int:
        """Packets that gave no picture although nothing said that they were damaged."""
        return self._pictures.missing()

    def __iter__(self) -> Iterator[tuple[av.VideoFrame, float]]:
        for packet, is_needed in self._planned_packets():
            if self.stopped:
                return
            if packet is not None and packet.stream is not self.source.stream:
                self._hear(packet)
                continue
            if not is_needed:
                self._note_gap(packet)
                continue
            for frame in self._decode(packet):
                self.count += 1
                if frame.is_corrupt:
                    self._note_damage()
                if self.plan is not None:
                    self.plan.came(frame)
                self._pictures.came(frame)
                time = self.clock.tick(self._stamp(frame))
                self.end = time + self._shown_for(frame)
                yield frame, time

    def _planned_packets(self) -> Iterator[tuple[Any, bool]]:
        if self.plan is not None:
            return self.plan.decide(self._packets())
        return ((packet, True) for packet in self._packets())

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
                if errors == 1:
                    self._note_damage()
            except IndexError:  # PyAV's, for a packet of a stream that comes up only now
                errors += 1
            except OSError as error:
                raise VideoError(
                    f"video {printable(self.source.path)}: can't be read after {self.count} frames ({reason(error)})"
                ) from None
        yield None

    def _decode(self, packet: Any) -> Iterator[av.VideoFrame]:
        context = self.source.stream.codec_context
        if packet is not None:
            self.packets += 1
            self._pictures.sent(packet)
            self._note_stamps(packet)
            if packet.is_corrupt and self.plan is not None:  # something is missing, or two files were put together
                self.plan.found_damage()
            try:
                yield from self._send(packet)
            except av.FFmpegError:
                self._note_damage()
                self._pictures.failed(packet)
                if packet.dts in self._waiting:
                    self._waiting.remove(packet.dts)
                    heapq.heapify(self._waiting)
            return
        for _ in range(_TRIES):  # one damaged packet must not hide the frames behind it
            try:
                yield from context.decode(None)
            except av.EOFError:
                return
            except av.FFmpegError:
                self._note_damage()

    def _note_damage(self) -> None:
        self.damaged += 1
        if self.plan is not None:
            self.plan.found_damage()

    def _send(self, packet: Any) -> list[av.VideoFrame]:
        context = self.source.stream.codec_context
        try:
            return context.decode(packet)
        except BlockingIOError:  # a damaged packet before it is stuck
            context.flush_buffers()
            return context.decode(packet)

    def _note_stamps(self, packet: Any) -> None:
        self._note_gap(packet)
        if packet.dts is not None and (self._by_order or packet.pts is None):
            heapq.heappush(self._waiting, packet.dts)

    def _note_gap(self, packet: Any) -> None:
        """Packets tell how the clock goes, also those that are not decoded."""
        if packet.dts is not None:
            if self._last_dts is not None:
                self.clock.note_gap(self.source.seconds(packet.dts - self._last_dts))
            self._last_dts = packet.dts

    def _hear(self, packet: Any) -> None:
        if packet.dts is not None and packet.time_base:
            start = packet.dts * packet.time_base.numerator / packet.time_base.denominator
            self.heard.add(start, start + float((packet.duration or 0) * packet.time_base))

    def _stamp(self, frame: av.VideoFrame) -> float | None:
        if self.source.guessed_rate:
            return None
        stamp = frame.pts
        if self._waiting and (self._by_order or stamp is None):
            if frame.dts is not None:  # packets that gave no frame, without an error, before the first key frame
                oldest = frame.dts - _LONGEST_REORDERING * self.clock.usual_gap / self.source.seconds(1)
                while len(self._waiting) > 1 and self._waiting[0] < oldest:
                    heapq.heappop(self._waiting)
            stamp = heapq.heappop(self._waiting)
        elif stamp is None:
            stamp = frame.dts
        return None if stamp is None else self.source.seconds(stamp)

    def _shown_for(self, frame: av.VideoFrame) -> float:
        """Seconds for which the frame is on show, if it is the last."""
        stated = self.source.seconds(frame.duration or 0) if not self.source.guessed_rate else 0.0
        return stated if 0 < stated <= self.clock.longest_still else self.clock.usual_gap


class _Pictures:
    """Which packets gave a picture: some decoders pass over damaged ones without a word."""

    def __init__(self, source: Source) -> None:
        # VP8 has packets that are not to be shown; where stamps are made up, they don't name a packet.
        self.known = source.stream.codec_context.name not in ("vp8", "libvpx") and not source.guessed_rate
        self._first: int | None = None
        self._open: set[int] = set()

    def sent(self, packet: Any) -> None:
        if self.known and packet.pts is not None and not packet.is_discard:
            self._open.add(packet.pts)
            self.known = len(self._open) < 100_000  # so many mean that this does not fit the format

    def failed(self, packet: Any) -> None:
        self._open.discard(packet.pts)

    def came(self, frame: av.VideoFrame) -> None:
        if frame.interlaced_frame or frame.pts is None:
            self.known = False  # a field each in two packets; a packet can't be told
        elif self.known:
            self._first = frame.pts if self._first is None else self._first
            self._open.discard(frame.pts)

    def missing(self) -> int:
        """How many gave none, those left out that are shown before the first picture."""
        first = self._first
        return sum(pts >= first for pts in self._open) if self.known and first is not None else 0
