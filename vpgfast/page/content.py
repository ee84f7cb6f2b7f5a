"""What a page shows: videos, each with a lane for every sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vpgfast.files import readable

if TYPE_CHECKING:
    from vpgfast.data.types import Paragraph
    from vpgfast.find.moments import Moment
    from vpgfast.ground.grounding import Grounding


@dataclass
class Lane:
    """A sentence over a video's time.

    Attributes:
        sentence: the text.
        spans: (start, end, score) of each, seconds, best first.
        curve: how well each of T clips of equal length fits, where that is known.
        truth: (start, end) of the true moments, where they are known.
        note: what else is to be said of it.
    """

    sentence: str
    spans: Sequence[tuple[float, float, float]]
    curve: Sequence[float] | None = None
    truth: Sequence[tuple[float, float]] = ()
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As the page's script reads it."""
        return {
            "sentence": readable(self.sentence),
            "spans": [[round(start, 3), round(end, 3), round(score, 5)] for start, end, score in self.spans],
            "curve": None if self.curve is None else [round(float(value), 4) for value in self.curve],
            "truth": [[round(float(start), 3), round(float(end), 3)] for start, end in self.truth],
            "note": self.note,
        }


@dataclass
class Shown:
    """A video on a page.

    Attributes:
        name: what it is called.
        duration: seconds.
        lanes: of its sentences.
        path: its file; without, there is a time line and nothing that plays.
    """

    name: str
    duration: float
    lanes: list[Lane] = field(default_factory=list)
    path: Path | None = None


def of_grounding(found: Grounding, path: Path | None) -> Shown:
    """The answer about one video."""
    lanes = []
    for one in (found[m] for m in range(len(found))):
        triples = [(float(start), float(end), float(s)) for (start, end), s in zip(one.spans, one.scores, strict=True)]
        lanes.append(Lane(one.sentence, triples, None if one.curve is None else one.curve.tolist()))
    return Shown(found.video, found.duration, lanes, path)


def of_moments(moments: Iterable[Moment], sentences: Sequence[str], durations: dict[str, float]) -> list[Shown]:
    """What ``find`` found, the best video first; a lane for each sentence that has a moment there."""
    videos: dict[str, Shown] = {}
    lanes: dict[tuple[str, int], Lane] = {}
    for moment in moments:
        shown = videos.setdefault(moment.video, Shown(moment.video, durations[moment.video], [], moment.path))
        if (moment.video, moment.sentence) not in lanes:
            lane = lanes[moment.video, moment.sentence] = Lane(sentences[moment.sentence], [])
            lane.note = "" if moment.fits else "fits no better than sentences about something else"
            shown.lanes.append(lane)
        lane = lanes[moment.video, moment.sentence]
        lane.spans = [*lane.spans, (moment.start, moment.end, moment.score)]
    return list(videos.values())


def of_split(
    paragraphs: Sequence[Paragraph], ranked: Sequence[np.ndarray], scores: Sequence[np.ndarray]
) -> list[Shown]:
    """Predicted and true spans of videos, items of one video together."""
    videos: dict[str, Shown] = {}
    for paragraph, spans, values in zip(paragraphs, ranked, scores, strict=True):
        shown = videos.setdefault(paragraph.video_id, Shown(paragraph.video_id, paragraph.duration))
        truths = paragraph.true_spans or [np.empty((0, 2))] * len(paragraph.sentences)
        for sentence, rows, row_scores, truth in zip(paragraph.sentences, spans, values, truths, strict=True):
            there = np.isfinite(row_scores)
            triples = [tuple(map(float, row)) for row in np.column_stack((rows, row_scores))[there]]
            shown.lanes.append(Lane(sentence, triples, truth=[(float(a), float(b)) for a, b in truth]))  # type: ignore[arg-type]
    return list(videos.values())
