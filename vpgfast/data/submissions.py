"""Answers as QVHighlights' submission files hold them, which other systems write too: JSON lines.

``{"qid": 7, "query": "...", "vid": "...", "pred_relevant_windows": [[start, end, score], ...], "pred_saliency_scores":
[...]}``; windows in seconds, best first; a score for each clip of 2 s, where the system has them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpgfast.data.annotations import _io
from vpgfast.data.annotations.qvhighlights import Query, records
from vpgfast.errors import AnnotationError
from vpgfast.files import write_file


@dataclass(frozen=True, eq=False)
class Answer:
    """What a system says of a query.

    Attributes:
        windows: float64 [K, 3], start and end in seconds, and a score; the best comes first.
        saliency: float64 [clips], or ``None``.
    """

    windows: np.ndarray
    saliency: np.ndarray | None


def read_submission(path: Path, queries: Sequence[Query], truth: Path) -> list[Answer]:
    """The answers to some queries, in their order.

    Args:
        path: the submission, plain or ``.gz``.
        queries: the truth.
        truth: its file, for errors.

    Raises:
        AnnotationError: a line is malformed, a query has two answers or none, or only some have scores of clips.
    """
    answers: dict[int | str, Answer] = {}
    known = {query.qid for query in queries}
    for where, record in records(path):
        qid = record.get("qid")
        if not isinstance(qid, int | str) or qid not in known:
            raise AnnotationError(f"{where}: qid {qid!r} is not in {truth}")
        if qid in answers:
            raise AnnotationError(f"{where}: qid {qid!r} was there before")
        saliency = None
        if "pred_saliency_scores" in record:
            values = _io.entry(record, "pred_saliency_scores", list, where)
            saliency = np.array([_io.number(value, where) for value in values])
            if not len(saliency):
                raise AnnotationError(f"{where}: 'pred_saliency_scores' holds none; leave it out")
        answers[qid] = Answer(_windows(_io.entry(record, "pred_relevant_windows", list, where), where), saliency)
    if missing := [query.qid for query in queries if query.qid not in answers]:
        raise AnnotationError(
            f"{path}: {len(missing)} of {len(queries)} queries of {truth} have no answer (first: qid {missing[0]!r})"
        )
    without = [qid for qid, answer in answers.items() if answer.saliency is None]
    if 0 < len(without) < len(answers):
        raise AnnotationError(
            f"{path}: {len(without)} of {len(answers)} answers have no 'pred_saliency_scores' (first: qid "
            f"{without[0]!r}); give them to all or to none"
        )
    return [answers[query.qid] for query in queries]


def _windows(rows: list[object], where: str) -> np.ndarray:
    """Predicted windows as they are: one that ends before it starts, or lies beyond the video, is merely wrong."""
    windows = np.empty((len(rows), 3))
    for place, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != 3:
            raise AnnotationError(f"{where}: the predicted window {row!r} is not [start, end, score]")
        windows[place] = [_io.number(value, where) for value in row]
    return windows


def write_submission(
    path: Path, queries: Sequence[tuple[int | str, str, str]], answers: Sequence[Answer], digits: int = 4
) -> None:
    """Write a submission, a line an answer.

    Args:
        path: of the file.
        queries: qid, sentence and video of each.
        answers: one each.
        digits: after the point, of seconds and scores.
    """
    lines = []
    for (qid, sentence, video), answer in zip(queries, answers, strict=True):
        record: dict[str, object] = {"qid": qid, "query": sentence, "vid": video}
        record["pred_relevant_windows"] = np.round(answer.windows, digits).tolist()
        if answer.saliency is not None:
            record["pred_saliency_scores"] = np.round(answer.saliency, digits).tolist()
        lines.append(json.dumps(record, ensure_ascii=False))
    write_file(path, ("\n".join(lines) + "\n").encode())
