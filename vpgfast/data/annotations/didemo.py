"""DiDeMo (Hendricks et al., ICCV 2017): sentences marked by several annotators on segments of five seconds.

Files ``{train,val,test}_data.json``: a list of ``{video, description, times, num_segments, ...}``, ``times`` one
[first, last] pair of segments an annotator; ``yfcc100m_hash.txt``: ``flickr_id<TAB>hash`` of all videos. The published
durations are those of whole segments.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from vpgfast.data.annotations import _io
from vpgfast.data.types import Paragraph
from vpgfast.errors import AnnotationError

SPLITS = ("train", "val", "test")
SEGMENT = 5.0
"""Seconds of a segment; a video has six (a few five), so 21 (15) moments can be meant."""


def load(
    split: str, root: Path, level: _io.Level = "sentence", *, video_id: Literal["flickr", "file"] = "flickr"
) -> list[Paragraph]:
    """Read one split; ``spans`` is the interval that most annotators chose (the first of them where it is a tie).

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        root: folder of the files, plain or ``.gz``.
        level: ``"sentence"``, or ``"paragraph"`` to put the sentences of a video together.
        video_id: name videos by the Flickr id (1,065 / 1,004 videos), or by the ``"file"`` name, which some videos
            have two of.
    """
    _io.check_split(split, SPLITS, "didemo")
    if video_id not in ("flickr", "file"):
        raise AnnotationError(f"didemo: video_id is {video_id!r}; choose flickr or file")
    path = _io.find(root, f"{split}_data.json")
    content = _io.read_json(path)
    if not isinstance(content, list):
        raise AnnotationError(f"{path}: not a list of descriptions")
    sentences = []
    for i, record in enumerate(content):
        where = f"{path}, entry {i + 1}"
        if not isinstance(record, dict):
            raise AnnotationError(f"{where}: {type(record).__name__}, where a map was expected")
        file_name = _io.entry(record, "video", str, where)
        segments = int(_io.duration_of(_io.entry(record, "num_segments", float, where), where))
        marks = np.array([_interval(pair, segments, where) for pair in _io.entry(record, "times", list, where)])
        if not len(marks):
            raise AnnotationError(f"{where}: no annotator's times")
        commonest = np.array([Counter(map(tuple, marks.tolist())).most_common(1)[0][0]])
        name = _flickr_id(file_name, where) if video_id == "flickr" else file_name
        sentence = _io.entry(record, "description", str, where)
        sentences.append(Paragraph(name, segments * SEGMENT, (sentence,), commonest, (marks,)))
    if level == "paragraph":
        return _io.group_by_video(sentences)
    return _io.at_level(sentences, level)


def train_video_ids(root: Path) -> list[str]:
    """Flickr ids of the training videos, known without ``train_data.json``: all that are neither in val nor in test."""
    path = _io.find(root, "yfcc100m_hash.txt")
    held_out = {p.video_id for split in ("val", "test") for p in load(split, root)}
    names = []
    for number, line in _io.read_lines(path):
        name, tab, _ = line.partition("\t")
        if not tab:
            raise AnnotationError(f"{path}, line {number}: {line!r} is not 'flickr_id<TAB>hash'")
        if name not in held_out:
            names.append(name)
    return names


def _flickr_id(file_name: str, where: str) -> str:
    parts = file_name.split("_")
    if len(parts) < 3:
        raise AnnotationError(f"{where}: video {file_name!r} is not 'owner_flickrid_hash.ext'")
    return parts[1]


def _interval(pair: object, segments: int, where: str) -> list[float]:
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(v, int) for v in pair)):
        raise AnnotationError(f"{where}: {pair!r} in 'times' is not a pair of segments")
    first, last = pair
    if not 0 <= first <= last < segments:
        raise AnnotationError(f"{where}: {pair} in 'times' does not fit {segments} segments")
    return [first * SEGMENT, (last + 1) * SEGMENT]
