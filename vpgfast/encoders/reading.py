"""Several videos read at once, in processes of their own or in this one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from vpgfast.encoders.video_clips import VideoClips
from vpgfast.errors import UserError, VideoError

Event = tuple[int, np.ndarray | VideoClips | UserError]
"""Number of a source, and: some of its windows; or itself, read to the end; or why it can't be read."""


def read_all(sources: Sequence[VideoClips], processes: int) -> Iterator[Event]:
    """Read videos, several at once; the events of one video come in order, those of several mixed.

    A process that dies (a decoder may crash on a broken file) costs the video that it was reading.

    Args:
        sources: the videos.
        processes: that read; 0 reads one after the other in this one (decoding has a thread of its own all the same).
    """
    if processes == 0:
        for number, source in enumerate(sources):
            yield from ((number, event) for event in _events(source))
        return
    todo = iter(enumerate(sources))
    readers: dict[Connection, _Reader] = {}
    try:
        for number, source in todo:
            reader = _Reader(number, source)
            readers[reader.pipe] = reader
            if len(readers) == processes:
                break
        while readers:
            for pipe in wait(list(readers)):
                assert isinstance(pipe, Connection)
                reader = readers[pipe]
                event = reader.receive()
                yield reader.number, event
                if isinstance(event, np.ndarray):
                    continue
                following = next(todo, None)
                if reader.alive and following is not None:
                    reader.start(*following)
                    continue
                reader.stop()
                del readers[pipe]
                if following is not None:
                    reader = _Reader(*following)
                    readers[reader.pipe] = reader
    finally:
        for reader in readers.values():
            reader.stop()


def _events(source: VideoClips) -> Iterator[Any]:
    try:
        yield from source
    except UserError as error:
        yield error
    else:
        yield source


class _Reader:
    """A process that reads one video after the other; a pipe that is full holds it up, so nothing piles up."""

    def __init__(self, number: int, source: VideoClips) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads of torch and CUDA in mid-work
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_read, args=(other,), daemon=True)
        self.process.start()
        other.close()
        self.alive = True
        self.start(number, source)

    def start(self, number: int, source: VideoClips) -> None:
        self.number, self.source = number, source
        self.pipe.send(source)

    def receive(self) -> np.ndarray | VideoClips | UserError:
        try:
            event: np.ndarray | VideoClips | UserError = self.pipe.recv()
            return event
        except (EOFError, OSError):
            self.alive = False
            self.process.join(5)
            return VideoError(
                f"video {self.source.path}: the process that read it died (exit code {self.process.exitcode}): the "
                "file crashes the decoder, or memory ran out"
            )

    def stop(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _read(pipe: Connection) -> None:
    try:
        while True:
            for event in _events(pipe.recv()):
                pipe.send(event)
    except (EOFError, OSError, KeyboardInterrupt):
        pass  # the other end has gone
