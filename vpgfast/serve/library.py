"""The videos of a folder, encoded one after the other while the server runs."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vpgfast.cache import encoded
from vpgfast.data.video_folders import named_like_video
from vpgfast.encoders.base import Encoded, Encoder
from vpgfast.errors import UserError
from vpgfast.page.media import Media, media_of

log = logging.getLogger(__name__)

STILL = 2.0
"""Seconds that a file must not have changed for: before, it may still be being copied."""


@dataclass(frozen=True)
class Entry:
    """A video of the library, as it was at one time.

    Attributes:
        name: its path below the folder.
        path: of the file.
        stamp: size in bytes and time of change in nanoseconds: another stamp is another video.
        state: where it is on its way.
        done: share that is encoded, where that is known.
        problem: why it can't be read.
        video: its features, once it is ready.
        media: what browsers have to know of it, then.
    """

    name: str
    path: Path
    stamp: tuple[int, int]
    state: Literal["waiting", "encoding", "ready", "failed"] = "waiting"
    done: float | None = None
    problem: str = ""
    video: Encoded | None = None
    media: Media | None = None


class Library:
    """The videos below a folder. Nothing outside it is ever touched: links that lead out are not followed.

    Args:
        folder: must exist.
        encoder: of the model.
        cache: see :func:`vpgfast.cache.cache_folder`.
        interval: seconds between looks at the folder.
    """

    def __init__(self, folder: Path, encoder: Encoder, cache: Path | None = None, interval: float = 2.0) -> None:
        self.folder, self.encoder, self.cache, self.interval = folder, encoder, cache, interval
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="encoding", daemon=True)

    def start(self) -> None:
        """Begin to look at the folder and to encode, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End both; what is half encoded is given up."""
        self._stop.set()
        self._thread.join(30)

    def entries(self) -> list[Entry]:
        """All videos, by name."""
        with self._lock:
            return [self._entries[name] for name in sorted(self._entries)]

    def file(self, name: str) -> Entry | None:
        """The video of a name, if it is still there and inside the folder; names are looked up, never opened."""
        with self._lock:
            entry = self._entries.get(name)
        return entry if entry is not None and entry.path.is_file() and self._is_inside(entry.path) else None

    def look(self) -> None:
        """Find out what has come, changed and gone."""
        found = {}
        now = time.time()
        for place, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for file in files:
                path = Path(place, file)
                if file.startswith(".") or not named_like_video(path):
                    continue
                if path.is_symlink() and not self._is_inside(path):
                    continue
                try:
                    status = path.stat()
                except OSError:  # gone since
                    continue
                if stat.S_ISREG(status.st_mode) and status.st_size and abs(now - status.st_mtime) >= STILL:
                    name = path.relative_to(self.folder).as_posix().encode("utf-8", "backslashreplace").decode()
                    found[name] = Entry(name, path, (status.st_size, status.st_mtime_ns))
        with self._lock:
            for name, entry in found.items():
                known = self._entries.get(name)
                if known is not None and known.stamp == entry.stamp:
                    found[name] = known
            self._entries = found

    def _is_inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.folder.resolve())

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
                following = next((entry for entry in self.entries() if entry.state == "waiting"), None)
                if following is not None:
                    self._encode(following)
                    continue
            except _Stopped:
                return
            except Exception:  # a fault with one look must not end all others
                log.exception("library %s: looking at it failed", self.folder)
            self._stop.wait(self.interval)

    def _encode(self, entry: Entry) -> None:
        def progress(done: float | None) -> None:
            if self._stop.is_set():
                raise _Stopped
            self._put(replace(entry, state="encoding", done=done))

        progress(None)
        try:
            video = encoded(self.encoder, entry.path, None, self.cache, progress)
            self._put(replace(entry, state="ready", video=video, media=media_of(entry.path)))
            log.info("%s is ready", entry.name)
        except UserError as error:
            self._put(replace(entry, state="failed", problem=str(error)))
            log.warning("left out: %s", error)
        except Exception as error:
            self._put(replace(entry, state="failed", problem=f"{entry.name} can't be encoded ({error})"))
            raise

    def _put(self, entry: Entry) -> None:
        """Take over what became of a video, unless it has gone or changed meanwhile."""
        with self._lock:
            known = self._entries.get(entry.name)
            if known is not None and known.stamp == entry.stamp:
                self._entries[entry.name] = entry


class _Stopped(BaseException):
    """The server ends."""
