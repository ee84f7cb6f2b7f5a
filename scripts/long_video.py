#!/usr/bin/env python3
"""An hour of moving_shapes in one video: squeezed into what a method takes, through windows, and in order over them.

Makes the mp4 (about 200 videos strung together), decodes it, asks sentences from all over it, and stores the tables
`long_video`, `long_video_memory` and `long_video_scales` (see stored_tables.py). The models are trained on ordinary
moving_shapes:

    data="--data.moving_shapes.colours 7 --data.moving_shapes.distractors 0 --data.moving_shapes.train_videos 1600"
    for m in seqpan siamgtr; do
        python -m vpgfast.train --config configs/$m/moving_shapes.yaml --model.max_clips 32 $data --output runs/long-$m
    done
    python -m vpgfast.train --config configs/seqpan/moving_shapes.yaml --model.max_clips 32 $data \
        --model.presence_weight 1 --output runs/long-seqpan-presence
    python scripts/long_video.py --runs runs
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stored_tables import store
from torch import Tensor

from vpgfast.cache import encoded
from vpgfast.checkpoint import build_model, load_checkpoint, settings_of
from vpgfast.data.batches import make_batch
from vpgfast.data.features import resample
from vpgfast.data.moving_shapes import encode_video, render_frames, script_video
from vpgfast.data.options import MovingShapesOptions
from vpgfast.data.shape_scripts import ShapesVideo
from vpgfast.data.types import Paragraph
from vpgfast.encoders.base import load_encoder
from vpgfast.ground.grounding import ground
from vpgfast.metrics.baselines import random_spans, same_for_all, uniform_split
from vpgfast.metrics.rules import MetricRules
from vpgfast.metrics.spans import evaluate_spans
from vpgfast.models.configs.similarity import SimilarityConfig
from vpgfast.models.similarity import Similarity
from vpgfast.models.windows import window_size, window_starts
from vpgfast.untrained import NO_WORDS

OPTIONS = MovingShapesOptions(colours=7, distractors=0)
SEED = 21  # other videos than any that training has seen
RULES = MetricRules(top_n=(1, 5), thresholds=(0.3, 0.5))
PARAGRAPHS = 8
MODES = {
    "seqpan": ("squeezed", "windows", "windows, in order"),
    "seqpan-presence": ("squeezed", "windows", "windows, in order"),
    "siamgtr": ("squeezed", "windows", "windows, in order"),
    "alignment": ("squeezed", "all clips", "all clips, in order"),
    "objects": ("squeezed", "all clips", "all clips, in order"),
}
LABELS = {
    "seqpan-presence": "seqpan, presence_weight 1",
    "alignment": "similarity on SiamGTR's alignment",
    "objects": "similarity on objects",
}
TRAINED = ("seqpan", "seqpan-presence", "siamgtr")
COMMAND = "python scripts/long_video.py --runs runs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder with the runs long-METHOD")
    parser.add_argument("--work", type=Path, default=Path("runs/long-video"), help="where the video goes")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--only", nargs="*", default=list(MODES))
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "MODE", "SHARE"), help="one measurement, as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        method, mode, share = arguments.one
        print(json.dumps(measure(arguments, method, mode, float(share))))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    in_process(arguments, "video", "make", 1.0)  # or its memory would be that of the measurements, too
    rows, grows = [], []
    paragraphs, duration = read_paragraphs(arguments)
    for method in arguments.only:
        for mode in MODES[method]:
            rows.append((f"{LABELS.get(method, method)}, {mode}", in_process(arguments, method, mode, 1.0)))
        for share in (0.25, 0.5, 1.0):
            found = in_process(arguments, method, MODES[method][1], share)
            grows.append((f"{LABELS.get(method, method)}, {share * duration / 60:.0f} min", found))
    names = ["R@1 IoU=0.3", "R@1 IoU=0.5", "R@5 IoU=0.5", "mIoU"]
    drawn = random_spans(paragraphs, 0, 5)
    for label, ranked in (
        *(("random", drawn), ("uniform", uniform_split(paragraphs)), ("whole video", same_for_all(paragraphs))),
    ):
        rows.append((label, {"metrics": evaluate_spans(ranked, paragraphs, RULES)}))
    count = sum(len(p.sentences) for p in paragraphs)
    asked = [method for method in arguments.only if method in TRAINED]
    scales = [(LABELS.get(method, method), in_process(arguments, method, "scales", 1.0)) for method in asked]
    store(
        "long_video_scales",
        f"Of the windows of an hour that do not hold a sentence's moment, the share that score below the best one that "
        f"does; mean over {count} sentences, in %; chance is 50 or a little more.",
        COMMAND,
        {"the window's own score": "%", "the score compared": "%"},
        [(label, [row["own"], row["compared"]]) for label, row in scales],
    )
    videos = len(script(arguments.minutes))
    store(
        "long_video",
        f"{videos} videos in one of {duration / 60:.0f} minutes, decoded; {count} sentences, each true of one moment "
        f"alone, in {len(paragraphs)} paragraphs; in %. Seconds and memory are those of grounding all of them; of "
        "memory what the process's peak rose by.",
        COMMAND,
        {**dict.fromkeys(names, "%"), "seconds": ".1f", "added MB": ".0f"},
        [
            (label, [*(row["metrics"][name] for name in names), row.get("seconds"), row.get("added")])
            for label, row in rows
        ],
    )
    store(
        "long_video_memory",
        "The same, of the first part of the video and the sentences in it: memory by length.",
        COMMAND,
        {"sentences": "d", "seconds": ".1f", "added MB": ".0f"},
        [(label, [row["sentences"], row["seconds"], row["added"]]) for label, row in grows],
    )


def compare_scales(arguments: argparse.Namespace, method: str) -> dict[str, Any]:
    """Of windows that do not hold a sentence's moment, the share that score below the best one that does: by the scores
    that a window's own answer has, and by those that windows are compared by; the mean over sentences."""
    paragraphs, duration = read_paragraphs(arguments)
    model, config, vectors, features = trained(arguments, method)
    needs = model.needs(config.model)
    size = window_size(model, needs)
    starts, clip = window_starts(len(features), size), duration / len(features)
    found: dict[str, list[float]] = {"own": [], "compared": []}
    for sentence, span in [pair for p in paragraphs for pair in zip(p.sentences, p.spans, strict=True)]:
        items = [Paragraph("window", size * clip, (sentence,))] * len(starts)
        windows = [features[start : start + size] for start in starts]
        batch = make_batch(items, windows, vectors, needs, training=False)
        begin = np.array(starts) * clip
        holds = (begin <= span[0]) & (span[1] <= begin + size * clip)
        scores = {"own": model.predict(batch, 1).scores[:, 0, 0], "compared": model.candidates(batch, 1).scores[:, 0]}
        for name, values in scores.items():
            found[name].append(float((values[~holds] < values[holds].max()).float().mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def in_process(arguments: argparse.Namespace, method: str, mode: str, share: float) -> dict[str, Any]:
    """One measurement in a process of its own, whose peak of memory is its own; kept in the working folder."""
    kept = arguments.work / f"{method}-{mode}-{share:g}-{arguments.minutes:g}.json".replace(" ", "_")
    if not kept.is_file():
        print(f"{method}, {mode}, {share:g} of the video", file=sys.stderr, flush=True)
        own = ["--runs", str(arguments.runs), "--work", str(arguments.work), "--minutes", str(arguments.minutes)]
        command = [sys.executable, __file__, *own, "--one", method, mode, str(share)]
        kept.write_text(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def measure(arguments: argparse.Namespace, method: str, mode: str, share: float) -> dict[str, Any]:
    if method == "video":
        make(arguments)
        return {}
    paragraphs, duration = read_paragraphs(arguments, share)
    in_order = mode.endswith("in order")
    if mode == "scales":
        return compare_scales(arguments, method)
    if method in TRAINED:
        model, config, vectors, features = trained(arguments, method)
        config.model.windowed = mode != "squeezed"
        config.model.decode = "ordered" if in_order else "independent"
    else:
        settings = SimilarityConfig(order="paragraph" if in_order else "none", neutral=())
        model, config, vectors, features = untrained(arguments, method, settings)
        if mode == "squeezed":
            features = resample(features, 32)
    whole = duration / share
    features = features[: round(len(features) * duration / whole)]
    before, start = peak(), time.monotonic()
    ranked = [ground(model, config, vectors, features, duration, p.sentences, 5).spans for p in paragraphs]
    return {
        "metrics": evaluate_spans(ranked, paragraphs, RULES),
        "sentences": sum(len(p.sentences) for p in paragraphs),
        "seconds": time.monotonic() - start,
        "added": peak() - before,
    }


def peak() -> float:
    """MB of memory that the process has had at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def trained(arguments: argparse.Namespace, method: str) -> Any:
    path = arguments.runs / f"long-{method}"
    checkpoint = load_checkpoint(path)
    config = settings_of(checkpoint, path, [])
    model = build_model(checkpoint, config.model, path).eval()
    assert checkpoint.encoder is not None, "moving_shapes knows its own"
    encoder = load_encoder(checkpoint.encoder.spec)
    features = encoded(encoder, arguments.work / "hour.mp4", cache=arguments.work).features
    return model, config, checkpoint.word_vectors, features


class AlignmentTower:
    """SiamGTR's alignment, which saw no span in training, as an encoder: clips and sentences in one space."""

    def __init__(self, model: Any, vectors: Any) -> None:
        self.model, self.vectors = model, vectors

    def clips(self, features: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            vectors: np.ndarray = self.model.alignment.of_clips(self.model.clips(torch.from_numpy(features))).numpy()
        return vectors

    def encode_text(self, sentences: Any) -> Tensor:
        rows = []
        for sentence in sentences:
            words = torch.tensor([self.vectors.encode(sentence, 50)])
            with torch.no_grad():
                rows.append(self.model.alignment.of_sentences(self.model.text.read(words, words > 0))[0])
        return torch.stack(rows)


def untrained(arguments: argparse.Namespace, method: str, settings: SimilarityConfig) -> Any:
    tower: Any
    if method == "alignment":
        siamgtr, _, vectors, features = trained(arguments, "siamgtr")
        tower = AlignmentTower(siamgtr, vectors)
        features = tower.clips(features)
    else:
        tower = load_encoder("objects")
        features = encoded(tower, arguments.work / "hour.mp4", cache=arguments.work).features
        settings = replace(settings, neutral=SimilarityConfig().neutral)
    model = Similarity(settings, features.shape[1], NO_WORDS).eval()
    model.tower = tower
    config = argparse.Namespace(method="similarity", model=settings)
    return model, config, NO_WORDS, features


def script(minutes: float) -> list[ShapesVideo]:
    """The videos, in their order."""
    videos: list[ShapesVideo] = []
    while sum(video.duration for video in videos) < 60 * minutes:
        videos.append(script_video(OPTIONS, SEED, "test", len(videos)))
    return videos


def make(arguments: argparse.Namespace) -> None:
    """hour.mp4, unless it is there."""
    path = arguments.work / "hour.mp4"
    if not path.is_file():
        frames = np.concatenate([render_frames(video, OPTIONS) for video in script(arguments.minutes)])
        encode_video(frames, path, OPTIONS.fps, OPTIONS.quality)


def read_paragraphs(arguments: argparse.Namespace, share: float = 1.0) -> tuple[list[Paragraph], float]:
    """What is asked, in the first share of the video, and how long that is.

    Only sentences that name colour and form, of which no other shape of the hour does the same: whoever reads a
    sentence by itself can know the one moment.
    """
    videos = script(arguments.minutes)
    begin = np.concatenate([[0.0], np.cumsum([video.duration for video in videos])])
    told: list[tuple[tuple[str, str, str], str, tuple[float, float]]] = []
    for video, offset in zip(videos, begin, strict=False):
        events = {(e.start, e.action): s for s in video.shapes for e in s.events}
        for sentence, (start, end) in zip(video.sentences, video.spans, strict=True):
            ((shape, action),) = [(s, a) for (at, a), s in events.items() if at == start]
            told.append(((shape.colour, shape.kind, action), sentence, (offset + start, offset + end)))
    often = Counter(key for key, _, _ in told)
    chosen = [(sentence, span) for key, sentence, span in told if often[key] == 1 and " one " not in sentence]
    duration = float(begin[-1]) * share
    chosen = [(sentence, span) for sentence, span in chosen if span[1] <= duration]
    paragraphs = []
    for part in range(PARAGRAPHS):
        own = chosen[part::PARAGRAPHS]
        spans = np.array([span for _, span in own])
        paragraphs.append(Paragraph(f"hour {part}", duration, tuple(sentence for sentence, _ in own), spans))
    return paragraphs, duration


if __name__ == "__main__":
    main()
