"""Which frames of a video make a clip: a frame rate, windows over the frames, and what becomes of the last ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vpgfast.errors import ConfigError

Tail = Literal["drop", "pad", "back", "cycle"]


@dataclass(frozen=True)
class Sampling:
    """Windows of ``window`` frames, ``stride`` apart, over a video that is looked at ``fps`` times a second.

    A video shorter than one window is one window, filled up with its last frame (``"cycle"``: with its frames again).

    Attributes:
        fps: frames looked at a second; ``None`` takes every frame of the file.
        window: frames from a window's first to its last.
        stride: frames from the start of a window to that of the next.
        frames: how many of a window's frames are looked at, spread evenly from its first to its last (positions of
            ``linspace(0, window - 1, frames)`` rounded down); ``None`` takes all.
        span: spreads them over that many frames instead (``linspace(0, span - 1, frames)``), none beyond the window's
            last; ``None`` for the window.
        rows: rows of features that the encoder makes of a window; they share its time evenly.
        tail: what becomes of frames after the last whole window: ``"drop"`` leaves them out, ``"pad"`` makes one more
            window of them, filled up with the last frame, ``"back"`` adds a window that ends with the last frame,
            ``"cycle"`` makes one more of them, filled up by repeating them from the start, where ``frames of the video
            modulo (window + spare)`` is a fifth of a window or more.
        spare: frames that must follow a window for it to be whole, and to be moved back to.
        offset: the first frame is looked at at ``offset / fps`` seconds.
    """

    fps: float | None
    window: int = 1
    stride: int = 1
    frames: int | None = None
    span: float | None = None
    rows: int = 1
    tail: Tail = "drop"
    spare: int = 0
    offset: float = 0.0

    def __post_init__(self) -> None:
        """Raises :class:`ConfigError`, naming the option, for what can't be."""
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ConfigError(f"option fps must be above 0 (or none, for every frame), got {self.fps}")
        for name in ("window", "stride", "frames", "rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"option {name} must be 1 or more, got {value}")
        if self.spare < 0:
            raise ConfigError(f"option spare must be 0 or more, got {self.spare}")

    def starts(self, count: int) -> list[int]:
        """First frames of the windows over ``count`` >= 1 frames; the last window may reach beyond the last frame."""
        needed = self.window + self.spare
        whole = list(range(0, count - needed + 1, self.stride))
        if not whole:
            return [0]
        if self.tail == "back" and whole[-1] + self.window < count:
            return [*whole, count - needed]
        if self.tail == "cycle" and count % needed >= 0.2 * needed and whole[-1] + self.stride < count:
            return [*whole, whole[-1] + self.stride]
        # With windows that overlap, frames after the last whole one may be in the next, or (stride > window) in none.
        if self.tail == "pad" and whole[-1] + self.window < count and whole[-1] + self.stride < count:
            return [*whole, whole[-1] + self.stride]
        return whole

    def picked(self) -> np.ndarray:
        """Which frames of a window are looked at: int64 [F]."""
        if self.frames is None:
            return np.arange(self.window)
        last = self.window - 1
        positions = np.linspace(0, last if self.span is None else self.span - 1, self.frames)
        return np.minimum(positions, last).astype(np.int64)

    def times(self, frame_times: np.ndarray, duration: float) -> np.ndarray:
        """Where each row of features begins and ends: float64 [rows of all windows, 2], seconds.

        Args:
            frame_times: float64 [N], when each frame that was looked at is on show. Without ``fps`` it lasts until the
                next; with it, frame k stands for the time from ``k / fps`` to ``(k + 1) / fps``.
            duration: of the video in seconds, where the last frame ends.
        """
        count = len(frame_times)
        if self.fps is None:
            edges = np.append(frame_times, max(duration, frame_times[-1]))
        else:
            edges = np.minimum(np.arange(count + 1) / self.fps, duration)
        starts = np.array(self.starts(count))
        begin, end = edges[starts], edges[np.minimum(starts + self.window, count)]
        share = np.arange(self.rows + 1) / self.rows
        inner = begin[:, None] + (end - begin)[:, None] * share  # [windows, rows + 1]
        return np.stack((inner[:, :-1], inner[:, 1:]), axis=-1).reshape(-1, 2)


def clips(frames: Iterable[np.ndarray], sampling: Sampling, batch: int) -> Iterator[np.ndarray]:
    """Cut a stream of frames into windows, holding no more of it than a window and a batch.

    Args:
        frames: uint8 [N, H, W, 3] chunks, one after the other.
        sampling: the windows.
        batch: windows at a time; fewer at the end.

    Yields:
        uint8 [B, F, H, W, 3], the frames of each window that are looked at.
    """
    picked, needed = sampling.picked(), sampling.window + sampling.spare
    held: list[np.ndarray] = []  # the frames from number `first` to number `count`
    ready: list[np.ndarray] = []
    first = count = emitted = 0

    def cut(start: int) -> np.ndarray:
        left = count - start
        positions = picked % left if sampling.tail == "cycle" else np.minimum(picked, left - 1)
        return np.stack([held[start + i - first] for i in positions.tolist()])

    for chunk in frames:
        for frame in chunk:
            held.append(frame)
            count += 1
            if emitted * sampling.stride + needed <= count:
                ready.append(cut(emitted * sampling.stride))
                emitted += 1
            # A last window may still be moved back onto the newest frames.
            unused = min(emitted * sampling.stride, count - needed) - first
            if unused > 0:
                del held[:unused]
                first += unused
            if len(ready) == batch:
                yield np.stack(ready)
                ready.clear()
    if count:
        for start in sampling.starts(count)[emitted:]:
            if len(ready) == batch:
                yield np.stack(ready)
                ready.clear()
            ready.append(cut(start))
    if ready:
        yield np.stack(ready)
