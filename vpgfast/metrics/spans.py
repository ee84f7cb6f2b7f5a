"""How good are predicted spans? R@n IoU>=m, mIoU, DiDeMo's protocol, and average precision.

Everything here works on paragraphs (see :class:`vpgfast.data.types.Paragraph`) and on *ranked spans*: one float array
[M, K, 2] a paragraph, seconds, best first, NaN where there are fewer than K. A method's predictions take that form
through :func:`ranked_spans`, baselines (:mod:`vpgfast.metrics.baselines`) are made in it, and :func:`score` is the only
place that judges it.
``docs/metrics.md`` says what each number means and which published evaluator uses which rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vpgfast.data.types import Batch, Paragraph, Prediction
from vpgfast.metrics.rules import MetricRules, metric_names
from vpgfast.ops import temporal_iou

RankedSpans = Sequence[np.ndarray]
"""One float64 [M, K, 2] a paragraph: K spans of each sentence in seconds, best first; NaN where there is none."""


AP_THRESHOLDS = np.arange(10, 20) / 20
AP_SPANS = 10
"""Average precision asks for these IoUs, and looks at so many spans (QVHighlights)."""


def ranked_spans(prediction: Prediction, batch: Batch) -> list[np.ndarray]:
    """A method's prediction for a batch -> ranked spans of each of its paragraphs.

    Raises:
        ValueError: a span that has a score is not finite (the method diverged or is wrong).
    """
    spans = prediction.spans.detach().to("cpu", torch.float64).numpy().copy()
    empty = np.isneginf(prediction.scores.detach().to("cpu", torch.float64).numpy())
    spans[empty] = np.nan
    ranked = [row[: len(paragraph.sentences)] for row, paragraph in zip(spans, batch.paragraphs, strict=True)]
    for row, nothing, paragraph in zip(ranked, empty, batch.paragraphs, strict=True):
        if not np.isfinite(row[~nothing[: len(row)]]).all():
            raise ValueError(f"predicted spans of video {paragraph.video_id!r} are not finite")
    return ranked


def score(ranked: RankedSpans, paragraphs: Sequence[Paragraph], rules: MetricRules) -> np.ndarray:
    """One row a sentence, one column a metric; a metric is the mean of its column.

    Args:
        ranked: [M, K, 2] of each paragraph, seconds.
        paragraphs: with spans, M sentences each, in the same order.
        rules: see :class:`MetricRules`.

    Returns:
        float64 [sentences, len(metric_names(rules))]. Where a sentence has fewer than n spans, R@n judges those.
    """
    for spans, paragraph in zip(ranked, paragraphs, strict=True):
        if len(spans) != len(paragraph.sentences):
            raise ValueError(
                f"{len(spans)} sentences predicted for {paragraph.video_id!r}, it has {len(paragraph.sentences)}"
            )
    durations = np.repeat([p.duration for p in paragraphs], [len(p.sentences) for p in paragraphs])
    candidates = stack_spans([spans for paragraph in ranked for spans in paragraph])  # [N, K, 2]
    truths = stack_spans([spans for paragraph in paragraphs for spans in _truths(paragraph, rules)])  # [N, A, 2]
    candidates, truths = _quantise(candidates, durations, rules), _quantise(truths, durations, rules)
    ious = interval_iou(candidates, truths)  # [N, K, A]
    there = ~np.isnan(truths[..., 0])
    if rules.annotators == "best3":
        annotators = there.sum(axis=-1)
        columns = [_hits(_best3(ious, annotators), rules), _didemo_ranks(ious, annotators)]
    else:
        columns = [_hits(ious.max(axis=-1), rules)]  # of several moments any one counts
    if rules.average_precision:
        precisions = average_precisions(ious[:, :AP_SPANS], ~np.isnan(candidates[:, :AP_SPANS, 0]), there.sum(axis=-1))
        columns.append(np.column_stack((precisions[:, [0, 5]], precisions.mean(axis=1))))
    return np.column_stack(columns)


def average_precisions(ious: np.ndarray, predicted: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Average precision of ranked spans at each of :data:`AP_THRESHOLDS`: float64 [N, 10].

    Down the ranking each span takes the moment that it overlaps most, of those that none before it took; it is right
    where their IoU reaches the threshold. The area under the precision-recall curve, with the precision made monotone,
    as PASCAL VOC 2011 and QVHighlights have it.

    Args:
        ious: [N, K, A], K spans ranked, best first.
        predicted: bool [N, K], which of them are there.
        truths: [N], how many of the A moments are there, at least one.
    """
    N, K, A = ious.shape
    taken = np.zeros((N, len(AP_THRESHOLDS), A), bool)
    right = np.zeros((N, K, len(AP_THRESHOLDS)), bool)
    for k in range(K):
        free = np.where(taken, -1.0, ious[:, k, None])  # [N, 10, A]
        best = A - 1 - free[..., ::-1].argmax(axis=-1)  # of equals the last
        reached = np.take_along_axis(free, best[..., None], axis=-1)[..., 0] >= AP_THRESHOLDS
        right[:, k] = predicted[:, k, None] & reached
        taken |= right[:, k, :, None] & (np.arange(A) == best[..., None])
    found = right.cumsum(axis=1)
    precision = found / np.maximum(predicted.cumsum(axis=1), 1)[..., None]
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    gained = np.diff(found / truths[:, None, None], axis=1, prepend=0)
    return (gained * precision).sum(axis=1)


