"""What a page shows: videos, a lane for every sentence, spans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vpgfast.page.media import Media, media_of
from vpgfast.video.source import printable

MOST_POINTS = 1000
"""Of a curve: more than a screen shows."""


@dataclass(frozen=True)
class Span:
    """A stretch of a video.

    Attributes:
        start, end: seconds.
        score: on the method's own scale, where it has one.
        iou: with the true span, where that is known.
        fits: ``False`` for what is shown although it does not fit.
    """

    start: float
    end: float
    score: float | None = None
    iou: float | None = None
    fits: bool = True

    def as_dict(self) -> dict[str, Any]:
        about: dict[str, Any] = {"start": round(self.start, 3), "end": round(self.end, 3), "fits": self.fits}
        for name in ("score", "iou"):
            value = getattr(self, name)
            if value is not None and math.isfinite(value):
                about[name] = float(f"{value:.6g}")
        return about


@dataclass(frozen=True)
class Lane:
    """A sentence in a video.

    Attributes:
        sentence: as it was asked.
        spans: the best first.
        curve: float [T], how well each of T clips of equal length fits, of a method that has that.
        truth: where it really happens, as far as known.
    """

    sentence: str
    spans: Sequence[Span] = ()
    curve: np.ndarray | None = None
    truth: Sequence[Span] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "sentence": printable_text(self.sentence),
            "spans": [span.as_dict() for span in self.spans],
            "truth": [{"start": round(span.start, 3), "end": round(span.end, 3)} for span in self.truth],
            "curve": None if self.curve is None else _thinned(self.curve),
        }


@dataclass(frozen=True)
class Video:
    """A video with its sentences.

    Attributes:
        name: as people know it.
        duration: seconds.
        lanes: one a sentence.
        path: the file; ``None`` where only its features are known.
        score: how well all of it fits, where it was searched for.
        missing: why there is nothing to play or no span, in words.
    """

    name: str
    duration: float
    lanes: Sequence[Lane]
    path: Path | None = None
    score: float | None = None
    missing: str = ""

    def as_dict(self, source: str | None, media: Media | None = None) -> dict[str, Any]:
        """As the page reads it.

        Args:
            source: where the page finds the video; ``None``: nowhere, or inside.
            media: what is known of the file; ``None``: it is looked at.
        """
        about: dict[str, Any] = {
            "name": printable_text(self.name),
            "file": printable(Path(self.path.name)) if self.path is not None else printable_text(self.name),
            "duration": max(self.duration, 0.001),
            "score": self.score if self.score is not None and math.isfinite(self.score) else None,
            "missing": self.missing,
            "unplayable": "",
            "lanes": [lane.as_dict() for lane in self.lanes],
            "src": source,
        }
        if self.path is not None and (media is not None or self.path.is_file()):
            media = media or media_of(self.path)
            about |= {"rate": media.rate, "type": media.type, "begins": media.begins, "unplayable": media.problem}
        elif not self.missing:
            if self.path is None:
                reason = "its file is not known"
            elif self.path.is_dir():
                reason = f"{printable(self.path)} is a folder of pictures"
            else:
                reason = f"{printable(self.path)} is not there"
            about["missing"] = f"This video can't be played here: {reason}."
        return about


@dataclass(frozen=True)
class Content:
    """A page.

    Attributes:
        title: on top.
        videos: in the order of the page.
        about: a line below the title.
        status: a line about all that was found, such as "nothing fits".
    """

    title: str
    videos: Sequence[Video] = field(default_factory=tuple)
    about: str = ""
    status: str = ""

    def as_dict(self, videos: Sequence[dict[str, Any]]) -> dict[str, Any]:
        texts = {name: printable_text(getattr(self, name)) for name in ("title", "about", "status")}
        return {**texts, "videos": list(videos)}


def printable_text(text: str) -> str:
    """Text that can be stored as UTF-8: bytes of a file's name that are no text are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _thinned(curve: np.ndarray) -> list[float] | None:
    """At most :data:`MOST_POINTS` points, each the highest of its share, so that no peak is lost."""
    curve = np.nan_to_num(np.asarray(curve, np.float64), posinf=0.0, neginf=0.0)
    if len(curve) == 0:
        return None
    edges = np.linspace(0, len(curve), min(len(curve), MOST_POINTS) + 1).astype(int)[:-1]
    return [float(f"{value:.5g}") for value in np.maximum.reduceat(curve, edges)]
