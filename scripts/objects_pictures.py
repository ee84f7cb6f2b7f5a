#!/usr/bin/env python3
"""What `find` with the encoder `objects` finds in the sample videos and what it does not: docs/images/objects_*.png.

python scripts/objects_pictures.py --samples ../shared/data/samples
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from vpgfast.cache import encoded
from vpgfast.encoders.base import load_encoder
from vpgfast.find.moments import Asked, _batch, ask
from vpgfast.video import Picture, Video

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
VIDEOS = {
    "activitynet/v_GGSY1Qvo990.mp4": (
        "objects_barbell.png",
        ("A barbell.", "A woman lifts a barbell.", "She drops the weight.", "People cheer in the stands.", "A dog."),
    ),
    "women_long_jump/women_long_jump.mp4": (
        "objects_long_jump.png",
        (
            "A volleyball court.",
            "A street sign.",
            "A woman jumps into the sand.",
            "She runs.",
            "A scoreboard.",
            "A dog.",
        ),
    ),
}
"""Asked before anything was looked at; none was left out afterwards."""
THUMBNAILS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, required=True)
    samples = parser.parse_args().samples
    encoder = load_encoder("objects")
    for file, (picture, sentences) in VIDEOS.items():
        path = samples / file
        video = encoded(encoder, path)
        asked = Asked(encoder, sentences, in_order=False, false_alarms=0.05)
        with torch.inference_mode():
            curves = asked.single.curves(_batch("video", video, sentences))[0].numpy()
        best = [ask(Asked(encoder, [s], False, 0.05), "video", path, video, 1)[0] for s in sentences]
        rows = len(sentences)
        figure = plt.figure(figsize=(10, 1.3 + 0.75 * rows), layout="constrained")
        grid = figure.add_gridspec(rows + 1, 1, height_ratios=[1.4] + [1] * rows)
        strip = figure.add_subplot(grid[0])
        chunks = Video(path).frames(THUMBNAILS / video.duration, Picture(short_side=120), offset=0.5)
        frames = np.concatenate([chunk.pixels for chunk in chunks])
        strip.imshow(np.concatenate(frames, axis=1), aspect="auto", extent=(0, video.duration, 0, 1))
        strip.set_axis_off()
        strip.set_title(f"{path.name}, {video.duration:.1f} s; encoder objects", fontsize=9, loc="left")
        clip = video.duration / curves.shape[1]
        low, high = curves.min(), curves.max()
        for row, (sentence, curve, moment) in enumerate(zip(sentences, curves, best, strict=True)):
            axis = figure.add_subplot(grid[row + 1])
            colour = "tab:green" if moment.fits else "0.6"
            axis.axvspan(moment.start, moment.end, color=colour, alpha=0.25, lw=0)
            axis.plot((np.arange(len(curve)) + 0.5) * clip, curve, color=colour, lw=1.2)
            axis.axhline(0, color="0.85", lw=0.6)
            axis.set_xlim(0, video.duration)
            axis.set_ylim(low - 0.05 * (high - low), high + 0.35 * (high - low))  # the text stands above the curve
            axis.set_yticks([])
            axis.tick_params(labelsize=7)
            if row < rows - 1:
                axis.set_xticklabels([])
            said = f"{moment.start:.1f} - {moment.end:.1f} s" if moment.fits else "nothing fits"
            text = f"{sentence}  {said} (chance {moment.chance:.2f})"
            axis.text(0.005, 0.93, text, transform=axis.transAxes, fontsize=8, va="top")
            for side in ("top", "right", "left"):
                axis.spines[side].set_visible(False)
        figure.savefig(IMAGES / picture, dpi=110)
        plt.close(figure)
        for sentence, moment in zip(sentences, best, strict=True):
            print(path.name, sentence, f"{moment.start:.1f}-{moment.end:.1f}", moment.fits, round(moment.chance, 2))


if __name__ == "__main__":
    main()
