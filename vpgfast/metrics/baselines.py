"""What a result is compared with: baselines that watch nothing, and the swapped-sentence control."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from vpgfast.data.types import Paragraph
from vpgfast.metrics.best_span import best_single_span
from vpgfast.metrics.rules import MetricRules
from vpgfast.metrics.spans import evaluate_spans, score, summarize

EVALUATION_SEED = 0
"""Of the random baseline and the control, whatever the run's seed: their numbers are those of the corpus."""
RANDOM_CANDIDATES = "random candidates"
"""The baseline of methods that choose among a list: that list in a random order, suppressed as they do."""


def in_order(paragraphs: Sequence[Paragraph], order: Literal["time", "file"]) -> list[Paragraph]:
    """The paragraphs with their sentences by annotated start, then end ("time"), or as they are ("file")."""
    return [paragraph.by_time() for paragraph in paragraphs] if order == "time" else list(paragraphs)


def random_spans(paragraphs: Sequence[Paragraph], seed: int = 0, k: int = 5) -> list[np.ndarray]:
    """``k`` spans a sentence, start and end drawn uniformly from the video and sorted."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.random((len(p.sentences), k, 2)), axis=-1) * p.duration for p in paragraphs]


def same_for_all(paragraphs: Sequence[Paragraph], span: Sequence[float] | np.ndarray = (0.0, 1.0)) -> list[np.ndarray]:
    """One span a sentence, the same for all (start and end as fractions of the duration); by default all of it."""
    return [np.tile(np.asarray(span) * p.duration, (len(p.sentences), 1, 1)) for p in paragraphs]


def spans_as_fractions(training: Sequence[Paragraph]) -> np.ndarray:
    """All spans of a split as fractions of their durations, float64 [N, 2]."""
    return np.concatenate([p.spans / p.duration for p in training if p.spans is not None])


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
        """Args: training paragraphs, sentences in the order that counts; those without spans say nothing."""
        positions: dict[tuple[int, int], list[np.ndarray]] = {}
        for paragraph in training:
            if paragraph.spans is None:
                continue
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


class MomentFrequency:
    """Where moments are whole segments of one length (DiDeMo): those that annotators marked most often, for every
    sentence the same ones.

    Every mark of every annotator counts. Of equally frequent moments the one that starts first comes first, then the
    one that ends first. A video has the moments that end within it.
    """

    def __init__(self, training: Sequence[Paragraph], seconds: float) -> None:
        """Args: training paragraphs with annotators' spans; how long a segment is."""
        marks = [np.concatenate(p.annotator_spans) for p in training if p.annotator_spans is not None]
        moments = np.rint(np.concatenate([*marks, np.empty((0, 2))]) / seconds).astype(np.int64)
        self.seconds = seconds
        self.counts = Counter((int(start), int(end)) for start, end in moments)

    def ranked(self, duration: float) -> np.ndarray:
        """All moments of a video, seconds, float64 [K, 2], the most frequent first; at least one."""
        segments = max(1, int(duration / self.seconds + 1e-6))
        moments = [(start, end) for start in range(segments) for end in range(start + 1, segments + 1)]
        moments.sort(key=lambda moment: (-self.counts[moment], moment))
        return np.array(moments, np.float64) * self.seconds

    def __call__(self, paragraphs: Sequence[Paragraph]) -> list[np.ndarray]:
        """All moments of each sentence's video."""
        return [np.tile(self.ranked(p.duration), (len(p.sentences), 1, 1)) for p in paragraphs]


def baselines(
    training: Sequence[Paragraph], paragraphs: Sequence[Paragraph], rules: MetricRules, seed: int = 0, draws: int = 20
) -> dict[str, dict[str, float]]:
    """What watching nothing earns, each with the keys of a result.

    ``random``, ``uniform``, ``prior``, ``whole video`` and ``best single span``; where moments are whole segments that
    several annotators marked, as in DiDeMo, also ``moment frequency``. Without the prior and the best single span where
    no training paragraph has spans.

    Args:
        training: paragraphs whose spans the prior, the best single span and the moments' frequencies are taken from.
        paragraphs: those that are judged, whole (M sentences each) and with spans.
        rules: as for the method beside which these numbers stand.
        seed: of the random spans.
        draws: the random baseline is the mean over this many draws.

    All but random spans and frequent moments know one span a sentence, so their R@5 is their R@1.
    """
    training = in_order(training, rules.sentence_order)
    paragraphs = in_order(paragraphs, rules.sentence_order)
    k = max(rules.top_n)
    random = [score(random_spans(paragraphs, seed + draw, k), paragraphs, rules) for draw in range(draws)]
    told = any(paragraph.spans is not None for paragraph in training)
    guesses = {"uniform": uniform_split(paragraphs)}
    if told:
        guesses["prior"] = PositionPrior(training)(paragraphs)
    guesses["whole video"] = same_for_all(paragraphs)
    if told:
        guesses["best single span"] = same_for_all(paragraphs, best_single_span(spans_as_fractions(training)))
    if rules.segment_seconds is not None and any(p.annotator_spans is not None for p in training):
        guesses["moment frequency"] = MomentFrequency(training, rules.segment_seconds)(paragraphs)
    earned = {name: evaluate_spans(ranked, paragraphs, rules) for name, ranked in guesses.items()}
    return {"random": summarize(np.mean(random, axis=0), rules), **earned}


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
