"""Making items in a thread of their own, a bounded number ahead of whoever takes them."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")


class _Stopped(Exception):
    """Nobody takes the frames any more."""


def in_a_thread(work: Callable[[Callable[[T], None], Event], None]) -> Iterator[T]:
    """What ``work`` gives, made in a thread of its own that is one item ahead and ends with this iterator."""
    ready: queue.Queue[T | BaseException | None] = queue.Queue(maxsize=1)
    stop = Event()

    def give(item: T | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue
        raise _Stopped

    def run() -> None:
        try:
            work(give, stop)
            give(None)
        except _Stopped:
            pass
        except BaseException as error:
            with contextlib.suppress(_Stopped):
                give(error)

    thread = Thread(target=run, name="vpgfast.video", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
