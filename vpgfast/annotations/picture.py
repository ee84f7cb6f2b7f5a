"""Where the moments of annotations lie, how long they and the sentences are: a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vpgfast.data.text import tokenize
from vpgfast.data.types import Paragraph
from vpgfast.plots import FAINT, INK, PREDICTED, TRACK, TRUE, plain_axis, save_figure


def draw(paragraphs: Sequence[Paragraph], path: Path, title: str) -> None:
    """Three panels: start against end, lengths of moments, words a sentence.

    Args:
        paragraphs: at least one, whether or not spans are known.
        path: of the PNG.
        title: above the picture.
    """
    every = [(spans, p.duration) for p in paragraphs for spans in p.true_spans or ()]
    spans = np.concatenate([*(s for s, _ in every), np.empty((0, 2))])
    places = np.concatenate([*(s / duration for s, duration in every), np.empty((0, 2))])
    words = [len(tokenize(sentence)) for p in paragraphs for sentence in p.sentences]
    figure = Figure(figsize=(11, 3.6), layout="constrained", facecolor="white")
    figure.suptitle(title, color=INK, fontsize=12, x=0.01, ha="left", parse_math=False)
    left, middle, right = figure.subplots(1, 3)

    left.plot([0, 1], [0, 1], color=TRACK, lw=1)
    left.scatter(*places.T, s=14, color=PREDICTED, alpha=min(1.0, 0.15 + 30 / max(1, len(places))), linewidths=0)
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="start", ylabel="end")
    _heading(left, f"{len(places)} moments, as shares of their videos" if len(places) else "no span is known")
    if len(spans):
        middle.hist(spans[:, 1] - spans[:, 0], bins=min(40, max(5, len(spans) // 3)), color=TRUE)
    middle.set(xlabel="seconds")
    _heading(middle, "how long moments are")
    most = max(words)
    right.hist(words, bins=np.arange(0.5, most + 1.5) if most <= 60 else 40, color=TRUE)
    right.set(xlabel="words")
    _heading(right, "how long sentences are")
    save_figure(figure, path)


def _heading(axis: Axes, text: str) -> None:
    axis.set_title(text, color=FAINT, fontsize=10, loc="left")
    axis.xaxis.label.set_color(FAINT)
    axis.yaxis.label.set_color(FAINT)
    plain_axis(axis)
