"""Evaluate a checkpoint: ``python -m vpgfast.evaluate CHECKPOINT [--split test] [--output FOLDER] [--KEY VALUE ...]``.

Prints the metrics beside the three baselines and the swapped-sentence control, and writes them to ``metrics.json``. For
a method with a retrieval branch the corpus metrics follow: is the video found among all videos of the split, and the
moment in it?
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed
from lightning_fabric import Fabric
from tqdm import tqdm

from vpgfast.checkpoint import Checkpoint, build_model, load_checkpoint, write_file
from vpgfast.command import command, open_log
from vpgfast.config import TrainConfig, from_dict, nearest
from vpgfast.data.batches import Loader, make_loader, prepare
from vpgfast.data.corpus import Corpus, load_corpus
from vpgfast.data.text import WordVectors
from vpgfast.data.types import BatchNeeds, Paragraph
from vpgfast.embed import embed_clips, embed_texts, finds_videos
from vpgfast.errors import CheckpointError, ConfigError
from vpgfast.metrics.bag_of_words import add, fit, mean_words, sums_of
from vpgfast.metrics.baselines import baselines, swap_sentences
from vpgfast.metrics.corpus import CorpusResult, corpus_result, true_ranks
from vpgfast.metrics.spans import RankedSpans, evaluate_spans, ranked_spans
from vpgfast.metrics.table import format_table
from vpgfast.models.registry import METHODS, get_method
from vpgfast.plots import draw_spans
from vpgfast.run_encoder import check_same_encoder

T = TypeVar("T")

METRICS_FILE = "metrics.json"
EVALUATION_SEED = 0
"""Of the random baseline and the control, whatever the run's seed: their numbers are those of the corpus."""


@dataclass
class Evaluation:
    """A method's result on a split, and what it is compared with.

    Attributes:
        metrics: by name, fractions in [0, 1].
        baselines: random, uniform, prior -> the same names.
        control: the same names, with every video's sentences replaced by another video's; ``None`` for a single video.
        paragraphs: the items that were predicted.
        ranked: their ranked spans, see :mod:`vpgfast.metrics.spans`.
        retrieval: how well videos are found among all of the split; ``None`` for a method that can't.
    """

    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    control: dict[str, float] | None
    paragraphs: list[Paragraph]
    ranked: RankedSpans
    retrieval: CorpusResult | None = None

    def table(self, method: str, title: str) -> str:
        """The method's row beside the others; below it, how well it finds videos."""
        rows = {method: self.metrics, **self.baselines}
        if self.control is not None:
            rows[f"{method}, sentences swapped"] = self.control
        table = format_table(rows, title)
        return table if self.retrieval is None else f"{table}\n\n{self.retrieval.tables(method, title)}"


def make_fabric(config: TrainConfig) -> Fabric:
    """Devices and precision as configured; several processes if several devices (or under torchrun)."""
    devices: Any = int(config.devices) if str(config.devices).isdigit() else config.devices
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=local if devices == "auto" and world > 1 else devices,  # torchrun has decided already
            num_nodes=world // local,
            strategy=config.strategy,
            precision=config.precision,  # type: ignore[arg-type]  # any string may come from a config; Fabric checks it
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"accelerator, devices, strategy or precision: {error}") from None
    fabric.launch()
    return fabric


def mark_forward_methods(module: Any, method: str) -> None:
    """Tell Fabric which calls go through the wrapped model.

    Args:
        module: as ``fabric.setup`` returns it.
        method: the model's name in the registry.
    """
    for name in ("loss", "predict", *(("embed_videos", "embed_paragraphs") if finds_videos(method) else ())):
        module.mark_forward_method(name)


def split_loader(
    fabric: Fabric,
    config: TrainConfig,
    corpus: Corpus,
    paragraphs: Sequence[Paragraph],
    vectors: WordVectors,
    needs: BatchNeeds,
    training: bool,
) -> Loader:
    """This process's share of the batches of a split."""
    return make_loader(
        paragraphs,
        corpus.features,
        vectors,
        needs,
        config.batch_size,
        training=training,
        seed=config.seed,
        num_workers=config.num_workers,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )


