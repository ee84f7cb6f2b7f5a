"""The rows of a file of one's own annotations, whatever its format; what is wrong with single ones is collected."""

from __future__ import annotations

import csv
import io
import logging
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vpgfast.data.annotations import _io
from vpgfast.data.text import tokenize
from vpgfast.data.video_folders import VIDEO_SUFFIXES, without_suffix
from vpgfast.errors import AnnotationError

log = logging.getLogger(__name__)

_NEEDED, COLUMNS = ("video", "sentence"), ("video", "start", "end", "sentence", "duration")
_LISTED = 12  # names of columns that a message lists at most
_KEYS = {"video": ("vid", "video"), "sentence": ("query", "sentence")}
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d*)?)")


@dataclass(frozen=True)
class Row:
    """A sentence of a video, as written; whether its moments fit the video is not known yet.

    Attributes:
        where: "line 3", or what else leads to it.
        video: the video's name, without the suffix of a video file.
        sentence: of at least one word.
        spans: all its moments, seconds, none where they are not known.
        duration: of the video, where the file has it.
        query_id: its name, where the file has one.
    """

    where: str
    video: str
    sentence: str
    spans: tuple[tuple[float, float], ...]
    duration: float | None = None
    query_id: int | str | None = None


class Rows:
    """What a file holds.

    Attributes:
        rows: those that make sense.
        problems: a line for each of the others.
    """

    def __init__(self, path: Path) -> None:
        """Read a file.

        Raises:
            AnnotationError: it can't be read, or is not of its kind as a whole.
        """
        self.rows: list[Row] = []
        self.problems: list[str] = []
        suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
        if suffix not in READERS:
            raise AnnotationError(
                f"{path}: annotations are read from .csv or .tsv files with the columns {','.join(COLUMNS)}, from "
                ".jsonl files as QVHighlights has them, and from .json files as ActivityNet Captions has them"
            )
        for make in READERS[suffix](path):
            try:
                self.rows.append(make())
            except AnnotationError as error:
                self.problems.append(str(error))


def _table(path: Path, delimiter: str) -> Iterator[Callable[[], Row]]:
    text = _io.read_text(path)
    lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip().lower() for name in lines.fieldnames or ()]
        _check_header(header, path)
        lines.fieldnames = header
        for line in lines:
            yield partial(_of_table, line, f"line {lines.line_num}")
    except csv.Error as error:
        kind = "TSV" if delimiter == "\t" else "CSV"
        raise AnnotationError(f"{path}, line {lines.line_num}: not {kind} ({error})") from None


def _check_header(header: list[str], path: Path) -> None:
    for name in _NEEDED:
        if name not in header:
            found = _listed(header) or "nothing"
            between = "; fields are parted by commas in .csv and by tabs in .tsv" if len(header) == 1 else ""
            raise AnnotationError(f"{path}, line 1: no column {name!r} in the header, only {found}{between}")
    if twice := {name for name in header if name and header.count(name) > 1}:
        raise AnnotationError(f"{path}, line 1: the column {min(twice)!r} is there twice")
    if ("start" in header) != ("end" in header):
        raise AnnotationError(f"{path}, line 1: 'start' and 'end' go together, found {_listed(header)}")
    if left := [name for name in header if name not in COLUMNS]:
        log.info("%s: columns that are not read: %s", path, _listed(left))


