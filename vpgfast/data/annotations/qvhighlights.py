"""QVHighlights (Lei et al., NeurIPS 2021): queries about stretches of 150 s, each true of one or more moments.

Files ``highlight_{train_release,val_release,test_with_gt}.jsonl``: a line a query, ``{qid, query, duration, vid,
relevant_windows, relevant_clip_ids, saliency_scores}``. Moments consist of whole clips of 2 s; three people have rated
each of a moment's clips from 0 (very bad) to 4 (very good).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vpgfast.data.annotations import _io
from vpgfast.data.types import Paragraph
from vpgfast.errors import AnnotationError

FILES = {
    "train": "highlight_train_release.jsonl",
    "val": "highlight_val_release.jsonl",
    "test": "highlight_test_with_gt.jsonl",
}
SPLITS = tuple(FILES)
CLIP_SECONDS = 2.0
RATERS = 3


@dataclass(frozen=True, eq=False)
class Query:
    """A line of the files.

    Attributes:
        qid: its name.
        sentence: what is looked for.
        video: in which video.
        duration: of the video, seconds.
        windows: float64 [A, 2], A >= 1: all moments, seconds.
        saliency: float64 [clips, 3], each clip's ratings, 0 outside of the moments; ``None`` where the file has none.
    """

    qid: int | str
    sentence: str
    video: str
    duration: float
    windows: np.ndarray
    saliency: np.ndarray | None


def load(split: str, root: Path, level: _io.Level = "sentence") -> list[Paragraph]:
    """Read one split: 7,218, 1,550 or 1,542 queries.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        root: folder of the files, plain or ``.gz``.
        level: ``"sentence"``: each query stands alone; or ``"paragraph"`` to put those of a video together, in the
            order of the file.
    """
    _io.check_split(split, SPLITS, "qvhighlights")
    queries = [_paragraph(query) for query in read(_io.find(root, FILES[split]))]
    return _io.group_by_video(queries) if level == "paragraph" else _io.at_level(queries, level)


def _paragraph(query: Query) -> Paragraph:
    return Paragraph(
        query.video,
        query.duration,
        (query.sentence,),
        longest(query.windows)[None],
        all_spans=(query.windows,),
        query_ids=(query.qid,),
    )


def longest(windows: np.ndarray) -> np.ndarray:
    """The longest of [A, 2] windows, the first of equals."""
    found: np.ndarray = windows[np.argmax(windows[:, 1] - windows[:, 0])]
    return found


def read(path: Path) -> list[Query]:
    """All queries of a file, in its order.

    Raises:
        AnnotationError: a line is malformed, or a qid comes twice; names file and line.
    """
    queries: dict[int | str, Query] = {}
    for where, record in records(path):
        qid = record.get("qid")
        if not isinstance(qid, int | str) or isinstance(qid, bool):
            raise AnnotationError(f"{where}: 'qid' is {qid!r}, expected a number or text")
        if qid in queries:
            raise AnnotationError(f"{where}: qid {qid!r} was there before")
        duration = _io.duration_of(_io.entry(record, "duration", float, where), where)
        windows = windows_of(_io.entry(record, "relevant_windows", list, where), where)
        if not len(windows):
            raise AnnotationError(f"{where}: 'relevant_windows' holds none")
        if windows.max() > duration:
            raise AnnotationError(f"{where}: a window ends at {windows.max():g} s, after its video of {duration:g} s")
        queries[qid] = Query(
            qid,
            _io.entry(record, "query", str, where),
            _io.entry(record, "vid", str, where),
            duration,
            windows,
            _saliency(record, duration, where),
        )
    if not queries:
        raise AnnotationError(f"{path}: holds no query")
    return list(queries.values())


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with where it stands.

    Raises:
        AnnotationError: a line is no JSON object.
    """
    for number, line in _io.read_lines(path):
        where = f"{path}, line {number}"
        record = _io.parse_json(line, where)
        if not isinstance(record, dict):
            raise AnnotationError(f"{where}: {type(record).__name__}, where an object in braces was expected")
        yield where, record


def windows_of(pairs: list[Any], where: str, width: int = 2) -> np.ndarray:
    """Rows of numbers as float64 [A, width], seconds; start before end, none below 0.

    Raises:
        AnnotationError: a row is something else.
    """
    rows = np.empty((len(pairs), width))
    for row, pair in zip(rows, pairs, strict=True):
        if not isinstance(pair, list) or len(pair) != width:
            what = "[start, end]" if width == 2 else "[start, end, score]"
            raise AnnotationError(f"{where}: the window {pair!r} is not {what}")
        row[:] = [_io.number(value, where) for value in pair]
        if not 0 <= row[0] < row[1]:
            raise AnnotationError(f"{where}: the window {pair!r} does not start before it ends")
    return rows


def _saliency(record: dict[str, Any], duration: float, where: str) -> np.ndarray | None:
    if "saliency_scores" not in record:
        return None
    clips = _io.entry(record, "relevant_clip_ids", list, where)
    ratings = _io.entry(record, "saliency_scores", list, where)
    if len(clips) != len(ratings):
        raise AnnotationError(f"{where}: {len(clips)} relevant_clip_ids and {len(ratings)} saliency_scores")
    scores = np.zeros((int(duration / CLIP_SECONDS), RATERS))
    for clip, row in zip(clips, ratings, strict=True):
        if not isinstance(clip, int) or not 0 <= clip < len(scores):
            raise AnnotationError(f"{where}: relevant clip {clip!r}, the video has {len(scores)} of {CLIP_SECONDS:g} s")
        if not isinstance(row, list) or len(row) != RATERS:
            raise AnnotationError(f"{where}: the ratings {row!r} of clip {clip} are not {RATERS} numbers")
        scores[clip] = [_io.number(value, where) for value in row]
    return scores
