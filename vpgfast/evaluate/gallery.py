"""A page of test videos with their true and predicted spans."""

from __future__ import annotations

import argparse
from pathlib import Path

from vpgfast.config import TrainConfig
from vpgfast.data.moving_shapes import make_moving_shapes
from vpgfast.data.video_folders import named_videos
from vpgfast.evaluate.split import Evaluation
from vpgfast.page.results import evaluate_content
from vpgfast.page.write import write_page

MOST_VIDEOS = 200
"""Of a page: from all over the split, more would be slow to look at."""


def write_gallery(arguments: argparse.Namespace, evaluation: Evaluation, config: TrainConfig, title: str) -> None:
    """Write ``--page``, with the videos that ``--page-videos`` names; those of moving_shapes are where they were made.

    Raises:
        UserError: the page can't be written, or the folder holds no video.
    """
    names = list(dict.fromkeys(paragraph.video_id for paragraph in evaluation.answers.paragraphs))
    shown = set(names[:: max(1, len(names) // MOST_VIDEOS)][:MOST_VIDEOS])
    folder: Path | None = arguments.page_videos
    if folder is None and config.data.corpus == "moving_shapes":
        folder = make_moving_shapes(config.data.moving_shapes, config.data.seed, config.data.cache) / "videos"
    files = named_videos([folder]) if folder is not None else {}
    write_page(arguments.page, evaluate_content(evaluation.answers, shown, files, title), arguments.page_embed)
    print(f"page: {arguments.page}")
