"""Writing features of videos so that a kill at any moment loses at most the video in work.

Each video becomes a file ``NAME.npz`` that appears whole or not at all, and a line in a journal. A folder output is
these files; for an HDF5 output they lie in ``OUTPUT.parts`` until all are there, and are then put together into the
file, which is replaced in one step.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vpgfast.encoders.identity import Identity
from vpgfast.errors import FeatureError

HDF5_SUFFIXES = (".h5", ".hdf5")
HIDDEN = ".vpgfast"
"""Group of an HDF5 file, and beginning of files in a folder, that are no videos."""
_JOURNAL, _ABOUT, _LOCK = f"{HIDDEN}-journal", f"{HIDDEN}-about.json", f"{HIDDEN}-lock"

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
        stat = path.stat()
        size = sum(f.stat().st_size for f in path.iterdir()) if path.is_dir() else stat.st_size
        return cls(size, stat.st_mtime_ns)


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


class FeatureStore:
    """Where features are written to: an HDF5 file, or a folder of ``.npz`` files.

    Args:
        output: the file (``.h5`` or ``.hdf5``) or folder.
        identity: the encoder that makes the features.
        versions: of the software, kept beside them.
        dtype: in which the features are stored.
        rank: of this process among several that write to one output.

    Raises:
        FeatureError: the output holds features of another encoder, or can't be written.
    """

    def __init__(
        self,
        output: Path,
        identity: Identity,
        versions: Mapping[str, str],
        dtype: DType = "float32",
        rank: int = 0,
    ) -> None:
        self.output, self.identity, self.versions, self.dtype = output, identity, dict(versions), dtype
        self.is_file = output.suffix.lower() in HDF5_SUFFIXES
        self.folder = output.with_name(output.name + ".parts") if self.is_file else output
        self._journal = f"{_JOURNAL}.{rank}.jsonl"
        self._stored: dict[str, Source] = {}  # in the HDF5 file
        self._check_kind()
        if self.is_file and output.exists():
            self._stored = self._read_stored()
        if (self.folder / _ABOUT).is_file():
            self._check_same(self.folder / _ABOUT, (self.folder / _ABOUT).read_text(encoding="utf-8"))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(_ABOUT, self._about().encode())
        except OSError as error:
            raise FeatureError(f"--output {output}: can't be written ({error.strerror})") from None

    def _check_kind(self) -> None:
        if self.is_file and self.output.is_dir():
            raise FeatureError(f"--output {self.output}: is a folder; give a file, or a folder without .h5 in its name")
        if not self.is_file and self.output.exists() and not self.output.is_dir():
            raise FeatureError(f"--output {self.output}: is a file; name an HDF5 file .h5 or .hdf5, or give a folder")
        if not self.is_file and self.output.is_dir() and not (self.output / _ABOUT).is_file():
            foreign = next((file for file in self.output.iterdir() if file.suffix in (".npy", ".npz")), None)
            if foreign is not None:
                raise FeatureError(
                    f"--output {self.output}: holds {foreign.name}, which was not made here; give another"
                )

    def _about(self) -> str:
        return json.dumps(
            {"encoder": json.loads(self.identity.to_json()), "dtype": self.dtype, "versions": self.versions}
        )

    def _check_same(self, where: Path, about: str) -> None:
        try:
            content = json.loads(about)
            other = Identity.from_json(json.dumps(content["encoder"]))
        except (ValueError, KeyError, TypeError):
            raise FeatureError(f"{where}: damaged; delete {self.output} or give another --output") from None
        found = self.identity.differences(other) if other.key != self.identity.key else []
        if content.get("dtype") != self.dtype:
            found.append(f"dtype {self.dtype} and {content.get('dtype')}")
        if found:
            raise FeatureError(
                f"--output {self.output}: holds features of another encoder, {other.spec} ({'; '.join(found[:3])}); "
                "give another --output"
            )

    def _read_stored(self) -> dict[str, Source]:
        import h5py

        try:
            with h5py.File(self.output, "r") as file:
                if HIDDEN not in file:
                    raise FeatureError(f"--output {self.output}: an HDF5 file that was not made here; give another")
                group = file[HIDDEN]
                self._check_same(self.output, group.attrs["about"])
                rows = json.loads(bytes(group["sources"][()]))
                return {name: Source(*row) for name, row in rows.items()}
        except (OSError, KeyError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise FeatureError(f"--output {self.output}: no HDF5 file of features, or cut short ({reason})") from None

    def done(self) -> dict[str, Source]:
        """The videos whose features are there, and what they were made of."""
        return self._stored | self._parts()

    def _parts(self) -> dict[str, Source]:
        found: dict[str, Source] = {}
        for journal in sorted(self.folder.glob(f"{_JOURNAL}.*.jsonl")):
            for line in journal.read_text(encoding="utf-8").splitlines():
                try:
                    name, size, mtime_ns = json.loads(line)
                except ValueError:
                    continue  # a line that a kill cut short: its video is made again
                found[name] = Source(size, mtime_ns)
        return found

    def part(self, name: str) -> Path:
        """The ``.npz`` file of a video."""
        return self.folder / f"{name}.npz"

    def add(self, name: str, video: VideoFeatures) -> None:
        """Write the features of one video. Raises :class:`FeatureError` where they can't be written."""
        about = {"problems": video.problems, "source": asdict(video.source), "made": json.loads(self._about())}
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
        path = self.folder / name
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs (not other ranks of this one) away. Raises :class:`FeatureError` while one is at work."""
        with (self.folder / _LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FeatureError(f"--output {self.output}: another extract is writing to it; wait for it") from None
            except OSError:
                pass  # a file system without locks: nothing can be known
            yield

    def finish(self) -> None:
        """Put the parts together into the HDF5 file, in the order of their names; nothing to do for a folder."""
        if not self.is_file:
            return
        parts = self._parts()
        if parts or not self.output.exists():
            self._merge(parts)
        shutil.rmtree(self.folder)

    def _merge(self, parts: Mapping[str, Source]) -> None:
        import h5py
        from tqdm import tqdm

        sources = self._stored | dict(parts)
        descriptor, name = tempfile.mkstemp(dir=self.output.parent, prefix=f".{self.output.name}.", suffix=".tmp")
        os.close(descriptor)
        temporary = Path(name)
        try:
            with h5py.File(temporary, "w", libver="latest") as file:
                old = h5py.File(self.output, "r") if self._stored else None
                file.attrs["source"] = source_line(self.identity)
                group = file.create_group(HIDDEN)
                group.attrs["about"] = self._about()
                rows = json.dumps({name: [one.size, one.mtime_ns] for name, one in sorted(sources.items())})
                group["sources"] = np.frombuffer(rows.encode(), np.uint8)
                for video in tqdm(
                    sorted(sources), desc=f"writing {self.output.name}", unit="video", delay=2, leave=False
                ):
                    if video in parts:
                        _copy_part(self.part(video), file.create_group(video))
                    else:
                        assert old is not None
                        old.copy(video, file, video)
                if old is not None:
                    old.close()
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, self.output)
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            raise FeatureError(
                f"--output {self.output}: can't be written ({reason}); the features are in {self.folder}, the same "
                "command goes on"
            ) from None
        finally:
            temporary.unlink(missing_ok=True)


def _copy_part(path: Path, group: Any) -> None:
    with np.load(path, allow_pickle=False) as content:
        group["features"], group["times"] = content["features"], content["times"]
        group.attrs["duration"] = float(content["duration"])
        group.attrs["problems"] = json.dumps(json.loads(str(content["about"]))["problems"])


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
