"""Metrics: hand-worked cases, and the real annotations' "watching nothing" table."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vpgfast.data.annotations import load_annotations
from vpgfast.data.types import Batch, Paragraph, Prediction
from vpgfast.errors import ConfigError
from vpgfast.metrics.baselines import (
    MomentFrequency,
    PositionPrior,
    baselines,
    in_order,
    random_spans,
    same_for_all,
    swap_sentences,
    uniform_split,
)
from vpgfast.metrics.best_span import best_single_span
from vpgfast.metrics.rules import MetricRules, metric_names
from vpgfast.metrics.spans import evaluate_spans, interval_iou, ranked_spans, score
from vpgfast.metrics.table import format_table


def paragraph(video_id: str, duration: float, *spans: tuple[float, float]) -> Paragraph:
    sentences = tuple(f"{video_id} {m}" for m in range(len(spans)))
    return Paragraph(video_id, duration, sentences, np.array(spans, dtype=np.float64).reshape(-1, 2))


def ranked(*spans: tuple[float, float]) -> np.ndarray:
    """One sentence's ranked spans [1, K, 2]."""
    return np.array([spans], dtype=np.float64)


def test_iou_by_hand() -> None:
    a = np.array([[0.0, 10.0], [2.0, 4.0], [20.0, 30.0], [3.0, 3.0], [np.nan, np.nan], [4.0, 2.0]])
    b = np.array([[0.0, 5.0], [10.0, 20.0]])
    expected = [[0.5, 0.0], [0.4, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    np.testing.assert_allclose(interval_iou(a, b), expected)


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)).map(sorted), min_size=1, max_size=6))
def test_iou_equals_the_counted_one(spans: list[list[float]]) -> None:
    """Against the share of ten thousand points that lie in both among those that lie in either."""
    points = np.linspace(0, 50, 10_001)
    inside = np.array([(points >= s) & (points < e) for s, e in spans])
    both = (inside[:, None] & inside).sum(-1)
    either = (inside[:, None] | inside).sum(-1)
    counted = both / np.maximum(either, 1)
    lengths = np.array([e - s for s, e in spans])
    long = np.minimum.outer(lengths, lengths) > 5  # short spans hold too few points to count
    np.testing.assert_allclose(interval_iou(np.array(spans), np.array(spans))[long], counted[long], atol=0.01)


def test_recall_and_miou_by_hand() -> None:
    videos = [paragraph("a", 20, (0, 10)), paragraph("b", 20, (0, 10))]
    # a: IoU 0.4 first, 1.0 second.  b: IoU 0.6 first, then nothing that touches.
    spans = [ranked((0, 4), (0, 10)), ranked((0, 6), (15, 20))]
    result = evaluate_spans(spans, videos, MetricRules(top_n=(1, 2), thresholds=(0.3, 0.5, 0.7)))
    assert result == pytest.approx(
        {
            "R@1 IoU=0.3": 1.0,
            "R@1 IoU=0.5": 0.5,
            "R@1 IoU=0.7": 0.0,
            "R@2 IoU=0.3": 1.0,
            "R@2 IoU=0.5": 1.0,
            "R@2 IoU=0.7": 0.5,
            "mIoU": 0.5,
        }
    )


def test_a_tie_counts_or_not_as_the_rule_says() -> None:
    video, spans = [paragraph("a", 20, (0, 10))], [ranked((0, 5))]  # IoU exactly 0.5
    assert evaluate_spans(spans, video, MetricRules(comparison=">="))["R@1 IoU=0.5"] == 1
    assert evaluate_spans(spans, video, MetricRules(comparison=">"))["R@1 IoU=0.5"] == 0
    assert evaluate_spans(spans, video, MetricRules(comparison=">"))["R@1 IoU=0.3"] == 1


def test_metrics_are_means_over_sentences_not_videos() -> None:
    videos = [paragraph("a", 10, (0, 5), (0, 5), (0, 5)), paragraph("b", 10, (0, 5))]
    spans = [np.tile(ranked((0, 5)), (3, 1, 1)), ranked((5, 10))]
    assert evaluate_spans(spans, videos, MetricRules())["mIoU"] == 0.75


def test_spans_as_whole_clips() -> None:
    # Ten clips of 2 s: truth (1, 5) is clips 0..2, prediction (0, 5.9) the same; in seconds the IoU is 4 / 5.9.
    video, spans = [paragraph("a", 20, (1, 5))], [ranked((0, 5.9))]
    assert evaluate_spans(spans, video, MetricRules(clips=10))["mIoU"] == 1
    assert evaluate_spans(spans, video, MetricRules())["mIoU"] == pytest.approx(4 / 5.9)


