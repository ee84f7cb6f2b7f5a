"""Clip features that are parts of other readers' features, or several put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vpgfast.data.types import FeatureReader
from vpgfast.encoders.identity import Identity
from vpgfast.errors import FeatureError


class _View:
    """Some of another reader's features: the same videos."""

    def __init__(self, features: FeatureReader, dim: int, source: str, encoder: Identity | None) -> None:
        self.features, self.dim, self.source, self.encoder = features, dim, source, encoder

    def __contains__(self, video_id: str) -> bool:
        return video_id in self.features

    def video_ids(self) -> Iterable[str]:
        return self.features.video_ids()

    def duration(self, video_id: str) -> float | None:
        return self.features.duration(video_id)


class SelectedColumns(_View):
    """Some elements of another reader's clip features.

    Args:
        features: the other reader.
        columns: int [dim], which elements.
        what: they are, for ``source``.
    """

    def __init__(self, features: FeatureReader, columns: np.ndarray, what: str) -> None:
        super().__init__(features, len(columns), f"{features.source}, {what}", None)
        self.columns = columns

    def __getitem__(self, video_id: str) -> np.ndarray:
        return self.features[video_id][:, self.columns]


class FirstClips(_View):
    """Another reader's features without what lies behind a video's last clip.

    Args:
        features: the other reader.
        counts: of a video's clips; of one that isn't here, all.
    """

    def __init__(self, features: FeatureReader, counts: Mapping[str, int]) -> None:
        super().__init__(features, features.dim, features.source, features.encoder)
        self.counts = counts

    def __getitem__(self, video_id: str) -> np.ndarray:
        return self.features[video_id][: self.counts.get(video_id)]


class JoinedFeatures:
    """The features of several readers side by side, such as appearance and motion: [T, sum of the widths].

    Raises:
        FeatureError: a reader lacks a video, or has another number of clips of it; names the video and both readers.
    """

    def __init__(self, readers: Sequence[FeatureReader]) -> None:
        self.readers = list(readers)
        self.dim = sum(reader.dim for reader in readers)
        self.source = " + ".join(reader.source for reader in readers)
        self.encoder: Identity | None = None

    def __getitem__(self, video_id: str) -> np.ndarray:
        arrays = [reader[video_id] for reader in self.readers]
        for array, reader in zip(arrays, self.readers, strict=True):
            if len(array) != len(arrays[0]):
                raise FeatureError(
                    f"features of {video_id!r}: {len(arrays[0])} clips in {self.readers[0].source}, {len(array)} in "
                    f"{reader.source}; files that stand side by side need the same clips"
                )
        return np.concatenate(arrays, axis=1)

    def __contains__(self, video_id: str) -> bool:
        return all(video_id in reader for reader in self.readers)

    def video_ids(self) -> Iterable[str]:
        return [name for name in self.readers[0].video_ids() if name in self]

    def duration(self, video_id: str) -> float | None:
        return next((found for r in self.readers if (found := r.duration(video_id)) is not None), None)
