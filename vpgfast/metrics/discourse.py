"""How far reading gets one in a corpus of :mod:`vpgfast.data.discourse`: oracles that know when everything happens.

They know all events of a video, of all shapes, told or not, with their times, and never fail to see one. What differs
is how they read. An oracle that may choose among several moments is judged by the mean over its choices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from vpgfast.data.discourse import Happening, Statement, happenings, read, shares_in_order, true_alone, true_together
from vpgfast.data.shape_scripts import ShapesVideo
from vpgfast.data.types import Paragraph
from vpgfast.metrics.baselines import PositionPrior, baselines
from vpgfast.metrics.rules import MetricRules
from vpgfast.metrics.spans import interval_iou

Oracle = Callable[[Sequence[Statement], Sequence[Happening]], np.ndarray]
"""Statements of a paragraph and the events of its video -> with what share each event is chosen, float64 [M, E]."""


def alone(statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
    """Which events each sentence is true of by itself, bool [M, E]."""
    return np.stack([true_alone(statement, events) for statement in statements])


def any_true(statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
    """Each sentence by itself, any moment that it is true of."""
    true = alone(statements, events)
    return true / true.sum(axis=1, keepdims=True)


def first_true(statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
    """Each sentence by itself, the first moment that it is true of."""
    return np.eye(len(events))[alone(statements, events).argmax(axis=1)]


def last_true(statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
    """Each sentence by itself, the last moment that it is true of."""
    return np.eye(len(events))[len(events) - 1 - alone(statements, events)[:, ::-1].argmax(axis=1)]


def in_order(statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
    """Each sentence by itself, but the moments in the order of the sentences: any such choice."""
    return shares_in_order(alone(statements, events))


def unread(statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
    """Any events in order, whatever the sentences say."""
    return shares_in_order(np.ones((len(statements), len(events)), bool))


def whole_paragraph(statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
    """The paragraph read as a whole."""
    return shares_in_order(true_together(statements, events))


ORACLES: Mapping[str, Oracle] = {
    "the whole paragraph": whole_paragraph,
    "each sentence alone, any true moment": any_true,
    "each sentence alone, the first true moment": first_true,
    "each sentence alone, the last true moment": last_true,
    "each sentence alone, true moments in order": in_order,
    "nothing read, any moments in order": unread,
}


def near_prior(prior: PositionPrior, duration: float) -> Oracle:
    """Each sentence by itself, of the moments that it is true of the one nearest to sentence m of M's usual place."""

    def oracle(statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
        usual = np.array([prior.span(m, len(statements)).mean() for m in range(len(statements))]) * duration
        middles = np.array([(event.start + event.end) / 2 for event in events])
        distance = np.where(alone(statements, events), np.abs(usual[:, None] - middles), np.inf)
        return np.eye(len(events))[distance.argmin(axis=1)]

    return oracle


class UsualRank:
    """Each sentence by itself, of its true moments the one whose rank was most often meant in training, by sentences of
    the same form that were true of as many: the best rule that there is, but for what no such rule can know.

    Args:
        training: videos to count in.
    """

    def __init__(self, training: Sequence[ShapesVideo]) -> None:
        self.counts: dict[tuple[Statement, int], Counter[int]] = {}
        for video in training:
            events, statements = happenings(video), [read(sentence) for sentence in video.sentences]
            true = alone(statements, events)
            meant = whole_paragraph(statements, events).argmax(axis=1)
            for m, statement in enumerate(statements):
                key = _form(statement), int(true[m].sum())
                self.counts.setdefault(key, Counter())[int(true[m, : meant[m]].sum())] += 1

    def __call__(self, statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
        """As :data:`Oracle`."""
        shares = np.zeros((len(statements), len(events)))
        for row, statement, true in zip(shares, statements, alone(statements, events), strict=True):
            counts = self.counts.get((_form(statement), int(true.sum())), Counter({0: 1}))
            row[np.flatnonzero(true)[counts.most_common(1)[0][0]]] = 1
        return shares


def _form(statement: Statement) -> Statement:
    """The statement, whichever colour and action it names."""
    return replace(statement, colour=statement.colour and "any", action=statement.action and "any")


def paragraph_of(video: ShapesVideo) -> Paragraph:
    """The video's annotation."""
    return Paragraph(video.video_id, video.duration, video.sentences, np.array(video.spans))


def oracle_table(
    training: Sequence[ShapesVideo], videos: Sequence[ShapesVideo], thresholds: Sequence[float] = (0.3, 0.5, 0.7)
) -> dict[str, dict[str, float]]:
    """What each oracle earns in ``videos``, and below that what watching nothing does, R@1 and mIoU as fractions."""
    paragraphs = [paragraph_of(video) for video in training]
    prior = PositionPrior(paragraphs)
    table = {name: _judge([oracle] * len(videos), videos, thresholds) for name, oracle in ORACLES.items()}
    table["each sentence alone, the usual true moment"] = _judge(
        [UsualRank(training)] * len(videos), videos, thresholds
    )
    nearest = [near_prior(prior, video.duration) for video in videos]
    table["sentence m alone, the true moment nearest to its usual place"] = _judge(nearest, videos, thresholds)
    rules = MetricRules(top_n=(1,), thresholds=tuple(thresholds))
    return {**table, **baselines(paragraphs, [paragraph_of(video) for video in videos], rules)}


def _judge(oracles: Sequence[Oracle], videos: Sequence[ShapesVideo], thresholds: Sequence[float]) -> dict[str, float]:
    """What is earned by an oracle a video."""
    rows = []
    for oracle, video in zip(oracles, videos, strict=True):
        events = happenings(video)
        shares = oracle([read(sentence) for sentence in video.sentences], events)
        ious = interval_iou(np.array(video.spans), np.array([[event.start, event.end] for event in events]))
        columns = [*(ious >= limit for limit in thresholds), ious]
        rows.append(np.stack([(shares * column).sum(axis=1) for column in columns]))
    means = np.concatenate(rows, axis=1).mean(axis=1).tolist()
    return dict(zip([*(f"R@1 IoU={limit:g}" for limit in thresholds), "mIoU"], means, strict=True))
