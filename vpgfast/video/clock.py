"""From a stream's time stamps to seconds since the container's start, with jumps of its clock closed."""

from __future__ import annotations

import statistics
from collections import deque

_SPELL = 5.0  # seconds of sound noted at a time
_DISORDER = 0.25  # seconds by which stamps in the wrong order may go back
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
        stated_gap: seconds between frames, as the file says.
        broadcast: the format is one whose clock may start again (MPEG transport streams).
        heard: what other streams had.

    Attributes:
        time: of the last frame; seconds since the start.
        shift: what closing jumps has added to the stamps so far; seconds.
        jumps: (time, by how many seconds the clock jumped there).
    """

    def __init__(self, start: float | None, stated_gap: float, broadcast: bool, heard: Heard) -> None:
        self.start, self.stated_gap, self.heard = start, stated_gap, heard
        self.longest_still = _LONGEST_STILL_BROADCAST if broadcast else _LONGEST_STILL
        self.time = 0.0
        self.shift = 0.0
        self.jumps: list[tuple[float, float]] = []
        self._seen = False
        self._backwards = 0
        self._guessed = False  # the last frame's time, which had no stamp
        self._gaps: deque[float] = deque(maxlen=9)

    @property
    def usual_gap(self) -> float:
        """Seconds between frames: the median of the last ones, because a mean of the whole file counts its jumps."""
        return statistics.median(self._gaps) if self._gaps else self.stated_gap

    def tick(self, stamp: float | None) -> float:
        """Time of the next frame, given its stamp in seconds; never before that of the frame before it."""
        first, self._seen = not self._seen, True
        if stamp is None:
            self.time += 0.0 if first else self.usual_gap
            self._guessed = True
            return self.time
        if self.start is None:
            self.start = stamp - self.time
        if first:
            self.start = min(self.start, stamp)
        time = stamp - self.start + self.shift
        gap = time - self.time
        if self._is_jump(gap, stamp):
            usual = 0.0 if first else self.usual_gap
            self.jumps.append((self.time + usual, gap - usual))
            self.shift -= gap - usual
            time = self.time + usual
        self._guessed = False
        self.time = max(self.time, time)
        return self.time

    def note_gap(self, gap: float) -> None:
        """By how many seconds the stamps by which packets are decoded go on from one to the next.

        Only after they have gone back may frames do so: else one whose stamp is far back is one that a damaged file
        gives too late, and no reason to change the clock.
        """
        if gap < 0:
            self._backwards += 1
        elif 0 < gap <= _LONGEST_STILL_BROADCAST:
            self._gaps.append(gap)

    def _is_jump(self, gap: float, stamp: float) -> bool:
        if -_DISORDER <= gap <= _LONGEST_STILL_BROADCAST:
            return False
        if gap < 0:
            wrong_order = gap >= -4 * self.usual_gap  # that goes back by a few frames
            if wrong_order or not (self._backwards or self._guessed):
                return False
            self._backwards = max(0, self._backwards - 1)
            return True
        return gap > max(self.longest_still, 20 * self.usual_gap) and not self.heard.throughout(stamp - gap, stamp)
