"""Videos that are sent to the server: checked, then put into the library's folder."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from vpgfast.data.video_folders import VIDEO_SUFFIXES, named_like_video
from vpgfast.errors import VideoError
from vpgfast.video import Video

AT_ONCE = 4
"""Uploads; more are asked to come again."""
_LONGEST_NAME = 100


class Refused(Exception):
    """An upload that is not taken; has the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def safe_name(given: str) -> str:
    """A plain file name: no folder, no leading dot, letters, digits and a few signs alone.

    Raises:
        Refused: it does not end as a video's name does.
    """
    base = re.split(r"[/\\]", given)[-1]
    stem, dot, suffix = base.rpartition(".")
    if not dot or not named_like_video(Path(f"x.{suffix}")):
        raise Refused(415, f"{base or 'A file without a name'} is not named like a video ({' '.join(VIDEO_SUFFIXES)}).")
    stem = re.sub(r"[^\w ()\[\]+,-]+", "_", stem).strip(" _.-")
    stem = stem.encode()[:_LONGEST_NAME].decode(errors="ignore")
    return f"{stem or 'video'}.{suffix.lower()}"


@dataclass
class Uploads:
    """Takes videos into a folder.

    Attributes:
        folder: of the library.
        most_bytes: of one video.
    """

    folder: Path
    most_bytes: int
    _running: set[str] = field(default_factory=set)
    _taken: set[str] = field(default_factory=set)

    def unseen(self, known: Collection[str]) -> int:
        """How many videos were taken, or are coming, that a library with the known ones has not seen yet."""
        self._taken = {name for name in self._taken if name not in known and (self.folder / name).exists()}
        return len(self._taken) + len(self._running)

    async def take(self, request: Request, given: str) -> str:
        """Store the body of a request as a video; returns its name in the folder.

        Raises:
            Refused: it is no video, too large, or can't be stored.
        """
        name = safe_name(given)
        stated = request.headers.get("content-length", "")
        if stated.isdigit():
            self._check_size(name, int(stated))
        if len(self._running) >= AT_ONCE:
            raise Refused(429, f"{AT_ONCE} videos are being sent already; send {name} again when they are there.")
        token = secrets.token_hex(8)
        temporary = self.folder / f".upload-{token}{Path(name).suffix}"  # hidden, so the library does not see it
        self._running.add(token)
        try:
            await self._receive(request, name, temporary)
            await run_in_threadpool(Video, temporary)
            name = await run_in_threadpool(self._put, temporary, name)
            self._taken.add(name)
            return name
        except VideoError as error:
            raise Refused(415, str(error).replace(str(temporary), name)) from None
        except OSError as error:
            raise Refused(507, f"{name} can't be stored ({error.strerror}).") from None
        except ClientDisconnect:
            raise Refused(400, f"{name} was not sent to its end.") from None
        finally:
            self._running.discard(token)
            temporary.unlink(missing_ok=True)

    async def _receive(self, request: Request, name: str, temporary: Path) -> None:
        size = 0
        with temporary.open("xb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                self._check_size(name, size)
                file.write(chunk)
        if size == 0:
            raise Refused(400, f"{name} is empty.")

    def _check_size(self, name: str, size: int) -> None:
        if size > self.most_bytes:
            raise Refused(413, f"{name} is larger than the {self.most_bytes // 2**20} MiB that are taken (--most-mib).")

    def _put(self, temporary: Path, name: str) -> str:
        """Give a stored file a name that no other has."""
        stem, suffix = os.path.splitext(name)
        for number in range(1, 1000):
            tried = name if number == 1 else f"{stem} {number}{suffix}"
            try:
                (self.folder / tried).open("xb").close()  # takes the name; a library passes over empty files
            except FileExistsError:
                continue
            os.replace(temporary, self.folder / tried)
            return tried
        raise Refused(409, f"There are too many videos called {name}.")
