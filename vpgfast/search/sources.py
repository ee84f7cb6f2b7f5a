"""What is indexed, and where it is found again: an HDF5 file, a folder of feature files, or a folder of videos."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vpgfast.checkpoint import Checkpoint
from vpgfast.data.annotations._io import parse_json
from vpgfast.data.features import FolderFeatures, HDF5Features, open_features
from vpgfast.data.video_folders import named_like_video, named_videos
from vpgfast.encoders.base import Encoded, Encoder
from vpgfast.encoders.identity import Identity
from vpgfast.errors import AnnotationError, CheckpointError, ConfigError, FeatureError, VideoError
from vpgfast.files import readable
from vpgfast.run_encoder import check_same_encoder
from vpgfast.search.shards import VideoEntry

_TRIED = 20
"""Videos that are looked at before all of them are taken to be of another kind."""


class EncodesVideos(Protocol):
    """A model that knows the encoder of its features."""

    @property
    def encoder(self) -> Encoder:
        """Raises :class:`CheckpointError` or :class:`ConfigError` where it can't be had."""

    def encode(self, video: Path) -> Encoded:
        """Raises :class:`VideoError` where the video can't be read."""


class VideoSource:
    """Videos with their clip features and durations.

    Attributes:
        names: of the videos, in order.
        stored: how an index remembers where they are, see :class:`vpgfast.search.shards.VideoEntry`.
        encoder: what made the features, where that is known.
    """

    names: list[str]
    stored: dict[str, Any]
    encoder: Identity | None

    def read(self, name: str) -> tuple[np.ndarray, VideoEntry]:
        """Features float32 [T, d_v] of a video, and what an index is to remember of it.

        Raises:
            FeatureError, VideoError: it can't be read; or its duration is not known.
        """
        raise NotImplementedError


class FeatureFiles(VideoSource):
    """An HDF5 file, or a folder of ``.npy`` or ``.npz`` files."""

    def __init__(
        self,
        path: Path,
        index: Path,
        checkpoint: Checkpoint,
        key: str | None,
        durations: Mapping[str, float] | float | None,
    ) -> None:
        """Args: as :func:`open_source`; ``durations``: seconds a video by name, seconds a clip, or what the files tell.

        Raises:
            ConfigError: nothing tells how long the videos are.
        """
        reader = open_features(path, key, checkpoint.feature_dim)
        check_same_encoder(reader.encoder, checkpoint, str(path))
        assert isinstance(reader, HDF5Features | FolderFeatures)
        self.reader, self.durations, self.encoder = reader, durations, reader.encoder
        self.names = list(reader.video_ids())
        first = next((name for name in self.names[:_TRIED] if self._is_fit(name)), None)
        if first is None and self.names:  # not one bad file, but files of another kind
            found = open_features(path, key).dim
            if found != checkpoint.feature_dim:
                raise CheckpointError(
                    f"{path}: features of width {found}, but the model takes {checkpoint.feature_dim} "
                    f"({checkpoint.feature_source})"
                )
        elif durations is None and not any(map(self._tells_length, self.names[:_TRIED])):
            raise ConfigError(
                f"{path}: features don't tell how long the videos are; give either --durations FILE (.csv or .json, "
                "seconds by video) or --clip-seconds S"
            )
        kind = "hdf5" if isinstance(reader, HDF5Features) else "folder"
        self.stored = {"kind": kind, "path": stored_path(path, index), "key": reader.key}

    def _is_fit(self, name: str) -> bool:
        try:
            self.reader[name]
        except FeatureError:
            return False
        return True

    def _tells_length(self, name: str) -> bool:
        try:
            return self.reader.duration(name) is not None
        except FeatureError:
            return True  # but not one that can be read, which is told when it is its turn

    def read(self, name: str) -> tuple[np.ndarray, VideoEntry]:
        if readable(name) != name:
            raise FeatureError(
                f"features of {name!r}: the name is not in UTF-8, which an index is written in; rename it"
            )
        features = self.reader[name]
        if self.durations is None:
            duration = self.reader.duration(name)
        elif isinstance(self.durations, float):
            duration = len(features) * self.durations
        else:
            duration = self.durations.get(name)
        if duration is None:
            teller = "its features do" if self.durations is None else "--durations does"
            raise FeatureError(f"video {name!r}: {teller} not tell its length in seconds")
        if not _is_number(duration):
            raise FeatureError(f"video {name!r} in {self.reader.path}: lasts {duration} s, which is no length")
        return features, VideoEntry(name, duration, self.stored)


class VideoFiles(VideoSource):
    """A folder of videos, or a single one, whose features are made here. A video is named after its file."""

    def __init__(self, path: Path, index: Path, encode: Callable[[Path], Encoded], encoder: Identity) -> None:
        """Args: as :func:`open_source`; ``encode`` makes the features of a file by ``encoder``."""
        self.folder, self.encode = path if path.is_dir() else path.parent, encode
        self.files = named_videos([path])
        self.names, self.encoder = list(self.files), encoder
        self.stored = {"kind": "videos", "path": stored_path(self.folder, index)}

    def read(self, name: str) -> tuple[np.ndarray, VideoEntry]:
        file = self.files[name]
        if readable(name) != name:
            raise VideoError(f"video {file}: its name is not in UTF-8, which an index is written in; rename it")
        video = self.encode(file)
        return video.features, VideoEntry(name, video.duration, self.stored, file.relative_to(self.folder).as_posix())