def test_float32_predictions_on_a_clip_border_stay_there() -> None:
    duration = 30.59
    video = [paragraph("a", duration, (duration * 3 / 64, duration * 17 / 64))]
    spans = [ranked((3 / 64, 17 / 64)).astype(np.float32) * np.float32(duration)]
    assert evaluate_spans(spans, video, MetricRules(clips=64))["mIoU"] == 1


def test_rules_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="clips or segment_seconds"):
        MetricRules(clips=10, segment_seconds=5.0)
    with pytest.raises(ConfigError, match="top_n"):
        MetricRules(top_n=())


def test_fewer_spans_than_n_and_no_span_at_all() -> None:
    video = [paragraph("a", 20, (0, 10))]
    rules = MetricRules(top_n=(1, 5))
    assert evaluate_spans([ranked((0, 10))], video, rules)["R@5 IoU=0.7"] == 1
    nothing = evaluate_spans([np.full((1, 5, 2), np.nan)], video, rules)
    assert set(nothing.values()) == {0.0}


def test_prediction_becomes_ranked_spans() -> None:
    videos = [paragraph("a", 20, (0, 10)), paragraph("b", 20, (0, 10), (5, 6))]
    inf = float("inf")
    prediction = Prediction(
        spans=torch.arange(24.0).view(2, 2, 3, 2),
        scores=torch.tensor([[[3.0, 2.0, -inf], [-inf] * 3], [[1.0, 0.0, -1.0], [1.0, -inf, -inf]]]),
    )
    batch = Batch(videos, *[torch.empty(0)] * 6)
    first, second = ranked_spans(prediction, batch)
    assert first.shape == (1, 3, 2)
    assert second.shape == (2, 3, 2)
    np.testing.assert_array_equal(first[0, :2], [[0, 1], [2, 3]])
    assert np.isnan(first[0, 2]).all()
    assert np.isnan(second[1, 1:]).all()
    prediction.spans[1, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="'b' are not finite"):
        ranked_spans(prediction, batch)


def test_a_wrong_number_of_sentences_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 sentences predicted for 'a', it has 2"):
        score([ranked((0, 1))], [paragraph("a", 20, (0, 10), (10, 20))], MetricRules())


# --- DiDeMo


def didemo_case() -> tuple[list[Paragraph], MetricRules]:
    """A 30 s video of six segments; the annotators of one sentence marked segments 1, 1, 1-2 and 4."""
    annotators = np.array([[5.0, 10.0], [5.0, 10.0], [5.0, 15.0], [20.0, 25.0]])
    video = Paragraph("a", 30.0, ("the man bends",), np.array([[5.0, 10.0]]), (annotators,))
    return [video], MetricRules(top_n=(1, 5), thresholds=(0.5, 1.0), segment_seconds=5.0, annotators="best3")


def inclusive_iou(a: tuple[int, int], b: tuple[int, int]) -> float:
    """DiDeMo's form, on inclusive segment indices."""
    return max(0, min(a[1], b[1]) + 1 - max(a[0], b[0])) / (max(a[1], b[1]) + 1 - min(a[0], b[0]))


def test_didemo_by_hand() -> None:
    videos, rules = didemo_case()
    assert metric_names(rules)[-3:] == ["mIoU", "Rank@1", "Rank@5"]
    # ranked: segment 1, segments 1-2, segment 4.  IoU of the first: 1, 1, 1/2, 0 -> mean of best three 5/6.
    # Ranks of the annotators: 1, 1, 2, 3 -> mean of best three 4/3: not within 1, but within 5.
    spans = [ranked((5, 10), (5, 15), (20, 25))]
    result = evaluate_spans(spans, videos, rules)
    assert result["mIoU"] == pytest.approx(5 / 6)
    assert result["R@1 IoU=0.5"] == 1
    assert result["R@1 IoU=1"] == 0
    assert (result["Rank@1"], result["Rank@5"]) == (0, 1)


def test_didemo_rank_of_a_moment_that_is_not_listed_is_infinite() -> None:
    videos, rules = didemo_case()
    assert evaluate_spans([ranked((5, 10), (20, 25))], videos, rules)["Rank@5"] == 1  # ranks 1, 1, 2
    assert evaluate_spans([ranked((5, 10))], videos, rules)["Rank@5"] == 0  # ranks 1, 1, infinity