def summarize(rows: np.ndarray, rules: MetricRules) -> dict[str, float]:
    """Mean of each column of :func:`score`, by name, as fractions in [0, 1]; NaN if there is no sentence."""
    means = rows.mean(axis=0) if len(rows) else np.full(rows.shape[1], np.nan)
    return dict(zip(metric_names(rules), means.tolist(), strict=True))


def evaluate_spans(ranked: RankedSpans, paragraphs: Sequence[Paragraph], rules: MetricRules) -> dict[str, float]:
    """:func:`score` and :func:`summarize` in one."""
    return summarize(score(ranked, paragraphs, rules), rules)


def best_ious(ranked: RankedSpans, paragraphs: Sequence[Paragraph]) -> np.ndarray:
    """IoU of each sentence's first span with the true one that it overlaps most: float64 [sentences], those of mIoU
    without clips, segments or annotators of :class:`MetricRules`; 0 where nothing was predicted."""
    first = stack_spans([spans[:1] for paragraph in ranked for spans in paragraph])
    truths = stack_spans([spans for paragraph in paragraphs for spans in _truths(paragraph, MetricRules())])
    return interval_iou(first, truths)[:, 0].max(axis=-1)


def interval_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of intervals [..., N, 2] and [..., M, 2] -> float64 [..., N, M].

    0 where one of them is empty, NaN (no prediction) or ends before it starts.
    """
    return temporal_iou(_intervals(a), _intervals(b)).numpy()


def _intervals(spans: np.ndarray) -> torch.Tensor:
    """float64 [..., 2], what is no interval replaced by an empty one (comparing with NaN is false)."""
    return torch.from_numpy(np.where(spans[..., :1] <= spans[..., 1:], spans, 0.0))


def stack_spans(spans: Sequence[np.ndarray]) -> np.ndarray:
    """N arrays [k_i, 2] -> float64 [N, max(k_i), 2], filled up with NaN; at least one wide."""
    out = np.full((len(spans), max([1, *(len(rows) for rows in spans)]), 2), np.nan)
    for row, values in zip(out, spans, strict=True):
        row[: len(values)] = values
    return out


def _truths(paragraph: Paragraph, rules: MetricRules) -> Sequence[np.ndarray]:
    """What each sentence is compared with: M arrays [A, 2] in seconds."""
    if rules.annotators == "best3" and paragraph.annotator_spans is not None:
        return paragraph.annotator_spans
    if paragraph.true_spans is None:
        raise ValueError(f"video {paragraph.video_id!r} has no annotated spans to be scored against")
    return paragraph.true_spans


def _quantise(spans: np.ndarray, durations: np.ndarray, rules: MetricRules) -> np.ndarray:
    """Widen spans [N, K, 2] (seconds) to the whole clips or segments they touch; the unit changes, an IoU doesn't mind.

    A border closer than a thousandth of a clip to a clip's border is on it: predictions come in float32.
    """
    durations = durations[:, None]
    if rules.clips is not None:
        cells, last = spans / durations[..., None] * rules.clips, np.full_like(durations, rules.clips)
    elif rules.segment_seconds is not None:
        cells, last = spans / rules.segment_seconds, np.ceil(durations / rules.segment_seconds - 1e-3)
    else:
        return spans
    start = np.clip(np.floor(cells[..., 0] + 1e-3), 0, last - 1)
    end = np.clip(np.ceil(cells[..., 1] - 1e-3), start + 1, last)
    return np.stack((start, end), axis=-1)


def _hits(ious: np.ndarray, rules: MetricRules) -> np.ndarray:
    """IoU of the ranked spans [N, K] -> the R@n columns and the IoU of the first span, float64 [N, columns]."""
    reached = np.greater_equal if rules.comparison == ">=" else np.greater
    best = np.stack([ious[:, :n].max(axis=1) for n in rules.top_n], axis=1)  # [N, n]
    hits = reached(best[:, :, None], np.asarray(rules.thresholds))  # [N, n, m]
    return np.column_stack((hits.reshape(len(ious), best.shape[1] * len(rules.thresholds)), ious[:, 0]))


def _best3(ious: np.ndarray, annotators: np.ndarray) -> np.ndarray:
    """[N, K, A] -> [N, K]: mean of the three highest over the annotators (of all, where there are fewer)."""
    return np.sort(ious, axis=-1)[..., -3:].sum(axis=-1) / np.minimum(annotators, 3)[:, None]


def _didemo_ranks(ious: np.ndarray, annotators: np.ndarray) -> np.ndarray:
    """DiDeMo's Rank@1 and Rank@5 from [N, K, A] -> [N, 2]: is the mean of the three best ranks at most 1 / 5?

    An annotator's rank is the place of exactly their moment among the K ranked ones, infinite if it isn't there: give
    all 21 moments to reproduce the official numbers.
    """
    same = ious > 1 - 1e-9
    ranks = np.where(same.any(axis=1), same.argmax(axis=1) + 1.0, np.inf)  # [N, A]
    counted = np.arange(ranks.shape[1]) < np.minimum(annotators, 3)[:, None]
    mean = np.where(counted, np.sort(ranks, axis=1), 0).sum(axis=1) / counted.sum(axis=1)
    return np.stack((mean <= 1, mean <= 5), axis=1)