def gather(fabric: Fabric, value: T) -> list[T]:
    """``value`` of every process, in their order."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values


@torch.no_grad()
def predict(
    fabric: Fabric, model: Any, loader: Loader, top_n: int, label: str
) -> tuple[list[Paragraph], list[np.ndarray]]:
    """Ranked spans of every item of a split, in order, in every process.

    Args:
        model: a method, as ``fabric.setup`` returns it, in evaluation mode.
        loader: its batches, see :func:`split_loader`.
        top_n: spans a sentence.
        label: what the progress bar says.
    """
    mine = []
    hidden = True if fabric.global_rank else None  # None: hidden where there is no terminal
    for number, batch in enumerate(tqdm(loader, desc=label, leave=False, disable=hidden, unit="batch")):
        prediction = model.predict(batch.to(fabric.device), top_n)
        index = number * fabric.world_size + fabric.global_rank
        mine.append((index, batch.paragraphs, ranked_spans(prediction, batch)))
    shares = sorted((share for rank in gather(fabric, mine) for share in rank), key=lambda share: share[0])
    paragraphs, ranked = [], []
    for _, items, spans in shares:
        paragraphs += items
        ranked += spans
    total = len(loader.dataset)  # type: ignore[arg-type]  # where processes share unevenly, the first batches come twice
    return paragraphs[:total], ranked[:total]


def evaluate_split(
    fabric: Fabric, model: Any, config: TrainConfig, corpus: Corpus, vectors: WordVectors, split: str
) -> Evaluation:
    """Everything that is said about a trained method on a split.

    Args:
        model: as ``fabric.setup`` returns it.
        vectors: the model's vocabulary.
        split: "test", "val" or "train".
    """
    paragraphs = corpus.splits[split]
    if not paragraphs:
        raise ConfigError(f"split {split!r} of {corpus.name} holds no video")
    needs, rules = get_method(config.method).needs(config.model), config.metrics
    model.eval()
    loader = split_loader(fabric, config, corpus, paragraphs, vectors, needs, training=False)
    items, ranked = predict(fabric, model, loader, config.top_n, f"predicting {split}")
    control = None
    if len({paragraph.video_id for paragraph in paragraphs}) > 1:
        swapped = swap_sentences(paragraphs, rules.sentence_order, EVALUATION_SEED)
        loader = split_loader(fabric, config, corpus, swapped, vectors, needs, training=False)
        swapped_items, swapped_ranked = predict(fabric, model, loader, config.top_n, f"predicting {split}, swapped")
        control = evaluate_spans(swapped_ranked, swapped_items, rules)
    return Evaluation(
        metrics=evaluate_spans(ranked, items, rules),
        baselines=baselines(corpus.splits["train"], paragraphs, rules, EVALUATION_SEED),
        control=control,
        paragraphs=items,
        ranked=ranked,
        retrieval=evaluate_retrieval(fabric, model, config, corpus, vectors, split, items, ranked)
        if finds_videos(config.method)
        else None,
    )


def evaluate_retrieval(
    fabric: Fabric,
    model: Any,
    config: TrainConfig,
    corpus: Corpus,
    vectors: WordVectors,
    split: str,
    items: Sequence[Paragraph],
    ranked: RankedSpans,
) -> CorpusResult:
    """The corpus metrics: every paragraph of a split against all of its videos.

    Args:
        model: as ``fabric.setup`` returns it, in evaluation mode, of a method that finds videos.
        vectors: the model's vocabulary.
        split: "test", "val" or "train".
        items: what :func:`predict` returned for the split.
        ranked: their ranked spans in their own video.
    """
    paragraphs, size = corpus.splits[split], config.batch_size
    needs = get_method(config.method).needs(config.model)
    videos = list(dict.fromkeys(paragraph.video_id for paragraph in paragraphs))
    number = {video: i for i, video in enumerate(videos)}

    def embed_some_videos(names: Sequence[str]) -> np.ndarray:
        return embed_clips(model, [corpus.features[name] for name in names], needs, fabric.device)

    def embed_some_texts(texts: Sequence[Paragraph]) -> np.ndarray:
        return embed_texts(model, texts, vectors, needs, corpus.features.dim, fabric.device)

    video_vectors = in_shares(fabric, _batches(videos, size), embed_some_videos, f"embedding videos of {split}")
    text_vectors = in_shares(fabric, _batches(paragraphs, size), embed_some_texts, f"embedding paragraphs of {split}")
    truth = np.array([number[paragraph.video_id] for paragraph in paragraphs])
    parts = [len(prepare([paragraph], needs, training=False)) for paragraph in paragraphs]
    return corpus_result(
        true_ranks(np.concatenate(text_vectors), np.concatenate(video_vectors), truth),
        ranks_by_words(fabric, config, corpus, vectors, split),
        *(len(videos), ranked, items, np.repeat(np.arange(len(paragraphs)), parts)),
        *(paragraphs, config.metrics, EVALUATION_SEED),
    )


def ranks_by_words(fabric: Fabric, config: TrainConfig, corpus: Corpus, vectors: WordVectors, split: str) -> np.ndarray:
    """The place of each paragraph's video by :mod:`vpgfast.metrics.bag_of_words`, int64 [P]; the arguments as above."""
    needs = get_method(config.method).needs(config.model)

    def mean_features(names: Sequence[str]) -> np.ndarray:
        return np.stack([corpus.features[name].mean(axis=0, dtype=np.float64) for name in names])

    def mean_vectors(paragraphs: Sequence[Paragraph]) -> np.ndarray:
        return mean_words(paragraphs, vectors, needs.max_words)

    hidden = True if fabric.global_rank else None  # None: hidden where there is no terminal
    batches = _batches(corpus.splits["train"], config.batch_size)[fabric.global_rank :: fabric.world_size]
    mine = sums_of(np.zeros((0, corpus.features.dim)), np.zeros((0, vectors.dim)))
    for batch in tqdm(batches, desc="bag of words, train", leave=False, disable=hidden, unit="batch"):
        mine = add(mine, sums_of(mean_features([p.video_id for p in batch]), mean_vectors(batch)))
    fitted = fit(reduce(add, gather(fabric, mine)))

    paragraphs, size = corpus.splits[split], config.batch_size
    videos = list(dict.fromkeys(paragraph.video_id for paragraph in paragraphs))
    number = {video: i for i, video in enumerate(videos)}
    features = in_shares(fabric, _batches(videos, size), mean_features, f"bag of words, videos of {split}")
    return true_ranks(
        fitted.of_paragraphs(mean_vectors(paragraphs)),
        fitted.of_videos(np.concatenate(features)),
        np.array([number[paragraph.video_id] for paragraph in paragraphs]),
    )


