"""What the loaders share: finding and opening files, plain or ``.gz``, errors that name the place, and cleaning of
spans."""

from __future__ import annotations

import gzip
import json
import logging
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vpgfast.data.types import Paragraph
from vpgfast.errors import AnnotationError

log = logging.getLogger(__name__)

Level = Literal["sentence", "paragraph"]
BadSpan = Literal["drop_sentence", "drop_paragraph"]


def find(root: Path, *names: str) -> Path:
    """The first of ``root/name`` and ``root/name.gz`` that is there."""
    for name in names:
        for path in (root / name, root / f"{name}.gz"):
            if path.is_file():
                return path
    raise AnnotationError(f"{root}: no file {' or '.join(names)} (plain or .gz) in this folder")


def read_text(path: Path) -> str:
    """The whole text of a plain or gzipped UTF-8 file."""
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise AnnotationError(f"{path}: UTF-16 text; save it as UTF-8")
        return content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise AnnotationError(f"{path}: unreadable ({error})") from None
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    # Not splitlines, which cuts at characters that stand within sentences (U+2028, U+0085).
    for number, line in enumerate(read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        if line.strip():
            yield number, line


def parse_json(text: str, where: str) -> Any:
    """The content of a line of JSON."""
    try:
        return json.loads(text, object_pairs_hook=partial(_unique, where))
    except (json.JSONDecodeError, RecursionError) as error:
        raise AnnotationError(f"{where}: not json ({getattr(error, 'msg', 'nested too deeply')})") from None


def _unique(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of two values under one key the first would be lost without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise AnnotationError(f"{where}: the key {twice!r} is there twice in one object; rename or delete one")
    return found


def read_json(path: Path) -> Any:
    """The content of a plain or gzipped json file."""
    try:
        return json.loads(read_text(path), object_pairs_hook=partial(_unique, str(path)))
    except RecursionError:
        raise AnnotationError(f"{path}: not json (nested too deeply)") from None
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{path}, line {error.lineno} column {error.colno}: not json ({error.msg})") from None


def read_json_object(path: Path) -> dict[str, dict[str, Any]]:
    """A json file that maps each video to an object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: a list, where a map from video to its annotations was expected")
    for key, value in content.items():
        if not isinstance(value, dict):
            raise AnnotationError(f"{path}, video {key!r}: {type(value).__name__}, where a map was expected")
    return content


def entry(record: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """``record[key]``, once it is of a kind (``float`` takes any finite number)."""
    if key not in record:
        raise AnnotationError(f"{where}: no {key!r}, only {sorted(record)}")
    value = record[key]
    if kind is float:
        return number(value, f"{where}, {key!r}")
    if not isinstance(value, kind):
        raise AnnotationError(f"{where}: {key!r} is {type(value).__name__}, expected {kind.__name__}")
    return value


def number(value: Any, where: str) -> float:
    """A finite number, also as text."""
    try:
        parsed = float(value)
    except (TypeError, ValueError, OverflowError):
        parsed = math.nan
    if not math.isfinite(parsed) or isinstance(value, bool):
        raise AnnotationError(f"{where}: {value!r} is not a number")
    return parsed


def duration_of(value: Any, where: str) -> float:
    """A number above 0."""
    seconds = number(value, where)
    if seconds <= 0:
        raise AnnotationError(f"{where}: a duration of {value!r}")
    return seconds


def sentences_and_spans(
    record: dict[str, Any], where: str, per_second: float = 1.0
) -> tuple[tuple[str, ...], np.ndarray]:
    """``record["sentences"]``, and ``record["timestamps"]`` in seconds: float64 [M, 2], not cleaned yet."""
    sentences = entry(record, "sentences", list, where)
    timestamps = entry(record, "timestamps", list, where)
    if not sentences or len(sentences) != len(timestamps):
        raise AnnotationError(f"{where}: {len(sentences)} sentences and {len(timestamps)} timestamps")
    spans = np.empty((len(timestamps), 2))
    for m, (sentence, pair) in enumerate(zip(sentences, timestamps, strict=True)):
        here = f"{where}, sentence {m + 1}"
        if not isinstance(sentence, str):
            raise AnnotationError(f"{here}: {sentence!r} is not text")
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise AnnotationError(f"{here}: the timestamp {pair!r} is not a pair")
        spans[m] = [number(value, here) / per_second for value in pair]
    return tuple(sentences), spans


def clean_paragraphs(paragraphs: Iterable[Paragraph], bad_span: BadSpan, where: str | Path) -> list[Paragraph]:
    """Clamp spans to the video, and drop what is empty then: starts at or after its end, or after the video's.

    ``bad_span`` says whether only that sentence goes or the paragraph with it. A paragraph without sentences goes too.
    What goes is counted in the log, which names ``where``.

    Raises:
        AnnotationError: nothing is left.
    """
    if bad_span not in ("drop_sentence", "drop_paragraph"):
        raise AnnotationError(f"bad_span is {bad_span!r}; choose drop_sentence or drop_paragraph")
    cleaned = []
    sentences, bad = 0, []
    before = list(paragraphs)
    for paragraph in before:
        assert paragraph.spans is not None
        spans = np.clip(paragraph.spans, 0, paragraph.duration)
        good = paragraph.spans[:, 0] < np.minimum(paragraph.spans[:, 1], paragraph.duration)
        good &= spans[:, 0] < spans[:, 1]
        sentences += len(good)
        bad += [(paragraph, m) for m in np.flatnonzero(~good)]
        if good.all():
            cleaned.append(replace(paragraph, spans=spans))
        elif bad_span == "drop_sentence" and good.any():
            cleaned.append(replace(paragraph, spans=spans).select(np.flatnonzero(good).tolist()))
    if bad:
        first, m = bad[0]
        assert first.spans is not None
        start, end = first.spans[m]
        message = (
            f"{where}: {len(bad)} of {sentences} sentences start at or after their end or their video's; that drops "
            f"{len(before) - len(cleaned)} of {len(before)} paragraphs (first: video {first.video_id!r}, {start:g} to "
            f"{end:g} s of {first.duration:g} s)"
        )
        if before and not cleaned:
            raise AnnotationError(f"{message}: nothing is left. Are these seconds, and starts before ends?")
        log.warning("%s", message)
    return cleaned


def at_level(paragraphs: Iterable[Paragraph], level: Level) -> list[Paragraph]:
    """Paragraphs as they are, or each split into paragraphs of one sentence."""
    if level == "paragraph":
        return list(paragraphs)
    if level != "sentence":
        raise AnnotationError(f"level is {level!r}; choose sentence or paragraph")
    return [paragraph.select([i]) for paragraph in paragraphs for i in range(len(paragraph.sentences))]


def check_split(split: str, splits: Sequence[str], corpus: str) -> None:
    if split not in splits:
        raise AnnotationError(f"{corpus} has no split {split!r}; choose from {', '.join(splits)}")


def group_by_video(paragraphs: Iterable[Paragraph]) -> list[Paragraph]:
    """One paragraph a video: the sentences of all its paragraphs in their order, videos in order of first
    appearance."""
    groups: dict[str, list[Paragraph]] = {}
    for paragraph in paragraphs:
        groups.setdefault(paragraph.video_id, []).append(paragraph)
    joined = []
    for members in groups.values():
        spans = [p.spans for p in members if p.spans is not None]
        marks = [mark for p in members if p.annotator_spans is not None for mark in p.annotator_spans]
        every = [span for p in members if p.all_spans is not None for span in p.all_spans]
        ids = [name for p in members if p.query_ids is not None for name in p.query_ids]
        joined.append(
            replace(
                members[0],
                sentences=tuple(sentence for p in members for sentence in p.sentences),
                spans=np.concatenate(spans) if spans else None,
                annotator_spans=tuple(marks) if marks else None,
                all_spans=tuple(every) if every else None,
                query_ids=tuple(ids) if ids else None,
            )
        )
    return joined
