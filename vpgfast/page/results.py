"""What each command has found, as a page shows it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vpgfast.page.content import Content, Lane, Span, Video

if TYPE_CHECKING:  # a page of one command does without the others
    from vpgfast.evaluate.split import Answers
    from vpgfast.find.moments import Moment
    from vpgfast.ground.grounding import Grounding
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


def evaluate_content(answers: Answers, names: Collection[str], files: dict[str, Path], title: str) -> Content:
    """The page of ``evaluate``: true and predicted spans of test videos, items of one video together.

    Args:
        answers: of the split.
        names: the videos to show.
        files: of the videos, by name, as far as they are there.
        title: says which method, corpus and split.
    """
    from vpgfast.metrics.spans import interval_iou

    lanes: dict[str, list[Lane]] = {}
    durations = {paragraph.video_id: paragraph.duration for paragraph in answers.paragraphs}
    columns = (answers.paragraphs, answers.ranked, answers.scores, answers.curves)
    for paragraph, ranked, scores, curves in zip(*columns, strict=True):
        if paragraph.video_id not in names:
            continue
        for number, sentence in enumerate(paragraph.sentences):
            there = np.isfinite(ranked[number]).all(axis=-1)
            spans, values = ranked[number][there][:MOST_RANKED], scores[number][there][:MOST_RANKED]
            truth = np.empty((0, 2)) if paragraph.true_spans is None else paragraph.true_spans[number]
            ious = interval_iou(spans, truth).max(1).tolist() if len(truth) else [None] * len(spans)
            rows = zip(spans.tolist(), values.tolist(), ious, strict=True)
            found = [Span(start, end, score, iou) for (start, end), score, iou in rows]
            curve = None if curves is None else curves[number]
            lane = Lane(sentence, found, curve, [Span(start, end) for start, end in truth.tolist()])
            lanes.setdefault(paragraph.video_id, []).append(lane)
    missing = "This video can't be played here: its file is not known (--page-videos FOLDER says where it is)."
    videos = [
        Video(name, durations[name], found, files.get(name), missing="" if name in files else missing)
        for name, found in lanes.items()
    ]
    about = f"{count(len(videos), 'video')} of {len(durations)}, true and predicted spans."
    return Content(title, videos, about)
