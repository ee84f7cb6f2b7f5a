"""From a stream's time stamps to seconds since the container's start, with jumps of its clock closed."""

from __future__ import annotations

_SPELL = 5.0  # seconds of sound noted at a time
_LONGEST_STILL = 3600.0  # a picture on show for longer, with no sound meanwhile, is a jump of the clock
_LONGEST_STILL_BROADCAST = 10.0  # in formats whose clock may start again; FFmpeg's own limit there


class Heard:
    """When other streams had something, by the file's own clock: there a picture that stands still is no jump."""

    def __init__(self) -> None:
        self.end = float("-inf")
        self._spells: set[int] = set()

    def add(self, start: float, end: float) -> None:
        self.end = max(self.end, end)
        self._spells.add(int(start // _SPELL))

    def throughout(self, start: float, end: float) -> bool:
        """Whether something was there all the time between two stamps, but for a spell at either end."""
        first, last = int(start // _SPELL) + 1, int(end // _SPELL)
        if not self._spells or last - first > len(self._spells):
            return False
        return all(spell in self._spells for spell in range(first, last))


class Clock:
    """Times of a stream's frames, in the order in which they are shown.

    Args:
        start: the container's first stamp in seconds; ``None`` if it is not known.
        usual_gap: seconds between frames, for those without a stamp.
        broadcast: the format is one whose clock may start again (MPEG transport streams).
        heard: what other streams had.

    Attributes:
        time: of the last frame; seconds since the start.
        shift: what closing jumps has added to the stamps so far; seconds.
        jumps: (time, by how many seconds the clock jumped there).
    """

    def __init__(self, start: float | None, usual_gap: float, broadcast: bool, heard: Heard) -> None:
        self.start, self.usual_gap, self.heard = start, usual_gap, heard
        self.longest_still = max(_LONGEST_STILL_BROADCAST if broadcast else _LONGEST_STILL, 20 * usual_gap)
        self.early = max(0.25, 4 * usual_gap)  # stamps in the wrong order go back by a few frames
        self.time = 0.0
        self.shift = 0.0
        self.jumps: list[tuple[float, float]] = []
        self._seen = False

    def tick(self, stamp: float | None) -> float:
        """Time of the next frame, given its stamp in seconds; never before that of the frame before it."""
        if stamp is None:
            self.time += self.usual_gap if self._seen else 0.0
            self._seen = True
            return self.time
        if not self._seen:
            self.start = stamp if self.start is None else min(self.start, stamp)
        assert self.start is not None or self._seen
        start = self.start = stamp - self.time if self.start is None else self.start
        time = stamp - start + self.shift
        gap = time - self.time
        before = self.time - self.shift + start  # as the file's clock had it
        if gap < -self.early or (gap > self.longest_still and not self.heard.throughout(before, stamp)):
            closed = self.time + (self.usual_gap if self._seen else 0.0)
            self.jumps.append((closed, gap))
            self.shift += closed - time
            time = closed
        self._seen = True
        self.time = max(self.time, time)
        return self.time
