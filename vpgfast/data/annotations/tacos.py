"""TACoS (Regneri et al., TACL 2013) in the three forms that published code uses.

``variant="tan2d"``: 2D-TAN's ``tan2d/{train,val,test}.json``, ``{vid.avi: {timestamps (frames), sentences, fps,
num_frames}}``. A video has many
    paragraphs (one an annotator and granularity), stored one after another; a new one begins where the start time goes
    back.
``variant="tall"``: TALL's ``tall/TACoS_{train,val,test}_samples.txt``, lines
``VID.avi_START_END:sentence#sentence#...#`` (frames at 29.4 fps), all
    sentences of an interval on one line; which annotator wrote which is lost, so they form no paragraphs. Durations
    come from the json.
``variant="prvg"``: PRVG's ``prvg_pairs/{train,val,test}.json``, a list of ``{video, duration, sentences, timestamps}``
(seconds): paragraphs of
    the first kind cut into pieces of 8; ``tan2d`` with ``pieces=True`` gives the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from vpgfast.data.annotations import _io
from vpgfast.data.types import Paragraph
from vpgfast.errors import AnnotationError

SPLITS = ("train", "val", "test")
FPS = 29.4
PIECE = 8

_TALL_LINE = re.compile(r"(?P<video>[^:]+)_(?P<start>\d+)_(?P<end>\d+):(?P<sentences>.*)")


def load(
    split: str,
    root: Path,
    level: _io.Level = "paragraph",
    *,
    variant: Literal["tan2d", "tall", "prvg"] = "tan2d",
    pieces: bool = False,
    clean: bool = True,
    bad_span: _io.BadSpan = "drop_sentence",
) -> list[Paragraph]:
    """Read one split.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        root: folder of the files, plain or ``.gz``, or of the folders ``tan2d``, ``tall``, ``prvg_pairs``.
        level: ``"paragraph"``, or ``"sentence"`` for paragraphs of one sentence each.
        variant: which files, see above.
        pieces: with ``tan2d``: cut paragraphs as PRVG does (1,526 / 688 / 673), see :func:`cut_into_pieces`; otherwise
            they stay whole (1,263 / 505 / 444).
        clean: clamp spans to the video; ``False`` leaves everything as published.
        bad_span: whether a span of start >= end drops its ``"drop_sentence"`` or ``"drop_paragraph"`` (there is none
            in these files).
    """
    _io.check_split(split, SPLITS, "tacos")
    if variant == "tall":
        if level != "sentence":
            raise AnnotationError("tacos: the TALL files do not tell which sentences form a paragraph; read sentences")
        paragraphs = list(_read_tall(split, root))
    elif variant == "tan2d":
        paragraphs = [p for video in _read_tan2d(split, root) for p in split_where_start_goes_back(video)]
        if pieces:
            paragraphs = [piece for p in paragraphs for piece in cut_into_pieces(p, split)]
    elif variant == "prvg":
        paragraphs = list(_read_prvg(split, root))
    else:
        raise AnnotationError(f"tacos: variant is {variant!r}; choose tan2d, tall or prvg")
    if clean:
        paragraphs = _io.clean_paragraphs(paragraphs, bad_span, f"{root}, {split}")
    return _io.at_level(paragraphs, level)


def split_where_start_goes_back(paragraph: Paragraph) -> list[Paragraph]:
    """The paragraphs of a video whose annotations are stored one after another."""
    assert paragraph.spans is not None
    starts = paragraph.spans[:, 0]
    edges = [0, *(np.flatnonzero(starts[1:] < starts[:-1]) + 1).tolist(), len(starts)]
    return [paragraph.select(range(a, b)) for a, b in pairwise(edges)]


def cut_into_pieces(paragraph: Paragraph, split: str) -> list[Paragraph]:
    """Pieces of 8 sentences by PRVG's rule.

    Train and val: paragraphs of one or two sentences are dropped, and a last piece of one sentence joins the one
    before. Test: only paragraphs of one sentence are dropped.
    """
    count = len(paragraph.sentences)
    if count <= (1 if split == "test" else 2):
        return []
    edges = [*range(0, count, PIECE), count]
    if split != "test" and count % PIECE == 1 and count > PIECE:
        del edges[-2]
    return [paragraph.select(range(a, b)) for a, b in pairwise(edges)]


def _read_tan2d(split: str, root: Path) -> Iterator[Paragraph]:
    path = _io.find(root, f"tan2d/{split}.json", f"{split}.json")
    for video_id, record in _io.read_json_object(path).items():
        where = f"{path}, video {video_id!r}"
        fps = _io.duration_of(_io.entry(record, "fps", float, where), f"{where}, 'fps'")
        duration = _io.duration_of(_io.entry(record, "num_frames", float, where) / fps, where)
        yield Paragraph(video_id, duration, *_io.sentences_and_spans(record, where, per_second=fps))


def _read_tall(split: str, root: Path) -> Iterator[Paragraph]:
    durations = {p.video_id: p.duration for p in _read_tan2d(split, root)}
    path = _io.find(root, f"tall/TACoS_{split}_samples.txt", f"TACoS_{split}_samples.txt")
    for number, line in _io.read_lines(path):
        where = f"{path}, line {number}"
        match = _TALL_LINE.fullmatch(line)
        sentences = [s for s in match["sentences"].split("#") if s.strip()] if match else []
        if not match or not sentences:
            raise AnnotationError(f"{where}: {line[:60]!r} is not 'VIDEO_START_END:sentence#sentence#'")
        if match["video"] not in durations:
            raise AnnotationError(f"{where}: video {match['video']!r} has no duration in tan2d/{split}.json")
        span = np.array([[int(match["start"]), int(match["end"])]]) / FPS
        yield Paragraph(
            match["video"], durations[match["video"]], tuple(sentences), span.repeat(len(sentences), axis=0)
        )


def _read_prvg(split: str, root: Path) -> Iterator[Paragraph]:
    path = _io.find(root, f"prvg_pairs/{split}.json", f"{split}.json")
    content = _io.read_json(path)
    if not isinstance(content, list):
        raise AnnotationError(f"{path}: not a list of paragraphs")
    for i, record in enumerate(content):
        where = f"{path}, entry {i + 1}"
        if not isinstance(record, dict):
            raise AnnotationError(f"{where}: {type(record).__name__}, where a map was expected")
        duration = _io.duration_of(_io.entry(record, "duration", float, where), where)
        yield Paragraph(_io.entry(record, "video", str, where), duration, *_io.sentences_and_spans(record, where))
