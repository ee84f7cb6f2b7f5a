"""Annotations of one's own: a file of sentences with their videos and moments, in one of four formats.

CSV and TSV with a header, a sentence a line: ``video,start,end,sentence`` (in any order; other columns are left alone).
``start`` and ``end`` are seconds or ``h:mm:ss.s``; both empty, or no such columns, where the moment is not known
(weakly supervised methods need none). ``duration`` is needed only where the features do not tell it.

JSON lines as QVHighlights and Lighthouse write them: ``{"query": ..., "vid": ..., "duration": ..., "relevant_windows":
[[start, end], ...]}``, several moments for a sentence that is true of several. JSON as ActivityNet Captions has it:
``{video: {"duration": ..., "sentences": [...], "timestamps": [[start, end], ...]}}``.

The sentences of a video, in the order of the file, make its paragraph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpgfast.data.annotations.own_files import Row, Rows
from vpgfast.data.annotations.qvhighlights import longest
from vpgfast.data.types import Paragraph
from vpgfast.errors import AnnotationError

log = logging.getLogger(__name__)

_SLACK = 0.5
"""Seconds by which a moment may end after its video: durations are rounded in many annotations."""
_MOST_FRAMES = 61.0
"""A second, that annotations which count frames may have; above it, times are taken for milliseconds."""


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        rows: its sentences, as written.
        paragraphs: a video each, in order of first appearance; a video whose duration is not known, or with a sentence
            that has a problem, has none.
        problems: a line each, with where it is.
        hint: what the problems look like together, if anything.
    """

    rows: tuple[Row, ...]
    paragraphs: tuple[Paragraph, ...]
    problems: tuple[str, ...]
    hint: str | None


def load(path: Path, duration_of: Callable[[str], float | None]) -> list[Paragraph]:
    """Read a file, a paragraph a video in order of first appearance.

    What is wrong with single lines is counted; the error names the first ones and how many there are.

    Args:
        path: ``.csv``, ``.tsv``, ``.jsonl`` or ``.json``, UTF-8, plain or ``.gz``.
        duration_of: seconds that a video lasts, by name, where that is known.

    Raises:
        AnnotationError: a line or column is wrong, or it is not known how long a video lasts; names file and line.
    """
    content = read(path, duration_of)
    if problems := content.problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        hint = f" ({content.hint})" if content.hint else ""
        raise AnnotationError(f"{path}: {count}{hint}: {'; '.join(problems[:3])}{more}")
    if not content.paragraphs:
        raise AnnotationError(f"{path}: holds no sentence")
    return list(content.paragraphs)


def read(path: Path, duration_of: Callable[[str], float | None], needs_duration: bool = True) -> Content:
    """All that a file holds, problems included.

    Args:
        path, duration_of: see :func:`load`.
        needs_duration: whether it is a problem that nobody knows how long a video lasts.

    Raises:
        AnnotationError: the file can't be read, or is not of its kind as a whole.
    """
    found = Rows(path)
    problems = list(found.problems)
    videos: dict[str, list[Row]] = {}
    for row in found.rows:
        videos.setdefault(row.video, []).append(row)
    problems += _repeated(found.rows)
    durations = {}
    for video, rows in videos.items():
        try:
            durations[video] = _duration(video, rows, duration_of)
        except AnnotationError as error:
            problems.append(str(error))
    paragraphs, partly = [], []
    for video, rows in videos.items():
        duration = durations.get(video)
        wrong = [problem for row in rows for problem in _misfits(row, duration)]
        problems += wrong
        if duration is None:
            if needs_duration and video in durations:
                problems.append(
                    f"{rows[0].where}: how long video {video!r} lasts is not known; its features don't tell, if they "
                    "are there at all (is the name right, with its folder?); else give a column 'duration' (seconds)"
                )
        elif not wrong:
            paragraphs.append(_paragraph(video, rows, duration))
            if paragraphs[-1].spans is None and any(row.spans for row in rows):
                partly.append(video)
    if partly:
        without = sum(not row.spans for video in partly for row in videos[video])
        log.warning(
            "%s: %d of %d sentences have no span, in %d videos beside some that have one (first: %r); these videos "
            "count as having none",
            *(path, without, len(found.rows), len(partly), partly[0]),
        )
    return Content(tuple(found.rows), tuple(paragraphs), tuple(problems), _hint(found.rows, durations))


def _repeated(rows: list[Row]) -> list[str]:
    """Sentences that are there twice, word for word with the same moments, and names that two sentences have."""
    problems: list[str] = []
    first: dict[object, str] = {}
    for row in rows:
        same = first.setdefault((row.video, row.sentence, row.spans), row.where)
        named = row.where if row.query_id is None else first.setdefault(row.query_id, row.where)
        if same != row.where:
            problems.append(f"{row.where}: the same as {same}")
        elif named != row.where:
            problems.append(f"{row.where}: qid {row.query_id!r} was there in {named}")
    return problems


def _duration(video: str, rows: list[Row], duration_of: Callable[[str], float | None]) -> float | None:
    given = list(dict.fromkeys(row.duration for row in rows if row.duration is not None))
    if len(given) > 1:
        raise AnnotationError(f"{rows[0].where}: video {video!r} lasts {' and '.join(f'{one:g}' for one in given)} s")
    return duration_of(video) or next(iter(given), None)


def _misfits(row: Row, duration: float | None) -> list[str]:
    problems = []
    for start, end in row.spans:
        if start >= end:
            problems.append(f"{row.where}: ends at {end:g}, not after its start {start:g}")
        elif duration is not None and (start >= duration or end > duration + _SLACK):
            problems.append(
                f"{row.where}: {start:g} to {end:g} s lies beyond video {row.video!r}, which lasts {duration:g} s"
            )
    return problems


def _paragraph(video: str, rows: list[Row], duration: float) -> Paragraph:
    sentences = tuple(row.sentence for row in rows)
    names = [row.query_id for row in rows if row.query_id is not None]
    query_ids = tuple(names) if len(names) == len(rows) else None
    if not all(row.spans for row in rows):
        return Paragraph(video, duration, sentences, query_ids=query_ids)
    every = tuple(np.minimum(np.array(row.spans), duration) for row in rows)
    several = any(len(spans) > 1 for spans in every)
    spans = np.stack([longest(spans) for spans in every])
    return Paragraph(video, duration, sentences, spans, all_spans=every if several else None, query_ids=query_ids)


def _hint(rows: list[Row], durations: dict[str, float | None]) -> str | None:
    """What is wrong with most moments at once: swapped, milliseconds or frames."""
    spans = [(*span, durations.get(row.video)) for row in rows for span in row.spans]
    if not spans:
        return None
    swapped = sum(start > end for start, end, _ in spans)
    if swapped > len(spans) / 2:
        return f"{_count(swapped, len(spans))} look as if start and end were swapped"
    ratios = np.array([max(start, end) / duration for start, end, duration in spans if duration])
    beyond = int((ratios > 1).sum())
    if not len(ratios) or beyond <= len(ratios) / 2 or ratios.max() < 2:
        return None
    if ratios.max() > _MOST_FRAMES:
        return f"{_count(beyond, len(ratios))} look like milliseconds, not seconds" if ratios.max() <= 1001 else None
    return f"{_count(beyond, len(ratios))} look like frames, not seconds: up to {ratios.max():.1f} a second of video"


def _count(some: int, of: int) -> str:
    return f"all of its {of} moments" if some == of else f"{some} of its {of} moments"
