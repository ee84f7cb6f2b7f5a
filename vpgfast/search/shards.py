"""The pairs of files that hold the vectors and the videos of an index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vpgfast import files
from vpgfast.errors import SearchIndexError

SHARD = 16_384
"""Videos a shard at most: 16 MiB of vectors at width 256."""


@dataclass(frozen=True, slots=True)
class VideoEntry:
    """A video as an index knows it.

    Attributes:
        video_id: its name.
        duration: seconds.
        source: what it comes from: ``{"kind": "hdf5" | "folder" | "videos", "path": ..., "key": ...}``; a relative path
            starts at the index's folder.
        file: below ``path``, of kind "videos".
    """

    video_id: str
    duration: float
    source: dict[str, Any]
    file: str | None = None


@dataclass(frozen=True)
class Shard:
    """One pair of files; ``name`` is their number."""

    name: str
    videos: int


class ShardVideos:
    """What the rows of a shard are, by its memory-mapped ``videos-*.json``, which has a line a video.

    One video is read from its own line, all are read together: a search needs a few of each shard, and to parse the
    others took most of its time.

    Args:
        path: of the file.
        videos: how many it has to hold.

    Raises:
        SearchIndexError: the file is missing or damaged, perhaps only in the line that is read.
    """

    def __init__(self, path: Path, videos: int) -> None:
        self.path = path
        with reading(path):
            self._text = np.asarray(np.memmap(path, np.uint8, "r"))
            self._ends = np.flatnonzero(self._text == ord("\n")).astype(np.uint32)  # of the lines
            self._sources = json.loads(self._line(0)[:-1] + b"}")["sources"]
            found = len(self) if self._line(-1) == b"]}" else "an unknown number of"
            if found != videos:
                raise ValueError(f"{found} videos, not {videos}")

    def _line(self, number: int) -> bytes:
        start = self._ends[number - 1] + 1 if number else 0
        return self._text[start : self._ends[number]].tobytes()

    def _entry(self, row: dict[str, Any]) -> VideoEntry:
        return VideoEntry(row["video_id"], float(row["duration"]), self._sources[row["source"]], row.get("file"))

    def __len__(self) -> int:
        return len(self._ends) - 3  # lines before and after

    def __getitem__(self, row: int) -> VideoEntry:
        with reading(self.path):
            return self._entry(json.loads(self._line(row + 2).rstrip(b",")))

    def __iter__(self) -> Iterator[VideoEntry]:
        with reading(self.path):
            entries = [self._entry(row) for row in json.loads(self._text.tobytes())["videos"]]
        return iter(entries)


def reading(path: Path) -> AbstractContextManager[None]:
    """Around the reading of a file of an index, which says what to do where the file is not what it should be."""
    return files.reading(
        lambda error: SearchIndexError(
            f"index {path.parent}: {path.name} is damaged or missing ({first_line(error)}); put back a copy of the "
            "file, or make the index anew"
        )
    )


def first_line(what: object) -> str:
    return "the file is gone" if isinstance(what, FileNotFoundError) else str(what).split("\n")[0]
