"""Pictures of how a method found its answers: labels of clips, attention over proposals, scores of moments, IoUs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from vpgfast.evaluate.inside import Inside
from vpgfast.files import readable
from vpgfast.plots import FAINT, INK, PREDICTED, TRUE, plain_axis, save_figure

LABELS = {"outside": "#eef0f2", "begin": "#e0b23d", "inside": "#2a7f86", "end": "#e07b39"}
_WIDTH = 10.0  # inches
_MOST_ROWS = 12  # sentences


def draw_ious(ious: Mapping[str, np.ndarray], path: Path, title: str) -> None:
    """How many sentences have a best span of which IoU, in ten ranges: SeqPAN's Fig. 7.

    Args:
        ious: of each method (or variant, or run) drawn beside each other, float [N].
        path: of the PNG.
        title: above the picture.
    """
    figure, axis = _figure(title, 3.4)
    width = 0.8 / len(ious)
    colours = [PREDICTED, TRUE, "#6c5b9e", "#b5a642", "#8a6d5b", "#5b8ab5"]
    for place, (name, values) in enumerate(ious.items()):
        at = np.arange(10) + (place + 0.5) * width - 0.4
        axis.bar(at, iou_counts(values), width, color=colours[place % len(colours)], label=name)
    axis.set_xticks(range(10), [f"{i / 10:.1f} - {(i + 1) / 10:.1f}" for i in range(10)])
    axis.set_xlabel("IoU of the best span", color=FAINT, fontsize=9)
    axis.set_ylabel("sentences", color=FAINT, fontsize=9)
    if len(ious) > 1:
        axis.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    plain_axis(axis)
    save_figure(figure, path)


def iou_counts(ious: np.ndarray) -> list[int]:
    """How many of [N] lie in [0, 0.1), [0.1, 0.2), ..., [0.9, 1]."""
    return np.histogram(ious, np.arange(11) / 10)[0].tolist()


def draw_labels(insides: Sequence[Inside], path: Path, title: str) -> None:
    """The label of each clip, as it should be above and as predicted below, with both spans: SeqPAN's Fig. 8."""
    rows = _rows(insides)
    figure = Figure(figsize=(_WIDTH, 0.85 * len(rows) + 0.9), layout="constrained", facecolor="white")
    figure.suptitle(readable(title), color=INK, fontsize=12, x=0.01, ha="left", parse_math=False)
    colours = ListedColormap(list(LABELS.values()))
    for axis, (inside, m) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        duration = inside.paragraph.duration
        strips = [labels[m] for labels in (inside.true_labels, inside.labels) if labels is not None]
        extent = (0.0, duration, len(strips), 0.0)
        axis.imshow(np.stack(strips), cmap=colours, vmin=0, vmax=3, aspect="auto", extent=extent, interpolation="none")
        for start, end in _truths(inside, m):
            axis.plot([start, end], [-0.18, -0.18], color=TRUE, lw=3, solid_capstyle="butt", clip_on=False)
        axis.plot(
            inside.spans[m], [len(strips) + 0.18] * 2, color=PREDICTED, lw=3, solid_capstyle="butt", clip_on=False
        )
        axis.set_ylim(len(strips) + 0.35, -0.35)
        axis.set_yticks([0.5, 1.5][: len(strips)], ["true", "predicted"][-len(strips) :])
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g} s")
        _heading(axis, inside, m)
    handles = [Patch(color=colour, label=name) for name, colour in LABELS.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    save_figure(figure, path)


def draw_attention(insides: Sequence[Inside], path: Path, title: str) -> None:
    """The attention over the map of starts and lengths, with the true moment and the best span: MARN's Figs. 4 to 7.

    Maps of 32 lengths and more are averaged over 4 x 4 proposals, as the paper does on ActivityNet.
    """
    rows = _rows(insides)
    figure, axes = _grid(title, len(rows), columns=3)
    for axis, (inside, m) in zip(axes, rows, strict=True):
        assert inside.attention is not None
        assert inside.lengths is not None
        values, lengths = inside.attention[m], inside.lengths
        clips, step = values.shape[1], 4 if len(lengths) >= 32 else 1
        axis.imshow(
            block_means(values, step),
            aspect="auto",
            origin="lower",
            cmap="viridis",
            interpolation="none",
            extent=(0, -(-clips // step) * step, -0.5, -(-len(lengths) // step) * step - 0.5),
        )
        per_clip = clips / inside.paragraph.duration
        spans = [*((span, "o", "true") for span in _truths(inside, m)), (inside.spans[m], "x", "predicted")]
        for (start, end), marker, name in spans:
            row = np.interp((end - start) * per_clip, lengths, np.arange(len(lengths)))
            colour = "white" if marker == "o" else PREDICTED
            axis.plot(start * per_clip + 0.5, row, marker, mfc="none", mec=colour, mew=1.6, ms=8, label=name)
        shown = range(0, len(lengths), max(1, len(lengths) // 8))
        axis.set_yticks(shown, [str(lengths[k]) for k in shown])
        axis.set_xlabel("start, clips", color=FAINT, fontsize=8)
        axis.set_ylabel("length, clips", color=FAINT, fontsize=8)
        _heading(axis, inside, m, 40)
    save_figure(figure, path)


def draw_moments(insides: Sequence[Inside], path: Path, title: str) -> None:
    """The score of every moment from its start (down) to its end (to the right), darker is higher, with the true moment
    and the best span outlined: DMR-JRG's Fig. 10."""
    rows = _rows(insides)
    figure, axes = _grid(title, len(rows), columns=4)
    for axis, (inside, m) in zip(axes, rows, strict=True):
        assert inside.maps is not None
        duration = inside.paragraph.duration
        cell = duration / len(inside.maps[m])
        axis.imshow(inside.maps[m], cmap="Greys", extent=(0, duration, duration, 0), interpolation="none")
        for colour, spans in ((TRUE, _truths(inside, m)), (PREDICTED, inside.spans[m, None])):
            for start, end in spans:
                axis.add_patch(Rectangle((end - cell, start), cell, cell, fill=False, edgecolor=colour, linewidth=1.6))
        axis.set_xlabel("end, s", color=FAINT, fontsize=8)
        axis.set_ylabel("start, s", color=FAINT, fontsize=8)
        _heading(axis, inside, m, 34)
    handles = [Patch(color=colour, label=name) for name, colour in (("true", TRUE), ("predicted", PREDICTED))]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    save_figure(figure, path)


def block_means(values: np.ndarray, step: int) -> np.ndarray:
    """[S, T] -> the means of ``step`` x ``step`` blocks without what is NaN; NaN where all of a block is."""
    S, T = values.shape
    padded = np.pad(values, ((0, -S % step), (0, -T % step)), constant_values=np.nan)
    blocks = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
    there = ~np.isnan(blocks)
    count = there.sum((1, 3))
    return np.where(count, np.where(there, blocks, 0).sum((1, 3)) / np.maximum(count, 1), np.nan)


def _rows(insides: Sequence[Inside]) -> list[tuple[Inside, int]]:
    """Some of the sentences, from all over the list."""
    rows = [(inside, m) for inside in insides for m in range(len(inside.paragraph.sentences))]
    return rows[:: -(-len(rows) // _MOST_ROWS)]


def _truths(inside: Inside, m: int) -> np.ndarray:
    truths = inside.paragraph.true_spans
    return np.empty((0, 2)) if truths is None else truths[m]


def _figure(title: str, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor="white")
    figure.suptitle(readable(title), color=INK, fontsize=12, x=0.01, ha="left", parse_math=False)
    return figure, figure.subplots()


def _grid(title: str, count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels, side by side."""
    columns = min(columns, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(_WIDTH, 2.6 * lines + 0.5), layout="constrained", facecolor="white")
    figure.suptitle(readable(title), color=INK, fontsize=12, x=0.01, ha="left", parse_math=False)
    axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def _heading(axis: Axes, inside: Inside, m: int, characters: int = 100) -> None:
    text = f"{inside.paragraph.video_id}: {inside.paragraph.sentences[m]}"
    text = textwrap.shorten(readable(text), characters, placeholder=" ...")
    axis.set_title(text, loc="left", fontsize=8.5, color=INK, parse_math=False)
    axis.tick_params(colors=FAINT, labelsize=8)
    for spine in axis.spines.values():
        spine.set_visible(False)