def test_majority_rule_looks_at_one_interval() -> None:
    videos, _ = didemo_case()
    assert evaluate_spans([ranked((5, 10))], videos, MetricRules(segment_seconds=5.0))["mIoU"] == 1


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)).map(sorted), min_size=1, max_size=7),
    st.permutations([(s, e) for s in range(6) for e in range(s, 6)]),
    st.sampled_from([30.0, 27.3, 25.5]),
)
def test_didemo_equals_its_protocol_on_segments(annotators, order, duration: float) -> None:
    """Against the protocol written on inclusive segment indices, all 21 moments ranked, the last segment cut short."""
    to_seconds = lambda moment: (5.0 * moment[0], min(5.0 * (moment[1] + 1), duration))  # noqa: E731
    truth = np.array([to_seconds(a) for a in annotators])
    video = Paragraph("a", duration, ("x",), truth[:1], (truth,))
    rules = MetricRules(segment_seconds=5.0, annotators="best3")
    result = evaluate_spans([np.array([[to_seconds(moment) for moment in order]])], [video], rules)
    ious = sorted((inclusive_iou(order[0], a) for a in annotators), reverse=True)[:3]
    ranks = sorted(order.index(tuple(a)) + 1 for a in annotators)[:3]
    assert result["mIoU"] == pytest.approx(np.mean(ious))
    assert result["Rank@1"] == float(np.mean(ranks) <= 1)
    assert result["Rank@5"] == float(np.mean(ranks) <= 5)


# --- baselines and the control


def test_uniform_split_by_hand() -> None:
    (spans,) = uniform_split([paragraph("a", 30, (0, 1), (0, 1), (0, 1))])
    np.testing.assert_allclose(spans[:, 0], [[0, 10], [10, 20], [20, 30]])


def test_prior_is_the_median_of_starts_and_of_ends() -> None:
    training = [paragraph("a", 10, (0, 2), (5, 10)), paragraph("b", 100, (10, 50), (50, 80))]
    training += [paragraph("c", 10, (3, 4), (6, 7)), paragraph("d", 10, (1, 9))]
    prior = PositionPrior(training)
    (spans,) = prior([paragraph("e", 20, (0, 1), (0, 1))])
    # starts of sentence 1 of 2: 0, 0.1, 0.3; ends 0.2, 0.5, 0.4.  Sentence 2: 0.5, 0.5, 0.6; 1, 0.8, 0.7.
    np.testing.assert_allclose(spans[:, 0], [[2, 8], [10, 16]])


def test_prior_of_an_unseen_length_uses_sentences_at_the_same_relative_position() -> None:
    training = [paragraph("a", 10, (0, 2), (8, 10)), paragraph("b", 10, (1, 3), (6, 10))]
    prior = PositionPrior(training)
    # sentence 0 of 3 stands at 1/6 (reach 1/6): the two at 1/4; sentence 1 of 3 at 1/2: the borders 1/3..2/3 hold none
    np.testing.assert_allclose(prior.span(0, 3), [0.05, 0.25])
    np.testing.assert_allclose(prior.span(1, 3), [1 / 3, 2 / 3])
    np.testing.assert_allclose(prior.span(2, 3), [0.7, 1.0])


def test_random_spans_lie_in_the_video_and_repeat_by_seed() -> None:
    videos = [paragraph("a", 10, (0, 2), (8, 10)), paragraph("b", 70, (1, 3))]
    spans = random_spans(videos, seed=3, k=7)
    assert [rows.shape for rows in spans] == [(2, 7, 2), (1, 7, 2)]
    assert all((rows[..., 0] <= rows[..., 1]).all() and rows.max() <= p.duration for rows, p in zip(spans, videos))  # noqa: B905
    np.testing.assert_array_equal(spans[0], random_spans(videos, seed=3, k=7)[0])
    assert not np.array_equal(spans[0], random_spans(videos, seed=4, k=7)[0])


def test_random_baseline_approaches_its_expectation() -> None:
    """Against the middle half of a video, the mean IoU of two sorted uniform draws, by a plain numerical integral."""
    grid = (np.arange(400) + 0.5) / 400
    pairs = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    expected = interval_iou(np.sort(pairs, axis=-1), np.array([[0.25, 0.75]])).mean()
    videos = [paragraph(str(i), 40, (10, 30)) for i in range(500)]
    result = baselines(videos, videos, MetricRules(), seed=1)["random"]
    assert result["mIoU"] == pytest.approx(expected, abs=0.01)
    assert result["R@5 IoU=0.5"] > result["R@1 IoU=0.5"]


