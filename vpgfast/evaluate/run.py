"""From a checkpoint to its results on a split."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from vpgfast.checkpoint import build_model, load_checkpoint, settings_of
from vpgfast.command import open_log
from vpgfast.config import nearest
from vpgfast.data.batches import warn_of_long_sentences
from vpgfast.data.corpus import load_corpus
from vpgfast.errors import CheckpointError, ConfigError
from vpgfast.evaluate.gallery import write_gallery
from vpgfast.evaluate.report import report
from vpgfast.evaluate.split import evaluate_split
from vpgfast.fabric import make_fabric, mark_forward_methods
from vpgfast.files import output_folder
from vpgfast.models.registry import get_method
from vpgfast.processes import losses_are_named
from vpgfast.run_encoder import check_same_encoder
from vpgfast.untrained import checkpoint_of, is_untrained


def run(arguments: argparse.Namespace, settings: Sequence[str]) -> None:
    """Evaluate what the command line names; ``settings`` are arguments that change those of the checkpoint's run."""
    open_log()
    untrained = is_untrained(arguments.checkpoint)
    checkpoint = checkpoint_of(arguments.checkpoint) if untrained else load_checkpoint(arguments.checkpoint)
    config = settings_of(checkpoint, arguments.checkpoint, settings)
    folder = arguments.checkpoint if arguments.checkpoint.is_dir() else arguments.checkpoint.parent
    folder = Path("runs") / f"{checkpoint.method}-{config.data.corpus}" if untrained else folder
    output = arguments.output or folder / f"evaluate-{arguments.split}"

    start = time.monotonic()
    fabric = make_fabric(config)
    if fabric.global_rank == 0:
        output_folder(output)
    open_log(output / "log.txt", quiet=fabric.global_rank > 0)
    needs = get_method(config.method).needs(config.model)
    corpus = load_corpus(config.data, needs.punctuation)
    if arguments.split not in corpus.splits:
        raise ConfigError(
            f"--split {arguments.split}: {corpus.name} has {', '.join(corpus.splits)}"
            f"{nearest(arguments.split, corpus.splits)}"
        )
    if fabric.global_rank == 0:
        warn_of_long_sentences(corpus.splits[arguments.split], needs)
    if untrained:
        checkpoint = checkpoint_of(arguments.checkpoint, corpus.features)
    check_same_encoder(corpus.features.encoder, checkpoint, f"features of {corpus.name}")
    if corpus.features.dim != checkpoint.feature_dim:
        raise CheckpointError(
            f"checkpoint {arguments.checkpoint} takes features of width {checkpoint.feature_dim} "
            f"({checkpoint.feature_source}), {corpus.name} has {corpus.features.dim} ({corpus.features.source})"
        )
    model = build_model(checkpoint, config.model, arguments.checkpoint)
    model.read_with(corpus.features)
    module = fabric.setup_module(model)
    mark_forward_methods(module, config.method)
    with losses_are_named(fabric.strategy):
        evaluation = evaluate_split(fabric, module, config, corpus, checkpoint.word_vectors, arguments.split)
    if fabric.global_rank == 0:
        report(evaluation, config, corpus, arguments.split, time.monotonic() - start, output)
        if arguments.page is not None:
            write_gallery(arguments, evaluation, config, f"{config.method} on {corpus.name}, {arguments.split}")
