"""Which packets have to be decoded so that the frames asked for come out exactly as if all were.

A packet is left out if it holds a picture that nobody asked for and that no other refers to, or if a key frame comes
before the next picture that was asked for. Both follow from the packets' own stamps and first bytes, read some way
ahead. Files that are not as they say (damaged, stamps out of order, clocks that jump) can break the reasoning, so what
comes out is held against the plan; where it differs, the reader decodes everything.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import av

from vpgfast.video.bitstream import Bitstream
from vpgfast.video.clock import Clock
from vpgfast.video.source import Source

SAME = 1e-6  # seconds; stamps are rounded to their clock's ticks
_WINDOW = (1000, 2**24)  # most packets and bytes read ahead
_KEPT = 64  # stamps, some of them of pictures that have left the window
_LONG = 10.0  # seconds; a gap or a step back is left to the clock to judge


class NotAsPlanned(Exception):
    """What was left out may have been needed for what decoding everything would give."""


class Instants:
    """The times (k + offset) / fps, k = 0, 1, ..., at which frames are asked for."""

    def __init__(self, fps: float, offset: float) -> None:
        self.fps, self.offset = fps, offset

    def __getitem__(self, k: int) -> float:
        return (k + self.offset) / self.fps

    def before(self, time: float, k: int) -> bool:
        """Whether instant k is over when a frame comes at a time."""
        return self[k] < time - SAME

    def first_at(self, time: float) -> int:
        """The first k that is not before a time."""
        k = max(0, math.floor((time - SAME) * self.fps - self.offset) - 1)
        while self.before(time, k):
            k += 1
        return k


@dataclass
class _Waiting:
    packet: Any
    stamp: int | None  # of its picture; None: to be decoded without more ado
    asked: bool | None = None  # None: not known yet
    clean: bool = False  # nothing from here on refers to what was before
    disposable: bool | None = None  # no other picture refers to it; None: not looked yet


class Plan:
    """Decides about packets, and checks what comes of it.

    Args:
        source: just opened.
        instants: at which frames are asked for.
    """

    def __init__(self, source: Source, instants: Instants) -> None:
        self.source, self.instants = source, instants
        context = source.stream.codec_context
        self._bitstream = Bitstream(context.name, context.extradata, bool(context.codec.intra_only))
        self._active = (
            (self._bitstream.has_disposable or self._bitstream.has_clean_keys)
            and instants.fps < source.rate  # else every frame is asked for
            and source.start is not None
            and not source.guessed_rate
            and source.container.format.name != "avi"  # its stamps tell only the order of decoding
        )
        self._ahead: deque[_Waiting] = deque()
        self._bytes = 0
        self._stamps: list[int] = []  # of pictures, sorted; those that are shown before all in the window are dropped
        self._is_started = False
        self._last_dts: int | None = None
        self._planned: dict[int, tuple[int, float]] = {}  # stamp -> range of k for which the picture is on show
        self._to_come: set[int] = set()
        self._left_out = False

    def decide(self, packets: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
        """Every packet, and whether it is to be decoded; in order, packets of other streams at once."""
        for packet in packets:
            if packet is None:
                break
            if packet.stream is not self.source.stream:
                yield packet, True
                continue
            self._read(packet)
            while self._ahead and (needed := self._is_needed(ended=False)) is not None:
                yield self._take(needed)
        while self._ahead:
            yield self._take(self._is_needed(ended=True) is not False)
        yield None, True

    def came(self, frame: av.VideoFrame) -> None:
        """A frame has come out of the decoder.

        Raises:
            NotAsPlanned: one that was to come before it has not.
        """
        if frame.pts is not None and (self._active or self._left_out):
            self._to_come.discard(frame.pts)
            if any(stamp < frame.pts for stamp in self._to_come):
                self._to_come.clear()
                self.found_damage()

    def check(self, k: int, frame: av.VideoFrame, clock: Clock) -> None:
        """Hold a frame that is about to be given for instant k against the plan.

        Raises:
            NotAsPlanned: decoding everything might give another.
        """
        if not self._left_out:
            return
        first, end = self._planned.get(frame.pts, (0, 0)) if frame.pts is not None else (0, 0)
        for stamp in [one for one in self._planned if frame.pts is not None and one < frame.pts]:
            del self._planned[stamp]
        if not (first <= k < end and clock.shift == 0 and clock.start == self.source.start):
            raise NotAsPlanned

    def found_damage(self) -> None:
        """Decode everything from now on: what a decoder makes of damage depends on all that it has seen.

        Raises:
            NotAsPlanned: it has not seen all.
        """
        self._active = False
        if self._left_out:
            raise NotAsPlanned

    def _read(self, packet: Any) -> None:
        starting = self._last_dts is None and packet.dts is None  # Matroska knows none for the first few
        if self._active and not starting:
            if packet.pts is None or packet.dts is None or packet.pts < packet.dts:
                self._active = False
            elif self._last_dts is not None:
                self._active = 0 <= self.source.seconds(packet.dts - self._last_dts) <= _LONG
        self._last_dts = packet.dts
        plain = self._active and packet.pts is not None and not packet.is_discard
        waiting = _Waiting(packet, packet.pts if plain and not starting else None)
        if plain:
            insort(self._stamps, packet.pts)
            waiting.clean = self._bitstream.is_clean_key(packet)
        self._ahead.append(waiting)
        self._bytes += packet.size

    def _is_needed(self, ended: bool) -> bool | None:
        """Whether the first packet of the window is to be decoded; ``None`` if more must be read to tell."""
        full = len(self._ahead) > _WINDOW[0] or self._bytes > _WINDOW[1]
        head = self._ahead[0]
        if head.stamp is None or not self._active or full:
            return True
        asked = self._is_asked(head, ended)
        if asked is not False:
            return asked
        if head.disposable is None:
            head.disposable = self._bitstream.is_disposable(head.packet)
        if head.disposable:
            return False
        if not self._bitstream.has_clean_keys:
            return True
        for later in islice(self._ahead, 1, None):
            if later.clean:
                return False
            asked = later.stamp is None or self._is_asked(later, ended)
            if asked is not False:
                return asked
        return True if ended else None

    def _is_asked(self, one: _Waiting, ended: bool) -> bool | None:
        if one.asked is None and one.stamp is not None:
            place = bisect_right(self._stamps, one.stamp)
            following = self._stamps[place] if place < len(self._stamps) else None
            # Later packets have later decoding stamps, and no picture is shown before it is decoded.
            if (following is None or (self._last_dts or 0) < following) and not ended:
                return None
            first, end = self._range(one.stamp, following)
            one.asked = first < end
        return one.asked

    def _range(self, stamp: int, following: int | None) -> tuple[int, float]:
        """Of the k for which a picture is on show until the following one."""
        is_first = not self._is_started and bisect_left(self._stamps, stamp) == 0
        first = 0 if is_first else self.instants.first_at(self._time(stamp))
        end = math.inf if following is None else self.instants.first_at(self._time(following))
        if is_first:
            end = max(end, 1) if following is None else end
        return first, end

    def _time(self, stamp: int) -> float:
        return self.source.seconds(stamp) - (self.source.start or 0.0)

    def _take(self, needed: bool) -> tuple[Any, bool]:
        """The first packet of the window leaves it."""
        one = self._ahead.popleft()
        self._bytes -= one.packet.size
        if not needed:
            self._left_out = True
        elif one.packet.pts is not None:
            place = bisect_right(self._stamps, one.packet.pts)
            following = self._stamps[place] if place < len(self._stamps) else None
            is_known = one.asked and self._active and one.stamp is not None
            self._planned[one.packet.pts] = self._range(one.packet.pts, following) if is_known else (0, math.inf)
            if not one.packet.is_discard:
                self._to_come.add(one.packet.pts)
        if len(self._stamps) > _KEPT:
            lowest = min((other.stamp for other in self._ahead if other.stamp is not None), default=None)
            keep = 0 if lowest is None else bisect_left(self._stamps, lowest) - 1
            if keep > 0:
                self._is_started = True
                del self._stamps[:keep]
        return one.packet, needed