def test_baselines_have_the_keys_of_a_result() -> None:
    videos = [paragraph("a", 10, (0, 5), (5, 10)), paragraph("b", 10, (1, 3), (4, 9))]
    result = baselines(videos[1:], videos[:1], MetricRules())
    assert list(result) == ["random", "uniform", "prior", "whole video", "best single span"]
    assert all(list(row) == metric_names(MetricRules()) for row in result.values())
    assert result["uniform"]["mIoU"] == 1
    assert result["prior"]["mIoU"] == pytest.approx((2 / 5 + 4 / 6) / 2)
    assert result["whole video"]["mIoU"] == 0.5
    # (0.1, 0.3) and (0.4, 0.9) in training: either has a mean IoU of 1/2, both together (0.25 + 0.625) / 2. The first.
    assert result["best single span"]["mIoU"] == pytest.approx((2 / 5 + 0) / 2)


def test_whole_video_by_hand() -> None:
    first, second = same_for_all([paragraph("a", 30, (0, 1), (2, 3)), paragraph("b", 4, (0, 1))])
    assert first.tolist() == [[[0, 30]], [[0, 30]]]
    assert second.tolist() == [[[0, 4]]]


def test_best_single_span_by_hand() -> None:
    # Two of three agree: their span has (1 + 1 + 0.5) / 3, the other one (1 + 0.5 + 0.5) / 3.
    assert best_single_span(np.array([[0, 0.5], [0, 1.0], [0, 0.5]])).tolist() == [0, 0.5]
    # What the first two share is (0.6 + 0.6 + 1 + 1) / 4; either of them is (1 + 3 / 7 + 0.6 + 0.6) / 4.
    spans = np.array([[0.0, 0.5], [0.2, 0.7], [0.2, 0.5], [0.2, 0.5]])
    assert best_single_span(spans).tolist() == [0.2, 0.5]
    assert best_single_span(np.array([[0.3, 0.4]])).tolist() == [0.3, 0.4]
    assert best_single_span(np.array([[0.5, 1.0], [0.0, 0.5]])).tolist() == [0, 0.5]  # equals: the first


@pytest.mark.parametrize("seed", range(40))
def test_best_single_span_is_the_best_of_all(seed: int) -> None:
    """Against a fine grid that holds every start and every end; spans on a coarse grid, too, where many are equal."""
    rng = np.random.default_rng(seed)
    spans = rng.random((12, 2)) if seed % 2 else rng.integers(0, 9, (12, 2)) / 8
    spans = np.sort(spans, axis=1)[: 1 + seed % 12]
    spans = spans[spans[:, 0] < spans[:, 1]] if (spans[:, 0] < spans[:, 1]).any() else np.array([[0.0, 1.0]])
    grid = np.unique([*np.linspace(0, 1, 81), *spans.ravel()])
    pairs = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    found = interval_iou(best_single_span(spans)[None], spans).mean()
    assert found == pytest.approx(interval_iou(pairs, spans).mean(axis=-1).max(), abs=1e-12)


def test_moment_frequency_by_hand() -> None:
    def marked(name: str, duration: float, *marks: tuple[int, int]) -> Paragraph:
        spans = np.array(marks, float) * 5
        return Paragraph(name, duration, ("x",), spans[:1], (spans,))

    training = [marked("a", 30, (0, 1), (0, 1), (1, 2)), marked("b", 30, (2, 3), (1, 2), (1, 2), (2, 4))]
    frequency = MomentFrequency(training, 5.0)
    # (1, 2) has three marks, (0, 1) two, (2, 3) and (2, 4) one; then the others, by start, then end
    expected = [(1, 2), (0, 1), (2, 3), (2, 4), (0, 2), (0, 3), (0, 4), (1, 3), (1, 4), (3, 4)]
    assert (frequency.ranked(20.0) / 5).tolist() == [list(moment) for moment in expected]
    assert (frequency.ranked(10.0) / 5).tolist() == [[1, 2], [0, 1], [0, 2]]
    rules = MetricRules(segment_seconds=5.0, annotators="best3")
    result = baselines(training, [marked("c", 20, (0, 1), (0, 1), (0, 1), (2, 4))], rules)
    assert list(result)[-1] == "moment frequency"
    assert result["moment frequency"]["mIoU"] == 0
    assert (result["moment frequency"]["Rank@1"], result["moment frequency"]["Rank@5"]) == (0, 1)  # second place
    assert "moment frequency" not in baselines(training, training, MetricRules())


