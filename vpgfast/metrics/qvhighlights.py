"""QVHighlights' metrics of a submission, with the names and the rounding of its authors' evaluator.

Per cent with two decimals. ``MR`` is moment retrieval: R@1 (any of a query's moments counts) and average precision,
over all queries and over the moments of a range of lengths; ``HL`` is highlight detection, for clips that raters found
at least fair (2), good (3) or very good (4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vpgfast.data.annotations.qvhighlights import Query
from vpgfast.data.submissions import Answer
from vpgfast.metrics.spans import AP_SPANS, AP_THRESHOLDS, average_precisions, interval_iou, stack_spans

LENGTHS = {"short": (0, 10), "middle": (10, 30), "long": (30, 150), "full": (0, math.inf)}
"""Moments longer than the first and at most as long as the second, seconds; the authors' full is the file."""
RATINGS = {"Fair": 2, "Good": 3, "VeryGood": 4}


def score_submission(answers: Sequence[Answer], queries: Sequence[Query]) -> dict[str, Any]:
    """All that the authors' evaluator says, under its names: ``brief``, then ``full``, ``short``, ``HL-min-Good``, ...

    Highlight metrics are there where the answers have scores of clips and the queries have ratings. What no query
    belongs to is ``None``, and a query without a predicted window counts as missed (the authors' evaluator stops at
    both). A window that ends before it starts is wrong (theirs may divide by zero there, and count it).

    Args:
        answers: one for each query, in the same order.
        queries: the truth.
    """
    moments = {name: _moments(answers, queries, *limits) for name, limits in LENGTHS.items()}
    precision = {name: values["MR-mAP"] for name, values in moments.items()}
    full, recall = precision["full"], moments["full"]["MR-R1"]
    brief = {
        "MR-full-R1@0.5": recall["0.5"],
        "MR-full-R1@0.7": recall["0.7"],
        "MR-full-mAP": full["average"],
        "MR-full-mAP@0.5": full["0.5"],
        "MR-full-mAP@0.75": full["0.75"],
        **{f"MR-{name}-mAP": precision[name]["average"] for name in ("long", "middle", "short")},
    }
    highlights: dict[str, Any] = {}
    if all(answer.saliency is not None for answer in answers) and all(q.saliency is not None for q in queries):
        highlights = {f"HL-min-{name}": _highlights(answers, queries, least) for name, least in RATINGS.items()}
        for name, values in highlights.items():
            brief |= {f"{name}-mAP": values["HL-mAP"], f"{name}-Hit1": values["HL-Hit1"]}
    return {"brief": brief, **dict(sorted({**moments, **highlights}.items()))}


def _moments(answers: Sequence[Answer], queries: Sequence[Query], over: float, most: float) -> dict[str, Any]:
    """Of the queries that have moments of such a length, by these moments alone."""
    lengths = [query.windows[:, 1] - query.windows[:, 0] for query in queries]
    inside = [(over < length) & (length <= most) for length in lengths]
    kept = [i for i, wanted in enumerate(inside) if wanted.any()]
    names = [f"{threshold:g}" for threshold in AP_THRESHOLDS]
    if not kept:
        nothing = dict.fromkeys(names)
        return {"MR-mAP": {**nothing, "average": None}, "MR-R1": nothing}
    truths = stack_spans([queries[i].windows[inside[i]] for i in kept])
    counts = (~np.isnan(truths[..., 0])).sum(axis=1)
    first = stack_spans([answers[i].windows[:1, :2] for i in kept])
    recall = interval_iou(first, truths)[:, 0].max(axis=-1)[:, None] >= AP_THRESHOLDS
    best = [answers[i].windows[:AP_SPANS] for i in kept]
    ranked = stack_spans([windows[np.argsort(-windows[:, 2], kind="stable"), :2] for windows in best])
    precisions = average_precisions(interval_iou(ranked, truths), ~np.isnan(ranked[..., 0]), counts).mean(axis=0)
    return {
        "MR-mAP": {**_per_cent(names, precisions), "average": _rounded(precisions.mean())},
        "MR-R1": _per_cent(names, recall.mean(axis=0)),
    }


def _highlights(answers: Sequence[Answer], queries: Sequence[Query], least: int) -> dict[str, float]:
    hits, precisions = [], []
    for answer, query in zip(answers, queries, strict=True):
        assert answer.saliency is not None
        assert query.saliency is not None
        good = query.saliency >= least  # [clips, 3]
        scores = np.zeros(len(good))  # of clips that the answer does not reach; scores beyond the video don't count
        scores[: len(answer.saliency)] = answer.saliency[: len(good)]
        best = int(np.argmax(answer.saliency))
        hits.append(best < len(good) and bool(good[best].any()))
        precisions.append(np.mean([_average_precision(good[:, rater], scores) for rater in range(good.shape[1])]))
    return {"HL-mAP": _rounded(float(np.mean(precisions))), "HL-Hit1": _rounded(float(np.mean(hits)))}


def _average_precision(good: np.ndarray, scores: np.ndarray) -> float:
    """Mean of the precision, made monotone, over the score levels at which another good clip is found.

    1 where all clips are good, 0 where none is. Clips of one score are found at once.

    Args:
        good: bool [clips].
        scores: [clips].
    """
    if good.all() or not good.any():
        return float(good.all())
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the last clip of each score
    found = good[order].cumsum()[ends]
    precision = np.maximum.accumulate((found / (ends + 1))[::-1])[::-1]
    return float(precision[np.diff(found, prepend=0) > 0].mean())


def _per_cent(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: _rounded(value) for name, value in zip(names, values.tolist(), strict=True)}


def _rounded(value: float) -> float:
    return float(f"{100 * value:.2f}")
