"""Simulated clip features for real annotation files: made from the words of the sentences, for want of the real ones.

They let loaders, training at scale and speed be tried with the real text and the real timing statistics. **Results on
them say nothing about a method on real video**, and everything made here says that it is simulated.

The recipe: a sentence's vector is the idf-weighted mean of its words' vectors, minus the mean over all sentences,
scaled to unit spread. A clip is the mean over the sentences active in it; clips without any show, in stretches of a
few seconds, a sentence of somewhere else, weakened. A fixed random projection, an offset of each video and noise in
each clip follow.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from vpgfast.data.options import SimulatedOptions
from vpgfast.data.text import WordVectors, tokenize
from vpgfast.data.types import Paragraph
from vpgfast.encoders.identity import Identity
from vpgfast.errors import FeatureError


class SimulatedFeatures:
    """A feature reader that makes a video's features when asked; they depend on the arguments and the video's name
    alone.

    Args:
        paragraphs: all paragraphs of the corpus, spans known; a video may have several.
        word_vectors: of their words (a word without a vector of its own counts as the unknown one).
        options: see there.
        seed: of everything random.
    """

    def __init__(
        self,
        paragraphs: Iterable[Paragraph],
        word_vectors: WordVectors,
        options: SimulatedOptions | None = None,
        seed: int = 0,
    ) -> None:
        self.options = options or SimulatedOptions()
        self.seed = seed
        self.dim = self.options.dim
        self.source = f"simulated (seed {seed})"
        self.encoder: Identity | None = None
        sentences: list[str] = []
        self._videos: dict[str, tuple[float, list[int], list[np.ndarray]]] = {}
        for paragraph in paragraphs:
            if paragraph.true_spans is None:
                raise FeatureError(f"features of {paragraph.video_id!r} can't be simulated: its spans are not known")
            _, rows, spans = self._videos.setdefault(paragraph.video_id, (paragraph.duration, [], []))
            rows += range(len(sentences), len(sentences) + len(paragraph.sentences))
            spans += paragraph.true_spans
            sentences += paragraph.sentences
        if not sentences:
            raise FeatureError("features can't be simulated: there is no sentence")
        self._map, vectors = SentenceMap.of(sentences, word_vectors)
        self._projection = np.random.default_rng((seed, 1)).standard_normal((word_vectors.dim, self.dim))
        self._projection /= np.sqrt(word_vectors.dim)
        self._meanings = (vectors @ self._projection).astype(np.float32)

    def __getitem__(self, video_id: str) -> np.ndarray:
        if video_id not in self._videos:
            raise FeatureError(f"features of {video_id!r} are missing: the simulated corpus has no such video")
        duration, rows, spans = self._videos[video_id]
        o = self.options
        clips = int(np.clip(round(duration * o.clips_per_second), o.min_clips, o.max_clips))
        rng = generator_of(self.seed, video_id)

        centres = (np.arange(clips) + 0.5) * (duration / clips)
        start, end = np.concatenate(spans).T[..., None]
        shown = (centres >= start) & (centres < end)  # [moments, clips]
        nearest = np.abs(centres - (start + end) / 2).argmin(axis=1)
        shown[np.arange(len(shown)), nearest] = True  # a moment shorter than a clip still shows in one
        ends = np.cumsum([len(moments) for moments in spans])
        active = np.stack([moments.any(axis=0) for moments in np.split(shown, ends[:-1])])  # [sentences, clips]
        weights = active / np.maximum(active.sum(axis=0), 1)

        stretch = np.repeat(np.arange(clips), _stretches(rng, clips, clips / duration, o))[:clips]
        elsewhere = self._others(rng, rows, clips)[stretch]
        told = active.sum(axis=0)[:, None] > 0
        clip = np.where(told, weights.T @ self._meanings[rows], o.background * self._meanings[elsewhere])
        clip += o.video_offset * rng.standard_normal(self.dim)
        clip += o.clip_noise * rng.standard_normal((clips, self.dim))
        return clip.astype(np.float32)

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """float32 [M, dim]: what the simulation itself makes of sentences, for methods without training."""
        return torch.from_numpy((self._map(sentences) @ self._projection).astype(np.float32))

    def duration(self, video_id: str) -> float | None:
        return self._videos[video_id][0] if video_id in self._videos else None

    def _others(self, rng: np.random.Generator, rows: list[int], count: int) -> np.ndarray:
        """Sentences of other videos (of any, where there is no other)."""
        total = len(self._meanings)
        if total == len(rows):
            return rng.integers(total, size=count)
        # A draw among the others, moved past this video's own sentences (sorted, so one pass is enough).
        picks = rng.integers(total - len(rows), size=count)
        for row in rows:
            picks += picks >= row
        return picks

    def __contains__(self, video_id: str) -> bool:
        return video_id in self._videos

    def video_ids(self) -> Iterable[str]:
        return self._videos.keys()


def generator_of(*key: object) -> np.random.Generator:
    """A generator that depends on nothing but the key."""
    digest = hashlib.blake2b(" ".join(map(str, key)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _stretches(rng: np.random.Generator, clips: int, per_second: float, options: SimulatedOptions) -> np.ndarray:
    """Lengths in clips of consecutive stretches that reach over the whole video."""
    lengths = rng.uniform(options.min_stretch, options.max_stretch, size=clips) * per_second
    return np.maximum(np.rint(lengths), 1).astype(np.int64)


class SentenceMap:
    """A sentence as the idf-weighted mean of its words' vectors, less their mean over the corpus, of unit spread."""

    def __init__(self, word_vectors: WordVectors, idf: list[float], mean: np.ndarray, spread: float) -> None:
        self.word_vectors, self.idf, self.mean, self.spread = word_vectors, idf, mean, spread

    @classmethod
    def of(cls, sentences: Sequence[str], word_vectors: WordVectors) -> tuple[SentenceMap, np.ndarray]:
        """Of a corpus with words of width d_w; and its sentences, as the map gives them, float64 [N, d_w]."""
        rows = _rows(sentences, word_vectors)
        occurs = Counter(row for words in rows for row in set(words))
        idf = [np.log(1 + len(sentences) / max(occurs[row], 1)) for row in range(len(word_vectors.words))]
        vectors = _means(rows, idf, word_vectors)
        mean = vectors.mean(axis=0)
        spread = max((vectors - mean).std(), 1e-12)
        return cls(word_vectors, idf, mean, spread), (vectors - mean) / spread

    def __call__(self, sentences: Sequence[str]) -> np.ndarray:
        """float64 [N, d_w]."""
        vectors = _means(_rows(sentences, self.word_vectors), self.idf, self.word_vectors)
        return (vectors - self.mean) / self.spread


def _rows(sentences: Sequence[str], word_vectors: WordVectors) -> list[list[int]]:
    """The words of each sentence, as rows of the vectors; at least one."""
    return [[word_vectors.index(word) for word in tokenize(sentence)] or [1] for sentence in sentences]


def _means(rows: list[list[int]], idf: list[float], word_vectors: WordVectors) -> np.ndarray:
    vectors = np.empty((len(rows), word_vectors.dim))
    for vector, words in zip(vectors, rows, strict=True):
        weights = np.array([idf[word] for word in words])
        vector[:] = weights @ word_vectors.vectors[words] / weights.sum()
    return vectors
