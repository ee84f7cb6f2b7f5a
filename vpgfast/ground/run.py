"""From a checkpoint, a video and sentences to their moments."""

from __future__ import annotations

import argparse
import json
import logging
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vpgfast.cache import encoded
from vpgfast.checkpoint import Checkpoint, build_model, load_checkpoint, settings_of
from vpgfast.command import open_log
from vpgfast.config import TrainConfig
from vpgfast.errors import CheckpointError, FeatureError, UserError
from vpgfast.files import write_file
from vpgfast.ground.grounding import ground, warn_of_unknown_words
from vpgfast.ground.query import asked_sentences
from vpgfast.models.registry import get_method
from vpgfast.models.windows import is_long, window_size, window_starts
from vpgfast.untrained import as_checkpoint, is_untrained

log = logging.getLogger(__name__)


def run(arguments: argparse.Namespace, settings: Sequence[str]) -> None:
    """Do what the command line asks; ``settings`` are arguments that change those of the checkpoint's run."""
    open_log()
    if arguments.top < 1:
        raise UserError(f"--top must be at least 1, got {arguments.top}")
    sentences = asked_sentences(arguments)

    spec = is_untrained(arguments.checkpoint)
    place = as_checkpoint(arguments.checkpoint)
    checkpoint = load_checkpoint(place)
    config = settings_of(checkpoint, arguments.checkpoint, settings)
    model = build_model(checkpoint, config.model, arguments.checkpoint)
    features, duration = _features(arguments, checkpoint, config)
    needs = get_method(config.method).needs(config.model)
    warn_of_unknown_words(sentences, checkpoint.word_vectors, needs)
    clips, limit, size = len(features), needs.max_clips, window_size(model, needs)
    if is_long(model, needs, clips):
        log.info("%d clips are seen through %d windows of %d", clips, len(window_starts(clips, size)), size)
    elif clips > limit:
        log.info("%d clips are brought down to %d: one is %.1f s", clips, limit, duration / limit)
    if needs.level == "paragraph" and needs.max_sentences and len(sentences) > needs.max_sentences:
        log.info("the method takes %d sentences at a time: %d are cut into pieces", needs.max_sentences, len(sentences))
    found = ground(model, config, checkpoint.word_vectors, features, duration, sentences, arguments.top)

    name = (arguments.video or arguments.features).stem
    folder = Path() if spec else arguments.checkpoint if arguments.checkpoint.is_dir() else place.parent
    output: Path = arguments.output or folder / f"ground-{name}"
    output.mkdir(parents=True, exist_ok=True)
    write_file(output / "grounding.txt", (found.as_text() + "\n").encode())
    content = json.dumps({"video": name, **found.as_dict(curves=True)}, indent=2)
    write_file(output / "grounding.json", f"{content}\n".encode())

    from vpgfast.plots import draw_ranked  # and matplotlib with it, which takes longer than short answers

    draw_ranked(
        found.sentences, found.spans, found.scores, duration, output / "grounding.png", f"{name}, {duration:.1f} s"
    )
    if arguments.page is not None:
        from vpgfast.page.results import ground_content
        from vpgfast.page.write import write_page

        write_page(arguments.page, ground_content(found, name, arguments.video, config.method), arguments.page_embed)
    print(found.as_text())
    if arguments.page is not None:
        print(f"page: {arguments.page}")
    print(f"written to {output}: grounding.txt, grounding.json, grounding.png")


def _features(arguments: argparse.Namespace, checkpoint: Checkpoint, config: TrainConfig) -> tuple[np.ndarray, float]:
    """Features [T, d_v] and duration of what the command line names."""
    if arguments.video is not None:
        if arguments.duration is not None:
            raise UserError("--duration goes with --features; a video tells its own")
        from vpgfast.run_encoder import encoder_of  # and PyAV with it

        encoder = encoder_of(checkpoint, arguments.encoder)
        video = encoded(encoder, arguments.video, arguments.stream, config.data.cache)
        features, duration, where = video.features, video.duration, str(arguments.video)
    else:
        for name in ("encoder", "stream"):
            if getattr(arguments, name) is not None:
                raise UserError(f"--{name} goes with --video; --features are made already")
        if arguments.duration is None:
            raise UserError("--features needs --duration, the video's length in seconds")
        if not (np.isfinite(arguments.duration) and arguments.duration > 0):
            raise UserError(f"--duration must be above 0 seconds, got {arguments.duration:g}")
        features, duration = read_features(arguments.features), arguments.duration
        where = f"features {arguments.features}"
    return _checked(features, checkpoint, where), duration


def _checked(features: np.ndarray, checkpoint: Checkpoint, where: str) -> np.ndarray:
    if features.ndim != 2 or len(features) == 0 or features.dtype.kind not in "fiu":
        raise FeatureError(f"{where}: an array [clips, width] is needed, found {features.dtype} {list(features.shape)}")
    if features.shape[1] != checkpoint.feature_dim:
        raise CheckpointError(
            f"{where}: width {features.shape[1]}, but the checkpoint takes {checkpoint.feature_dim} "
            f"({checkpoint.feature_source})"
        )
    features = features.astype(np.float32)
    if not np.isfinite(features).all():
        raise FeatureError(f"{where}: holds values that are not finite")
    return features


def read_features(path: Path) -> np.ndarray:
    """float32 [T, d_v] from an ``.npy`` file, or an ``.npz`` with one array or one named "features".

    Raises:
        FeatureError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise FeatureError(f"features {path}: no such file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            array = loaded
        else:
            with loaded:
                names = loaded.files
                if "features" not in names and len(names) != 1:
                    raise FeatureError(f"features {path}: needs an array named 'features', has {', '.join(names)}")
                array = loaded["features" if "features" in names else names[0]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FeatureError(f"features {path}: not a readable .npy or .npz file ({error})") from None
    return np.asarray(array)
