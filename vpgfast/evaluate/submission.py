"""Submissions in QVHighlights' format: written from a method's answers, and scored, whoever wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vpgfast.data.annotations.qvhighlights import CLIP_SECONDS, Query, read
from vpgfast.data.submissions import Answer, read_submission, write_submission
from vpgfast.evaluate.split import Answers
from vpgfast.files import output_folder, write_file
from vpgfast.metrics.qvhighlights import score_submission
from vpgfast.metrics.table import align

SUBMISSION_FILE, SCORES_FILE = "submission.jsonl", "submission_metrics.json"
"""In the folder of an evaluation's results."""


def score_file(submission: Path, truth: Path, output: Path | None) -> None:
    """Print the metrics of a submission from any system, and write them as JSON with the authors' names.

    Args:
        submission: its file.
        truth: the annotation file that it answers.
        output: folder for the JSON, which is made; none: the folder of the submission.

    Raises:
        AnnotationError: a file is malformed, or they don't fit together.
        UserError: nothing can be written into the folder.
    """
    folder = output_folder(submission.parent if output is None else output)
    queries = read(truth)
    metrics = score_submission(read_submission(submission, queries, truth), queries)
    path = folder / (SCORES_FILE if output is not None else f"{submission.stem}_metrics.json")
    write_file(path, (json.dumps(metrics, indent=2) + "\n").encode())
    print(table_of(metrics["brief"], f"{submission.name}: {len(queries)} queries, in %"))
    print(f"metrics: {path}")


def table_of(brief: Mapping[str, float | None], title: str) -> str:
    """A line a metric."""
    return align(["%"], [(name, ["-" if value is None else f"{value:.2f}"]) for name, value in brief.items()], title)


def write_answers(answers: Answers, path: Path) -> None:
    """A submission of what a method says of queries that have names."""
    queries, rows = [], []
    items = zip(answers.paragraphs, answers.ranked, answers.scores, answers.curves, strict=True)
    for paragraph, ranked, scores, curves in items:
        assert paragraph.query_ids is not None
        for m, (qid, sentence) in enumerate(zip(paragraph.query_ids, paragraph.sentences, strict=True)):
            queries.append((qid, sentence, paragraph.video_id))
            there = np.isfinite(scores[m])
            windows = np.column_stack((ranked[m], scores[m]))[there]
            saliency = None if curves is None else clip_scores(curves[m], paragraph.duration)
            rows.append(Answer(windows, saliency))
    write_submission(path, queries, rows)


def clip_scores(curve: np.ndarray, duration: float) -> np.ndarray:
    """What a curve [T] over a whole video says of each clip of 2 s: its mean there, float64 [clips]."""
    clips = max(1, int(duration / CLIP_SECONDS))
    total = np.concatenate(([0.0], np.cumsum(curve)))
    borders = (np.arange(clips + 1) * CLIP_SECONDS / duration).clip(max=1) * len(curve)
    return np.diff(np.interp(borders, np.arange(len(total)), total)) / np.diff(borders)


def score_answers(answers: Answers, truth: Path, path: Path) -> dict[str, Any]:
    """The metrics of a submission that was written to ``path``, by a file of QVHighlights."""
    asked = {qid for paragraph in answers.paragraphs for qid in paragraph.query_ids or ()}
    queries: Sequence[Query] = [query for query in read(truth) if query.qid in asked]
    return score_submission(read_submission(path, queries, truth), queries)