def _listed(names: list[str]) -> str:
    """On one line, however long they are and whatever they hold: a quote that does not end swallows whole lines."""
    more = [f"{len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return ", ".join([*map(reprlib.repr, names[:_LISTED]), *more])


def _of_table(line: Mapping[str | None, str | None], where: str) -> Row:
    if None in line:
        raise AnnotationError(f"{where}: more fields than the header has; put sentences with a comma into quotes")
    video, sentence = ((line.get(name) or "").strip() for name in _NEEDED)
    start, end, duration = ((line.get(name) or "").strip() for name in ("start", "end", "duration"))
    if bool(start) != bool(end):
        raise AnnotationError(f"{where}: a start without an end, or the other way round")
    pairs = [(start, end)] if start else []
    return _row(where, video, sentence, pairs, duration or None)


def _json_lines(path: Path) -> Iterator[Callable[[], Row]]:
    for number, line in enumerate(_io.read_text(path).split("\n"), start=1):
        if line.strip():
            yield partial(_of_line, line, f"line {number}")


def _json(path: Path) -> Iterator[Callable[[], Row]]:
    content = _io.read_json(path)
    if isinstance(content, list):  # objects as those of JSON lines
        for number, record in enumerate(content, start=1):
            yield partial(_of_object, record, f"entry {number}")
    elif isinstance(content, dict):
        for video, record in content.items():
            yield from _of_video(video, record)
    else:
        raise AnnotationError(
            f"{path}: {type(content).__name__}, where a map from video to its annotations was expected"
        )


def _of_line(line: str, where: str) -> Row:
    return _of_object(_io.parse_json(line, where), where)


def _of_object(record: Any, where: str) -> Row:
    if not isinstance(record, dict):
        raise AnnotationError(f"{where}: {type(record).__name__}, where an object in braces was expected")
    found = {name: next((key for key in keys if key in record), keys[0]) for name, keys in _KEYS.items()}
    video, sentence = (_io.entry(record, found[name], str, where) for name in _NEEDED)
    qid = record.get("qid")
    if isinstance(qid, bool) or not isinstance(qid, int | str | None):
        raise AnnotationError(f"{where}: 'qid' is {qid!r}, expected a number or text")
    windows = record.get("relevant_windows")
    if not isinstance(windows, list | None):
        raise AnnotationError(f"{where}: 'relevant_windows' is {type(windows).__name__}, expected a list")
    return _row(where, video, sentence, windows or [], record.get("duration"), qid)


def _of_video(video: str, record: Any) -> Iterator[Callable[[], Row]]:
    """The sentences of a video of ActivityNet's format; without timestamps where they are not known."""
    where = f"video {video!r}"
    problem = None
    if not isinstance(record, dict):
        problem = f"{where}: {type(record).__name__}, where a map was expected"
    elif not isinstance(sentences := record.get("sentences"), list) or not sentences:
        problem = f"{where}: no list of 'sentences', only {sorted(record)}"
    elif not isinstance(timestamps := record.get("timestamps", [[]] * len(sentences)), list):
        problem = f"{where}: 'timestamps' is {type(timestamps).__name__}, expected a list"
    elif len(timestamps) != len(sentences):
        problem = f"{where}: {len(sentences)} sentences and {len(timestamps)} timestamps"
    if problem is not None:
        yield partial(_fail, problem)
        return
    assert isinstance(sentences, list)
    assert isinstance(timestamps, list)
    for number, (sentence, pair) in enumerate(zip(sentences, timestamps, strict=True), start=1):
        here = f"{where}, sentence {number}"
        pairs = [pair] if pair else []
        yield partial(_row, here, video, sentence, pairs, record.get("duration"))


def _fail(problem: str) -> Row:
    raise AnnotationError(problem)


def _row(
    where: str,
    video: str,
    sentence: Any,
    pairs: Iterable[Any],
    duration: Any,
    query_id: int | str | None = None,
) -> Row:
    if not isinstance(sentence, str):
        raise AnnotationError(f"{where}: the sentence {sentence!r} is not text")
    sentence = " ".join(sentence.split())  # a field in quotes may run over several lines
    if not video:
        raise AnnotationError(f"{where}: no video")
    if not tokenize(sentence):
        raise AnnotationError(f"{where}: the sentence {sentence!r} has no word in it")
    name = without_suffix(Path(video)) if Path(video).suffix.lower() in VIDEO_SUFFIXES else video
    spans = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise AnnotationError(f"{where}: the moment {pair!r} is not a pair of start and end")
        spans.append((seconds(pair[0], f"{where}, start"), seconds(pair[1], f"{where}, end")))
    lasts = None if duration is None else _io.duration_of(seconds(duration, f"{where}, duration"), where)
    return Row(where, name, sentence, tuple(spans), lasts, query_id)


def seconds(value: Any, where: str) -> float:
    """Seconds from ``12.5`` or ``h:mm:ss.s``; raises :class:`AnnotationError` for anything else or below 0."""
    if isinstance(value, str) and (match := _CLOCK.fullmatch(value.strip())):
        hours, minutes, rest = match.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(rest)
    number = _io.number(value, where)
    if number < 0:
        raise AnnotationError(f"{where}: {value} is below 0")
    return number


READERS: dict[str, Callable[[Path], Iterator[Callable[[], Row]]]] = {
    ".csv": lambda path: _table(path, ","),
    ".tsv": lambda path: _table(path, "\t"),
    ".jsonl": _json_lines,
    ".json": _json,
}
"""By suffix; each row is made by a call, so that what is wrong with one does not stop the others."""
