"""Annotations of one's own: a CSV or TSV file with a header, a sentence a line.

``video,start,end,sentence`` (in any order; other columns are left alone). ``start`` and ``end`` are seconds or
``h:mm:ss.s``; both empty, or no such columns, where the moment is not known (weakly supervised methods need none).
``duration`` is needed only where the features do not tell it. The sentences of a video, in the order of the file, make
its paragraph.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from vpgfast.data.annotations import _io
from vpgfast.data.text import tokenize
from vpgfast.data.types import Paragraph
from vpgfast.data.video_folders import VIDEO_SUFFIXES
from vpgfast.errors import AnnotationError

log = logging.getLogger(__name__)

_NEEDED, _KNOWN = ("video", "sentence"), ("video", "start", "end", "sentence", "duration")
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d*)?)")
_SLACK = 0.5
"""Seconds by which a moment may end after its video: durations are rounded in many annotations."""


def load(path: Path, duration_of: Callable[[str], float | None]) -> list[Paragraph]:
    """Read a file, a paragraph a video in order of first appearance.

    What is wrong with single lines is counted; the error names the first ones and how many there are.

    Args:
        path: ``.csv``, or ``.tsv`` (by tabs), UTF-8.
        duration_of: seconds that a video lasts, by name, where that is known.

    Raises:
        AnnotationError: a line or column is wrong, or it is not known how long a video lasts; names file and line.
    """
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise AnnotationError(
            f"{path}: annotations are read from .csv or .tsv files with the columns {','.join(_KNOWN)}"
        )
    text = _io.read_text(path).removeprefix("\ufeff")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = [name.strip().lower() for name in lines.fieldnames or ()]
    _check_header(header, path)
    lines.fieldnames = header
    problems: list[str] = []
    rows: dict[str, list[_Row]] = {}
    try:
        for line in lines:
            where = f"line {lines.line_num}"
            try:
                row = _Row(line, where)
            except AnnotationError as error:
                problems.append(str(error))
            else:
                rows.setdefault(row.video, []).append(row)
    except csv.Error as error:
        raise AnnotationError(f"{path}, line {lines.line_num}: not {path.suffix[1:].upper()} ({error})") from None
    paragraphs = []
    for video, members in rows.items():
        try:
            paragraphs.append(_paragraph(video, members, duration_of))
        except AnnotationError as error:
            problems.append(str(error))
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise AnnotationError(f"{path}: {count}: {'; '.join(problems[:3])}{more}")
    if not paragraphs:
        raise AnnotationError(f"{path}: holds no sentence")
    return paragraphs


def _check_header(header: list[str], path: Path) -> None:
    for name in _NEEDED:
        if name not in header:
            found = repr(header[0]) if len(header) == 1 else ", ".join(header) or "nothing"
            between = "; fields are parted by commas in .csv and by tabs in .tsv" if len(header) == 1 else ""
            raise AnnotationError(f"{path}, line 1: no column {name!r} in the header, only {found}{between}")
    if twice := {name for name in header if name and header.count(name) > 1}:
        raise AnnotationError(f"{path}, line 1: the column {min(twice)!r} is there twice")
    if ("start" in header) != ("end" in header):
        raise AnnotationError(f"{path}, line 1: 'start' and 'end' go together, found {', '.join(header)}")
    if left := [name for name in header if name not in _KNOWN]:
        log.info("%s: columns that are not read: %s", path, ", ".join(left))


class _Row:
    """One line: a sentence of a video, with its span where it has one."""

    def __init__(self, line: Mapping[str | None, str | None], where: str) -> None:
        self.where = where
        if None in line:
            raise AnnotationError(f"{where}: more fields than the header has; put sentences with a comma into quotes")
        video, self.sentence = ((line.get(name) or "").strip() for name in _NEEDED)
        self.sentence = " ".join(self.sentence.split())  # a field in quotes may run over several lines
        if not video:
            raise AnnotationError(f"{where}: no video")
        self.video = Path(video).with_suffix("").as_posix() if Path(video).suffix.lower() in VIDEO_SUFFIXES else video
        if not tokenize(self.sentence):
            raise AnnotationError(f"{where}: the sentence {self.sentence!r} has no word in it")
        start, end, duration = ((line.get(name) or "").strip() for name in ("start", "end", "duration"))
        self.duration = seconds(duration, f"{where}, duration") if duration else None
        self.span: tuple[float, float] | None = None
        if bool(start) != bool(end):
            raise AnnotationError(f"{where}: a start without an end, or the other way round")
        if start:
            self.span = (seconds(start, f"{where}, start"), seconds(end, f"{where}, end"))
            if self.span[0] >= self.span[1]:
                raise AnnotationError(f"{where}: ends at {end}, not after its start {start}")


def seconds(text: str, where: str) -> float:
    """Seconds from ``12.5`` or ``h:mm:ss.s``; raises :class:`AnnotationError` for anything else or below 0."""
    if match := _CLOCK.fullmatch(text):
        hours, minutes, rest = match.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(rest)
    value = _io.number(text, where)
    if value < 0:
        raise AnnotationError(f"{where}: {text} is below 0")
    return value


def _paragraph(video: str, rows: list[_Row], duration_of: Callable[[str], float | None]) -> Paragraph:
    given = {row.duration for row in rows if row.duration is not None}
    if len(given) > 1:
        raise AnnotationError(f"{rows[0].where}: video {video!r} lasts {' and '.join(f'{one:g}' for one in given)} s")
    duration = duration_of(video) or next(iter(given), None)
    if duration is None:
        raise AnnotationError(
            f"{rows[0].where}: how long video {video!r} lasts is not known; its features don't tell, if they are there "
            "at all (is the name right, with its folder?); else give a column 'duration' (seconds)"
        )
    spans = np.array([row.span or (np.nan, np.nan) for row in rows])
    for row, (start, end) in zip(rows, spans, strict=True):
        if start >= duration or end > duration + _SLACK:
            raise AnnotationError(
                f"{row.where}: {start:g} to {end:g} s lies beyond video {video!r}, which lasts {duration:g} s"
            )
    unknown = int(np.isnan(spans).any(axis=1).sum())
    if 0 < unknown < len(rows):
        log.warning(
            "video %r: %d of %d sentences have no span; those of the others are not used", video, unknown, len(rows)
        )
    sentences = tuple(row.sentence for row in rows)
    return Paragraph(video, duration, sentences, None if unknown else np.minimum(spans, duration))
