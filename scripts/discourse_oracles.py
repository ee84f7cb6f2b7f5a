#!/usr/bin/env python3
"""What can be known in the corpus of configs/*/discourse.yaml: stores the table `discourse_oracles`, draws its picture.

python scripts/discourse_oracles.py
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from stored_tables import ROOT, store

from vpgfast.config import parse_train
from vpgfast.data.moving_shapes import script_video
from vpgfast.data.options import DataConfig
from vpgfast.data.shape_scripts import ShapesVideo
from vpgfast.metrics.discourse import oracle_table
from vpgfast.plots import plain_axis, save_figure

CONFIG = ROOT / "configs" / "siamgtr" / "discourse.yaml"
COUNTED = 600  # training videos from which the prior and the usual moments are taken
PICTURED = 46  # a video of the test split


def measure(data: DataConfig) -> dict[str, dict[str, float]]:
    """The table of the test split; the prior is that of the training split."""
    options = data.moving_shapes

    def split(name: str, count: int) -> list[ShapesVideo]:
        return [script_video(options, data.seed, name, number) for number in range(count)]

    return oracle_table(split("train", COUNTED), split("test", options.test_videos))


def main() -> None:
    data = parse_train(["--config", str(CONFIG)]).data
    table = measure(data)
    store(
        "discourse_oracles",
        f"Test split of `{CONFIG.relative_to(ROOT)}`, {data.moving_shapes.test_videos} videos, in %. Above, oracles "
        "that know when everything happens and differ in how they read; below, what watching nothing earns.",
        "python scripts/discourse_oracles.py",
        dict.fromkeys(next(iter(table.values())), "%"),
        [(name, list(row.values())) for name, row in table.items()],
    )
    draw(script_video(data.moving_shapes, data.seed, "test", PICTURED), ROOT / "docs" / "images" / "discourse.png")


def draw(video: ShapesVideo, path: Path) -> None:
    """All that happens in a video, a line a shape; what is told is numbered as its sentences, which stand above."""
    figure = Figure(figsize=(11, 0.42 * len(video.shapes) + 0.26 * len(video.sentences) + 0.7), layout="constrained")
    axis = figure.subplots()
    starts = [start for start, _ in video.spans]
    for lane, shape in enumerate(reversed(video.shapes)):
        for event in shape.events:
            number = starts.index(event.start) + 1 if event.start in starts else None
            bar, ink = ("#2b6cb0", "white") if number else ("#d6d9de", "#444444")
            axis.barh(lane, event.end - event.start, 0.62, event.start, color=bar)
            text = f"{number}: {event.action}" if number else event.action
            middle = (event.start + event.end) / 2
            axis.text(middle, lane, text, ha="center", va="center", fontsize=7, color=ink)
    axis.set_yticks(range(len(video.shapes)), [f"{s.colour} {s.kind}" for s in reversed(video.shapes)])
    axis.set_xlim(0, video.duration)
    axis.set_xlabel("seconds")
    axis.set_title("\n".join(f"{m}. {text}" for m, text in enumerate(video.sentences, 1)), loc="left", fontsize=9)
    plain_axis(axis)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
