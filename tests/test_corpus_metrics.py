"""Corpus metrics against brute force, one query and one sentence at a time."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from vpgfast.data.types import Paragraph
from vpgfast.metrics.baselines import uniform_split
from vpgfast.metrics.corpus import WINDOWS, corpus_metric_names, corpus_result, distinct_windows, for_tables, true_ranks
from vpgfast.metrics.rules import MetricRules


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("blocks", [(1, 1), (7, 10), (256, 4096)])
def test_ranks_are_those_of_a_sorted_list(blocks: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    videos, truth = unit(rng.normal(size=(53, 8))), rng.integers(53, size=40)  # several paragraphs share a video
    queries = unit(videos[truth] + 0.8 * rng.normal(size=(40, 8)))
    expected = []
    for query, own in zip(queries, truth, strict=True):
        products = videos.astype(np.float64) @ query.astype(np.float64)
        expected.append(sorted(products, reverse=True).index(products[own]) + 1)
    assert len(set(expected)) > 5
    np.testing.assert_array_equal(true_ranks(queries, videos, truth, *blocks), expected)


@pytest.mark.parametrize("blocks", [(1, 1), (3, 4), (256, 4096)])
def test_ties_count_against_the_method(blocks: tuple[int, int]) -> None:
    """Also between copies whose products are summed in different blocks, and for a method that says nothing."""
    rng = np.random.default_rng(1)
    one = unit(rng.normal(size=(6, 256)))
    videos = np.concatenate((one, one[:1], one[:2]))  # 9 videos: the first three times, the second twice
    ranks = true_ranks(one, videos, np.arange(6), *blocks)
    np.testing.assert_array_equal(ranks, [3, 2, 1, 1, 1, 1])
    same = np.repeat(one[:1], 9, axis=0)
    np.testing.assert_array_equal(true_ranks(one[1:], same, np.array([0, 1, 5, 7, 8]), *blocks), [9] * 5)


def test_the_whole_table_is_never_in_memory() -> None:
    rng = np.random.default_rng(4)
    videos = unit(rng.normal(size=(3000, 4)))
    tracemalloc.start()
    ranks = true_ranks(videos, videos, np.arange(3000), video_block=512)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(ranks, 1)
    assert peak < 3000 * 3000  # not even a byte a product


@pytest.mark.parametrize("broken", ["queries", "videos"])
def test_vectors_that_are_not_finite_have_no_rank(broken: str) -> None:
    arrays = {"queries": np.ones((2, 3), np.float32), "videos": np.ones((4, 3), np.float32)}
    arrays[broken][1, 1] = np.nan
    with pytest.raises(ValueError, match=f"{broken}: vectors that are not finite"):
        true_ranks(**arrays, truth=np.array([0, 1]))


def test_windows_after_suppression() -> None:
    spans = np.array([[[0, 10], [1, 10], [0, 4], [8, 3], [np.nan, np.nan], [20, 30], [0, 4.5]]])
    (found,) = distinct_windows([spans])
    assert found.shape == (1, WINDOWS, 2)
    np.testing.assert_array_equal(found[0, :3], [[0, 10], [0, 4], [20, 30]])
    assert np.isnan(found[0, 3:]).all()


def corpus(rng: np.random.Generator) -> tuple[list[Paragraph], list[np.ndarray]]:
    """Paragraphs of 1 to 4 sentences, and 12 ranked windows a sentence of which some are near the truth."""
    paragraphs, ranked = [], []
    for i in range(30):
        count, duration = 1 + i % 4, 20.0 + i
        spans = np.sort(rng.uniform(0, duration, size=(count, 2)), axis=1)
        windows = np.sort(rng.uniform(0, duration, size=(count, 12, 2)), axis=2)
        windows[rng.random((count, 12)) < 0.1] = np.nan
        windows[:, 1] = np.where(rng.random((count, 1)) < 0.5, spans + 0.1, windows[:, 1])
        paragraphs.append(Paragraph(f"v{i % 20}", duration, tuple("abcd"[:count]), spans))
        ranked.append(windows)
    return paragraphs, ranked


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    shared = min(a[1], b[1]) - max(a[0], b[0])
    return shared / (max(a[1], b[1]) - min(a[0], b[0])) if shared > 0 else 0.0


def brute_force(
    paragraphs: list[Paragraph], ranked: list[np.ndarray], ranks: np.ndarray, depth: int, iou: float, windows: int
) -> float:
    """Sentences whose video ranks within ``depth`` and of whose first ``windows`` distinct windows one fits."""
    hits = []
    for paragraph, spans, rank in zip(paragraphs, ranked, ranks, strict=True):
        for candidates, true in zip(spans, paragraph.spans, strict=True):
            kept: list[np.ndarray] = []
            for window in candidates[np.isfinite(candidates[:, 0])]:
                if all(overlap(window, other) <= 0.5 for other in kept):
                    kept.append(window)
            best = max((overlap(w, true) for w in kept[:windows]), default=0.0)
            hits.append(rank <= depth and best >= iou)
    return float(np.mean(hits))


@pytest.mark.parametrize("pieces", ["whole", "sentences"])
def test_metrics_by_brute_force(pieces: str) -> None:
    rng = np.random.default_rng(2)
    paragraphs, ranked = corpus(rng)
    ranks = rng.integers(1, 21, size=30)
    items, spans, parts = paragraphs, ranked, np.arange(30)
    if pieces == "sentences":
        items = [p.select([m]) for p in paragraphs for m in range(len(p.sentences))]
        spans = [rows[m : m + 1] for rows in ranked for m in range(len(rows))]
        parts = np.repeat(parts, [len(p.sentences) for p in paragraphs])
    rules = MetricRules(sentence_order="file")
    by_words = rng.integers(1, 21, size=30)
    result = corpus_result(ranks, by_words, 20, spans, items, parts, paragraphs, rules)

    assert (result.videos, result.paragraphs) == (20, 30)
    assert list(for_tables(result.metrics)) == corpus_metric_names(rules)
    for depth in (1, 5, 10, 100):
        assert result.metrics[f"R@{depth}"] == pytest.approx(np.mean(ranks <= depth))
        assert result.baselines["chance"][f"R@{depth}"] == min(1, depth / 20)
    assert result.metrics["median rank"] == np.median(ranks)
    assert result.baselines["chance"]["median rank"] == 10.5
    for depth in (1, 5, 10, 100):
        assert result.baselines["bag of words"][f"R@{depth}"] == pytest.approx(np.mean(by_words <= depth))
    assert result.baselines["bag of words"]["median rank"] == np.median(by_words)
    uniform = uniform_split(paragraphs)
    for depth in (10, 100):
        for iou in (0.3, 0.5, 0.7):
            name = f"R@{depth} IoU={iou}"
            loose = brute_force(paragraphs, ranked, ranks, depth, iou, 10)
            strict = brute_force(paragraphs, ranked, ranks, depth, iou, 1)
            assert loose > strict
            assert result.metrics[name] == pytest.approx(loose)
            assert result.metrics[f"strict {name}"] == pytest.approx(strict)
            split = brute_force(paragraphs, uniform, ranks, depth, iou, 1)
            assert result.baselines["uniform"][name] == pytest.approx(split)
            assert result.baselines["uniform"][f"strict {name}"] == pytest.approx(split)


def test_chance_is_what_random_rankings_and_spans_earn() -> None:
    """Drawn here a second time, with other random numbers."""
    rng = np.random.default_rng(3)
    paragraphs, ranked = corpus(rng)
    result = corpus_result(
        np.ones(30, np.int64),
        np.ones(30, np.int64),
        40,
        ranked,
        paragraphs,
        np.arange(30),
        paragraphs,
        MetricRules(),
        draws=30,
    )
    drawn = []
    for _ in range(30):
        spans = [np.sort(rng.random((len(p.sentences), 30, 2)), axis=-1) * p.duration for p in paragraphs]
        drawn.append(brute_force(paragraphs, spans, rng.integers(1, 41, size=30), 10, 0.5, 10))
    assert result.baselines["chance"]["R@10 IoU=0.5"] == pytest.approx(np.mean(drawn), abs=0.04)
    strict = result.baselines["chance"]["strict R@100 IoU=0.5"]
    assert strict < result.baselines["chance"]["R@100 IoU=0.5"] / 2


def test_rules_of_the_other_metrics_hold() -> None:
    """Thresholds, and > instead of >=."""
    paragraph = Paragraph("v", 10.0, ("a",), np.array([[0.0, 5.0]]))
    arguments = (np.array([1]), np.array([1]), 1, [np.array([[[0.0, 10.0]]])], [paragraph], np.array([0]), [paragraph])
    inclusive = corpus_result(*arguments, MetricRules(thresholds=(0.5,)))
    exclusive = corpus_result(*arguments, MetricRules(thresholds=(0.5,), comparison=">"))
    assert inclusive.metrics["R@10 IoU=0.5"] == 1
    assert exclusive.metrics["R@10 IoU=0.5"] == 0
    assert [name for name in inclusive.metrics if "IoU" in name] == [
        *("R@10 IoU=0.5", "R@100 IoU=0.5", "strict R@10 IoU=0.5", "strict R@100 IoU=0.5")
    ]
