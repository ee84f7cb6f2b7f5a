"""Charades-CD (Yuan et al., 2021): Charades-STA divided anew, so that a test split has other moment positions than
training.

Files ``charades_{train,val,test_iid,test_ood}.json``: ``{vid: {timestamps, sentences, video_duration, ...}}`` in
seconds. All sentences of a video form one paragraph; they are not stored in temporal order.
"""

from __future__ import annotations

from pathlib import Path

from vpgfast.data.annotations import _io
from vpgfast.data.types import Paragraph

SPLITS = ("train", "val", "test_iid", "test_ood")


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
        split: ``"train"``, ``"val"``, ``"test_iid"`` or ``"test_ood"``.
        root: folder of the json files, plain or ``.gz``.
        level: ``"paragraph"``, or ``"sentence"`` for paragraphs of one sentence each.
        clean: clamp spans to the video and drop those that start at or after its end; ``False`` leaves everything as
            published.
        bad_span: whether such a span drops its ``"drop_sentence"`` (default at sentence level) or ``"drop_paragraph"``
            (default at paragraph level: it leaves the 1,440 pairs of Charades-CD-OOD that papers report, without LEOL6
            and AKKWU).
    """
    _io.check_split(split, SPLITS, "charades_cd")
    path = _io.find(root, f"charades_{split}.json")
    paragraphs = []
    for video_id, record in _io.read_json_object(path).items():
        where = f"{path}, video {video_id!r}"
        duration = _io.duration_of(_io.entry(record, "video_duration", float, where), where)
        paragraphs.append(Paragraph(video_id, duration, *_io.sentences_and_spans(record, where)))
    if clean:
        default: _io.BadSpan = "drop_paragraph" if level == "paragraph" else "drop_sentence"
        paragraphs = _io.clean_paragraphs(paragraphs, bad_span or default, path)
    return _io.at_level(paragraphs, level)
