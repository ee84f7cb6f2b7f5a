"""How good are predicted spans? R@n IoU>=m, mIoU, DiDeMo's protocol, three baselines and the swapped-sentence control.

Everything here works on paragraphs (see :class:`vpgfast.data.types.Paragraph`) and on *ranked spans*: one float array
[M, K, 2] a paragraph, seconds, best first, NaN where there are fewer than K. A method's predictions take that form
through :func:`ranked_spans`, baselines are made in it, and :func:`score` is the only place that judges it.
``docs/metrics.md`` says what each number means and which published evaluator uses which rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from vpgfast.data.types import Batch, Paragraph, Prediction
from vpgfast.errors import ConfigError
from vpgfast.ops import temporal_iou

RankedSpans = Sequence[np.ndarray]
"""One float64 [M, K, 2] a paragraph: K spans of each sentence in seconds, best first; NaN where there is none."""


@dataclass(frozen=True)
class MetricRules:
    """How predictions are judged; the defaults are the rules of SeqPAN, VSLNet and TALL.

    Attributes:
        top_n: the n of R@n: a sentence counts if any of its n best spans fits.
        thresholds: the m of IoU >= m.
        comparison: ">=", or ">" as in 2D-TAN's evaluator; they differ only where an IoU equals m.
        clips: compare spans as whole clips of a video cut into this many; null compares seconds as annotated.
        segment_seconds: compare spans as whole segments of this length (DiDeMo: 5), which is DiDeMo's inclusive IoU.
        annotators: of several annotators' spans, "best3" averages the three highest IoUs (DiDeMo's protocol, adds
            Rank@1 and Rank@5), "majority" takes the interval that most of them chose.
        sentence_order: order in which a sentence counts as the m-th of its paragraph for the baselines and the control:
            "time" (start, then end) or "file" (as annotated).
    """

    top_n: tuple[int, ...] = (1, 5)
    thresholds: tuple[float, ...] = (0.3, 0.5, 0.7)
    comparison: Literal[">=", ">"] = ">="
    clips: int | None = None
    segment_seconds: float | None = None
    annotators: Literal["best3", "majority"] = "majority"
    sentence_order: Literal["time", "file"] = "time"

    def __post_init__(self) -> None:
        if self.clips is not None and self.segment_seconds is not None:
            raise ConfigError("metrics: give clips or segment_seconds, not both")
        if not self.top_n or not self.thresholds or min(self.top_n) < 1:
            raise ConfigError("metrics: top_n needs whole numbers from 1 on, and thresholds at least one")


def metric_names(rules: MetricRules) -> list[str]:
    """The columns that :func:`score` returns, in its order."""
    names = [f"R@{n} IoU={threshold:g}" for n in rules.top_n for threshold in rules.thresholds]
    return [*names, "mIoU"] + (["Rank@1", "Rank@5"] if rules.annotators == "best3" else [])


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
    candidates = _stack([spans for paragraph in ranked for spans in paragraph])  # [N, K, 2]
    truths = _stack([spans for paragraph in paragraphs for spans in _truths(paragraph, rules)])  # [N, A, 2]
    candidates, truths = _quantise(candidates, durations, rules), _quantise(truths, durations, rules)
    ious = interval_iou(candidates, truths)  # [N, K, A]
    if rules.annotators == "best3":
        annotators = (~np.isnan(truths[..., 0])).sum(axis=-1)
        return np.column_stack((_hits(_best3(ious, annotators), rules), _didemo_ranks(ious, annotators)))
    return _hits(ious[..., 0], rules)


def summarize(rows: np.ndarray, rules: MetricRules) -> dict[str, float]:
    """Mean of each column of :func:`score`, by name, as fractions in [0, 1]; NaN if there is no sentence."""
    means = rows.mean(axis=0) if len(rows) else np.full(rows.shape[1], np.nan)
    return dict(zip(metric_names(rules), means.tolist(), strict=True))


def evaluate_spans(ranked: RankedSpans, paragraphs: Sequence[Paragraph], rules: MetricRules) -> dict[str, float]:
    """:func:`score` and :func:`summarize` in one."""
    return summarize(score(ranked, paragraphs, rules), rules)


def interval_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of intervals [..., N, 2] and [..., M, 2] -> float64 [..., N, M].

    0 where one of them is empty, NaN (no prediction) or ends before it starts.
    """
    return temporal_iou(_intervals(a), _intervals(b)).numpy()


