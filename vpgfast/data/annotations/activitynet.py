"""ActivityNet Captions (Krishna et al., ICCV 2017): ``{v_ID: {duration, timestamps, sentences}}``, one key one
paragraph.

Files ``train.json``, ``val_1.json``, ``val_2.json``. The two validation files hold independent paragraphs of nearly
the same videos. Papers differ in which one they test on: SeqPAN on ``val_1`` (which its program
also chooses the epoch by); 2D-TAN and the paragraph methods on ``val_2``; MARN on both.
"""

from __future__ import annotations

from pathlib import Path

from vpgfast.data.annotations import _io
from vpgfast.data.types import Paragraph

BOTH = "val_1+val_2"
"""One after the other: what MARN tests on."""
SPLITS = ("train", "val_1", "val_2", BOTH)


def load(
    split: str,
    root: Path,
    level: _io.Level = "paragraph",
    *,
    clean: bool = True,
    bad_span: _io.BadSpan | None = None,
) -> list[Paragraph]:
    """Read one split.

    Args:
        split: ``"train"``, ``"val_1"``, ``"val_2"``, or ``"val_1+val_2"`` for both files.
        root: folder of the json files, plain or ``.gz``.
        level: ``"paragraph"``, or ``"sentence"`` for paragraphs of one sentence each.
        clean: clamp spans to the video and drop those with start >= end; ``False`` leaves everything as published.
        bad_span: whether a bad span drops its ``"drop_sentence"`` (default at sentence level) or ``"drop_paragraph"``
            (default at paragraph level, as the released paragraph-grounding code does: 10,005 of 10,009 training pairs
            stay).
    """
    _io.check_split(split, SPLITS, "activitynet")
    if split == BOTH:
        parts = (load(part, root, level, clean=clean, bad_span=bad_span) for part in split.split("+"))
        return [paragraph for part in parts for paragraph in part]
    path = _io.find(root, f"{split}.json")
    paragraphs = []
    for video_id, record in _io.read_json_object(path).items():
        where = f"{path}, video {video_id!r}"
        duration = _io.duration_of(_io.entry(record, "duration", float, where), where)
        paragraphs.append(Paragraph(video_id, duration, *_io.sentences_and_spans(record, where)))
    if clean:
        default: _io.BadSpan = "drop_paragraph" if level == "paragraph" else "drop_sentence"
        paragraphs = _io.clean_paragraphs(paragraphs, bad_span or default, path)
    return _io.at_level(paragraphs, level)
