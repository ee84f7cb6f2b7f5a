#!/usr/bin/env python3
"""What can be known in the corpora of configs/*/discourse.yaml and configs/siamgtr/discourse_simulated.yaml: stores the
tables `discourse_oracles` and `discourse_simulated_oracles`, draws a picture of the first.

python scripts/discourse_oracles.py
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from stored_tables import ROOT, store

from vpgfast.config import parse_train
from vpgfast.data.corpus import read_splits
from vpgfast.data.discourse import Telling, telling
from vpgfast.data.moving_shapes import script_video
from vpgfast.data.options import DataConfig
from vpgfast.data.retold import retell_splits
from vpgfast.data.shape_scripts import ShapesVideo
from vpgfast.metrics.discourse import oracle_table
from vpgfast.plots import plain_axis, save_figure

CONFIG = ROOT / "configs" / "siamgtr" / "discourse.yaml"
SIMULATED = ROOT / "configs" / "siamgtr" / "discourse_simulated.yaml"
COUNTED = 600  # training videos from which the prior and the usual moments are taken
PICTURED = 46  # a video of the test split


def measure(data: DataConfig) -> dict[str, dict[str, float]]:
    """The table of the test split; the prior is that of the training split."""
    if data.corpus != "moving_shapes":
        retold = retell_splits(read_splits(data), data.seed)
        return oracle_table(retold["train"], retold["test"])
    options = data.moving_shapes

    def split(name: str, count: int) -> list[Telling]:
        return [telling(script_video(options, data.seed, name, number)) for number in range(count)]

    return oracle_table(split("train", COUNTED), split("test", options.test_videos))


def main() -> None:
    for name, config in (("discourse_oracles", CONFIG), ("discourse_simulated_oracles", SIMULATED)):
        data = parse_train(["--config", str(config)]).data
        table = measure(data)
        store(
            name,
            f"Test split of `{config.relative_to(ROOT)}`, in %. Above, oracles that know when everything happens and "
            "differ in how they read; below, what watching nothing earns.",
            "python scripts/discourse_oracles.py",
            dict.fromkeys(next(iter(table.values())), "%"),
            [(label, list(row.values())) for label, row in table.items()],
        )
    data = parse_train(["--config", str(CONFIG)]).data
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