def _intervals(spans: np.ndarray) -> torch.Tensor:
    """float64 [..., 2], what is no interval replaced by an empty one (comparing with NaN is false)."""
    return torch.from_numpy(np.where(spans[..., :1] <= spans[..., 1:], spans, 0.0))


def _stack(spans: Sequence[np.ndarray]) -> np.ndarray:
    """N arrays [k_i, 2] -> float64 [N, max(k_i), 2], filled up with NaN; at least one wide."""
    out = np.full((len(spans), max([1, *(len(rows) for rows in spans)]), 2), np.nan)
    for row, values in zip(out, spans, strict=True):
        row[: len(values)] = values
    return out


def _truths(paragraph: Paragraph, rules: MetricRules) -> Sequence[np.ndarray]:
    """What each sentence is compared with: M arrays [A, 2] in seconds, A = 1 unless several annotators count."""
    if rules.annotators == "best3" and paragraph.annotator_spans is not None:
        return paragraph.annotator_spans
    if paragraph.spans is None:
        raise ValueError(f"video {paragraph.video_id!r} has no annotated spans to be scored against")
    return list(paragraph.spans[:, None])


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


# --- what the numbers are compared with


def in_order(paragraphs: Sequence[Paragraph], order: Literal["time", "file"]) -> list[Paragraph]:
    """The paragraphs with their sentences by annotated start, then end ("time"), or as they are ("file")."""
    return [paragraph.by_time() for paragraph in paragraphs] if order == "time" else list(paragraphs)


def random_spans(paragraphs: Sequence[Paragraph], seed: int = 0, k: int = 5) -> list[np.ndarray]:
    """``k`` spans a sentence, start and end drawn uniformly from the video and sorted."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.random((len(p.sentences), k, 2)), axis=-1) * p.duration for p in paragraphs]


def uniform_split(paragraphs: Sequence[Paragraph]) -> list[np.ndarray]:
    """One span a sentence: the m-th of the video's M equal parts for sentence m of M."""
    ranked = []
    for paragraph in paragraphs:
        borders = np.linspace(0, paragraph.duration, len(paragraph.sentences) + 1)
        ranked.append(np.stack((borders[:-1], borders[1:]), axis=-1)[:, None])
    return ranked


class PositionPrior:
    """The median start and the median end, as fractions, of sentence m of M in the training set.

    A paragraph longer than any in training has no median of its own: its sentence m of M takes the median of all
    training sentences whose relative position (m + 0.5) / M lies within 0.5 / M of its own, and the uniform split if
    there is none.
    """

    def __init__(self, training: Sequence[Paragraph]) -> None:
        """Args: training paragraphs with spans, sentences in the order that counts."""
        positions: dict[tuple[int, int], list[np.ndarray]] = {}
        for paragraph in training:
            if paragraph.spans is None:
                raise ValueError(f"training video {paragraph.video_id!r} has no spans")
            total = len(paragraph.sentences)
            for m, span in enumerate(paragraph.spans / paragraph.duration):
                positions.setdefault((m, total), []).append(span)
        self.medians = {position: np.median(spans, axis=0) for position, spans in positions.items()}
        self._places = np.array([(m + 0.5) / total for (m, total), spans in positions.items() for _ in spans])
        self._spans = np.concatenate([*positions.values(), np.empty((0, 2))])

    def span(self, m: int, total: int) -> np.ndarray:
        """Median span of sentence ``m`` (from 0) of ``total``: float64 [2], fractions of the duration."""
        if (m, total) not in self.medians:
            near = np.abs(self._places - (m + 0.5) / total) <= 0.5 / total
            fallback = np.median(self._spans[near], axis=0) if near.any() else np.array([m, m + 1]) / total
            self.medians[m, total] = fallback
        return self.medians[m, total]

    def __call__(self, paragraphs: Sequence[Paragraph]) -> list[np.ndarray]:
        """One span a sentence, in seconds."""
        return [
            np.stack([self.span(m, len(p.sentences)) for m in range(len(p.sentences))])[:, None] * p.duration
            for p in paragraphs
        ]


