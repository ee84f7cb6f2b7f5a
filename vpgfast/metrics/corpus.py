"""How well are videos found among all videos of a split, and the moments in them? Arrays in, numbers out: no model.

A paragraph is a query, and what it should find is its own video. :func:`true_ranks` says at which place that is,
:func:`corpus_result` makes R@K, the median rank and the joint metrics of that, beside what watching nothing earns.
``docs/metrics.md`` says what each number means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from vpgfast.data.types import Paragraph
from vpgfast.metrics.baselines import in_order, random_spans, uniform_split
from vpgfast.metrics.rules import MetricRules, metric_names
from vpgfast.metrics.spans import RankedSpans, score
from vpgfast.metrics.table import align, format_table
from vpgfast.ops import temporal_nms

VIDEO_DEPTHS = (1, 5, 10, 100)
"""The K of R@K: a paragraph counts if its video is among the K best."""
JOINT_DEPTHS = (10, 100)
"""The K of the joint metrics: a sentence counts if its video is among the K best *and* its moment fits."""
WINDOWS, WINDOW_NMS = 10, 0.5
"""Windows of a sentence that the released code of DMR-JRG counts, and the IoU above which a worse one is dropped."""
MEDIAN_RANK = "median rank"
BAG_OF_WORDS = "bag of words"
"""The baseline of :mod:`vpgfast.metrics.bag_of_words`."""
STRICT = "strict "
"""Before the name of a joint metric that counts the first window alone."""

IN_TABLES = "corpus "
"""Before the name of a metric where it stands beside those of the spans in the right video, whose names are alike."""

_SAME = 1e-12
"""Two products of float32 vectors of length 1, summed in float64, that are closer than this are the same number: they
differ by the order of summing alone."""


@dataclass
class CorpusResult:
    """How well a method finds videos and their moments, and what watching nothing earns.

    Attributes:
        videos: V that were searched.
        paragraphs: queries.
        metrics: by name: R@K and the joint metrics are fractions in [0, 1], "median rank" counts from 1.
        baselines: "chance" (a random ranking, and random spans) with the same names; "bag of words" with R@K and the
            median rank; "uniform" (the method's own ranking, and the uniform split of the video) with the joint ones.
    """

    videos: int
    paragraphs: int
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]

    def tables(self, method: str, title: str) -> str:
        """Two tables: finding the video, then finding the video and the moment."""
        rows = {method: self.metrics, "chance": self.baselines["chance"]}
        found = {name: self.baselines[name] for name in (BAG_OF_WORDS,) if name in self.baselines}  # not in older files
        names = [f"R@{depth}" for depth in VIDEO_DEPTHS]
        cells = [
            (label, [*(f"{100 * row[name]:.1f}" for name in names), f"{row[MEDIAN_RANK]:g}"])
            for label, row in {method: self.metrics, **found, "chance": self.baselines["chance"]}.items()
        ]
        about = f"{title}: the video of a paragraph among {self.videos}, {self.paragraphs} paragraphs"
        video = align([*names, MEDIAN_RANK], cells, about)
        joint = [name for name in self.metrics if "IoU" in name and not name.startswith(STRICT)]
        spans = {}
        for label, row in {**rows, "videos found, uniform split": self.baselines["uniform"]}.items():
            spans[label] = {name: row[name] for name in joint}
            if label != "videos found, uniform split":  # one window a sentence: both counts are the same
                spans[f"{label}, first window only"] = {name: row[STRICT + name] for name in joint}
        about = f"{title}: the video within K and the moment in one of {WINDOWS} windows, sentences"
        return f"{video}\n\n{format_table(spans, about)}"


def corpus_metric_names(rules: MetricRules) -> list[str]:
    """The fractions of :attr:`CorpusResult.metrics` (all but the median rank) as tables of several runs call them."""
    joint = [f"R@{depth} IoU={threshold:g}" for depth in JOINT_DEPTHS for threshold in rules.thresholds]
    names = [*(f"R@{depth}" for depth in VIDEO_DEPTHS), *joint, *(STRICT + name for name in joint)]
    return [IN_TABLES + name for name in names]


def for_tables(metrics: Mapping[str, float]) -> dict[str, float]:
    """:attr:`CorpusResult.metrics` under the names of :func:`corpus_metric_names`."""
    return {IN_TABLES + name: value for name, value in metrics.items() if name != MEDIAN_RANK}


def true_ranks(
    queries: np.ndarray, videos: np.ndarray, truth: np.ndarray, query_block: int = 256, video_block: int = 4096
) -> np.ndarray:
    """The place of each query's own video among all videos, by falling product of their vectors.

    A video that fits as well as the true one counts as if it came before it, so that vectors that are all alike earn
    the last place. Never more than ``query_block`` x ``video_block`` products are in memory.

    Args:
        queries: float32 [P, E], of length 1.
        videos: float32 [V, E], of length 1.
        truth: int [P], which video is a query's own.
        query_block: queries at a time.
        video_block: videos at a time.

    Returns:
        int64 [P], from 1 to V.

    Raises:
        ValueError: a vector is not finite (nothing could be said to come before it).
    """
    for name, vectors in (("queries", queries), ("videos", videos)):
        if not np.isfinite(vectors).all():
            raise ValueError(f"{name}: vectors that are not finite can't be ranked")
    ranks = np.ones(len(queries), np.int64)
    for start in range(0, len(queries), query_block):
        rows = slice(start, start + query_block)
        query, own = queries[rows].astype(np.float64), truth[rows]
        mark = (query * videos[own]).sum(axis=1, keepdims=True) - _SAME
        for first in range(0, len(videos), video_block):
            block = videos[first : first + video_block].astype(np.float64)
            before = query @ block.T >= mark
            inside = np.flatnonzero((own >= first) & (own < first + len(block)))
            before[inside, own[inside] - first] = False  # a video doesn't come before itself
            ranks[rows] += before.sum(axis=1)
    return ranks


def distinct_windows(ranked: RankedSpans) -> list[np.ndarray]:
    """The :data:`WINDOWS` best spans of each sentence that overlap no better one by more than :data:`WINDOW_NMS`.

    Args:
        ranked: [M, K, 2] of each paragraph, seconds, best first; NaN where there is none.

    Returns:
        float64 [M, WINDOWS, 2] of each paragraph, NaN where there are fewer.
    """
    distinct = []
    for spans in ranked:
        real = spans[..., 0] <= spans[..., 1]  # false for NaN
        order = np.where(real, -np.arange(spans.shape[1], dtype=np.float64), -np.inf)
        candidates = torch.from_numpy(np.where(real[..., None], spans, 0.0))
        kept = temporal_nms(candidates, torch.from_numpy(order), WINDOW_NMS, WINDOWS).numpy()
        chosen = np.take_along_axis(spans, kept.clip(min=0)[..., None], axis=1)
        distinct.append(np.where(kept[..., None] >= 0, chosen, np.nan))
    return distinct


def corpus_result(
    ranks: np.ndarray,
    ranks_by_words: np.ndarray,
    videos: int,
    ranked: RankedSpans,
    items: Sequence[Paragraph],
    item_paragraphs: np.ndarray,
    paragraphs: Sequence[Paragraph],
    rules: MetricRules,
    seed: int = 0,
    draws: int = 20,
) -> CorpusResult:
    """R@K, median rank and joint metrics of a split.

    Args:
        ranks: int [P], place of each paragraph's video, see :func:`true_ranks`.
        ranks_by_words: int [P], the same for the vectors of :mod:`vpgfast.metrics.bag_of_words`.
        videos: V that were ranked.
        ranked: spans predicted in the true video, of each item.
        items: the paragraphs as the method took them: whole, in pieces, or sentence by sentence.
        item_paragraphs: int [items], which paragraph an item is part of.
        paragraphs: P of them, whole.
        rules: thresholds, comparison and units of the joint metrics are those of the other metrics.
        seed: of the random spans.
        draws: chance is the mean over this many draws of random spans.
    """
    chances = {depth: min(depth / videos, 1.0) for depth in VIDEO_DEPTHS}
    found = np.stack([ranks <= depth for depth in JOINT_DEPTHS], axis=1).astype(np.float64)  # [P, depths]
    lucky = np.tile([chances[depth] for depth in JOINT_DEPTHS], (len(paragraphs), 1))

    ordered = in_order(paragraphs, rules.sentence_order)
    guesses = [random_spans(ordered, seed + draw, 3 * WINDOWS) for draw in range(draws)]  # enough for ten distinct ones
    guessed = [_joint(lucky, distinct_windows(spans), ordered, rules) for spans in guesses]
    chance = {f"R@{depth}": share for depth, share in chances.items()} | {MEDIAN_RANK: (videos + 1) / 2}
    return CorpusResult(
        videos=videos,
        paragraphs=len(paragraphs),
        metrics=_found(ranks) | _joint(found[item_paragraphs], distinct_windows(ranked), items, rules),
        baselines={
            "chance": chance | {name: float(np.mean([row[name] for row in guessed])) for name in guessed[0]},
            BAG_OF_WORDS: _found(ranks_by_words),
            "uniform": _joint(found, uniform_split(ordered), ordered, rules),
        },
    )


def _found(ranks: np.ndarray) -> dict[str, float]:
    """R@K and median rank."""
    shares = {f"R@{depth}": float(np.mean(ranks <= depth)) for depth in VIDEO_DEPTHS}
    return shares | {MEDIAN_RANK: float(np.median(ranks))}


def _joint(
    found: np.ndarray, windows: RankedSpans, paragraphs: Sequence[Paragraph], rules: MetricRules
) -> dict[str, float]:
    """Both counts of the joint metrics from the share [paragraphs, depths] to which a paragraph's video was found."""
    rules = replace(rules, top_n=(1, WINDOWS))
    columns = dict(zip(metric_names(rules), score(windows, paragraphs, rules).T, strict=True))
    within = np.repeat(found, [len(paragraph.sentences) for paragraph in paragraphs], axis=0)  # [sentences, depths]
    return {
        f"{label}R@{depth} IoU={threshold:g}": float(np.mean(within[:, d] * columns[f"R@{n} IoU={threshold:g}"]))
        for label, n in (("", WINDOWS), (STRICT, 1))
        for d, depth in enumerate(JOINT_DEPTHS)
        for threshold in rules.thresholds
    }
