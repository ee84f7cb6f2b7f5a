"""Which frames of a video make a clip: a frame rate, windows over the frames, and what becomes of the last ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Tail = Literal["drop", "pad", "back"]


@dataclass(frozen=True)
class Sampling:
    """Windows of ``window`` frames, ``stride`` apart, over a video that is looked at ``fps`` times a second.

    A video shorter than one window is one window, filled up with its last frame, whatever ``tail`` says.

    Attributes:
        fps: frames looked at a second; ``None`` takes every frame of the file.
        window: frames from a window's first to its last.
        stride: frames from the start of a window to that of the next.
        frames: how many of a window's frames are looked at, spread evenly from its first to its last (positions of
            ``linspace(0, window - 1, frames)`` rounded down); ``None`` takes all.
        rows: rows of features that the encoder makes of a window; they share its time evenly.
        tail: what becomes of frames after the last whole window: ``"drop"`` leaves them out, ``"pad"`` makes one more
            window of them, filled up with the last frame, ``"back"`` adds a window that ends with the last frame.
        offset: the first frame is looked at at ``offset / fps`` seconds.
    """

    fps: float | None
    window: int = 1
    stride: int = 1
    frames: int | None = None
    rows: int = 1
    tail: Tail = "drop"
    offset: float = 0.0

    def starts(self, count: int) -> list[int]:
        """First frames of the windows over ``count`` >= 1 frames; the last window may reach beyond the last frame."""
        whole = list(range(0, count - self.window + 1, self.stride))
        if not whole:
            return [0]
        if self.tail == "back" and whole[-1] + self.window < count:
            return [*whole, count - self.window]
        # With windows that overlap, frames after the last whole one may be in the next, or (stride > window) in none.
        if self.tail == "pad" and whole[-1] + self.window < count and whole[-1] + self.stride < count:
            return [*whole, whole[-1] + self.stride]
        return whole

    def picked(self) -> np.ndarray:
        """Which frames of a window are looked at: int64 [F]."""
        if self.frames is None:
            return np.arange(self.window)
        return np.linspace(0, self.window - 1, self.frames).astype(np.int64)

    def times(self, frame_times: np.ndarray, duration: float) -> np.ndarray:
        """Where each row of features begins and ends: float64 [rows of all windows, 2], seconds.

        Args:
            frame_times: float64 [N], when each frame that was looked at is on show; a frame lasts until the next.
            duration: of the video in seconds, where the last frame ends.
        """
        edges = np.append(frame_times, max(duration, frame_times[-1]))
        starts = np.array(self.starts(len(frame_times)))
        begin, end = edges[starts], edges[np.minimum(starts + self.window, len(frame_times))]
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
    picked = sampling.picked()
    held: list[np.ndarray] = []  # the frames from number `first` to number `count`
    ready: list[np.ndarray] = []
    first = count = emitted = 0

    def cut(start: int) -> np.ndarray:
        return np.stack([held[min(start + i, count - 1) - first] for i in picked.tolist()])

    for chunk in frames:
        for frame in chunk:
            held.append(frame)
            count += 1
            if emitted * sampling.stride + sampling.window <= count:
                ready.append(cut(emitted * sampling.stride))
                emitted += 1
            # A last window may still be moved back onto the newest frames.
            unused = min(emitted * sampling.stride, count - sampling.window) - first
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