def _batches(values: Sequence[T], size: int) -> list[Sequence[T]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def in_shares(
    fabric: Fabric, batches: Sequence[Sequence[T]], work: Callable[[Sequence[T]], np.ndarray], label: str
) -> list[np.ndarray]:
    """``work`` of every batch, in order, in every process; each process works on its share.

    Where the number does not divide, the first batches come twice: all processes call the model equally often, which
    DDP counts on.
    """
    share = range(-(-len(batches) // fabric.world_size))
    hidden = True if fabric.global_rank else None  # None: hidden where there is no terminal
    mine = []
    for turn in tqdm(share, desc=label, leave=False, disable=hidden, unit="batch"):
        index = turn * fabric.world_size + fabric.global_rank
        mine.append(work(batches[index % len(batches)]))
    shares = gather(fabric, mine)
    return [shares[index % fabric.world_size][index // fabric.world_size] for index in range(len(batches))]


def report(
    evaluation: Evaluation, config: TrainConfig, corpus: Corpus, split: str, seconds: float, output: Path
) -> None:
    """Print the table, and write ``metrics.json`` and the picture of predicted against true spans.

    Args:
        seconds: what the run or the evaluation took.
        output: folder, must exist.
    """
    print(evaluation.table(config.method, table_title(corpus.name, split, config)))
    if config.pictures:
        picture = output / "spans.png"
        chosen = sample_evenly(evaluation.paragraphs, evaluation.ranked, config.pictures)
        draw_spans(*chosen, picture, f"{config.method} on {corpus.name}, {split}")
        print(f"true and predicted spans: {picture}")
    write_metrics(output / METRICS_FILE, evaluation, config, corpus.name, split, seconds)
    print(f"metrics: {output / METRICS_FILE}")


def table_title(corpus: str, split: str, config: TrainConfig) -> str:
    """The line above a table: corpus and split, unit, and the rules that differ from the usual ones."""
    rules = config.metrics
    notes = [f"IoU {rules.comparison} m"] if rules.comparison != ">=" else []
    notes += [f"spans in {rules.clips} clips"] if rules.clips is not None else []
    notes += [f"spans in {rules.segment_seconds:g}-s segments"] if rules.segment_seconds is not None else []
    notes += ["best 3 annotators"] if rules.annotators == "best3" else []
    return f"{corpus}, {split} split, in %" + (f" ({', '.join(notes)})" if notes else "")


def write_metrics(
    path: Path, evaluation: Evaluation, config: TrainConfig, corpus: str, split: str, seconds: float
) -> None:
    """``metrics.json``: what was run, and the numbers as fractions in [0, 1]."""
    content = {
        "method": config.method,
        "corpus": corpus,
        "split": split,
        "seed": config.seed,
        "seconds": round(seconds, 1),
        "metrics": evaluation.metrics,
        "baselines": evaluation.baselines,
        "control": evaluation.control,
    }
    if evaluation.retrieval is not None:
        content["retrieval"] = asdict(evaluation.retrieval)
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def table_from(content: Mapping[str, Any], config: TrainConfig) -> str:
    """The table again, from what :func:`write_metrics` wrote."""
    found = content.get("retrieval")  # only of methods that find videos
    evaluation = Evaluation(
        *(content["metrics"], content["baselines"], content["control"], [], []),
        CorpusResult(**found) if found else None,
    )
    return evaluation.table(content["method"], table_title(content["corpus"], content["split"], config))


def sample_evenly(
    paragraphs: Sequence[Paragraph], ranked: RankedSpans, videos: int
) -> tuple[list[Paragraph], list[np.ndarray]]:
    """The items of a few videos from all over a split, with what was predicted for them."""
    names = list(dict.fromkeys(paragraph.video_id for paragraph in paragraphs))
    chosen = set(names[:: max(1, len(names) // videos)][:videos])
    pairs = [(p, r) for p, r in zip(paragraphs, ranked, strict=True) if p.video_id in chosen]
    return [p for p, _ in pairs], [r for _, r in pairs]


@command
def main(argv: Sequence[str]) -> int:
    """Command line of ``vpgfast evaluate``."""
    parser = argparse.ArgumentParser(
        prog="python -m vpgfast.evaluate",
        description="Evaluate a checkpoint beside the baselines and the swapped-sentence control.",
        epilog="Any setting of the run that made the checkpoint can be changed, as in --data.root ../annotations or "
        "--metrics.comparison '>'; `python -m vpgfast.train --help` lists them.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", type=Path, help="a .safetensors file, or the folder of a run")
    parser.add_argument("--split", default="test", help="train, val or test (default)")
    parser.add_argument(
        "--output", type=Path, help="folder for the results; default: evaluate-SPLIT beside the checkpoint"
    )
    arguments, rest = parser.parse_known_args(argv)
    open_log()
    checkpoint = load_checkpoint(arguments.checkpoint)
    config = settings_of(checkpoint, arguments.checkpoint, rest)
    folder = arguments.checkpoint if arguments.checkpoint.is_dir() else arguments.checkpoint.parent
    output = arguments.output or folder / f"evaluate-{arguments.split}"

    start = time.monotonic()
    fabric = make_fabric(config)
    if fabric.global_rank == 0:
        output.mkdir(parents=True, exist_ok=True)
    open_log(output / "log.txt", quiet=fabric.global_rank > 0)
    corpus = load_corpus(config.data)
    if arguments.split not in corpus.splits:
        raise ConfigError(
            f"--split {arguments.split}: {corpus.name} has {', '.join(corpus.splits)}"
            f"{nearest(arguments.split, corpus.splits)}"
        )
    check_same_encoder(corpus.features.encoder, checkpoint, f"features of {corpus.name}")
    if corpus.features.dim != checkpoint.feature_dim:
        raise CheckpointError(
            f"checkpoint {arguments.checkpoint} takes features of width {checkpoint.feature_dim} "
            f"({checkpoint.feature_source}), {corpus.name} has {corpus.features.dim} ({corpus.features.source})"
        )
    module = fabric.setup_module(build_model(checkpoint, config.model, arguments.checkpoint))
    mark_forward_methods(module, config.method)
    evaluation = evaluate_split(fabric, module, config, corpus, checkpoint.word_vectors, arguments.split)
    if fabric.global_rank == 0:
        report(evaluation, config, corpus, arguments.split, time.monotonic() - start, output)
    return 0


def settings_of(checkpoint: Checkpoint, path: Path, argv: Sequence[str]) -> TrainConfig:
    """The settings of the run that made a checkpoint, changed by ``argv``.

    Raises:
        CheckpointError: ``argv`` asks for another method than the checkpoint's.
        ConfigError: as :func:`vpgfast.config.parse_train`.
    """
    if checkpoint.method not in METHODS:
        raise CheckpointError(
            f"checkpoint {path}: made by method {checkpoint.method!r}, known here are {', '.join(METHODS)}"
        )
    asked = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    asked.add_argument("--method", default=checkpoint.method)
    method = asked.parse_known_args(argv)[0].method
    if method != checkpoint.method:
        raise CheckpointError(f"checkpoint {path}: made by method {checkpoint.method!r}, not by {method!r}")
    config = from_dict(checkpoint.settings, f"checkpoint {path}", argv, "python -m vpgfast.evaluate")
    return replace(config, output=None)


if __name__ == "__main__":
    sys.exit(main())
