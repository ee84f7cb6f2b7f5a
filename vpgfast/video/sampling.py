"""From decoded frames to the ones asked for, converted and gathered into chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import av
import numpy as np

from vpgfast.errors import VideoError
from vpgfast.video import torchcodec_backend
from vpgfast.video.decode import Decoder
from vpgfast.video.picture import Converter
from vpgfast.video.plan import Instants, Plan
from vpgfast.video.source import Source, printable, reason

T = TypeVar("T")


@dataclass(frozen=True)
class Frames:
    """Consecutive frames.

    Attributes:
        pixels: uint8 [N, H, W, 3], RGB.
        times: float64 [N], the instants that were asked for, or the frames' own times; seconds on the container's
            clock, 0 is the container's start.
    """

    pixels: np.ndarray
    times: np.ndarray


class Sampling:
    """Gives the frames on show at instants, or every frame; can begin anew with a file and goes on where it was.

    Args:
        instants: ``None``: every frame, with its own time.
        chunks: takes the frames.
    """

    def __init__(self, instants: Instants | None, chunks: Chunks) -> None:
        self.instants, self.chunks = instants, chunks
        self.done = 0

    def run(self, source: Source, decoder: Decoder, plan: Plan | None) -> None:
        """Give all frames of a file.

        Raises:
            NotAsPlanned: the packets that were left out by the plan may have been needed.
        """
        if self.instants is None:
            for number, (frame, time) in enumerate(decoder):
                if number >= self.done:
                    self._give(source, frame, time)
            return
        shown: av.VideoFrame | None = None
        for frame, time in decoder:
            while shown is not None and self.instants.before(time, self.done):
                self._give_checked(source, decoder, plan, shown, self.instants)
            shown = frame
        while shown is not None and (self.done == 0 or self.instants.before(decoder.end, self.done)):
            self._give_checked(source, decoder, plan, shown, self.instants)

    def run_torchcodec(self, source: Source, scan: torchcodec_backend.Scan, frames: torchcodec_backend.Frames) -> None:
        """Give all frames of a file that torchcodec decodes.

        Raises:
            NotForTorchcodec: it can't go on.
        """
        for pairs in _batched(scan.on_show(self.instants, self.done), frames.batch):
            numbers = sorted({number for number, _ in pairs})
            found = dict(zip(numbers, frames.get(numbers), strict=True))
            for number, time in pairs:
                self._give(source, found[number], time)

    def _give_checked(
        self, source: Source, decoder: Decoder, plan: Plan | None, shown: av.VideoFrame, instants: Instants
    ) -> None:
        if plan is not None:
            plan.check(self.done, shown, decoder.clock)
        self._give(source, shown, instants[self.done])

    def _give(self, source: Source, frame: av.VideoFrame, time: float) -> None:
        self.chunks.add(source, frame, time)
        self.done += 1


class Chunks:
    """Gathers converted frames and gives them away ``size`` at a time."""

    def __init__(self, converter: Converter, size: int, give: Callable[[Frames], None]) -> None:
        self.converter, self.size, self.give = converter, size, give
        self._last: tuple[Any, np.ndarray] | None = None
        self._new()

    def _new(self) -> None:
        self.pixels = np.empty((self.size, *self.converter.shape, 3), np.uint8)
        self.times: list[float] = []

    def add(self, source: Source, frame: av.VideoFrame, time: float) -> None:
        here = self.pixels[len(self.times)]
        if self._last is not None and self._last[0] is frame:
            here[:] = self._last[1]
        else:
            try:
                self.converter.convert(frame, source.aspect, source.turn(frame), here)
            except (av.FFmpegError, ValueError) as error:
                raise VideoError(
                    f"video {printable(source.path)}: no RGB can be made of its {frame.format.name} ({reason(error)})"
                ) from None
        self._last = frame, here
        self.times.append(time)
        if len(self.times) == self.size:
            self.flush()

    def flush(self) -> None:
        if self.times:
            frames = Frames(self.pixels[: len(self.times)], np.array(self.times))
            self._new()
            self.give(frames)


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
