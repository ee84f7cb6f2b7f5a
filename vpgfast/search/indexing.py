"""Videos into an index, shard by shard."""

from __future__ import annotations

import logging
import time

import numpy as np
from tqdm import tqdm

from vpgfast.errors import FeatureError, VideoError
from vpgfast.search.command import SECONDS_BETWEEN_SHARDS
from vpgfast.search.index import VideoIndex
from vpgfast.search.searcher import Searcher
from vpgfast.search.shards import SHARD, VideoEntry
from vpgfast.search.sources import VideoSource

log = logging.getLogger(__name__)


def index_videos(
    index: VideoIndex, searcher: Searcher, source: VideoSource, on_bad: str, keep: bool
) -> tuple[int, int]:
    """Make vectors of videos and put them into an index, shard by shard. For use in ``index.changing()``.

    Args:
        on_bad: "stop" or "skip" (with a warning) where a video can't be read.
        keep: leave videos alone that are in the index under the same name; else they are replaced.

    Returns:
        How many were put in, and how many were left out as unreadable.
    """
    names = [name for name in source.names if not (keep and name in index)]
    if len(names) < len(source.names):
        log.info("%d of %d videos are in the index already", len(source.names) - len(names), len(source.names))
    size = searcher.config.batch_size
    vectors: list[np.ndarray] = []
    entries: list[VideoEntry] = []
    batch: list[np.ndarray] = []
    added = bad = 0
    written = time.monotonic()
    progress = tqdm(names, desc="indexing", unit="video", leave=False, disable=None, delay=2)
    for number, name in enumerate(progress, start=1):
        try:
            features, entry = source.read(name)
        except (FeatureError, VideoError) as error:
            if on_bad == "stop":
                _flush(index, searcher, vectors, entries, batch)  # what was done is not done again
                raise type(error)(f"{error}. Mend it, or leave such videos out with --on-bad skip") from None
            log.warning("left out: %s", error)
            bad += 1
        else:
            batch.append(features)
            entries.append(entry)
            added += 1
        if len(batch) == size:
            vectors.append(searcher.embed_videos(batch))
            batch.clear()
        full = len(entries) >= SHARD or time.monotonic() - written > SECONDS_BETWEEN_SHARDS
        if full or number == len(names):
            _flush(index, searcher, vectors, entries, batch)
            written = time.monotonic()
    return added, bad


def _flush(
    index: VideoIndex,
    searcher: Searcher,
    vectors: list[np.ndarray],
    entries: list[VideoEntry],
    batch: list[np.ndarray],
) -> None:
    """Write what has been collected as a shard, and empty the lists."""
    if batch:
        vectors.append(searcher.embed_videos(batch))
    if entries:
        index.add(np.concatenate(vectors), entries)
    for collected in (vectors, entries, batch):
        collected.clear()