def open_source(
    path: Path,
    index: Path,
    checkpoint: Checkpoint,
    model: EncodesVideos,
    key: str | None = None,
    durations: Path | None = None,
    clip_seconds: float | None = None,
) -> VideoSource:
    """What a command line names as FEATURES_OR_VIDEOS.

    Args:
        path: a file or folder.
        index: the index's folder, where relative paths start.
        checkpoint: says which features fit.
        model: makes features of videos as the model's were.
        key: where a video's features are, see :func:`vpgfast.data.features.open_features`.
        durations: file that tells how long videos are, see :func:`read_durations`.
        clip_seconds: how long a clip is, instead.

    Raises:
        UserError: one of its kinds; names the file or the argument.
    """
    if not path.exists():
        raise FeatureError(f"{path}: no such file or folder")
    if _holds_videos(path):
        given = {"--durations": durations, "--clip-seconds": clip_seconds, "--features-key": key}
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"{name} goes with feature files; {path} holds videos, which tell their own length")
        encoder = model.encoder.identity()  # says what is wrong with it before the first video is read
        return VideoFiles(path, index, model.encode, encoder)
    if durations is not None and clip_seconds is not None:
        raise ConfigError("--durations and --clip-seconds both tell how long videos are; give one")
    if clip_seconds is not None and not (math.isfinite(clip_seconds) and clip_seconds > 0):
        raise ConfigError(f"--clip-seconds must be above 0, got {clip_seconds:g}")
    lengths = read_durations(durations) if durations is not None else clip_seconds
    return FeatureFiles(path, index, checkpoint, key, lengths)


def _holds_videos(path: Path) -> bool:
    """Whether a file is named like a video, or a folder holds one somewhere and no feature files on top."""
    if path.is_file():
        return named_like_video(path)
    if any(file.suffix in (".npy", ".npz") and not file.name.startswith(".") for file in path.iterdir()):
        return False
    return any(named_like_video(file) for file in path.rglob("*"))


def read_durations(path: Path) -> dict[str, float]:
    """Seconds by video: a ``.csv`` of ``video_id,seconds`` lines, or a ``.json`` of ``{video_id: seconds}``.

    In a ``.json``, ``{video_id: {"duration": seconds, ...}}`` will do too (ActivityNet Captions has this form).

    Raises:
        ConfigError: it can't be read, or a length is not a number above 0; names the video.
    """
    where = f"--durations {path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: can't be read ({error})") from None
    rows: dict[str, Any]
    if path.suffix.lower() == ".json":
        try:
            content = parse_json(text, where)
        except AnnotationError as error:
            raise ConfigError(str(error)) from None
        if not isinstance(content, dict):
            raise ConfigError(f"{where}: must be {{video_id: seconds}}, found a {type(content).__name__}")
        rows = {name: row.get("duration") if isinstance(row, dict) else row for name, row in content.items()}
    else:
        lines = [line for line in csv.reader(text.splitlines()) if line]
        if lines and len(lines[0]) == 2 and not _is_number(lines[0][1]):
            lines = lines[1:]  # a header
        for number, line in enumerate(lines, start=1):
            if len(line) != 2:
                raise ConfigError(f"{where}, entry {number}: {','.join(line)!r} is not 'video_id,seconds'")
        rows = {name.strip(): seconds for name, seconds in lines}
        if len(rows) < len(lines):
            twice = next(name for name, count in Counter(name.strip() for name, _ in lines).items() if count > 1)
            raise ConfigError(f"{where}: {twice!r} is there twice; delete one of the lines")
    for name, seconds in rows.items():
        if not _is_number(seconds):
            raise ConfigError(f"{where}: {name!r} lasts {seconds!r}, which is no number of seconds above 0")
    return {name: float(seconds) for name, seconds in rows.items()}


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value)) and float(value) > 0
    except (TypeError, ValueError, OverflowError):
        return False


def stored_path(path: Path, index: Path) -> str:
    """How an index remembers a path: absolute as it is, relative as seen from the index's folder."""
    return str(path) if path.is_absolute() else os.path.relpath(path.resolve(), index.resolve())


def where_is(entry: VideoEntry, index: Path) -> Path:
    """The file (or the folder of feature files) that an indexed video came from."""
    # An absolute path stays itself; a relative one starts where the index really is, whatever link leads there.
    path = Path(os.path.normpath(index.resolve() / entry.source["path"] / (entry.file or "")))
    return path if index.is_absolute() or Path(entry.source["path"]).is_absolute() else Path(os.path.relpath(path))


def features_again(entry: VideoEntry, index: Path, feature_dim: int, model: EncodesVideos) -> np.ndarray:
    """Clip features float32 [T, d_v] of an indexed video.

    Raises:
        FeatureError, VideoError: they are gone, or not what was indexed; names the file and what to do.
    """
    path = where_is(entry, index)
    if not path.exists():
        raise FeatureError(f"{path} is gone; put it back, or index the video from where it is now with `add --replace`")
    if entry.source["kind"] == "videos":
        return model.encode(path).features
    return open_features(path, entry.source["key"], feature_dim)[entry.video_id]
