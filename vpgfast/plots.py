"""Pictures: predicted against true spans, training curves, ranked spans, ablations. PNG files, written whole.

Drawn through matplotlib's object interface: no display, no global state.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from vpgfast.data.types import Paragraph
from vpgfast.files import readable, write_file
from vpgfast.metrics.spans import RankedSpans, interval_iou

TRUE, PREDICTED, TRACK, INK, FAINT = "#2a7f86", "#e07b39", "#eef0f2", "#22272b", "#6b747c"
_WIDTH = 10.0  # inches
_MOST_ROWS = 8  # sentences of a video that are drawn: some (TACoS) have a hundred
_MOST_VIDEOS = 10  # of a search's
_CHARACTERS = 112  # of a sentence on a line of that width


def draw_spans(paragraphs: Sequence[Paragraph], ranked: RankedSpans, path: Path, title: str) -> None:
    """Each video a time line; each sentence its true spans above the predicted one, with their IoU.

    Args:
        paragraphs: with spans; items of the same video are drawn together, by their first true start, at most eight of
            them.
        ranked: their ranked spans (the first of each is drawn), see :mod:`vpgfast.metrics.spans`.
        path: of the PNG.
        title: above the picture.
    """
    videos: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {}  # sentence, true spans [A, 2], the predicted one
    durations = {paragraph.video_id: paragraph.duration for paragraph in paragraphs}
    for paragraph, spans in zip(paragraphs, ranked, strict=True):
        assert paragraph.true_spans is not None
        triples = zip(paragraph.sentences, paragraph.true_spans, spans[:, 0], strict=True)
        videos.setdefault(paragraph.video_id, []).extend(triples)
    panels = []
    for video, rows_of_video in videos.items():
        rows_of_video.sort(key=lambda row: row[1].tolist())
        shown = rows_of_video[:: -(-len(rows_of_video) // _MOST_ROWS)]
        panels.append((video, durations[video], shown))

    figure, axes = _panels([len(rows) for _, _, rows in panels], title, row_height=0.5, above=0.3, right=0.75)
    for axis, (video, duration, rows) in zip(axes, panels, strict=True):
        _time_line(axis, video, duration, len(rows))
        for place, (sentence, true, predicted) in enumerate(rows):
            iou = float(interval_iou(predicted[None], true).max())
            _sentence(axis, place, sentence)
            _bar(axis, place + 0.5, 0.16, 0, duration, TRACK)
            _bar(axis, place + 0.7, 0.16, 0, duration, TRACK)
            for start, end in true:
                _bar(axis, place + 0.5, 0.16, start, end, TRUE)
            if np.isfinite(predicted).all():
                _bar(axis, place + 0.7, 0.16, predicted[0], predicted[1], PREDICTED)
            _label(axis, place + 0.68, f"IoU {iou:.2f}", FAINT)
    _legend(figure, {"true": TRUE, "predicted": PREDICTED})
    save_figure(figure, path)


def draw_ranked(
    sentences: Sequence[str], ranked: np.ndarray, scores: np.ndarray, duration: float, path: Path, title: str
) -> None:
    """The spans of each sentence of a query over the video's time line.

    Of several sentences, the best span of each comes first, all on one time axis. The ranked spans, paler the lower
    their score, are drawn for one sentence, and below the overview where a sentence has more than one.

    Args:
        sentences: M of them.
        ranked: float [M, K, 2], seconds, best first; NaN where there is none.
        scores: float [M, K].
        duration: of the video, in seconds.
        path: of the PNG.
        title: above the picture.
    """
    counts = np.isfinite(ranked[..., 0]).sum(axis=1)
    panels = {"": counts}  # heading -> how many spans of each sentence
    if len(sentences) > 1:
        sentences = [f"{number}. {sentence}" for number, sentence in enumerate(sentences, start=1)]
        panels = {"best span of each sentence": counts.clip(max=1)}
        if counts.max() > 1:
            panels["ranked spans of each sentence"] = counts
    digits = 2 if duration < 10 else 1 if duration < 1000 else 0
    step = 0.42  # of a row's height: one span
    heights = [0.35 + step * shown.clip(min=1) for shown in panels.values()]
    above = 0.25 if len(sentences) > 1 else 0.0
    figure, axes = _panels([rows.sum() for rows in heights], title, row_height=0.5, above=above, right=2.15)
    for axis, (heading, shown), rows in zip(axes, panels.items(), heights, strict=True):
        _time_line(axis, heading, duration, rows.sum())
        for m, top in enumerate(rows.cumsum() - rows):
            _sentence(axis, top, sentences[m])
            if not shown[m]:
                _bar(axis, top + 0.5, 0.2, 0, duration, TRACK)
                _label(axis, top + 0.6, "no span", FAINT)
            for k in range(shown[m]):
                y = top + 0.5 + step * k
                start, end = ranked[m, k]
                _bar(axis, y, 0.2, 0, duration, TRACK)
                # The first stands out; the others fade by rank, since methods' scores have no common scale.
                _bar(axis, y, 0.2, start, end, PREDICTED, alpha=1.0 if k == 0 else 0.75 / (1 + 0.35 * k))
                rank = f"{k + 1}.  " if shown is counts else ""
                label = f"{rank}{start:.{digits}f} - {end:.{digits}f} s   ({scores[m, k]:.3g})"
                _label(axis, y + 0.1, label, INK if k == 0 else FAINT)
    save_figure(figure, path)


def draw_found(
    sentences: Sequence[str],
    videos: Sequence[tuple[str, float, tuple[np.ndarray, np.ndarray] | None]],
    path: Path,
    title: str,
) -> None:
    """The videos that a paragraph found, each a time line with the best span of every sentence.

    The sentences are written out over the first video; the others are smaller and number them. Ten videos at most.

    Args:
        sentences: M of them.
        videos: heading, duration in seconds, and spans float [M, 2] (seconds; NaN where there is none) with their
            scores float [M], or ``None`` where the video was not grounded; best video first.
        path: of the PNG.
        title: above the picture.
    """
    count, videos = len(sentences), videos[:_MOST_VIDEOS]
    numbered = [f"{number}. {text}" if count > 1 else text for number, text in enumerate(sentences, start=1)]
    heights = [1.54 * count, *[0.6 * count] * (len(videos) - 1)]
    figure, axes = _panels(heights, title, row_height=0.25, above=0.3, right=2.15)
    for place, (axis, (heading, duration, found)) in enumerate(zip(axes, videos, strict=True)):
        large = place == 0
        step, bar = (1.54, 0.4) if large else (0.6, 0.4)
        _time_line(axis, heading, duration, heights[place])
        digits = 2 if duration < 10 else 1 if duration < 1000 else 0
        for m in range(count):
            top = step * m
            if large:
                axis.text(
                    *(0, top + 0.72, textwrap.shorten(readable(numbered[m]), _CHARACTERS, placeholder=" ...")),
                    transform=axis.get_yaxis_transform(), fontsize=8.5, color=INK, parse_math=False,
                )  # fmt: skip
                top += 1.0
            _bar(axis, top, bar, 0, duration, TRACK)
            label = "" if large or count == 1 else f"{m + 1}.  "
            if found is None or not np.isfinite(found[0][m]).all():
                _label(axis, top + bar / 2, label + ("not grounded" if found is None else "no span"), FAINT)
                continue
            start, end = found[0][m]
            _bar(axis, top, bar, start, end, PREDICTED, alpha=1.0 if large else 0.6)
            text = f"{label}{start:.{digits}f} - {end:.{digits}f} s   ({found[1][m]:.3g})"
            _label(axis, top + bar / 2, text, INK if large else FAINT)
    save_figure(figure, path)


def draw_curves(history: Sequence[Mapping[str, float]], select_by: str, path: Path, title: str) -> None:
    """The training losses and the validation metrics over the epochs, the chosen epoch marked.

    Args:
        history: a dict an epoch with "epoch", "train ..." and "val ..." entries.
        select_by: what chose the epoch: a metric, "loss" (the lowest "val loss") or "last".
        path: of the PNG.
        title: above the picture.
    """
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(1.15 * _WIDTH, 3.8), layout="constrained", facecolor="white")
    figure.suptitle(readable(title), color=INK, fontsize=12, x=0.01, ha="left", parse_math=False)
    left, right = figure.subplots(1, 2)
    palette = [PREDICTED, TRUE, "#6c5b9e", "#b5a642", "#8a6d5b", "#5b8ab5", "#b55b83", "#4f6d4a"]
    names = [name for name in history[0] if name.startswith("train ")]
    for name, colour in zip(names, palette, strict=False):
        left.plot(epochs, [row[name] for row in history], color=colour, lw=1.8, label=name.removeprefix("train "))
    if "val loss" in history[0]:
        values = [row["val loss"] for row in history]
        best = int(np.argmin(values))
        left.plot(epochs, values, color=INK, lw=1.8, ls="--", label="loss, validation")
        left.plot(epochs[best], values[best], "o", color=INK, ms=7, zorder=4)
    names = sorted(
        (name for name in history[0] if name.startswith("val ") and name != "val loss"),
        key=lambda name: name != f"val {select_by}",
    )
    for name, colour in zip(names, palette, strict=False):
        values = [100 * row[name] for row in history]
        chosen = name == f"val {select_by}"
        width = 2.4 if chosen else 1.2
        right.plot(epochs, values, color=colour, lw=width, label=name.removeprefix("val "), zorder=3 if chosen else 2)
        if chosen:
            best = int(np.argmax(values))
            right.plot(epochs[best], values[best], "o", color=colour, ms=7, zorder=4)
            right.annotate(
                *(f"{values[best]:.1f}", (epochs[best], values[best])),
                xytext=(0, 8), textcoords="offset points", ha="center", color=colour, fontsize=9,
            )  # fmt: skip
    for axis, label in ((left, "training loss"), (right, "validation, %")):
        axis.set_title(label, color=FAINT, fontsize=10, loc="left")
        axis.set_xlabel("epoch", color=FAINT, fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(True, color=TRACK, lw=1)
        axis.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="upper left", bbox_to_anchor=(1, 1))
        plain_axis(axis)
    save_figure(figure, path)


def draw_ablation(content: Mapping[str, Any], path: Path) -> None:
    """Each table a panel: every row's mean and standard deviation over the seeds, with the paper's figure beside it.

    Args:
        content: of ``ablation.json``.
        path: of the PNG.
    """
    tables = content["tables"]
    heights = [2.6 if table["line"] else 0.55 + 0.32 * len(table["rows"]) for table in tables]  # inches, without axis
    total = sum(heights) + 0.75 * len(tables) + 0.9
    figure = Figure(figsize=(_WIDTH, total), layout="constrained", facecolor="white")
    shown = "mean and standard deviation over seeds" if len(content["seeds"]) > 1 else f"seed {content['seeds'][0]}"
    title = f"{content['method']} on {content['corpus']}, {content['split']}: {shown}"
    figure.suptitle(readable(title), color=INK, fontsize=12, x=0.01, ha="left", parse_math=False)
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    handles: dict[str, Any] = {}
    for axis, table in zip(panels, tables, strict=True):
        _ablation_panel(axis, table)
        artists, labels = axis.get_legend_handles_labels()
        handles.update(zip(labels, artists, strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower left", ncols=4, frameon=False, fontsize=9, labelcolor=INK
    )
    save_figure(figure, path)


def _ablation_panel(axis: Axes, table: Mapping[str, Any]) -> None:
    """Rows downwards and the metric to the right; for a line, rows to the right and the metric upwards."""
    metrics, rows, line = table["judged_by"], table["rows"], table["line"]
    metric = metrics[0] if len(metrics) == 1 else f"mean of {len(metrics)} metrics"

    def of(values: Mapping[str, float]) -> float | None:
        return 100 * fmean(values[name] for name in metrics) if all(name in values for name in metrics) else None

    values = [[value for run in row["runs"] if (value := of(run["metrics"])) is not None] for row in rows]
    done = [place for place, seeds in enumerate(values) if seeds]
    means = [fmean(values[place]) for place in done]
    spreads = [stdev(values[place]) if len(values[place]) > 1 else 0.0 for place in done]
    published = [(place, value) for place, row in enumerate(rows) if (value := of(row["paper"])) is not None]

    def place_and_value(places: Sequence[float], numbers: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
        return (places, numbers) if line else (numbers, places)

    every_seed = [(place, value) for place in done for value in values[place]]
    axis.plot(
        *place_and_value([place for place, _ in every_seed], [value for _, value in every_seed]),
        "o", color=INK, ms=2.5, mew=0, zorder=4, label="each seed",
    )  # fmt: skip
    axis.errorbar(
        *place_and_value(done, means), xerr=None if line else spreads, yerr=spreads if line else None,
        fmt="o-" if line else "o", color=PREDICTED, ms=7, lw=1.6, capsize=3, label="mean and standard deviation",
    )  # fmt: skip
    if published:
        places, figures = zip(*published, strict=True)
        label = "paper, on its own corpus"
        axis.plot(*place_and_value(places, figures), "D", mfc="white", mec=TRUE, mew=1.4, ms=6, label=label)
    watching_nothing = [value for row in table["baselines"].values() if (value := of(row)) is not None]
    if watching_nothing:
        best, draw = max(watching_nothing), axis.axhline if line else axis.axvline
        draw(best, color=FAINT, lw=1.2, ls="--", label="the best of watching nothing")
    labels = [textwrap.shorten(row["label"], 44, placeholder=" ...") for row in rows]
    if line:
        axis.set_xticks(range(len(rows)), labels)
        axis.set_ylabel(f"{metric}, %", color=FAINT, fontsize=9)
    else:
        axis.set_yticks(range(len(rows)), labels)
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.set_xlabel(f"{metric}, %", color=FAINT, fontsize=9)
    axis.set_title(
        ": ".join(filter(None, (table["title"], table["about"]))), loc="left", fontsize=10, color=INK, parse_math=False
    )
    axis.grid(True, color=TRACK, lw=1)
    axis.set_axisbelow(True)
    plain_axis(axis)


def _panels(
    rows: Sequence[float], title: str, row_height: float, above: float, right: float
) -> tuple[Figure, list[Axes]]:
    """A column of time lines, each as high as its rows; inches for its heading above, and for labels to the right."""
    below = 0.45  # inches for the axis
    heights = [row_height * count for count in rows]
    total = sum(heights) + len(heights) * (above + below) + 0.5
    # The renderer's limit is 2**16 pixels, which many sentences with many spans each would pass.
    figure = Figure(figsize=(_WIDTH, total), dpi=min(100, 60_000 / total), facecolor="white")
    figure.text(0.03, 1 - 0.22 / total, readable(title), color=INK, fontsize=12, va="center", parse_math=False)
    axes, top = [], 0.4
    for height in heights:
        top += above
        axes.append(figure.add_axes((0.03, 1 - (top + height) / total, 0.96 - right / _WIDTH, height / total)))
        top += height + below
    return figure, axes


def _time_line(axis: Axes, video: str, duration: float, rows: float) -> None:
    axis.set_xlim(0, duration)
    axis.set_ylim(rows, 0)
    axis.set_yticks([])
    axis.xaxis.set_major_locator(MaxNLocator(9))
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g} s")
    plain_axis(axis)
    axis.spines["left"].set_visible(False)
    if video:
        axis.set_title(readable(video), loc="left", fontsize=9.5, fontweight="bold", color=INK, pad=4, parse_math=False)


def _sentence(axis: Axes, place: float, sentence: str) -> None:
    text = textwrap.shorten(readable(sentence), _CHARACTERS, placeholder=" ...")
    axis.text(0, place + 0.36, text, transform=axis.get_yaxis_transform(), fontsize=8.5, color=INK, parse_math=False)


def _label(axis: Axes, y: float, text: str, colour: str) -> None:
    """To the right of a row."""
    axis.text(1.01, y, text, transform=axis.get_yaxis_transform(), color=colour, fontsize=8.5, va="center")


def _bar(axis: Axes, y: float, height: float, start: float, end: float, colour: str, alpha: float = 1.0) -> None:
    """A bar from ``start`` to ``end`` seconds; a very short one is still seen, at the end of the video too."""
    duration = axis.get_xlim()[1]
    width = max(end - start, duration / 400)
    axis.add_patch(
        FancyBboxPatch(
            (min(start, duration - duration / 400), y),
            width,
            height,
            boxstyle="square,pad=0",
            facecolor=colour,
            edgecolor="none",
            alpha=alpha,
        )
    )


def _legend(figure: Figure, entries: Mapping[str, str]) -> None:
    height = figure.get_figheight()
    for place, (label, colour) in enumerate(entries.items()):
        x = 0.80 - 0.11 * (len(entries) - place)
        figure.text(x, 1 - 0.22 / height, "\u25a0", color=colour, fontsize=13, va="center")
        figure.text(x + 0.02, 1 - 0.22 / height, label, color=INK, fontsize=9.5, va="center")


def plain_axis(axis: Axes) -> None:
    """Without a frame above and to the right, in the colours of all pictures."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#c9ced3")
    axis.tick_params(colors=FAINT, labelsize=8.5, length=3)


def save_figure(figure: Figure, path: Path) -> None:
    """A PNG, written whole or not at all."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_file(path, buffer.getvalue())
