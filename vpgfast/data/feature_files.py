"""Writing features of videos so that a kill at any moment loses at most the video in work.

Each video becomes a file ``NAME.npz`` that appears whole or not at all, and a line in a journal. A folder output is
these files; for an HDF5 output they lie in ``OUTPUT.parts`` until all are there, and are then put together into the
file, which is replaced in one step.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vpgfast.encoders.identity import Identity
from vpgfast.errors import FeatureError
from vpgfast.files import hold

HDF5_SUFFIXES = (".h5", ".hdf5")
HIDDEN = ".vpgfast"
"""Group of an HDF5 file, and beginning of files in a folder, that are no videos."""
ABOUT_FILE = f"{HIDDEN}-about.json"
"""In a folder: who made the features, and how."""
_JOURNAL, _LOCK = f"{HIDDEN}-journal", f"{HIDDEN}-lock"
_OF_A_VIDEO = ("features", "times")
"""In an HDF5 file, what the group of a video holds."""
_LONGEST = 255
"""Bytes that the name of a file may have, on all usual file systems."""

DType = Literal["float32", "float16"]


@dataclass(frozen=True)
class Source:
    """The file that a video's features were made of, as far as a second run looks at it.

    Attributes:
        size: bytes.
        mtime_ns: when it was last changed, nanoseconds.
    """

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Source:
        """Of a file, or of a folder of frames (its own time, and the sum of its files' sizes)."""
        status = path.stat()
        folder = stat.S_ISDIR(status.st_mode)
        return cls(sum(f.stat().st_size for f in path.iterdir()) if folder else status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class VideoFeatures:
    """Features of one video, as they are stored.

    Attributes:
        features: float32 [T, d].
        times: float64 [T, 2], where each row begins and ends, seconds.
        duration: of the video, seconds.
        problems: what is odd about the file, a line each.
        source: the file.
    """

    features: np.ndarray
    times: np.ndarray
    duration: float
    problems: tuple[str, ...]
    source: Source


@dataclass(frozen=True)
class Stored:
    """What an output holds already.

    Attributes:
        abouts: of the HDF5 file and of the folder of parts, as far as they are there: who made the features, how.
        merged: the videos in the HDF5 file, and what they were made of.
        parts: those with a file of their own.
    """

    abouts: list[dict[str, Any]]
    merged: dict[str, Source]
    parts: dict[str, Source]

    @property
    def done(self) -> dict[str, Source]:
        """All videos whose features are there."""
        return self.merged | self.parts


def unfit_names(names: Collection[str], there: Collection[str] = ()) -> dict[str, str]:
    """Of videos' names, those under which nothing can be stored, and why; every video that is left has a place.

    HDF5 takes names in UTF-8 alone, and "." for the group itself; a video's group holds ``features`` and ``times``, so
    beside ``a`` there is no ``a/times``; and who reads a folder passes over files that begin with a dot.

    Args:
        names: of the videos.
        there: names of videos that are stored already.
    """
    found: dict[str, str] = {}
    every = {*names, *there}
    for name in names:
        folder, _, last = name.rpartition("/")
        if any("\udc80" <= letter <= "\udcff" for letter in name):
            found[name] = "its name is not in UTF-8"
        elif any(part.startswith(".") for part in name.split("/")):
            found[name] = f"features can't be stored under the name {name!r}, which begins with a dot"
        elif len(last.encode()) + len(".npz") > _LONGEST:
            found[name] = f"its name is too long: {len(last.encode())} bytes, which leaves no room for .npz"
        elif last in _OF_A_VIDEO and folder in every:
            found[name] = f"features can't be stored as {name!r} beside those of the video {folder!r}"
        elif inner := next((f"{name}/{part}" for part in _OF_A_VIDEO if f"{name}/{part}" in there), None):
            found[name] = f"features can't be stored as {name!r} beside those of the video {inner!r}, which are there"
    return found


def is_hdf5(output: Path) -> bool:
    """Whether an output is an HDF5 file, by its name; else it is a folder."""
    return output.suffix.lower() in HDF5_SUFFIXES


def parts_folder(output: Path) -> Path:
    """Where files of single videos lie."""
    return output.with_name(output.name + ".parts") if is_hdf5(output) else output


def read_stored(output: Path) -> Stored:
    """Look at an output; nothing is there yet, or an unfinished run, or a finished one.

    Raises:
        FeatureError: something else is there, or it is damaged.
    """
    folder = parts_folder(output)
    if is_hdf5(output) and output.is_dir():
        raise FeatureError(f"--output {output}: is a folder; give a file, or a folder without .h5 in its name")
    if not is_hdf5(output) and output.exists() and not output.is_dir():
        raise FeatureError(f"--output {output}: is a file; name an HDF5 file .h5 or .hdf5, or give a folder")
    # The parts before the HDF5 file: what a run at work takes away from the parts meanwhile is in the file by then.
    abouts: list[dict[str, Any]] = []
    try:
        abouts.append(_about((folder / ABOUT_FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        if foreign := next((file for file in folder.glob("*") if file.suffix in (".npy", ".npz")), None):
            raise FeatureError(
                f"--output {output}: holds {foreign.name}, which was not made here; give another"
            ) from None
    except (OSError, ValueError) as error:
        raise FeatureError(f"{folder / ABOUT_FILE}: damaged ({error}); delete {folder}") from None
    parts = _read_journals(folder)
    merged: dict[str, Source] = {}
    if is_hdf5(output) and output.exists():
        about, merged = _read_hdf5(output)
        abouts.append(about)
    return Stored(abouts, merged, parts)


def _about(text: str | bytes) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"found {text[:20]!r}")
    return found


def _read_hdf5(path: Path) -> tuple[dict[str, Any], dict[str, Source]]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if HIDDEN not in file:
                raise FeatureError(f"--output {path}: an HDF5 file that was not made here; give another")
            group = file[HIDDEN]
            rows = json.loads(bytes(group["sources"][()]))
            return _about(group.attrs["about"]), {name: Source(*row) for name, row in rows.items()}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        if getattr(error, "errno", None) == errno.EAGAIN:
            raise FeatureError(f"--output {path}: is open for writing in another program; wait for it") from None
        reason = " ".join(str(error).split())
        raise FeatureError(f"--output {path}: no HDF5 file of features, or cut short ({reason})") from None


def _read_journals(folder: Path) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for journal in sorted(folder.glob(f"{_JOURNAL}.*.jsonl")):
        try:
            lines = journal.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            continue  # the run that wrote it has just put everything into the HDF5 file
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # a line that a kill cut short, or a disk damaged: its video is made again
            match row:
                case [str(name), int(size), int(mtime_ns)] if (folder / f"{name}.npz").is_file():
                    found[name] = Source(size, mtime_ns)
    return found


class FeatureStore:
    """Where features are written to: an HDF5 file, or a folder of ``.npz`` files.

    Args:
        output: the file (``.h5`` or ``.hdf5``) or folder.
        identity: the encoder that makes the features.
        about: what else is kept beside them, as JSON can hold it.
        dtype: in which the features are stored.
        rank: of this process among several that write to one output, or another name that none of them has.

    Raises:
        FeatureError: the output holds features of another encoder, or can't be written.
    """

    def __init__(
        self,
        output: Path,
        identity: Identity,
        about: Mapping[str, Any],
        dtype: DType = "float32",
        rank: int | str = 0,
    ) -> None:
        self.output, self.identity, self.dtype = output, identity, dtype
        self.about = {"encoder": asdict(identity), "dtype": dtype, **about}
        self.folder = parts_folder(output)
        self.rank = rank
        self._journal, self._lock = f"{_JOURNAL}.{rank}.jsonl", f"{_LOCK}.{rank}"
        for other in read_stored(output).abouts:
            self._check_same(other)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(ABOUT_FILE, json.dumps(self.about).encode())
        except OSError as error:
            raise FeatureError(f"--output {output}: can't be written ({error.strerror})") from None

    def _check_same(self, about: Mapping[str, Any]) -> None:
        try:
            other = Identity(**about["encoder"])
            found = self.identity.differences(other)
        except (KeyError, TypeError):
            raise FeatureError(f"--output {self.output}: its description is damaged; delete it") from None
        if about.get("dtype") != self.dtype:
            found.append(f"dtype {self.dtype} and {about.get('dtype')}")
        if found:
            raise FeatureError(
                f"--output {self.output}: holds features of another encoder, {other.spec} ({'; '.join(found[:3])}); "
                "give another --output"
            )

    def part(self, name: str) -> Path:
        """The ``.npz`` file of a video."""
        return self.folder / f"{name}.npz"

    def add(self, name: str, video: VideoFeatures) -> None:
        """Write the features of one video. Raises :class:`FeatureError` where they can't be written."""
        about = {"problems": video.problems, "source": asdict(video.source), **self.about}
        buffer = io.BytesIO()
        np.savez(
            buffer,
            features=video.features.astype(self.dtype),
            times=video.times,
            duration=np.float64(video.duration),
            about=np.array(json.dumps(about)),
        )
        try:
            path = self.part(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(f"{name}.npz", buffer.getvalue())
            with (self.folder / self._journal).open("ab") as file:
                line = json.dumps([name, video.source.size, video.source.mtime_ns])
                file.write(b"\n" if _cut(self.folder / self._journal) else b"")
                file.write(line.encode() + b"\n")
        except OSError as error:
            raise FeatureError(f"--output {self.output}: can't write {name}.npz ({error.strerror})") from None

    def _write(self, name: str, content: bytes) -> None:
        temporary = self._temporary()
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / name)
        finally:
            temporary.unlink(missing_ok=True)

    def _temporary(self) -> Path:
        """Where a file is written before it is moved into place; a short name, for that of a video may be long."""
        return self.folder / f"{HIDDEN}-{self.rank}.{os.getpid()}.tmp"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs (not other ranks of this one) away. Raises :class:`FeatureError` while one is at work."""
        with (self.folder / self._lock).open("w") as file:
            if not hold(file):
                raise FeatureError(f"--output {self.output}: another extract is writing to it; wait for it")
            for left in self.folder.glob(f"{HIDDEN}-{self.rank}.*.tmp"):  # by a run that was killed
                left.unlink(missing_ok=True)
            yield

    def finish(self) -> None:
        """Put the parts together into the HDF5 file, in the order of their names; nothing to do for a folder."""
        if not is_hdf5(self.output):
            return
        state = read_stored(self.output)
        if state.parts or not self.output.exists():
            self._merge(state)
        # What says that the folder was made here goes last: a kill in between leaves nothing that looks foreign.
        for left in self.folder.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            elif left.name != ABOUT_FILE:
                left.unlink()
        shutil.rmtree(self.folder)

    def _copy_part(self, name: str, file: Any) -> None:
        path = self.part(name)
        try:
            features, times, duration, problems = _read_part(path)
        except Exception as error:  # what a damaged archive raises is not bounded
            path.unlink(missing_ok=True)
            raise FeatureError(
                f"--output {self.output}: {path} was damaged ({error}), and is deleted; the same command makes it anew"
            ) from None
        group = file.create_group(name)
        group["features"], group["times"] = features, times
        group.attrs["duration"] = duration
        group.attrs["problems"] = text_attribute(json.dumps(problems))

    def _copy_merged(self, name: str, old: Any, file: Any) -> None:
        try:
            old.copy(name, file, name)
        except (RuntimeError, KeyError) as error:
            raise FeatureError(
                f"--output {self.output}: the features of {name!r} in it are damaged ({' '.join(str(error).split())}); "
                "give another --output, or delete it"
            ) from None

    def _check_room(self, temporary: Path, state: Stored) -> None:
        """Raise :class:`OSError` where the HDF5 file won't fit; its library may crash when it runs out of space."""
        room = sum(self.part(name).stat().st_size for name in state.parts)  # a little more than in the HDF5 file
        room += self.output.stat().st_size if state.merged else 0
        with temporary.open("wb") as file:
            file.truncate(room)  # takes no space, but is refused where files may not be so long
        if room > shutil.disk_usage(self.folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _merge(self, state: Stored) -> None:
        import h5py
        from tqdm import tqdm

        temporary = self._temporary()
        title = f"writing {self.output.name}"
        try:
            self._check_room(temporary, state)
            with ExitStack() as stack:
                file = stack.enter_context(h5py.File(temporary, "w", libver="latest"))
                old = stack.enter_context(h5py.File(self.output, "r")) if state.merged else None
                file.attrs["source"] = text_attribute(source_line(self.identity))
                group = file.create_group(HIDDEN)
                group.attrs["about"] = text_attribute(json.dumps(self.about))
                rows = json.dumps({name: [one.size, one.mtime_ns] for name, one in sorted(state.done.items())})
                group["sources"] = np.frombuffer(rows.encode(), np.uint8)
                for video in tqdm(sorted(state.done), desc=title, unit="video", delay=2, leave=False, disable=None):
                    if video in state.parts:
                        self._copy_part(video, file)
                    else:
                        assert old is not None
                        self._copy_merged(video, old, file)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, self.output)
        except (
            OSError,
            RuntimeError,
        ) as error:  # HDF5 raises the latter where the disk is full when it closes the file
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise FeatureError(
                f"--output {self.output}: can't be written ({reason}); the features are in {self.folder}, the same "
                "command goes on"
            ) from None
        finally:
            temporary.unlink(missing_ok=True)


def text_attribute(text: str) -> np.bytes_:
    """As an attribute of an HDF5 file holds it: damaged text of variable length keeps that library busy for ever."""
    return np.bytes_(text.encode())


def _read_part(path: Path) -> tuple[np.ndarray, np.ndarray, float, list[str]]:
    with np.load(path, allow_pickle=False) as content:
        problems = json.loads(str(content["about"]))["problems"]
        return content["features"], content["times"], float(content["duration"]), problems


def source_line(identity: Identity) -> str:
    """What features are, for logs and tables."""
    return identity.spec + (f" (SHA-256 {identity.sha256[:12]})" if identity.sha256 else "")


def _cut(path: Path) -> bool:
    """Whether a kill left the last line of a journal unfinished."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False  # empty, or not there
