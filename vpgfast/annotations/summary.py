"""What annotations hold, in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vpgfast.data.annotations.own import Content
from vpgfast.data.features import open_features
from vpgfast.data.text import tokenize
from vpgfast.data.video_folders import named_videos
from vpgfast.errors import VideoError


def durations_of(videos: Path | None, features: Path | None) -> dict[str, float | None]:
    """How long videos last, by name, seconds; ``None`` where that is not known; empty if nothing is given.

    Args:
        videos: a folder, whose files are asked what they say of themselves; nothing is decoded.
        features: a feature file or folder.

    Raises:
        VideoError, FeatureError: nothing is there.
    """
    if features is not None:
        reader = open_features(features)
        names = list(reader.video_ids())
        return {name: reader.duration(name) for name in tqdm(names, desc="looking at features", delay=2, disable=None)}
    if videos is None:
        return {}
    from vpgfast.video import Video

    durations: dict[str, float | None] = {}
    for name, path in tqdm(named_videos([videos]).items(), desc="looking at videos", delay=2, disable=None):
        try:
            durations[name] = Video(path).stated_duration
        except VideoError:
            durations[name] = None  # extract says why, and the annotations are none the worse
    return durations


def summarize(content: Content, durations: Mapping[str, float | None], file: Path, source: Path | None) -> str:
    """Lines of text.

    Args:
        content: of the file.
        durations: of videos that are there, by name; empty if none were looked at.
        file: the annotations.
        source: where the videos were looked for, if anywhere.
    """
    rows = content.rows
    if not rows:
        return f"{file}: no sentence that makes sense"
    counts = Counter(row.video for row in rows)
    lengths = [end - start for row in rows for start, end in row.spans if start < end]
    shares = [s for p in content.paragraphs for spans in p.true_spans or () for s in np.diff(spans)[:, 0] / p.duration]
    words = [tokenize(row.sentence) for row in rows]
    known = sum(bool(row.spans) for row in rows)
    several = sum(len(row.spans) > 1 for row in rows)
    told = [p.spans[:, 0] for p in content.paragraphs if p.spans is not None and len(p.sentences) > 1]
    ordered = sum(bool((np.diff(starts) >= 0).all()) for starts in told)

    lines = {
        "videos": f"{len(counts)}" + _spread([p.duration for p in content.paragraphs], "s long"),
        "sentences": f"{len(rows)}" + _spread(list(counts.values()), "a video"),
        "words": f"{len({word for sentence in words for word in sentence})} different"
        + _spread([len(sentence) for sentence in words], "a sentence"),
        "with a span": f"{known}{_of(known, len(rows))}" + _spread(lengths, "s long"),
    }
    if shares:
        lines["of the video"] = f"{100 * float(np.median(shares)):.0f} % in the median"
    if several:
        lines["several spans"] = f"{several} sentences"
    if told:
        lines["told in order"] = f"{ordered} of {len(told)} paragraphs" + (
            "" if ordered == len(told) else "; a method of paragraphs sorts them by time, which it can't for new videos"
        )
    if durations or source is not None:
        missing = [name for name in counts if name not in durations]
        lines[f"in {source}"] = f"{len(counts) - len(missing)} of {len(counts)} videos"
        if missing:
            lines["not there"] = f"{len(missing)} videos, first {', '.join(map(repr, missing[:3]))}"
        if more := len(durations) - (len(counts) - len(missing)):
            lines["no sentence"] = f"{more} videos that are there"
    width = max(map(len, lines)) + 2
    return "\n".join([f"{file}:", *(f"  {name:<{width}}{text}" for name, text in lines.items())])


def _spread(values: Sequence[float], unit: str) -> str:
    if not values:
        return ""
    low, middle, high = (f"{x:.4g}" for x in (min(values), float(np.median(values)), max(values)))
    return f"; {low} {unit}" if low == high else f"; {low} to {high} {unit}, median {middle}"


def _of(some: int, everything: int) -> str:
    return " of them, all" if some == everything else f" of {everything}"
