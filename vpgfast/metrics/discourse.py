"""How far reading gets one in a corpus of :mod:`vpgfast.data.discourse`: oracles that know when everything happens.

They know all events of a video, of all shapes, told or not, with their times, and never fail to see one. What differs
is how they read. An oracle that may choose among several moments is judged by the mean over its choices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from vpgfast.data.discourse import Happening, Statement, Telling, shares_in_order, true_alone, true_together
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


def longest_true(statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
    """Each sentence by itself, the longest moment that it is true of."""
    return _best(statements, events, _lengths(events))


def shortest_true(statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
    """Each sentence by itself, the shortest moment that it is true of."""
    return _best(statements, events, -_lengths(events))


def _lengths(events: Sequence[Happening]) -> np.ndarray:
    return np.array([event.end - event.start for event in events])


def _best(statements: Sequence[Statement], events: Sequence[Happening], scores: np.ndarray) -> np.ndarray:
    """Each sentence by itself, of the moments that it is true of the one of the best of ``scores``, [E] or [M, E]."""
    return np.eye(len(events))[np.where(alone(statements, events), scores, -np.inf).argmax(axis=1)]


def in_order(statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
    """Each sentence by itself, but the moments in the order of the sentences: any such choice."""
    return shares_in_order(alone(statements, events))


def unread(statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
    """Any events in order, whatever the sentences say."""
    return shares_in_order(np.ones((len(statements), len(events)), bool))


def any_event(statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
    """Any event, whatever the sentence says."""
    return np.full((len(statements), len(events)), 1 / len(events))


def whole_paragraph(statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
    """The paragraph read as a whole."""
    return shares_in_order(true_together(statements, events))


ORACLES: Mapping[str, Oracle] = {
    "the whole paragraph": whole_paragraph,
    "each sentence alone, any true moment": any_true,
    "each sentence alone, the first true moment": first_true,
    "each sentence alone, the last true moment": last_true,
    "each sentence alone, the longest true moment": longest_true,
    "each sentence alone, the shortest true moment": shortest_true,
    "each sentence alone, true moments in order": in_order,
    "nothing read, any moment": any_event,
    "nothing read, any moments in order": unread,
}


def near_prior(prior: PositionPrior, duration: float) -> Oracle:
    """Each sentence by itself, of the moments that it is true of the one nearest to sentence m of M's usual place."""

    def oracle(statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
        usual = np.array([prior.span(m, len(statements)).mean() for m in range(len(statements))]) * duration
        middles = np.array([(event.start + event.end) / 2 for event in events])
        return _best(statements, events, -np.abs(usual[:, None] - middles))

    return oracle


class UsualRank:
    """Each sentence by itself, of its true moments the one whose rank was most often meant in training, by sentences of
    the same form that were true of as many: the best rule that there is, but for what no such rule can know.

    Args:
        training: paragraphs to count in.
    """

    def __init__(self, training: Sequence[Telling]) -> None:
        self.counts: dict[tuple[Statement, int], Counter[int]] = {}
        for told in training:
            true = alone(told.statements, told.events)
            meant = whole_paragraph(told.statements, told.events).argmax(axis=1)
            for m, statement in enumerate(told.statements):
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


def oracle_table(
    training: Sequence[Telling], tested: Sequence[Telling], thresholds: Sequence[float] = (0.3, 0.5, 0.7)
) -> dict[str, dict[str, float]]:
    """What each oracle earns in ``tested``, and below that what watching nothing does, R@1 and mIoU as fractions."""
    prior = PositionPrior([told.paragraph for told in training])
    table = {name: _judge([oracle] * len(tested), tested, thresholds) for name, oracle in ORACLES.items()}
    table["each sentence alone, the usual true moment"] = _judge(
        [UsualRank(training)] * len(tested), tested, thresholds
    )
    nearest = [near_prior(prior, told.paragraph.duration) for told in tested]
    table["sentence m alone, the true moment nearest to its usual place"] = _judge(nearest, tested, thresholds)
    rules = MetricRules(top_n=(1,), thresholds=tuple(thresholds))
    watching_nothing = baselines([told.paragraph for told in training], [told.paragraph for told in tested], rules)
    return {**table, **watching_nothing}


def _judge(oracles: Sequence[Oracle], tested: Sequence[Telling], thresholds: Sequence[float]) -> dict[str, float]:
    """What is earned by an oracle a paragraph."""
    rows = []
    for oracle, told in zip(oracles, tested, strict=True):
        assert told.paragraph.spans is not None
        shares = oracle(told.statements, told.events)
        ious = interval_iou(told.paragraph.spans, np.array([[event.start, event.end] for event in told.events]))
        columns = [*(ious >= limit for limit in thresholds), ious]
        rows.append(np.stack([(shares * column).sum(axis=1) for column in columns]))
    means = np.concatenate(rows, axis=1).mean(axis=1).tolist()
    return dict(zip([*(f"R@1 IoU={limit:g}" for limit in thresholds), "mIoU"], means, strict=True))
