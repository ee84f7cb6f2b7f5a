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

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from vpgfast.errors import ConfigError, SearchIndexError
from vpgfast.files import hold, output_folder, write_file
from vpgfast.search import faiss_index
from vpgfast.search.about import FORMAT, INDEX_FILE, VERSION, file_hash, read_about
from vpgfast.search.best import Best
from vpgfast.search.shards import SHARD, Shard, ShardVideos, VideoEntry, first_line, reading

log = logging.getLogger(__name__)

T = TypeVar("T")

MODEL_FILE = "model.safetensors"
_LOCK = ".lock"
_ROW = 0xFFFFFFFF  # a place is (number of the shard << 32) + row
_BLOCK = 65_536  # products of a query that are in memory at once


@dataclass(frozen=True)
class Found:
    """A video and how well it fits a query: the product of two vectors of length 1, in [-1, 1]."""

    video: VideoEntry
    score: float


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
        named = {shard.name for shard in self.shards}
        for cache in (self._vectors, self._videos):
            for name in set(cache) - named:
                del cache[name]
        if self._faiss is not None and (self.faiss is None or self._faiss[0] != self.faiss["file"]):
            self._faiss = None

    @classmethod
    def create(
        cls,
        folder: Path,
        width: int,
        model: Path,
        method: str,
        features: dict[str, Any],
        settings: Sequence[str] = (),
        probe: Sequence[Sequence[float]] = (),
    ) -> VideoIndex:
        """Make an empty index in a new or empty folder.

        Args:
            folder: to make it in.
            width: E of the vectors.
            model: checkpoint file that makes the vectors; it is copied.
            method: name of its method.
            features: what it takes, ``{"source": ..., "width": ...}``.
            settings: of the model's run that were changed, as command-line arguments.
            probe: what the model makes of fixed inputs (:meth:`vpgfast.search.searcher.Searcher.probe`), by which it is
                known again.

        Raises:
            SearchIndexError: the folder holds something else, or another process is making an index there.
            UserError: it can't be written.
        """
        data = model.read_bytes()
        about = {
            "format": FORMAT,
            "version": VERSION,
            "method": method,
            "width": width,
            "features": features,
            "model": {"from": str(model.resolve()), "sha256": hashlib.sha256(data).hexdigest()},
            "settings": list(settings),
            "probe": [list(row) for row in probe],
            "next": 0,
            "shards": [],
            "removed": {},
            "faiss": None,
        }
        index = cls(folder, about)
        with _held(output_folder(folder, "index folder")):
            foreign = [path.name for path in folder.iterdir() if not path.name.startswith((".", MODEL_FILE))]
            if foreign:
                raise SearchIndexError(
                    f"index folder {folder}: holds other files ({', '.join(sorted(foreign)[:3])}); give a new folder"
                )
            write_file(folder / MODEL_FILE, data)
            index.commit(about)
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
        return cls(folder, read_about(path))

    # --- what it holds

    def refresh(self) -> bool:
        """Take in what another process has changed since the index was opened; says whether it has.

        Raises:
            SearchIndexError: the index is gone or damaged, or another model has made it anew.
        """
        about = read_about(self.folder / INDEX_FILE)
        if about == self.about:
            return False
        if about["model"]["sha256"] != self.about["model"]["sha256"]:
            raise SearchIndexError(f"index {self.folder}: was made anew by another model meanwhile; open it again")
        self._vectors, self._videos, self._names, self._faiss = {}, {}, None, None  # a new index has files of old names
        self._take(about)
        return True

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
            with reading(path):
                array = np.load(path, mmap_mode="r", allow_pickle=False)
                if not isinstance(array, np.ndarray):
                    raise ValueError("an archive, not an array")
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
        with _held(self.folder):
            self.refresh()
            self._names = None
            for left in self.folder.glob(".*.tmp"):  # by a process that was killed
                left.unlink(missing_ok=True)
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
        self.commit({**self.about, "next": self.about["next"] + 1, "shards": listed, "removed": removed})

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
        self.commit({**self.about, "removed": self._with_removed([there.pop(name) for name in dict.fromkeys(names)])})

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
        self.commit({**self.about, "next": number + len(shards), "shards": listed, "removed": {}, "faiss": None})

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

    def commit(self, about: dict[str, Any]) -> None:
        """Make a change count, and drop the files that no longer do."""
        write_file(self.folder / INDEX_FILE, (json.dumps(about, indent=1) + "\n").encode())
        self._take(about)
        named = {shard.name for shard in self.shards}
        kept = {f"vectors-{name}.npy" for name in named} | {f"videos-{name}.json" for name in named}
        kept |= {self.faiss["file"]} if self.faiss else set()
        for pattern in ("vectors-*.npy", "videos-*.json", "faiss-*.index"):
            for path in self.folder.glob(pattern):
                if path.name not in kept:
                    path.unlink(missing_ok=True)

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
        return self.steadily(lambda: self._search(queries, top, exact))

    def steadily(self, look: Callable[[], T]) -> T:
        """What ``look`` finds in the files; again where another process has meanwhile replaced them (``compact``,
        ``build-faiss``)."""
        while True:
            try:
                return look()
            except SearchIndexError:
                if not self.refresh():
                    raise

    def _search(self, queries: np.ndarray, top: int, exact: bool) -> list[list[Found]]:
        scores, places = self.ranked(queries, top, None if exact else self._open_faiss())
        found = []
        for row, marks in zip(places, scores, strict=True):
            found.append(
                [
                    Found(self.videos(self.shards[place >> 32])[place & _ROW], mark)
                    for place, mark in zip(row.tolist(), marks.tolist(), strict=True)
                ]
            )
        return found

    def ranked(
        self, queries: np.ndarray, top: int, opened: Any, nprobe: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 [Q, k] and places int64 [Q, k], k = min(top, videos)."""
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise ValueError(f"queries have shape {queries.shape}, the index is of width {self.width}")
        if not np.isfinite(queries).all():
            raise ValueError("queries hold what is no number")
        if not len(self):
            raise SearchIndexError(f"index {self.folder}: holds no video; add some")
        best = Best(len(queries), min(top, len(self)))
        covered: set[str] = set()
        if opened is not None and self.faiss is not None:
            covered = set(self.faiss["shards"])
            for i, places in enumerate(
                faiss_index.candidates(self, queries, top, opened, nprobe or self.faiss["nprobe"])
            ):
                products = self.gather(places) @ queries[i]
                best.take(products[None], places, slice(i, i + 1))
        for number, shard in enumerate(self.shards):
            if shard.name in covered:
                continue
            vectors = self.vectors(shard)
            gone = np.array(self.removed.get(shard.name, ()), np.int64)
            for start in range(0, len(vectors), _BLOCK):
                block = vectors[start : start + _BLOCK]
                places = (number << 32) + start + np.arange(len(block))
                with np.errstate(invalid="ignore", over="ignore"):
                    products = queries @ block.T
                self._check(products.T, places)
                products[:, gone[(gone >= start) & (gone < start + len(block))] - start] = -np.inf
                best.take(products, places)
        scores, places = best.result()
        lacking = (places < 0).any(axis=1)
        if opened is not None and lacking.any():  # the lists that FAISS looked through hold fewer than were asked for
            scores[lacking], places[lacking] = self.ranked(queries[lacking], top, None)
        return scores, places

    def _check(self, numbers: np.ndarray, places: np.ndarray) -> None:
        """Raises :class:`SearchIndexError` with the file of the first of ``places`` [n] where ``numbers`` [n, any],
        the vectors there or their products, are not all finite."""
        finite = np.isfinite(numbers).all(axis=1)
        if not finite.all():
            place = int(places[finite.argmin()])
            with reading(self.folder / f"vectors-{self.shards[place >> 32].name}.npy"):
                raise ValueError(f"row {place & _ROW} holds what is no number")

    def gather(self, places: np.ndarray) -> np.ndarray:
        """float32 [n, E] of places, read from the mapped files. Raises as :meth:`vectors`."""
        rows = np.empty((len(places), self.width), np.float32)
        for number in np.unique(places >> 32).tolist():
            chosen = places >> 32 == number
            rows[chosen] = self.vectors(self.shards[number])[places[chosen] & _ROW]
        self._check(rows, places)
        return rows

    # --- FAISS

    def build_faiss(self, recall: float = 0.95, queries: np.ndarray | None = None, seed: int = 0) -> None:
        """Let FAISS index all shards, see :func:`vpgfast.search.faiss_index.build`. For use in :meth:`changing`."""
        faiss_index.build(self, recall, queries, seed)

    def alive(self, shards: Sequence[Shard]) -> np.ndarray:
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
                faiss_index.import_faiss()
            except ConfigError as error:
                log.warning("%s; searching exactly", error)
                return None
            try:  # a file that was cut short would end the process when its end is read
                if path.stat().st_size != self.faiss["bytes"]:
                    raise RuntimeError(f"{path.stat().st_size} bytes, not {self.faiss['bytes']}")
                self._faiss = (path.name, faiss_index.map_faiss(path))
            except (OSError, RuntimeError) as error:
                raise SearchIndexError(
                    f"index {self.folder}: {path.name} is damaged or missing ({first_line(error)}); make it anew with "
                    "build-faiss, or search with --exact"
                ) from None
        return self._faiss[1]


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other processes from changing an index."""
    try:
        lock = (folder / _LOCK).open("w")
    except OSError as error:
        raise SearchIndexError(f"index {folder}: can't be changed ({error.strerror})") from None
    with lock:
        if not hold(lock):
            raise SearchIndexError(f"index {folder}: another process is changing it; wait for it")
        yield
