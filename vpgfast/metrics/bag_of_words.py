"""Finding a paragraph's video by its words alone: what a trained method has to be better than.

A video is the mean of its clips' features, a paragraph the mean of its words' vectors. One linear map, fitted to the
training split in closed form (ridge regression), takes the first to the second; videos are ranked by the cosine. It
knows nothing of the order of words or of clips. Arrays in, arrays out: no model.

Letters: P paragraphs; V videos; d_v, d_w widths of clip features and of word vectors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Paragraph

RIDGE = 0.1
"""What is added to the variance of every feature, in parts of their mean variance: fixed, not tuned."""


class Sums(NamedTuple):
    """All that the regression needs of its pairs, whose number does not matter to memory; float64.

    Attributes:
        pairs: how many, of x (mean feature) and y (mean word vector).
        x: [d_v].
        y: [d_w].
        xx: [d_v, d_v] of outer products.
        xy: [d_v, d_w].
    """

    pairs: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray


def sums_of(features: np.ndarray, words: np.ndarray) -> Sums:
    """Of mean features [n, d_v] and the mean word vectors [n, d_w] that belong to them; n may be 0."""
    x, y = features.astype(np.float64), words.astype(np.float64)
    return Sums(len(x), x.sum(axis=0), y.sum(axis=0), x.T @ x, x.T @ y)


def add(one: Sums, other: Sums) -> Sums:
    """The sums over the pairs of both."""
    return Sums(one.pairs + other.pairs, one.x + other.x, one.y + other.y, one.xx + other.xx, one.xy + other.xy)


class LinearMap(NamedTuple):
    """From the mean feature of a video to the mean word vector of its paragraph.

    Attributes:
        x_mean: float64 [d_v], of the training videos.
        y_mean: float64 [d_w], of their paragraphs.
        weight: float64 [d_v, d_w].
    """

    x_mean: np.ndarray
    y_mean: np.ndarray
    weight: np.ndarray

    def of_videos(self, features: np.ndarray) -> np.ndarray:
        """Mean features [V, d_v] -> float32 [V, d_w] of length 1."""
        return _of_length_1((features - self.x_mean) @ self.weight)

    def of_paragraphs(self, words: np.ndarray) -> np.ndarray:
        """Mean word vectors [P, d_w] -> float32 [P, d_w] of length 1."""
        return _of_length_1(words - self.y_mean)


def fit(sums: Sums) -> LinearMap:
    """Ridge regression of mean word vectors on mean features, both centred, with a ridge of :data:`RIDGE`.

    Args:
        sums: over all training pairs, one at least.
    """
    x, y, xx, xy = (total / sums.pairs for total in (sums.x, sums.y, sums.xx, sums.xy))
    variance, covariance = xx - np.outer(x, x), xy - np.outer(x, y)
    ridge = max(RIDGE * np.trace(variance) / len(variance), 1e-12)  # features that never change have a map, too: 0
    return LinearMap(x, y, np.linalg.solve(variance + ridge * np.eye(len(variance)), covariance))


def mean_words(paragraphs: Iterable[Paragraph], vectors: WordVectors, max_words: int) -> np.ndarray:
    """The mean vector of all words of each paragraph, float64 [P, d_w].

    Args:
        paragraphs: P of them.
        vectors: vocabulary; an unknown word has the vector of its row 1.
        max_words: longer sentences are cut to this many words, as for the method beside which this stands.
    """
    rows = [[i for sentence in p.sentences for i in vectors.encode(sentence, max_words)] for p in paragraphs]
    return np.stack([vectors.vectors[row].mean(axis=0, dtype=np.float64) for row in rows])


def _of_length_1(vectors: np.ndarray) -> np.ndarray:
    """float32; a vector of length 0 stays what it is."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)
