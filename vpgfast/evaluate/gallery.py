"""A page of test videos with what was predicted and what is true."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from vpgfast.config import TrainConfig
from vpgfast.data.moving_shapes import make_moving_shapes
from vpgfast.data.video_folders import named_videos
from vpgfast.evaluate.split import Evaluation
from vpgfast.page import write_page
from vpgfast.page.content import of_split

log = logging.getLogger(__name__)

_VIDEOS = 24
"""On a page; evenly chosen from the split."""


def write_gallery(evaluation: Evaluation, config: TrainConfig, corpus: str, arguments: argparse.Namespace) -> None:
    """Write ``--page``. Videos without a file get a time line without a player, and a word about it in the log."""
    answers = evaluation.answers
    every = of_split(answers.paragraphs, answers.ranked, answers.scores)
    shown = every[:: max(1, len(every) // _VIDEOS)][:_VIDEOS]
    files = _files(config, arguments)
    for video in shown:
        video.path = files.get(video.name)
        video.lanes.sort(key=lambda lane: min(lane.truth, default=(0.0, 0.0)))
    if missing := [video.name for video in shown if video.path is None]:
        where = "name their folder by --videos" if arguments.videos is None else f"not in {arguments.videos}"
        log.info("page: %d of %d videos have no file (first %r), %s", len(missing), len(shown), missing[0], where)
    title = f"{config.method} on {corpus}, {arguments.split}: {len(shown)} of {len(every)} videos"
    write_page(arguments.page, shown, title, arguments.page_embed)


def _files(config: TrainConfig, arguments: argparse.Namespace) -> dict[str, Path]:
    if arguments.videos is not None:
        return named_videos([arguments.videos])
    if config.data.corpus != "moving_shapes":
        return {}
    made = make_moving_shapes(config.data.moving_shapes, config.data.seed, config.data.cache) / "videos"
    return named_videos([made]) if made.is_dir() else {}
