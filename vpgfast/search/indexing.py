"""Videos into an index, shard by shard."""

from __future__ import annotations

import logging
import time
from typing import Literal

import numpy as np
from tqdm import tqdm

from vpgfast.errors import EmbeddingError, FeatureError, VideoError
from vpgfast.search.command import SECONDS_BETWEEN_SHARDS
from vpgfast.search.index import VideoIndex
from vpgfast.search.searcher import Searcher
from vpgfast.search.shards import SHARD, VideoEntry
from vpgfast.search.sources import VideoSource

log = logging.getLogger(__name__)


def index_videos(
    index: VideoIndex, searcher: Searcher, source: VideoSource, on_bad: Literal["stop", "skip"], keep: bool
) -> tuple[int, int]:
    """Make vectors of videos and put them into an index, shard by shard. For use in ``index.changing()``.

    Args:
        on_bad: "stop" or "skip" (with a warning) where a video can't be read, or where its vector is not finite.
        keep: leave videos alone that are in the index under the same name; else they are replaced.

    Returns:
        How many were put in, and how many were left out as unreadable.

    Raises:
        FeatureError, VideoError: with "stop", a video is bad; those before it are in the index.
    """
    names = [name for name in source.names if not (keep and name in index)]
    if len(names) < len(source.names):
        log.info("%d of %d videos are in the index already", len(source.names) - len(names), len(source.names))
    shard = _Shard(index, searcher, on_bad)
    try:
        for name in tqdm(names, desc="indexing", unit="video", leave=False, disable=None, delay=2):
            try:
                shard.take(*source.read(name))
            except (FeatureError, VideoError) as error:
                shard.complain(error)
    except (FeatureError, VideoError):
        shard.flush()  # what was done is not done again
        raise
    shard.flush()
    return shard.added, shard.bad


class _Shard:
    """What has been read and is not in the index yet."""

    def __init__(self, index: VideoIndex, searcher: Searcher, on_bad: Literal["stop", "skip"]) -> None:
        self.index, self.searcher, self.on_bad = index, searcher, on_bad
        self.added = self.bad = 0
        self._waiting: list[tuple[np.ndarray, VideoEntry]] = []  # for a batch of the model
        self._ready: list[tuple[np.ndarray, VideoEntry]] = []
        self._written = time.monotonic()

    def take(self, features: np.ndarray, entry: VideoEntry) -> None:
        """A video with its clip features [T, d_v]."""
        self._waiting.append((features, entry))
        if len(self._waiting) == self.searcher.config.batch_size:
            self._embed()
        if len(self._ready) + len(self._waiting) >= SHARD or time.monotonic() - self._written > SECONDS_BETWEEN_SHARDS:
            self.flush()

    def flush(self) -> None:
        """Write a shard."""
        try:
            self._embed()
        finally:
            if self._ready:
                self.index.add(np.stack([vector for vector, _ in self._ready]), [entry for _, entry in self._ready])
                self.added += len(self._ready)
            self._ready, self._written = [], time.monotonic()

    def _embed(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        try:
            vectors = list(self.searcher.embed_videos([features for features, _ in waiting]))
        except EmbeddingError:  # not finite; one by one, that shows which
            vectors = [self._alone(features) for features, _ in waiting]
        for vector, (_, entry) in zip(vectors, waiting, strict=True):
            if vector is not None:
                self._ready.append((vector, entry))
            else:
                why = "the model makes no finite vector of them (values too large, or all zero?)"
                self.complain(FeatureError(f"features of {entry.video_id!r}: {why}"))

    def _alone(self, features: np.ndarray) -> np.ndarray | None:
        try:
            return self.searcher.embed_videos([features])[0]
        except EmbeddingError:
            return None

    def complain(self, error: FeatureError | VideoError) -> None:
        """Count a video that is left out, or end."""
        if self.on_bad == "stop":
            raise type(error)(f"{error}. Mend it, or leave such videos out with --on-bad skip") from None
        log.warning("left out: %s", error)
        self.bad += 1
