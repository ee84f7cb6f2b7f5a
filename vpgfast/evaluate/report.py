"""Results as a table, as ``metrics.json`` and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vpgfast.config import TrainConfig
from vpgfast.data.corpus import Corpus, annotation_file, tested_and_validated
from vpgfast.errors import CheckpointError
from vpgfast.evaluate import selection
from vpgfast.evaluate.split import Answers, Evaluation, sample_evenly
from vpgfast.evaluate.submission import SUBMISSION_FILE, score_answers, table_of, write_answers
from vpgfast.files import METRICS_FILE, write_file
from vpgfast.metrics.corpus import CorpusResult
from vpgfast.metrics.spans import best_ious
from vpgfast.plots import draw_spans
from vpgfast.plots_inside import draw_attention, draw_ious, draw_labels, draw_moments, iou_counts

PICTURE = "spans.png"
LABELS, ATTENTION, MOMENTS, IOUS = "labels.png", "attention.png", "moments.png", "ious.png"


def report(
    evaluation: Evaluation, config: TrainConfig, corpus: Corpus, split: str, seconds: float, output: Path
) -> None:
    """Write ``metrics.json`` and the picture of predicted against true spans, and print the table.

    Args:
        seconds: what the run or the evaluation took.
        output: folder, must exist.
    """
    table = evaluation.table(config.method, table_title(corpus.name, split, config))
    try:
        highlights = _write(evaluation, config, corpus, split, seconds, output)
    finally:  # what took so long is not lost with a full disk
        print(table)
    if highlights is not None:
        print("\n" + table_of(highlights["brief"], f"{config.method}, by QVHighlights' own evaluation, in %"))
    if config.pictures:
        print(f"true and predicted spans: {output / PICTURE}")
        others = [output / name for name in (IOUS, LABELS, ATTENTION, MOMENTS) if (output / name).is_file()]
        print(f"how good they are, and how they were found: {', '.join(map(str, others))}")
    print(f"metrics: {output / METRICS_FILE}")


def _write(
    evaluation: Evaluation, config: TrainConfig, corpus: Corpus, split: str, seconds: float, output: Path
) -> dict[str, Any] | None:
    """All files; returns what QVHighlights' own evaluation says, on that corpus."""
    answers, highlights = evaluation.answers, None
    if all(paragraph.query_ids is not None for paragraph in answers.paragraphs):
        write_answers(answers, output / SUBMISSION_FILE)
        if config.data.corpus == "qvhighlights":
            highlights = score_answers(answers, annotation_file(config.data, split), output / SUBMISSION_FILE)
    problem = None
    if config.pictures:
        chosen = sample_evenly(answers.paragraphs, answers.ranked, config.pictures)
        try:
            title = f"{config.method} on {corpus.name}, {split}"
            draw_spans(*chosen, output / PICTURE, title)
            draw_ious({config.method: best_ious(answers.ranked, answers.paragraphs)}, output / IOUS, title)
            if any(inside.labels is not None for inside in evaluation.insides):
                draw_labels(evaluation.insides, output / LABELS, title)
            if any(inside.attention is not None for inside in evaluation.insides):
                draw_attention(evaluation.insides, output / ATTENTION, title)
            if any(inside.maps is not None for inside in evaluation.insides):
                draw_moments(evaluation.insides, output / MOMENTS, title)
        except CheckpointError as error:  # the numbers are worth more than a picture that can't be written
            problem = error
    shared = tested_and_validated(corpus.splits)
    # The last of all files: it says that the run is finished, and a kill must not leave one that lacks others.
    write_metrics(output / METRICS_FILE, evaluation, config, corpus.name, split, seconds, shared, highlights)
    if problem is not None:
        raise problem
    return highlights


def table_title(corpus: str, split: str, config: TrainConfig) -> str:
    """The line above a table: corpus and split, unit, and the rules that differ from the usual ones."""
    rules = config.metrics
    notes = [f"IoU {rules.comparison} m"] if rules.comparison != ">=" else []
    notes += [f"spans in {rules.clips} clips"] if rules.clips is not None else []
    notes += [f"spans in {rules.segment_seconds:g}-s segments"] if rules.segment_seconds is not None else []
    notes += ["best 3 annotators"] if rules.annotators == "best3" else []
    return f"{corpus}, {split} split, in %" + (f" ({', '.join(notes)})" if notes else "")


def write_metrics(
    path: Path,
    evaluation: Evaluation,
    config: TrainConfig,
    corpus: str,
    split: str,
    seconds: float,
    shared: int,
    highlights: Mapping[str, Any] | None = None,
) -> None:
    """``metrics.json``: what was run, and the numbers as fractions in [0, 1]; those of QVHighlights' own evaluation in
    per cent, as its authors print them. ``shared`` test videos are validation videos too."""
    content: dict[str, Any] = {
        "method": config.method,
        "corpus": corpus,
        "split": split,
        "seed": config.seed,
        "seconds": round(seconds, 1),
        "metrics": evaluation.metrics,
        "baselines": evaluation.baselines,
        "control": evaluation.control,
        # How many sentences' best spans have an IoU in [0, 0.1), [0.1, 0.2), ..., [0.9, 1].
        "iou_counts": iou_counts(best_ious(evaluation.answers.ranked, evaluation.answers.paragraphs)),
        # What chose the epoch, whether that looked at spans, and how many test videos it saw.
        "selection": {"by": config.select_by, "sees_spans": selection.sees_spans(config), "test_videos": shared},
    }
    if evaluation.retrieval is not None:
        content["retrieval"] = asdict(evaluation.retrieval)
    if highlights is not None:
        content["qvhighlights"] = highlights
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def table_from(content: Mapping[str, Any], config: TrainConfig) -> str:
    """The table again, from what :func:`write_metrics` wrote."""
    found = content.get("retrieval")  # only of methods that find videos
    evaluation = Evaluation(
        *(content["metrics"], content["baselines"], content["control"], Answers()),
        CorpusResult(**found) if found else None,
    )
    return evaluation.table(content["method"], table_title(content["corpus"], content["split"], config))
