"""An index of videos: a folder of plain files that vectors of paragraphs are held against. It knows no model.

``index.json`` says what counts; everything else is a file that it names:

* ``vectors-00000.npy``: float32 [n, E], a vector of length 1 a video; ``videos-00000.json``: what these videos are;
* ``model.safetensors``: a copy of the checkpoint that made the vectors;
* ``faiss-00007.index``: what FAISS made of some of the shards, if it was asked to.

Files of a number are written once and never change, and no number is used twice; ``index.json`` is replaced last, in
one step. So a kill at any time leaves the index as it was before the change, and files that it does not name (which
the next change removes). ``docs/search.md`` describes the format for other programs.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vpgfast.errors import ConfigError, SearchIndexError
from vpgfast.files import write_file

log = logging.getLogger(__name__)

INDEX_FILE, MODEL_FILE = "index.json", "model.safetensors"
FORMAT, VERSION = "vpgfast search index", 1
SHARD = 16_384
"""Videos a shard at most: 16 MiB of vectors at width 256."""
_LOCK = ".lock"
_ROW = 0xFFFFFFFF  # a place is (number of the shard << 32) + row
_BLOCK = 65_536  # products of a query that are in memory at once

FEWEST_FOR_FAISS = 1_000
RECALL_DEPTHS = (1, 10, 100)
_TUNED_AT = (1, 10)  # depths whose recall chooses how many lists are probed
_DEEPER = 10  # FAISS is asked for so many times more videos than wanted; their order is that of the exact products


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
class Found:
    """A video and how well it fits a query: the product of two vectors of length 1, in [-1, 1]."""

    video: VideoEntry
    score: float


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
        with _reading(path):
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
        with _reading(self.path):
            return self._entry(json.loads(self._line(row + 2).rstrip(b",")))

    def __iter__(self) -> Iterator[VideoEntry]:
        with _reading(self.path):
            entries = [self._entry(row) for row in json.loads(self._text.tobytes())["videos"]]
        return iter(entries)


class VideoIndex:
    """An index that was opened (:meth:`open`) or has just been made (:meth:`create`).

    Vectors are mapped into memory and not read before they are needed. Changes are made by one process at a time.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        """Use :meth:`open` or :meth:`create`."""
        self.folder = folder
        self._vectors: dict[str, np.ndarray] = {}
        self._videos: dict[str, ShardVideos] = {}
        self._names: dict[str, int] | None = None
        self._faiss: Any = None
        self._take(about)

    def _take(self, about: dict[str, Any]) -> None:
        """Make the content of ``index.json`` this object's state."""
        self.about = about
        self.width: int = about["width"]
        self.shards = [Shard(entry["name"], entry["videos"]) for entry in about["shards"]]
        self.removed: dict[str, list[int]] = about["removed"]
        self.faiss: dict[str, Any] | None = about["faiss"]

    @classmethod
    def create(
        cls, folder: Path, width: int, model: Path, method: str, features: dict[str, Any], settings: Sequence[str] = ()
    ) -> VideoIndex:
        """Make an empty index in a new or empty folder.

        Args:
            folder: to make it in.
            width: E of the vectors.
            model: checkpoint file that makes the vectors; it is copied.
            method: name of its method.
            features: what it takes, ``{"source": ..., "width": ...}``.
            settings: of the model's run that were changed, as command-line arguments.

        Raises:
            SearchIndexError: the folder holds something else, or can't be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SearchIndexError(f"index folder {folder}: {error.strerror}") from None
        foreign = [path.name for path in folder.iterdir() if not path.name.startswith((".", MODEL_FILE))]
        if foreign:
            raise SearchIndexError(
                f"index folder {folder}: holds other files ({', '.join(sorted(foreign)[:3])}); give a new folder"
            )
        data = model.read_bytes()
        write_file(folder / MODEL_FILE, data)
        about = {
            "format": FORMAT,
            "version": VERSION,
            "method": method,
            "width": width,
            "features": features,
            "model": {"from": str(model.resolve()), "sha256": hashlib.sha256(data).hexdigest()},
            "settings": list(settings),
            "next": 0,
            "shards": [],
            "removed": {},
            "faiss": None,
        }
        index = cls(folder, about)
        index._commit(about)
        return index

    @classmethod
    def open(cls, folder: Path) -> VideoIndex:
        """Read what an index holds.

        Raises:
            SearchIndexError: there is no index there, it is damaged, or of another version of the format.
        """
        path = folder / INDEX_FILE
        if not path.is_file():
            raise SearchIndexError(
                f"index {folder}: no {INDEX_FILE} there; make one with `python -m vpgfast.search index CHECKPOINT "
                f"FEATURES_OR_VIDEOS -o {folder}`"
            )
        return cls(folder, _read_about(path))

    # --- what it holds

    @property
    def model_file(self) -> Path:
        """The checkpoint's copy."""
        return self.folder / MODEL_FILE

    def check_model(self) -> None:
        """Raises :class:`SearchIndexError` unless the checkpoint is there and the one that made the vectors."""
        if not self.model_file.is_file():
            raise SearchIndexError(f"index {self.folder}: its {MODEL_FILE} is gone; put back {self._came_from()}")
        if file_hash(self.model_file) != self.about["model"]["sha256"]:
            raise SearchIndexError(
                f"index {self.folder}: its {MODEL_FILE} is not the one that made the vectors; put back "
                f"{self._came_from()}"
            )

    def _came_from(self) -> str:
        return f"a copy of {self.about['model']['from']}"

    def __len__(self) -> int:
        """Videos that can be found."""
        return sum(shard.videos for shard in self.shards) - sum(map(len, self.removed.values()))

    def vectors(self, shard: Shard) -> np.ndarray:
        """float32 [n, E] of a shard, removed ones too; memory-mapped.

        Raises:
            SearchIndexError: the file is missing or damaged.
        """
        if shard.name not in self._vectors:
            path = self.folder / f"vectors-{shard.name}.npy"
            with _reading(path):
                array = np.load(path, mmap_mode="r", allow_pickle=False)
                if array.shape != (shard.videos, self.width) or array.dtype != np.float32:
                    expected = f"float32 {[shard.videos, self.width]}"
                    raise ValueError(f"{array.dtype} {list(array.shape)}, not {expected}")
            self._vectors[shard.name] = np.asarray(array)  # a view of the mapped file, without memmap's slow slicing
        return self._vectors[shard.name]

    def videos(self, shard: Shard) -> ShardVideos:
        """What the rows of a shard are, removed ones too; memory-mapped. Raises as :meth:`vectors`."""
        if shard.name not in self._videos:
            self._videos[shard.name] = ShardVideos(self.folder / f"videos-{shard.name}.json", shard.videos)
        return self._videos[shard.name]

    def living(self) -> Iterator[tuple[Shard, int, VideoEntry]]:
        """Every video that was not removed: its shard, its row and what it is."""
        for shard in self.shards:
            gone = set(self.removed.get(shard.name, ()))
            for row, entry in enumerate(self.videos(shard)):
                if row not in gone:
                    yield shard, row, entry

    def __contains__(self, name: str) -> bool:
        return name in self._by_name()

    def _by_name(self) -> dict[str, int]:
        """Place of every living video."""
        if self._names is None:
            number = {shard.name: i for i, shard in enumerate(self.shards)}
            self._names = {entry.video_id: (number[shard.name] << 32) + row for shard, row, entry in self.living()}
        return self._names

    # --- changes

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Around every change: one process at a time, starting from what is in the folder now.

        Raises:
            SearchIndexError: another process is at it.
        """
        try:
            lock = (self.folder / _LOCK).open("w")
        except OSError as error:
            raise SearchIndexError(f"index {self.folder}: can't be changed ({error.strerror})") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SearchIndexError(f"index {self.folder}: another process is changing it; wait for it") from None
            self._names = None
            self._take(_read_about(self.folder / INDEX_FILE))
            yield

    def add(self, vectors: np.ndarray, entries: Sequence[VideoEntry]) -> None:
        """Add videos as a shard; those that are there under the same name are replaced. For use in :meth:`changing`.

        Args:
            vectors: float32 [n, E] of length 1.
            entries: n of them, no name twice.
        """
        if not entries:
            return
        shard = self._write_shard(self.about["next"], vectors, entries)
        names = self._by_name()
        places = [names[entry.video_id] for entry in entries if entry.video_id in names]
        start = len(self.shards) << 32
        names.update((entry.video_id, start + row) for row, entry in enumerate(entries))
        listed = [*self.about["shards"], {"name": shard.name, "videos": shard.videos}]
        removed = self._with_removed(places)
        self._commit({**self.about, "next": self.about["next"] + 1, "shards": listed, "removed": removed})

    def remove(self, names: Sequence[str]) -> None:
        """Take videos out: their rows stay in the files and are passed over. For use in :meth:`changing`.

        Raises:
            SearchIndexError: there is no video of such a name; nothing was removed.
        """
        there = self._by_name()
        missing = [name for name in names if name not in there]
        if missing:
            raise SearchIndexError(
                f"index {self.folder}: has no video {', '.join(map(repr, missing[:3]))}"
                + (f" and {len(missing) - 3} more of those named" if len(missing) > 3 else "")
                + "; nothing was removed"
            )
        self._commit({**self.about, "removed": self._with_removed([there.pop(name) for name in dict.fromkeys(names)])})

    def _with_removed(self, places: Sequence[int]) -> dict[str, list[int]]:
        removed = {name: set(rows) for name, rows in self.removed.items()}
        for place in places:
            removed.setdefault(self.shards[place >> 32].name, set()).add(place & _ROW)
        return {name: sorted(rows) for name, rows in removed.items()}

    def compact(self, size: int = SHARD) -> None:
        """Write all living videos into full shards and drop the rest. For use in :meth:`changing`.

        What FAISS made is dropped too: it is about the old shards.
        """
        shards: list[Shard] = []
        number = self.about["next"]
        vectors: list[np.ndarray] = []
        entries: list[VideoEntry] = []
        progress = tqdm(total=len(self), desc="compacting", unit="video", delay=2, leave=False, disable=None)
        for shard, row, entry in self.living():
            vectors.append(self.vectors(shard)[row])
            entries.append(entry)
            if len(entries) == size:
                shards.append(self._write_shard(number + len(shards), np.stack(vectors), entries))
                vectors, entries = [], []
            progress.update()
        if entries:
            shards.append(self._write_shard(number + len(shards), np.stack(vectors), entries))
        progress.close()
        self._names = None
        listed = [{"name": shard.name, "videos": shard.videos} for shard in shards]
        self._commit({**self.about, "next": number + len(shards), "shards": listed, "removed": {}, "faiss": None})

    def _write_shard(self, number: int, vectors: np.ndarray, entries: Sequence[VideoEntry]) -> Shard:
        if vectors.shape != (len(entries), self.width) or vectors.dtype != np.float32:
            raise ValueError(f"vectors are {vectors.dtype} {vectors.shape}, not float32 {(len(entries), self.width)}")
        shard = Shard(f"{number:05d}", len(entries))
        buffer = io.BytesIO()
        np.save(buffer, vectors)
        write_file(self.folder / f"vectors-{shard.name}.npy", buffer.getvalue())
        sources: list[dict[str, Any]] = []
        lines = []
        for entry in entries:
            if entry.source not in sources:
                sources.append(entry.source)
            row = {"video_id": entry.video_id, "duration": entry.duration, "source": sources.index(entry.source)}
            lines.append(json.dumps(row if entry.file is None else {**row, "file": entry.file}, ensure_ascii=False))
        head, rows = json.dumps(sources, ensure_ascii=False), ",\n".join(lines)  # a line a video
        text = f'{{"sources": {head},\n"videos": [\n{rows}\n]}}\n'
        write_file(self.folder / f"videos-{shard.name}.json", text.encode())
        return shard

    def _commit(self, about: dict[str, Any]) -> None:
        """Make a change count, and drop the files that no longer do."""
        write_file(self.folder / INDEX_FILE, (json.dumps(about, indent=1) + "\n").encode())
        self._take(about)
        named = {shard.name for shard in self.shards}
        for cache in (self._vectors, self._videos):
            for name in set(cache) - named:
                del cache[name]
        kept = {f"vectors-{name}.npy" for name in named} | {f"videos-{name}.json" for name in named}
        kept |= {self.faiss["file"]} if self.faiss else set()
        if self._faiss is not None and (self.faiss is None or self._faiss[0] != self.faiss["file"]):
            self._faiss = None
        for pattern in ("vectors-*.npy", "videos-*.json", "faiss-*.index"):
            for path in self.folder.glob(pattern):
                if path.name not in kept:
                    path.unlink()

    # --- search

    def search(self, queries: np.ndarray, top: int, exact: bool = False) -> list[list[Found]]:
        """The videos that fit best.

        With what FAISS made, its shards are searched by it, and shards that came later exactly; the scores are exact in
        both cases. What it can't find enough videos for is searched exactly.

        Args:
            queries: float32 [Q, E] of length 1.
            top: videos a query, fewer where there are no more.
            exact: leave FAISS aside.

        Returns:
            Of each query the videos, best first.
        """
        scores, places = self._search(queries, top, None if exact else self._open_faiss())
        found = []
        for row, marks in zip(places, scores, strict=True):
            found.append(
                [
                    Found(self.videos(self.shards[place >> 32])[place & _ROW], mark)
                    for place, mark in zip(row.tolist(), marks.tolist(), strict=True)
                ]
            )
        return found

    def _search(
        self, queries: np.ndarray, top: int, faiss_index: Any, nprobe: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 [Q, k] and places int64 [Q, k], k = min(top, videos)."""
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise ValueError(f"queries have shape {queries.shape}, the index is of width {self.width}")
        if not len(self):
            raise SearchIndexError(f"index {self.folder}: holds no video; add some")
        best = _Best(len(queries), min(top, len(self)))
        covered: set[str] = set()
        if faiss_index is not None and self.faiss is not None:
            covered = set(self.faiss["shards"])
            for i, places in enumerate(self._candidates(queries, top, faiss_index, nprobe or self.faiss["nprobe"])):
                products = self._gather(places) @ queries[i]
                best.take(products[None], places, slice(i, i + 1))
        for number, shard in enumerate(self.shards):
            if shard.name in covered:
                continue
            vectors = self.vectors(shard)
            gone = np.array(self.removed.get(shard.name, ()), np.int64)
            for start in range(0, len(vectors), _BLOCK):
                block = vectors[start : start + _BLOCK]
                products = queries @ block.T
                products[:, gone[(gone >= start) & (gone < start + len(block))] - start] = -np.inf
                best.take(products, (number << 32) + start + np.arange(len(block)))
        scores, places = best.result()
        lacking = (places < 0).any(axis=1)
        if lacking.any():  # the lists that FAISS looked through hold fewer than were asked for
            scores[lacking], places[lacking] = self._search(queries[lacking], top, None)
        return scores, places

    def _gather(self, places: np.ndarray) -> np.ndarray:
        """float32 [n, E] of places, read from the mapped files."""
        rows = np.empty((len(places), self.width), np.float32)
        for number in np.unique(places >> 32).tolist():
            chosen = places >> 32 == number
            rows[chosen] = self.vectors(self.shards[number])[places[chosen] & _ROW]
        return rows

    # --- FAISS

    def build_faiss(self, recall: float = 0.95, queries: np.ndarray | None = None, seed: int = 0) -> None:
        """Make an IVF-PQ index of all shards, and measure it against exact search. For use in :meth:`changing`.

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
        if len(self) < FEWEST_FOR_FAISS:
            raise ConfigError(
                f"index {self.folder}: {len(self)} videos; FAISS needs {FEWEST_FOR_FAISS} to be trained, and exact "
                "search of so few takes no time"
            )
        rows = [(number << 32) + np.arange(shard.videos) for number, shard in enumerate(self.shards)]
        places = np.concatenate(rows)[self._alive(self.shards)]
        shuffled = np.random.default_rng(seed).permutation(places)
        held_out = shuffled[: min(500, len(places) // 10)]
        lists = max(1, min(int(4 * len(places) ** 0.5), len(places) // 39))  # FAISS asks for 39 points a centroid
        trained_on = np.sort(shuffled[len(held_out) :][: max(64 * lists, 65_536)])
        parts = max(m for m in range(1, max(1, self.width // 4) + 1) if self.width % m == 0)
        made = faiss.IndexIVFPQ(faiss.IndexFlatIP(self.width), self.width, lists, parts, 8, faiss.METRIC_INNER_PRODUCT)
        made.cp.min_points_per_centroid = made.pq.cp.min_points_per_centroid = 1  # few videos are no warning
        log.info("training FAISS on %d videos: %d lists, %d bytes a video", len(trained_on), lists, parts)
        made.train(self._gather(trained_on))
        for shard in tqdm(self.shards, desc="adding to FAISS", unit="shard", delay=2, leave=False, disable=None):
            made.add(self.vectors(shard))  # removed ones too, so that a number is a place; they are passed over
        number = self.about["next"]
        name = f"faiss-{number:05d}.index"
        _write_faiss(made, self.folder / name)
        del made

        about = {
            "file": name,
            "bytes": (self.folder / name).stat().st_size,
            "shards": [shard.name for shard in self.shards],
            "lists": lists,
            "bytes_per_video": parts,
            "nprobe": 1,
            "measured_on": f"{len(held_out)} videos that training did not see"
            if queries is None
            else f"{len(queries)} given queries",
            "recall": {},
        }
        before, self.faiss = self.faiss, about
        try:
            opened = _map_faiss(self.folder / name)
            own = held_out if queries is None else None
            asked = self._gather(held_out) if queries is None else queries
            about["nprobe"], about["recall"] = self._tune(opened, asked, own, lists, recall)
        finally:
            self.faiss = before
        self._commit({**self.about, "next": number + 1, "faiss": about})

    def _tune(
        self, faiss_index: Any, queries: np.ndarray, own: np.ndarray | None, lists: int, target: float
    ) -> tuple[int, dict[str, float]]:
        """How many lists to probe, and the recall at each depth. ``own``: the places of the queries themselves."""
        itself = 0 if own is None else 1
        truth = _without(self._search(queries, max(RECALL_DEPTHS) + itself, None)[1], own)

        def recall(depth: int, nprobe: int) -> float:
            """Of searches for so many videos; a search for more looks deeper."""
            found = _without(self._search(queries, depth + itself, faiss_index, nprobe)[1], own)
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

    def _candidates(self, queries: np.ndarray, top: int, faiss_index: Any, nprobe: int) -> list[np.ndarray]:
        """Places of the living videos that FAISS takes for the best ones, of each query; more than were asked for."""
        import faiss

        assert self.faiss is not None
        shards = self._covered()
        parameters = faiss.SearchParametersIVF(nprobe=nprobe)
        if any(shard.name in self.removed for shard in shards):
            bits = np.packbits(self._alive(shards), bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)  # both have to outlive the search
            parameters = faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
        deep = min(max(_DEEPER * top, 100), faiss_index.ntotal)
        _, numbers = faiss_index.search(np.ascontiguousarray(queries), deep, params=parameters)
        number = {shard.name: i for i, shard in enumerate(self.shards)}
        ends = np.cumsum([shard.videos for shard in shards])
        starts = ends - [shard.videos for shard in shards]
        at = np.array([number[shard.name] for shard in shards], np.int64)
        candidates = []
        for row in numbers:
            found = row[row >= 0]
            which = np.searchsorted(ends, found, side="right")
            candidates.append((at[which] << 32) + found - starts[which])
        return candidates

    def _covered(self) -> list[Shard]:
        by_name = {shard.name: shard for shard in self.shards}
        assert self.faiss is not None
        return [by_name[name] for name in self.faiss["shards"]]

    def _alive(self, shards: Sequence[Shard]) -> np.ndarray:
        """bool, of every row of these shards in order."""
        masks = []
        for shard in shards:
            mask = np.ones(shard.videos, bool)
            mask[self.removed.get(shard.name, [])] = False
            masks.append(mask)
        return np.concatenate([*masks, np.empty(0, bool)])

    def _open_faiss(self) -> Any:
        """What FAISS made, memory-mapped; ``None`` where there is none, or no FAISS to read it."""
        if self.faiss is None:
            return None
        if self._faiss is None:
            path = self.folder / self.faiss["file"]
            try:
                import_faiss()
            except ConfigError as error:
                log.warning("%s; searching exactly", error)
                return None
            try:  # a file that was cut short would end the process when its end is read
                if path.stat().st_size != self.faiss["bytes"]:
                    raise RuntimeError(f"{path.stat().st_size} bytes, not {self.faiss['bytes']}")
                self._faiss = (path.name, _map_faiss(path))
            except (OSError, RuntimeError) as error:
                raise SearchIndexError(
                    f"index {self.folder}: {path.name} is damaged or missing ({_first_line(error)}); make it anew with "
                    "build-faiss, or search with --exact"
                ) from None
        return self._faiss[1]


class _Best:
    """The k best of what was seen so far, of each of Q queries."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.scores = np.full((queries, k), -np.inf, np.float32)
        self.places = np.full((queries, k), -1, np.int64)

    def take(self, scores: np.ndarray, places: np.ndarray, rows: slice = slice(None)) -> None:
        """Scores [q, n] of places [n], for some of the queries."""
        scores = np.concatenate((self.scores[rows], scores), axis=1)
        places = np.concatenate((self.places[rows], np.broadcast_to(places, (len(scores), len(places)))), axis=1)
        if self.k < scores.shape[1]:
            kept = np.argpartition(-scores, self.k - 1, axis=1)[:, : self.k]
            scores, places = np.take_along_axis(scores, kept, axis=1), np.take_along_axis(places, kept, axis=1)
        self.scores[rows], self.places[rows] = scores, places

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Best first; equal ones in the order of the index."""
        order = np.stack([np.lexsort(pair) for pair in zip(self.places, -self.scores, strict=True)])
        return np.take_along_axis(self.scores, order, axis=1), np.take_along_axis(self.places, order, axis=1)


def _without(places: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """Each row without its own place, or without its last one where it lacks that: [Q, k + 1] -> [Q, k]."""
    if own is None:
        return places
    keep = places != own[:, None]
    keep[keep.all(axis=1), -1] = False
    return places[keep].reshape(len(places), -1)


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SearchIndexError(f"index {path.parent}: its {INDEX_FILE} is damaged ({error}); put back a copy") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise SearchIndexError(f"index {path.parent}: its {INDEX_FILE} is not of an index that this package made")
    if about.get("version") != VERSION:
        raise SearchIndexError(
            f"index {path.parent}: format {about.get('version')}, this is format {VERSION}; make it anew"
        )
    needed = ("method", "width", "features", "model", "settings", "next", "shards", "removed", "faiss")
    missing = [key for key in needed if key not in about]
    if missing:
        raise SearchIndexError(f"index {path.parent}: its {INDEX_FILE} lacks {', '.join(missing)}; put back a copy")
    try:
        videos = {shard["name"]: shard["videos"] for shard in about["shards"]}
        fits = all(0 <= row < videos[name] for name, rows in about["removed"].items() for row in rows)
        fits &= about["faiss"] is None or set(about["faiss"]["shards"]) <= set(videos)
    except (KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise SearchIndexError(
            f"index {path.parent}: its {INDEX_FILE} contradicts itself (shards, removed, faiss); put back a copy"
        )
    return about


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def import_faiss() -> Any:
    """The module. Raises :class:`ConfigError` where it isn't installed."""
    try:
        import faiss
    except ImportError:
        raise ConfigError("FAISS is not installed; pip install 'vpgfast[faiss]'") from None
    return faiss


def _write_faiss(made: Any, path: Path) -> None:
    """Whole or not at all."""
    import faiss

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        faiss.write_index(made, os.fspath(temporary))
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise SearchIndexError(f"can't write {path}: {_first_line(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Around the reading of a file of an index, which says what to do where the file is not what it should be."""
    try:
        yield
    except (OSError, ValueError, EOFError, KeyError, IndexError, TypeError) as error:
        raise SearchIndexError(
            f"index {path.parent}: {path.name} is damaged or missing ({_first_line(error)}); put back a copy of the "
            "file, or make the index anew"
        ) from None


def _first_line(what: object) -> str:
    return "the file is gone" if isinstance(what, FileNotFoundError) else str(what).split("\n")[0]


def _map_faiss(path: Path) -> Any:
    import faiss

    return faiss.read_index(os.fspath(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