def test_sentences_are_sorted_by_start_then_end() -> None:
    video = paragraph("a", 10, (5, 9), (0, 9), (5, 6), (0, 2))
    (ordered,) = in_order([video], "time")
    assert ordered.sentences == ("a 3", "a 1", "a 2", "a 0")
    np.testing.assert_array_equal(ordered.spans, [[0, 2], [0, 9], [5, 6], [5, 9]])
    assert in_order([video], "file")[0] is video


def test_swapped_sentences_come_from_another_video_at_the_same_position() -> None:
    rng = np.random.default_rng(0)
    lengths = [1] * 7 + [2] * 9 + [3] * 6 + [5]
    videos = []
    for i, length in enumerate(lengths):
        starts = rng.permutation(np.arange(length)).astype(float)
        videos.append(paragraph(f"v{i}", 10.0, *[(s, s + 1) for s in starts]))
    swapped = swap_sentences(videos, "time", seed=5)
    ordered = in_order(videos, "time")
    donors = []
    for before, after in zip(ordered, swapped, strict=True):
        assert after.video_id == before.video_id
        np.testing.assert_array_equal(after.spans, before.spans)
        (donor,) = {sentence.split()[0] for sentence in after.sentences}
        assert donor != before.video_id
        donors.append(donor)
        source = next(p for p in ordered if p.video_id == donor)
        if len(source.sentences) == len(before.sentences):
            assert after.sentences == source.sentences
    assert sorted(donors) == sorted(p.video_id for p in videos)  # a derangement: each gives once
    same_length = sum(lengths[int(d[1:])] == n for d, n in zip(donors, lengths, strict=True))
    assert same_length >= len(videos) - 4
    assert [p.sentences for p in swap_sentences(videos, "time", seed=5)] == [p.sentences for p in swapped]
    assert [p.sentences for p in swap_sentences(videos, "time", seed=6)] != [p.sentences for p in swapped]


def test_swapping_within_few_videos_of_many_paragraphs() -> None:
    """TACoS: a video has many paragraphs, and none of them may come from the same video."""
    videos = [paragraph(f"v{i % 3}", 10.0, (0, 1), (1, 2)) for i in range(30)]
    for before, after in zip(videos, swap_sentences(videos), strict=True):
        assert not after.sentences[0].startswith(before.video_id)
    with pytest.raises(ValueError, match="two videos"):
        swap_sentences(videos[::3])


def test_table() -> None:
    table = format_table({"seqpan": {"R@1 IoU=0.5": 0.4123, "mIoU": 0.5}, "uniform": {"mIoU": 0.25}}, "title")
    assert table.splitlines() == [
        "title",
        "         R@1 IoU=0.5  mIoU",
        "--------------------------",
        "seqpan          41.2  50.0",
        "uniform            -  25.0",
    ]


# --- the real annotations: what watching nothing earns

ANNOTATIONS = Path(os.environ.get("VPGFAST_SHARED", Path(__file__).parents[1] / ".." / "shared")) / "data"
needs_annotations = pytest.mark.skipif(
    not ANNOTATIONS.is_dir(), reason="the real annotation files are not here (../shared/data, or set VPGFAST_SHARED)"
)


def percent(result: dict[str, float]) -> list[str]:
    """R@1 at each threshold and mIoU, as tables print them."""
    return [f"{100 * value:.1f}" for name, value in result.items() if not name.startswith("R@5")]


@needs_annotations
def test_watching_nothing_on_activitynet() -> None:
    """Sentences in the order of the file; see docs/metrics.md for what sorting them changes."""
    train, val_2 = (
        load_annotations("activitynet", s, ANNOTATIONS / "activitynet_captions") for s in ("train", "val_2")
    )
    result = baselines(train, val_2, MetricRules(sentence_order="file"), draws=1)
    assert percent(result["uniform"]) == ["71.4", "46.3", "24.1", "46.7"]
    assert percent(result["prior"]) == ["74.0", "55.0", "32.8", "51.9"]
    by_time = baselines(train, val_2, MetricRules(sentence_order="time"), draws=1)
    assert percent(by_time["uniform"]) == ["72.1", "46.8", "24.4", "47.1"]
    assert percent(by_time["prior"]) == ["75.7", "56.1", "33.3", "52.6"]


