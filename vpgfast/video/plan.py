"""Which packets have to be decoded so that the frames asked for come out exactly as if all were.

A packet is left to the decoder to pass over if it holds a picture that no other refers to and that nobody asked for;
packets between the last frame asked for and a key frame at or before the next one are not decoded at all. Both follow
from the packets' own stamps, read some way ahead. Files that are not as they say (damaged, stamps out of order, clocks
that jump) can break the reasoning, so each frame that comes out is held against the plan; where it differs, the reader
decodes everything.
"""

from __future__ import annotations

import enum
import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import av

from vpgfast.video.clock import Clock
from vpgfast.video.source import Source

SAME = 1e-6  # seconds; stamps are rounded to their clock's ticks
_WINDOW = (1000, 2**24)  # most packets and bytes read ahead
_KEPT = 64  # stamps, some of them of pictures that have left the window
_LONG = 10.0  # seconds; a gap or a step back is left to the clock to judge
_PASS_OVER = ("h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4")  # decoders that pass over single pictures exactly


class NotAsPlanned(Exception):
    """What was left out may have been needed for what decoding everything would give."""


class Need(enum.Enum):
    """What is to be done with a packet."""

    DECODE = "DEFAULT"  # the values are FFmpeg's skip_frame
    REFERENCE = "NONREF"  # only if other pictures refer to it
    NOTHING = "ALL"


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


class Plan:
    """Decides about packets, and checks what comes of it.

    Args:
        source: just opened.
        instants: at which frames are asked for.
    """

    def __init__(self, source: Source, instants: Instants) -> None:
        self.source, self.instants = source, instants
        context = source.stream.codec_context
        self._codec = "vp9" if context.name == "libvpx-vp9" else context.name
        self._pass_over = self._codec in _PASS_OVER
        if self._codec == "hevc":  # there a picture may be left out only if it is not in a lower temporal layer
            self._pass_over = _hevc_layers(context.extradata) == 1
        self._alone = bool(context.codec.intra_only)
        self._is_clean = _clean_key(self._codec, context.extradata)
        self._active = (
            (self._pass_over or self._alone or self._is_clean is not None)
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
        self._left_out = False

    def decide(self, packets: Iterator[Any]) -> Iterator[tuple[Any, Need]]:
        """Every packet with what is to be done with it, in order; packets of other streams pass at once."""
        for packet in packets:
            if packet is None or packet.stream is not self.source.stream:
                if packet is not None:
                    yield packet, Need.DECODE
                continue
            self._read(packet)
            while self._ahead and (need := self._need(ended=False)) is not None:
                yield self._take(need)
        while self._ahead:
            yield self._take(self._need(ended=True) or Need.DECODE)
        yield None, Need.DECODE

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
        base = self.source.stream.time_base
        if self._active and (packet.pts is None or packet.dts is None or packet.is_corrupt):
            self._active = False
        elif self._active:
            step = 0.0 if self._last_dts is None else float((packet.dts - self._last_dts) * base)
            self._active = 0 <= step <= _LONG and packet.pts >= packet.dts
        self._last_dts = packet.dts
        plain = self._active and not packet.is_discard
        waiting = _Waiting(packet, packet.pts if plain else None)
        if plain:
            insort(self._stamps, packet.pts)
            waiting.clean = packet.is_keyframe and self._is_clean is not None and self._is_clean(packet)
        self._ahead.append(waiting)
        self._bytes += packet.size

    def _need(self, ended: bool) -> Need | None:
        """Of the first packet of the window; ``None`` if more must be read to tell."""
        full = len(self._ahead) > _WINDOW[0] or self._bytes > _WINDOW[1]
        head = self._ahead[0]
        if head.stamp is None or not self._active or full or (asked := self._is_asked(head, ended)):
            return Need.DECODE
        if asked is None:
            return None
        if self._alone:
            return Need.NOTHING
        if self._is_clean is None:
            return self._as_reference()
        for later in islice(self._ahead, 1, None):
            if later.clean:
                return Need.NOTHING
            asked = later.stamp is None or self._is_asked(later, ended)
            if asked:
                return self._as_reference()
            if asked is None:
                return None
        return self._as_reference() if ended else None

    def _as_reference(self) -> Need:
        return Need.REFERENCE if self._pass_over else Need.DECODE

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
        base = self.source.stream.time_base
        return stamp * base.numerator / base.denominator - (self.source.start or 0.0)

    def _take(self, need: Need) -> tuple[Any, Need]:
        """The first packet of the window leaves it."""
        one = self._ahead.popleft()
        self._bytes -= one.packet.size
        if need is Need.DECODE and one.packet.pts is not None:
            asked = one.asked and self._active and one.stamp is not None
            place = bisect_right(self._stamps, one.packet.pts)
            following = self._stamps[place] if place < len(self._stamps) else None
            self._planned[one.packet.pts] = self._range(one.packet.pts, following) if asked else (0, math.inf)
        self._left_out |= need is not Need.DECODE
        if len(self._stamps) > _KEPT:
            lowest = min((other.stamp for other in self._ahead if other.stamp is not None), default=None)
            keep = 0 if lowest is None else bisect_left(self._stamps, lowest) - 1
            if keep > 0:
                self._is_started = True
                del self._stamps[:keep]
        return one.packet, need


def _clean_key(codec: str, extradata: bytes | None) -> Callable[[Any], bool] | None:
    """Tells of a key packet whether nothing from it on refers to what was before; ``None`` where that can't be told."""
    if codec == "vp9":
        return _is_vp9_key
    record = extradata or b""
    configured = record[:1] == b"\1"  # mp4 and Matroska: lengths in front of units
    if codec == "h264" and not (configured and (len(record) < 5 or record[4] & 3 != 3)):
        return lambda packet: 5 in _units(bytes(packet), configured, 0, 31)
    if codec == "hevc" and not (configured and (len(record) < 23 or record[21] & 3 != 3)):
        return lambda packet: bool({19, 20} & set(_units(bytes(packet), configured, 1, 63)))
    return None


def _units(data: bytes, lengths: bool, shift: int, mask: int) -> Iterator[int]:
    """Kinds of a packet's units, which follow lengths of four bytes, or start codes."""
    place = 4 if lengths else data.find(b"\0\0\1") + 3
    while 3 <= place < len(data):
        yield data[place] >> shift & mask
        if lengths:
            place += int.from_bytes(data[place - 4 : place], "big") + 4
        else:
            place = data.find(b"\0\0\1", place) + 3


def _is_vp9_key(packet: Any) -> bool:
    """Frame marker 2, profiles 0 to 2, not a picture that is shown again, a key frame."""
    first = bytes(packet)[0]
    return first >> 6 == 2 and first >> 4 & 3 != 3 and not first & 0b1100


def _hevc_layers(extradata: bytes | None) -> int | None:
    """Temporal layers, as the configuration record of mp4 and Matroska says."""
    return extradata[21] >> 3 & 7 if extradata and len(extradata) > 22 and extradata[0] == 1 else None
