"""The windows of a video file as a stream; knows no network and imports none, so a process that only reads is light."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vpgfast.encoders.sampling import Sampling, clips
from vpgfast.video import Picture, Video


@dataclass
class VideoClips:
    """The windows of one video, read once from start to end; knows no network, so it can be sent to a process.

    Attributes:
        path: the video.
        sampling: the windows.
        picture: what becomes of a frame.
        batch: windows at a time.
        stream: number of the stream in the file; ``None`` finds the moving picture.
        strict: whether a file that is damaged or cut short is an error.
        times: float64 [T, 2], known after the last window; see :meth:`Sampling.times`.
        duration: seconds, known then.
        problems: what is odd about the file, known then.
    """

    path: Path
    sampling: Sampling
    picture: Picture
    batch: int
    stream: int | None = None
    strict: bool = False
    times: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    duration: float = 0.0
    problems: tuple[str, ...] = ()
    done: float | None = None
    """Share in [0, 1] that has been read, as far as the file says how long it is."""

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 [B, F, H, W, 3]. Raises :class:`VideoError` as :class:`vpgfast.video.Video`."""
        video = Video(self.path, stream=self.stream, strict=self.strict)
        times: list[np.ndarray] = []

        def pixels() -> Iterator[np.ndarray]:
            for chunk in video.frames(self.sampling.fps, self.picture, offset=self.sampling.offset):
                times.append(chunk.times)
                if video.stated_duration:
                    self.done = min(1.0, float(chunk.times[-1]) / video.stated_duration)
                yield chunk.pixels

        yield from clips(pixels(), self.sampling, self.batch)
        self.duration, self.problems = video.duration, tuple(video.problems)
        self.times = self.sampling.times(np.concatenate(times), video.duration)