def baselines(
    training: Sequence[Paragraph], paragraphs: Sequence[Paragraph], rules: MetricRules, seed: int = 0, draws: int = 20
) -> dict[str, dict[str, float]]:
    """What watching nothing earns: ``{"random": ..., "uniform": ..., "prior": ...}`` with the keys of a result.

    Args:
        training: paragraphs that the prior may look at.
        paragraphs: those that are judged, whole (M sentences each) and with spans.
        rules: as for the method beside which these numbers stand.
        seed: of the random spans.
        draws: the random baseline is the mean over this many draws.

    The uniform split and the prior know one span a sentence, so their R@5 is their R@1.
    """
    training = in_order(training, rules.sentence_order)
    paragraphs = in_order(paragraphs, rules.sentence_order)
    k = max(rules.top_n)
    random = [score(random_spans(paragraphs, seed + draw, k), paragraphs, rules) for draw in range(draws)]
    return {
        "random": summarize(np.mean(random, axis=0), rules),
        "uniform": evaluate_spans(uniform_split(paragraphs), paragraphs, rules),
        "prior": evaluate_spans(PositionPrior(training)(paragraphs), paragraphs, rules),
    }


def swap_sentences(
    paragraphs: Sequence[Paragraph], order: Literal["time", "file"] = "time", seed: int = 0
) -> list[Paragraph]:
    """The control: every video keeps its spans and gets the sentences of another video.

    A method that still does well on these reads positions, not the video. Donors are drawn among paragraphs of as many
    sentences where possible, so that sentence m of M is replaced by a sentence m of M; between paragraphs of different
    lengths, sentence m of M is replaced by the one at the same relative position. No video is its own donor, and each
    gives once (unless that is impossible because a video has many paragraphs).

    Raises:
        ValueError: there are not two different videos.
    """
    if len({paragraph.video_id for paragraph in paragraphs}) < 2:
        raise ValueError("swapping sentences needs at least two videos")
    paragraphs = in_order(paragraphs, order)
    shuffled = np.random.default_rng(seed).permutation(len(paragraphs))
    ring = sorted(shuffled.tolist(), key=lambda i: len(paragraphs[i].sentences))  # stable: random within a length
    swapped = list(paragraphs)
    for place, i in enumerate(ring):
        video = paragraphs[i].video_id
        donors = (paragraphs[ring[(place + step) % len(ring)]] for step in range(1, len(ring)))
        donor = next(paragraph for paragraph in donors if paragraph.video_id != video)
        total = len(paragraphs[i].sentences)
        places = [int((m + 0.5) * len(donor.sentences) / total) for m in range(total)]
        swapped[i] = replace(paragraphs[i], sentences=tuple(donor.sentences[m] for m in places))
    return swapped


# --- the table


def format_table(rows: Mapping[str, Mapping[str, float]], title: str = "") -> str:
    """Results by name as text, in per cent with one decimal; a dash where a row lacks a number.

    The first row is the method; the others are what it is compared with.
    """
    names = list(next(iter(rows.values())))
    cells = {label: [f"{100 * row[name]:.1f}" if name in row else "-" for name in names] for label, row in rows.items()}
    return align(names, list(cells.items()), title)


def align(names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], title: str = "") -> str:
    """A table of text: columns ``names``, right-aligned, and labelled rows of cells."""
    width = max(len(label) for label, _ in rows)
    widths = [max(len(name), *(len(cells[i]) for _, cells in rows)) for i, name in enumerate(names)]
    header = " " * width + "".join(f"  {name:>{w}}" for name, w in zip(names, widths, strict=True))
    lines = [*([title] if title else []), header, "-" * len(header)]
    for label, cells in rows:
        lines.append(f"{label:<{width}}" + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths, strict=True)))
    return "\n".join(line.rstrip() for line in lines)
