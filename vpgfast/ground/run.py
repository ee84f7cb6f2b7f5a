"""From a checkpoint, a video and sentences to their moments."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vpgfast.api.grounder import EncodedVideo, Grounder
from vpgfast.api.loading import load_with
from vpgfast.command import open_log
from vpgfast.data.features import why_no_array
from vpgfast.data.fixed_clips import clip_edges
from vpgfast.errors import FeatureError, UserError
from vpgfast.files import output_folder, reading
from vpgfast.ground.query import asked_sentences
from vpgfast.models.registry import get_method
from vpgfast.models.windows import is_long, window_size, window_starts
from vpgfast.untrained import is_untrained

log = logging.getLogger(__name__)


def run(arguments: argparse.Namespace, settings: Sequence[str]) -> None:
    """Do what the command line asks; ``settings`` are arguments that change those of the checkpoint's run."""
    open_log()
    if arguments.top < 1:
        raise UserError(f"--top must be at least 1, got {arguments.top}")
    sentences = asked_sentences(arguments)
    model = load_with(arguments.checkpoint, settings, arguments.encoder)
    checkpoint: Path = arguments.checkpoint
    beside = Path() if is_untrained(checkpoint) else checkpoint if checkpoint.is_dir() else checkpoint.parent
    output = arguments.output or beside / f"ground-{(arguments.video or arguments.features).stem}"
    output_folder(output, keep=False)
    video = _video(arguments, model)
    _say_how_it_is_seen(model, video, len(sentences))
    found = model.ground(video, sentences, top=arguments.top)

    if arguments.page is not None:
        from vpgfast.page.results import ground_content
        from vpgfast.page.write import write_page

        content = ground_content(found, found.video, video.path, model.method)
        write_page(arguments.page, content, arguments.page_embed)
    try:
        found.save(output)
    finally:  # the answer is not lost with a full disk
        print(found)
    print(f"written to {output}: grounding.txt, grounding.json, grounding.png")
    if arguments.page is not None:
        print(f"page: {arguments.page}")


def _video(arguments: argparse.Namespace, model: Grounder) -> EncodedVideo:
    """What the command line names."""
    if arguments.video is not None:
        if arguments.duration is not None:
            raise UserError("--duration goes with --features; a video tells its own")
        return model.encode(arguments.video, stream=arguments.stream)
    for name in ("encoder", "stream"):
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name} goes with --video; --features are made already")
    if arguments.duration is None:
        raise UserError("--features needs --duration, the video's length in seconds")
    if not (np.isfinite(arguments.duration) and arguments.duration > 0):
        raise UserError(f"--duration must be above 0 seconds, got {arguments.duration:g}")
    features = read_features(arguments.features)
    video = model.video_of(features, arguments.duration, f"features {arguments.features}")
    return replace(video, name=arguments.features.stem)


def _say_how_it_is_seen(model: Grounder, video: EncodedVideo, sentences: int) -> None:
    needs = get_method(model.method).needs(model.config.model)
    clips, limit, size = len(video.features), needs.max_clips, window_size(model.model, needs)
    if is_long(model.model, needs, clips):
        log.info("%d clips are seen through %d windows of %d", clips, len(window_starts(clips, size)), size)
    elif needs.clip_seconds is not None:
        edges = clip_edges(video.duration, needs.clip_seconds, needs.min_clips, limit)
        log.info("%d clips become %d of %.1f s", clips, len(edges) - 1, edges[1])
    elif clips > limit:
        log.info("%d clips are brought down to %d: one is %.1f s", clips, limit, video.duration / limit)
    if needs.level == "paragraph" and needs.max_sentences and sentences > needs.max_sentences:
        log.info("the method takes %d sentences at a time: %d are cut into pieces", needs.max_sentences, sentences)


def read_features(path: Path) -> np.ndarray:
    """float32 [T, d_v] from an ``.npy`` file, or an ``.npz`` with one array or one named "features".

    Raises:
        FeatureError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise FeatureError(f"features {path}: no such file")
    with reading(lambda error: FeatureError(f"features {path}: {why_no_array(path, error)}")):
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            array = loaded
        else:
            with loaded:
                names = loaded.files
                if "features" not in names and len(names) != 1:
                    raise FeatureError(f"features {path}: needs an array named 'features', has {', '.join(names)}")
                array = loaded["features" if "features" in names else names[0]]
    array = np.asarray(array)
    if array.ndim > 2 and all(size == 1 for size in array.shape[1:-1]):
        array = array.reshape(array.shape[0], array.shape[-1])  # [T, 1, 1, d], as some I3D files have
    return array
