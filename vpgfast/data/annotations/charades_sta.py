"""Charades-STA (Gao et al., ICCV 2017): lines ``VID START END##sentence`` in seconds.

Files ``charades_sta_{train,test}.txt``, and the durations of the videos either from the Charades metadata
``Charades_v1_{train,test}.csv`` (column ``length``, as 2D-TAN reads) or from ``charades.json`` (``{vid: {duration,
...}}``, as SeqPAN and VSLNet read); they are equal. The data set has no validation split. The lines of a video are not
in temporal order.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Literal

import numpy as np

from vpgfast.data.annotations import _io
from vpgfast.data.types import Paragraph
from vpgfast.errors import AnnotationError

SPLITS = ("train", "test")

REPAIRS = {
    ("LEOL6", 8.0, 7.0): (0.0, 2.5),
    ("IOL8Q", 20.9, 12.0): (20.9, 25.8),
    ("AKKWU", 38.0, 13.0): (3.4, 8.8),
}
"""The four training lines whose end is before their start (AKKWU has two), and what SeqPAN's copy of the file has
there."""


def load(
    split: str,
    root: Path,
    level: _io.Level = "paragraph",
    *,
    clean: bool = True,
    bad_span: _io.BadSpan = "drop_sentence",
    repair: bool = False,
    durations: Literal["auto", "csv", "json"] = "auto",
) -> list[Paragraph]:
    """Read one split; a paragraph is all lines of a video, in the file's order.

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder of the files, plain or ``.gz``.
        level: ``"paragraph"``, or ``"sentence"`` for paragraphs of one sentence each, in the file's order.
        clean: clamp spans to the video (1,805 train and 562 test sentences end after it) and drop those with start >=
            end, as 2D-TAN does (12,404 / 3,720 stay); ``False`` leaves everything as published (12,408 / 3,720).
        bad_span: whether such a span drops its ``"drop_sentence"`` or ``"drop_paragraph"``.
        repair: put right the four broken training lines, see :data:`REPAIRS`.
        durations: which file gives them; ``"auto"`` takes the csv if it is there.
    """
    _io.check_split(split, SPLITS, "charades_sta")
    path = _io.find(root, f"charades_sta_{split}.txt")
    seconds = _durations(split, root, durations)
    lines = []
    for number, line in _io.read_lines(path):
        where = f"{path}, line {number}"
        head, mark, sentence = line.partition("##")
        parts = head.split()
        if not mark or len(parts) != 3:
            raise AnnotationError(f"{where}: {line!r} is not 'VID START END##sentence'")
        video_id, start, end = parts[0], _io.number(parts[1], where), _io.number(parts[2], where)
        if video_id not in seconds:
            raise AnnotationError(f"{where}: video {video_id!r} has no duration in the metadata file")
        if repair:
            start, end = REPAIRS.get((video_id, start, end), (start, end))
        lines.append(Paragraph(video_id, seconds[video_id], (sentence,), np.array([[start, end]])))
    if level == "sentence":
        return _io.clean_paragraphs(lines, "drop_sentence", path) if clean else lines
    if level != "paragraph":
        raise AnnotationError(f"level is {level!r}; choose sentence or paragraph")
    paragraphs = _io.group_by_video(lines)
    return _io.clean_paragraphs(paragraphs, bad_span, path) if clean else paragraphs


def _durations(split: str, root: Path, source: Literal["auto", "csv", "json"]) -> dict[str, float]:
    names = {"csv": [f"Charades_v1_{split}.csv"], "json": ["charades.json"]}
    names["auto"] = names["csv"] + names["json"]
    if source not in names:
        raise AnnotationError(f"durations is {source!r}; choose auto, csv or json")
    path = _io.find(root, *names[source])
    if ".json" in path.suffixes:
        return {
            video_id: _io.duration_of(_io.entry(record, "duration", float, f"{path}, video {video_id!r}"), str(path))
            for video_id, record in _io.read_json_object(path).items()
        }
    rows = csv.DictReader(io.StringIO(_io.read_text(path), newline=""))
    seconds = {}
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        if not row.get("id") or not row.get("length"):
            raise AnnotationError(f"{where}: no columns 'id' and 'length'")
        seconds[row["id"]] = _io.duration_of(row["length"], where)
    return seconds
