"""What each command has found, as a page shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vpgfast.page.content import Content, Lane, Span, Video

if TYPE_CHECKING:  # a page of one command does without the others
    from vpgfast.data.types import Paragraph
    from vpgfast.find.moments import Moment
    from vpgfast.ground.grounding import Grounding
    from vpgfast.metrics.spans import RankedSpans
    from vpgfast.search.answers import Answer

ONLY_FEATURES = "This video can't be played here: only its features were given."


MOST_RANKED = 5
"""Predicted spans of a sentence in a gallery."""


def asked(sentences: Sequence[str]) -> str:
    """The title of a page about sentences: the first, and how many more there are."""
    more = len(sentences) - 1
    return f"{sentences[0].rstrip('.')} and {more} more" if more else sentences[0]


def count(number: int, noun: str) -> str:
    """``1 span``, ``2 spans``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def grounded(found: Grounding, name: str, path: Path | None) -> Video:
    """A video that ``ground`` was asked about; ``path`` is ``None`` where features were given."""
    lanes = []
    for number, (sentence, spans, scores) in enumerate(zip(found.sentences, found.spans, found.scores, strict=True)):
        rows = zip(spans.tolist(), scores.tolist(), strict=True)
        curve = None if found.curves is None else found.curves[number]
        kept = [Span(span[0], span[1], score) for span, score in rows if np.isfinite(span).all()]
        lanes.append(Lane(sentence, kept, curve))
    return Video(name, found.duration, lanes, path, missing="" if path else ONLY_FEATURES)


def ground_content(found: Grounding, name: str, path: Path | None, model: str) -> Content:
    """The page of ``ground``."""
    video = grounded(found, name, path)
    spans = sum(len(lane.spans) for lane in video.lanes)
    return Content(
        name,
        [video],
        f"{count(len(found.sentences), 'sentence')}, answered by {model}.",
        f"{count(spans, 'span')} found.",
    )


def found_videos(moments: Sequence[Moment], sentences: Sequence[str], duration_of: dict[str, float]) -> list[Video]:
    """The videos that moments of ``find`` lie in, in the order of their first moment.

    Args:
        moments: the best first.
        sentences: M of them.
        duration_of: seconds by the video's name.
    """
    videos = []
    for name in dict.fromkeys(moment.video for moment in moments):
        lanes = []
        for number, sentence in enumerate(sentences):
            own = [moment for moment in moments if (moment.video, moment.sentence) == (name, number)]
            spans = [Span(moment.start, moment.end, moment.score, fits=moment.fits) for moment in own]
            if own or len(sentences) > 1:
                lanes.append(Lane(sentence, spans, own[0].curve if own else None))
        path = next(moment.path for moment in moments if moment.video == name)
        videos.append(Video(name, duration_of[name], lanes, path))
    return videos


def find_content(
    moments: Sequence[Moment], sentences: Sequence[str], duration_of: dict[str, float], encoder: str
) -> Content:
    """The page of ``find``: the arguments of :func:`found_videos`, and the encoder's spec."""
    videos = found_videos(moments, sentences, duration_of)
    fitting = sum(moment.fits for moment in moments)
    status = f"{count(fitting, 'moment')} in {count(len(videos), 'video')}" if fitting else "Nothing fits."
    if moments and not fitting:
        status = "Nothing fits; the best all the same:"
    return Content(
        asked(sentences), videos, f"Looked through {count(len(duration_of), 'video')} with {encoder}.", status
    )


def search_content(answers: Sequence[Answer], sentences: Sequence[str], size: int) -> Content:
    """The page of ``search query``, over an index of ``size`` videos."""
    videos = []
    for answer in answers:
        entry = answer.found.video
        path = answer.path if entry.source["kind"] == "videos" else None
        if answer.grounding is None:
            missing = f"Not grounded: {answer.problem}"
            lanes = [Lane(sentence) for sentence in sentences]
            videos.append(Video(entry.video_id, entry.duration, lanes, path, answer.found.score, missing))
        else:
            video = grounded(answer.grounding, entry.video_id, path)
            videos.append(Video(video.name, video.duration, video.lanes, path, answer.found.score, video.missing))
    return Content(asked(sentences), videos, f"The {len(videos)} of {size} videos that fit best.")


def evaluate_content(
    paragraphs: Sequence[Paragraph], ranked: RankedSpans, files: dict[str, Path], title: str, total: int
) -> Content:
    """The page of ``evaluate``: true and predicted spans of test videos.

    Args:
        paragraphs: items, those of one video together.
        ranked: what was predicted for them.
        files: of the videos, by name, as far as they are there.
        title: says which method, corpus and split.
        total: videos of the split.
    """
    from vpgfast.metrics.spans import interval_iou

    lanes: dict[str, list[Lane]] = {}
    durations: dict[str, float] = {}
    for paragraph, rows in zip(paragraphs, ranked, strict=True):
        durations[paragraph.video_id] = paragraph.duration
        for number, (sentence, spans) in enumerate(zip(paragraph.sentences, rows, strict=True)):
            spans = spans[np.isfinite(spans).all(axis=-1)][:MOST_RANKED]
            if paragraph.spans is None:
                truth, ious = [], np.full(len(spans), np.nan).tolist()
            else:
                true = paragraph.spans[number]
                truth, ious = [Span(*true.tolist())], interval_iou(spans, true[None])[:, 0].tolist()
            found = [Span(span[0], span[1], iou=iou) for span, iou in zip(spans.tolist(), ious, strict=True)]
            lanes.setdefault(paragraph.video_id, []).append(Lane(sentence, found, truth=truth))
    missing = "This video can't be played here: its file is not known (--page-videos FOLDER says where it is)."
    videos = [
        Video(name, durations[name], rows, files.get(name), missing="" if name in files else missing)
        for name, rows in lanes.items()
    ]
    return Content(title, videos, f"{count(len(videos), 'video')} of {total}, true and predicted spans.")