@needs_annotations
def test_watching_nothing_on_charades_cd() -> None:
    """Sentences by start, then end; spans cut at the end of the video; the 1,440 pairs."""
    test_ood = load_annotations("charades_cd", "test_ood", ANNOTATIONS / "charades_cd")
    assert len(test_ood) == 1440
    by_time = evaluate_spans(uniform_split(in_order(test_ood, "time")), in_order(test_ood, "time"), MetricRules())
    assert percent(by_time) == ["53.9", "24.7", "10.3", "33.2"]
    assert percent(evaluate_spans(uniform_split(test_ood), test_ood, MetricRules())) == ["38.3", "15.2", "6.0", "23.5"]


@needs_annotations
def test_watching_nothing_on_tacos() -> None:
    """The pieces that PRVG published, which are sorted already."""
    test = load_annotations("tacos", "test", ANNOTATIONS / "tacos", variant="prvg")
    assert len(test) == 673
    result = evaluate_spans(uniform_split(test), test, MetricRules(thresholds=(0.1, 0.3, 0.5)))
    assert percent(result) == ["30.9", "15.1", "5.8", "10.8"]


DOCUMENTED = {  # rows of the table in docs/metrics.md -> corpus, folder, test split, options of the loader
    "ActivityNet Captions val_2": ("activitynet", "activitynet_captions", "val_2", {}),
    "ActivityNet Captions val_1": ("activitynet", "activitynet_captions", "val_1", {}),
    "Charades-STA test": ("charades_sta", "charades_sta", "test", {}),
    "Charades-CD test_ood (1,440 pairs)": ("charades_cd", "charades_cd", "test_ood", {}),
    "TACoS test, 2D-TAN, whole paragraphs": ("tacos", "tacos", "test", {"variant": "tan2d"}),
    "TACoS test, PRVG's pieces": ("tacos", "tacos", "test", {"variant": "prvg"}),
}


@needs_annotations
def test_every_row_of_the_documented_table() -> None:
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if re.match(r"\|.*\d / \d", line)]
    assert len(lines) == 9
    for line in lines:
        if len(line) == 6:  # the next rows are of the same corpus
            name = line[0]
            corpus, folder, split, options = DOCUMENTED[name]
            train, test = (load_annotations(corpus, s, ANNOTATIONS / folder, **options) for s in ("train", split))
        order = line[-5]
        for each in ("time", "file") if order == "either" else (order,):
            rules = MetricRules(thresholds=(0.1, 0.3, 0.5, 0.7), sentence_order=each)
            result = baselines(train, test, rules, draws=1)
            shown = ("uniform", "prior", "whole video", "best single span")
            assert [" / ".join(percent(result[row])) for row in shown] == line[-4:], (name, each)


@needs_annotations
def test_didemo_on_its_validation_split() -> None:
    """All moments ranked by how often they are marked, through the loader, and by the protocol on the file itself."""
    with gzip.open(ANNOTATIONS / "didemo" / "val_data.json.gz") as file:
        records = json.load(file)
    often = Counter(tuple(moment) for record in records for moment in record["times"])
    order = sorted(((s, e) for s in range(6) for e in range(s, 6)), key=lambda moment: -often[moment])
    rows = []
    for record in records:
        possible = [moment for moment in order if moment[1] < record["num_segments"]]
        ranks = sorted(possible.index(tuple(moment)) + 1 for moment in record["times"])[:3]
        ious = sorted((inclusive_iou(possible[0], moment) for moment in record["times"]), reverse=True)[:3]
        rows.append((np.mean(ious), np.mean(ranks) <= 1, np.mean(ranks) <= 5))

    val = load_annotations("didemo", "val", ANNOTATIONS / "didemo")
    ranked = []
    for p in val:
        possible = [(5.0 * s, 5.0 * (e + 1)) for s, e in order if 5 * (e + 1) <= p.duration + 1e-6]
        ranked.append(np.tile(possible, (len(p.sentences), 1, 1)))
    rules = MetricRules(top_n=(1, 5), thresholds=(0.5,), segment_seconds=5.0, annotators="best3")
    result = evaluate_spans(ranked, val, rules)
    assert [result[name] for name in ("mIoU", "Rank@1", "Rank@5")] == pytest.approx(np.mean(rows, axis=0).tolist())

    frequent = baselines(val, val, rules, draws=1)["moment frequency"]
    assert [frequent[name] for name in ("mIoU", "Rank@1", "Rank@5")] == pytest.approx(
        np.mean(rows, axis=0).tolist(), abs=0.002
    )  # equally frequent moments come in another order here
