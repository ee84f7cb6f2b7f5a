"""What FAISS makes of an index: an index of its own over all shards that are there, measured against exact search."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from vpgfast.errors import ConfigError, SearchIndexError
from vpgfast.files import temporary_name
from vpgfast.search.shards import Shard, first_line

if TYPE_CHECKING:
    from vpgfast.search.index import VideoIndex

log = logging.getLogger(__name__)

FEWEST_FOR_FAISS = 1_000
RECALL_DEPTHS = (1, 10, 100)
_TUNED_AT = (1, 10)  # depths whose recall chooses how many lists are probed
_DEEPER = 10  # FAISS is asked for so many times more videos than wanted; their order is that of the exact products


def build(index: VideoIndex, recall: float, queries: np.ndarray | None, seed: int) -> None:
    """Make an IVF-PQ index of all shards, and measure it against exact search. For use in ``index.changing()``.

    Lists are four times the square root of the number of videos; a vector is kept as one byte for every four
    elements. As few lists are probed as reach the recall that is asked for, at depths 1 and 10.

    Args:
        recall: share of the best video, and of the 10 best, that the search has to find.
        queries: float32 [Q, E], queries to measure on. ``None`` takes the vectors of videos that training
            does not see (up to 500), which are to find their neighbours and not themselves. Paragraphs are
            farther from what they are to find, and so harder to search for.
        seed: of the choice of videos to train and to measure on.

    Raises:
        ConfigError: FAISS is not installed, or there are too few videos to train it.
    """
    faiss = import_faiss()
    if len(index) < FEWEST_FOR_FAISS:
        raise ConfigError(
            f"index {index.folder}: {len(index)} videos; FAISS needs {FEWEST_FOR_FAISS} to be trained, and exact "
            "search of so few takes no time"
        )
    rows = [(number << 32) + np.arange(shard.videos) for number, shard in enumerate(index.shards)]
    places = np.concatenate(rows)[index.alive(index.shards)]
    shuffled = np.random.default_rng(seed).permutation(places)
    held_out = shuffled[: min(500, len(places) // 10)]
    lists = max(1, min(int(4 * len(places) ** 0.5), len(places) // 39))  # FAISS asks for 39 points a centroid
    trained_on = np.sort(shuffled[len(held_out) :][: max(64 * lists, 65_536)])
    parts = max(m for m in range(1, max(1, index.width // 4) + 1) if index.width % m == 0)
    made = faiss.IndexIVFPQ(faiss.IndexFlatIP(index.width), index.width, lists, parts, 8, faiss.METRIC_INNER_PRODUCT)
    made.cp.min_points_per_centroid = made.pq.cp.min_points_per_centroid = 1  # few videos are no warning
    log.info("training FAISS on %d videos: %d lists, %d bytes a video", len(trained_on), lists, parts)
    made.train(index.gather(trained_on))
    for shard in tqdm(index.shards, desc="adding to FAISS", unit="shard", delay=2, leave=False, disable=None):
        made.add(index.vectors(shard))  # removed ones too, so that a number is a place; they are passed over
    number = index.about["next"]
    name = f"faiss-{number:05d}.index"
    _write(made, index.folder / name)
    del made

    about = {
        "file": name,
        "bytes": (index.folder / name).stat().st_size,
        "shards": [shard.name for shard in index.shards],
        "lists": lists,
        "bytes_per_video": parts,
        "nprobe": 1,
        "measured_on": f"{len(held_out)} videos that training did not see"
        if queries is None
        else f"{len(queries)} given queries",
        "recall": {},
    }
    before, index.faiss = index.faiss, about
    try:
        opened = map_faiss(index.folder / name)
        own = held_out if queries is None else None
        asked = index.gather(held_out) if queries is None else queries
        about["nprobe"], about["recall"] = _tune(index, opened, asked, own, lists, recall)
    finally:
        index.faiss = before
    index.commit({**index.about, "next": number + 1, "faiss": about})


def _tune(
    index: VideoIndex, opened: Any, queries: np.ndarray, own: np.ndarray | None, lists: int, target: float
) -> tuple[int, dict[str, float]]:
    """How many lists to probe, and the recall at each depth. ``own``: the places of the queries themselves."""
    itself = 0 if own is None else 1
    truth = _without(index.ranked(queries, max(RECALL_DEPTHS) + itself, None)[1], own)

    def recall(depth: int, nprobe: int) -> float:
        """Of searches for so many videos; a search for more looks deeper."""
        found = _without(index.ranked(queries, depth + itself, opened, nprobe)[1], own)
        shares = [np.isin(true, row).mean() for row, true in zip(found, truth[:, :depth], strict=True)]
        return float(np.mean(shares))

    half_steps = {round(2 ** (i / 2)) for i in range(2 * lists.bit_length())}  # 1, 2, 3, 4, 6, 8, 11, ...
    tries = [*sorted(n for n in half_steps if n < lists), lists]
    for nprobe in tqdm(tries, desc="measuring recall", delay=2, leave=False, disable=None):
        reached = min(recall(depth, nprobe) for depth in _TUNED_AT)
        if reached >= target:
            break
    else:
        log.warning("FAISS reaches a recall of %.1f%%, not of %.1f%%", 100 * reached, 100 * target)
    return nprobe, {f"@{depth}": recall(depth, nprobe) for depth in RECALL_DEPTHS}


def candidates(index: VideoIndex, queries: np.ndarray, top: int, opened: Any, nprobe: int) -> list[np.ndarray]:
    """Places of the living videos that FAISS takes for the best ones, of each query; more than were asked for."""
    import faiss

    assert index.faiss is not None
    shards = _covered(index)
    parameters = faiss.SearchParametersIVF(nprobe=nprobe)
    if any(shard.name in index.removed for shard in shards):
        bits = np.packbits(index.alive(shards), bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)  # both have to outlive the search
        parameters = faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
    deep = min(max(_DEEPER * top, 100), opened.ntotal)
    _, numbers = opened.search(np.ascontiguousarray(queries), deep, params=parameters)
    number = {shard.name: i for i, shard in enumerate(index.shards)}
    ends = np.cumsum([shard.videos for shard in shards])
    starts = ends - [shard.videos for shard in shards]
    at = np.array([number[shard.name] for shard in shards], np.int64)
    places = []
    for row in numbers:
        found = row[row >= 0]
        which = np.searchsorted(ends, found, side="right")
        places.append((at[which] << 32) + found - starts[which])
    return places


def _covered(index: VideoIndex) -> list[Shard]:
    by_name = {shard.name: shard for shard in index.shards}
    assert index.faiss is not None
    return [by_name[name] for name in index.faiss["shards"]]


def _without(places: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """Each row without its own place, or without its last one where it lacks that: [Q, k + 1] -> [Q, k]."""
    if own is None:
        return places
    keep = places != own[:, None]
    keep[keep.all(axis=1), -1] = False
    return places[keep].reshape(len(places), -1)


def import_faiss() -> Any:
    """The module. Raises :class:`ConfigError` where it isn't installed."""
    try:
        import faiss
    except ImportError:
        raise ConfigError("FAISS is not installed; pip install 'vpgfast[faiss]'") from None
    return faiss


def map_faiss(path: Path) -> Any:
    """What FAISS wrote, not read before it is needed."""
    import faiss

    return faiss.read_index(os.fspath(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)


def _write(made: Any, path: Path) -> None:
    """Whole or not at all."""
    import faiss

    temporary = temporary_name(path)
    try:
        faiss.write_index(made, os.fspath(temporary))
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise SearchIndexError(f"can't write {path}: {first_line(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)
