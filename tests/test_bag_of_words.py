"""The bag-of-words baseline against regression by other means, and on a corpus where it finds everything."""

from __future__ import annotations

import tracemalloc
from functools import reduce

import numpy as np
import pytest

from vpgfast.data.text import WordVectors, load_word_vectors
from vpgfast.data.types import Paragraph
from vpgfast.metrics.bag_of_words import RIDGE, LinearMap, add, fit, mean_words, sums_of
from vpgfast.metrics.corpus import true_ranks


def fitted(features: np.ndarray, words: np.ndarray, size: int = 7) -> LinearMap:
    starts = range(0, len(features), size)
    return fit(reduce(add, (sums_of(features[i : i + size], words[i : i + size]) for i in starts)))


def test_ridge_regression_by_least_squares() -> None:
    """The same as least squares with d_v more rows, one for each feature, that ask for a weight of 0."""
    rng = np.random.default_rng(0)
    x, y = 3 + rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(40, 4)) - 2
    found = fitted(x, y)
    centred = x - x.mean(axis=0)
    ridge = RIDGE * centred.var(axis=0).mean() * 40
    rows = np.concatenate([centred, np.sqrt(ridge) * np.eye(5)])
    expected = np.linalg.lstsq(rows, np.concatenate([y - y.mean(axis=0), np.zeros((5, 4))]), rcond=None)[0]
    np.testing.assert_allclose(found.weight, expected, rtol=1e-9)
    np.testing.assert_allclose(found.x_mean, x.mean(axis=0))
    np.testing.assert_allclose(found.y_mean, y.mean(axis=0))
    vectors = found.of_videos(x[:3])
    assert vectors.dtype == np.float32
    plain = (x[:3] - x.mean(axis=0)) @ expected
    np.testing.assert_allclose(vectors, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 40])
def test_batches_make_no_difference(size: int) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 3))
    for one, other in zip(fitted(x, y, size), fitted(x, y, 7), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    nothing = sums_of(np.zeros((0, 6)), np.zeros((0, 3)))
    for one, other in zip(add(sums_of(x, y), nothing), sums_of(x, y), strict=True):
        np.testing.assert_array_equal(one, other)


def small_corpus(rng: np.random.Generator, count: int) -> tuple[list[Paragraph], WordVectors]:
    names = [f"word{i}" for i in range(60)]
    texts = [tuple(" ".join(rng.choice(names, 6)) for _ in range(3)) for _ in range(count)]
    paragraphs = [Paragraph(f"v{i}", 10.0, text) for i, text in enumerate(texts)]
    return paragraphs, load_word_vectors(None, names, dim=8)


def test_it_is_exact_where_features_are_a_linear_map_of_the_words() -> None:
    """Every held-out video is found; of videos that show something else, no more than by chance."""
    rng = np.random.default_rng(2)
    paragraphs, vectors = small_corpus(rng, 300)
    words = mean_words(paragraphs, vectors, 50)
    turned = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    features = 5 + 2 * words @ turned
    found = fitted(features[:200], words[:200], 64)
    queries, own = found.of_paragraphs(words[200:]), np.arange(100)
    np.testing.assert_array_equal(true_ranks(queries, found.of_videos(features[200:]), own), 1)
    other = rng.permutation(features)
    unrelated = fitted(other[:200], words[:200])
    ranks = true_ranks(unrelated.of_paragraphs(words[200:]), unrelated.of_videos(other[200:]), own)
    assert 35 < np.median(ranks) < 65


def test_mean_words_by_loops() -> None:
    paragraphs, vectors = small_corpus(np.random.default_rng(3), 4)
    paragraphs.append(Paragraph("w", 1.0, ("word1 neverseen word2", "!")))
    found = mean_words(paragraphs, vectors, 4)
    for row, paragraph in zip(found, paragraphs[:4], strict=False):
        words = [word for sentence in paragraph.sentences for word in sentence.split()[:4]]
        np.testing.assert_allclose(
            row, np.mean([vectors.vectors[vectors.words.index(w)] for w in words], axis=0), rtol=1e-5
        )
    last = [vectors.vectors[i] for i in (vectors.index("word1"), 1, vectors.index("word2"), 1)]
    np.testing.assert_allclose(found[4], np.mean(last, axis=0), rtol=1e-5)


def test_features_that_never_change_find_nothing() -> None:
    rng = np.random.default_rng(4)
    found = fitted(np.full((20, 3), 7.0), rng.normal(size=(20, 5)))
    np.testing.assert_allclose(found.weight, 0, atol=1e-2)
    queries = found.of_paragraphs(rng.normal(size=(6, 5)))
    for constant in (7.0, 0.0):
        videos = found.of_videos(np.full((6, 3), constant))
        np.testing.assert_array_equal(true_ranks(queries, videos, np.arange(6)), 6)
    np.testing.assert_array_equal(fitted(np.zeros((20, 3)), rng.normal(size=(20, 5))).weight, 0)


def test_memory_does_not_grow_with_the_corpus() -> None:
    def batches(count: int):
        rng = np.random.default_rng(5)
        for _ in range(count):
            yield sums_of(rng.normal(size=(100, 20)), rng.normal(size=(100, 10)))

    peaks = []
    for count in (5, 100):
        tracemalloc.start()
        fit(reduce(add, batches(count)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
