"""Training: the loop below is all there is to it. It knows methods by :mod:`vpgfast.models.method` alone."""

from __future__ import annotations

import json
import logging
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from tqdm import tqdm

from vpgfast.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_state,
    load_weights,
    random_state,
    save_checkpoint,
    save_state,
    set_random_state,
)
from vpgfast.command import open_log
from vpgfast.config import OptimConfig, TrainConfig, to_dict
from vpgfast.data.batches import Loader, warn_of_long_sentences
from vpgfast.data.corpus import load_corpus
from vpgfast.data.features import usual_clips
from vpgfast.data.text import count_content_words
from vpgfast.errors import ConfigError, UserError
from vpgfast.evaluate import selection
from vpgfast.evaluate.report import report, table_from
from vpgfast.evaluate.retrieval import evaluate_retrieval
from vpgfast.evaluate.split import LongVideos, evaluate_split, predict, split_loader
from vpgfast.fabric import gather, make_fabric, mark_forward_methods
from vpgfast.files import METRICS_FILE, MODEL_FILE, STATE_FILE
from vpgfast.metrics.corpus import for_tables
from vpgfast.metrics.spans import evaluate_spans
from vpgfast.models.layers import weight_decay_groups
from vpgfast.models.registry import get_method
from vpgfast.plots import draw_curves
from vpgfast.processes import losses_are_named
from vpgfast.train.folder import held, look_into
from vpgfast.train.optimizers import BertAdam

log = logging.getLogger(__name__)


def run(config: TrainConfig) -> None:
    """Train as the settings say, unless the output folder holds this run already."""
    selection.check(config)
    output = config.output_folder()
    fabric = make_fabric(config)
    alone = held(output, config) if fabric.global_rank == 0 else nullcontext()
    with losses_are_named(fabric.strategy), alone:
        found = fabric.broadcast(look_into(output, config) if fabric.global_rank == 0 else "")
        if found == "finished":
            print(table_from(json.loads((output / METRICS_FILE).read_text()), config))
            print(
                f"{output} holds this finished run; --overwrite trains it again, "
                "--output FOLDER puts another one elsewhere"
            )
            return
        open_log(output / "log.txt", quiet=fabric.global_rank > 0)
        train(fabric, config, output, resume=found == "unfinished")


def train(fabric: Fabric, config: TrainConfig, output: Path, resume: bool) -> None:
    """The run: corpus, model, epochs, and the evaluation on the test split.

    Args:
        fabric: launched.
        config: every setting.
        output: the run's folder, exists.
        resume: go on from the training state in ``output``.
    """
    start = time.monotonic()
    first = fabric.global_rank == 0
    method = get_method(config.method)
    needs = method.needs(config.model)
    with fabric.rank_zero_first():
        corpus = load_corpus(config.data, needs.punctuation)
    vectors = corpus.word_vectors
    if first:
        warn_of_long_sentences([paragraph for split in corpus.splits.values() for paragraph in split], needs)
    for split in ("train", "val", "test"):
        if not corpus.splits.get(split):
            raise ConfigError(f"{corpus.name}: the {split} split holds no video")
    if needs.content_words:
        vectors = count_content_words(vectors, [s for p in corpus.splits["train"] for s in p.sentences])

    # Weights start the same in every process; dropout and other noise may then differ.
    torch.manual_seed(config.seed)
    model = method(config.model, corpus.features.dim, vectors)
    optimizer = make_optimizer(model, config.optim)
    module, optimizer = fabric.setup(model, optimizer)
    mark_forward_methods(module, config.method)
    fabric.seed_everything(config.seed + fabric.global_rank, verbose=False)
    training = split_loader(fabric, config, corpus, corpus.splits["train"], vectors, needs, training=True)
    validation = split_loader(fabric, config, corpus, corpus.splits["val"], vectors, needs, training=False)
    by = config.select_by
    judging = None  # without spans where the method trains without
    if by == selection.LOSS:
        judging = split_loader(fabric, config, corpus, corpus.splits["val"], vectors, needs, training=True)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    log.info("%s: %.2f million parameters, %d steps an epoch, on %s", config.method, size, len(training), fabric.device)

    epoch, best, best_epoch, seconds, history = 0, -math.inf, 0, 0.0, []
    if resume:
        state = load_state(output / STATE_FILE)
        load_weights(model, state["weights"], output / STATE_FILE)
        optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["random"][fabric.global_rank])
        epoch, best, best_epoch = state["epoch"], state["best"], state["best_epoch"]
        seconds, history = state["seconds"], state["history"]
        log.info("resuming after epoch %d", epoch)
    model.usual_clips = usual_clips(corpus.features, [p.video_id for p in corpus.splits["train"]])
    long = LongVideos(fabric, module, config, corpus, vectors)
    board = open_tensorboard(output, purge_step=epoch) if first else None

    while epoch < config.epochs and not out_of_patience(config, epoch, best_epoch):
        began = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = config.optim.lr * lr_factor(config.optim, epoch, config.epochs)
        losses = train_epoch(fabric, module, optimizer, training, config, epoch)
        epoch += 1

        module.eval()
        answers = predict(fabric, module, validation, config.top_n, "validating", long)
        scores = evaluate_spans(answers.ranked, answers.paragraphs, config.metrics)
        if judging is not None:
            scores[selection.LOSS] = selection.validation_loss(fabric, module, judging, config.seed)
        if selection.is_of_videos(by):
            items = answers.paragraphs, answers.ranked
            found = evaluate_retrieval(fabric, module, config, corpus, vectors, "val", *items)
            scores |= for_tables(found.metrics)
        score = selection.score_of(by, epoch, scores)
        improved = score > best
        if improved:
            best, best_epoch = score, epoch
        row = {"epoch": epoch, **{f"train {name}": value for name, value in losses.items()}}
        history.append({**row, **{f"val {name}": value for name, value in scores.items()}})
        log.info(
            "epoch %d/%d: loss %.4f, %s%s (%.1f s)",
            *(epoch, config.epochs, losses["loss"], selection.describe(by, scores)),
            *(" (best)" if improved and by != selection.LAST else "", time.monotonic() - began),
        )
        if board is not None:
            for name, value in history[-1].items():
                board.add_scalar(name.replace(" ", "/", 1), value, epoch)
            board.flush()

        last = epoch == config.epochs or out_of_patience(config, epoch, best_epoch)
        randoms = gather(fabric, random_state())
        if first and improved:
            settings, features = to_dict(config), corpus.features
            save_checkpoint(
                output / MODEL_FILE,
                Checkpoint(
                    *(config.method, settings, features.dim, features.source, features.encoder, corpus.name, vectors),
                    *(model.state_dict(), epoch, score, model.usual_clips),
                ),
            )
        if first and (last or epoch % config.checkpoint_every == 0):
            save_state(
                output / STATE_FILE,
                {
                    "epoch": epoch,
                    "weights": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "random": randoms,
                    "best": best,
                    "best_epoch": best_epoch,
                    "seconds": seconds + time.monotonic() - start,
                    "history": history,
                },
            )
    if board is not None:
        board.close()

    fabric.barrier()
    chosen = {name.removeprefix("val "): value for name, value in history[best_epoch - 1].items()}
    looks = "looks at its spans" if selection.sees_spans(config) else "sees no span"
    log.info("%d epochs, %d is kept: %s; this choice %s", epoch, best_epoch, selection.describe(by, chosen), looks)
    load_weights(model, load_checkpoint(output / MODEL_FILE).weights, output / MODEL_FILE)
    evaluation = evaluate_split(fabric, module, config, corpus, vectors, "test")
    if first:
        draw_curves(history, by, output / "training.png", f"{config.method} on {corpus.name}")
        report(evaluation, config, corpus, "test", seconds + time.monotonic() - start, output)
        print(f"model: {output / MODEL_FILE}")


def train_epoch(
    fabric: Fabric, module: Any, optimizer: torch.optim.Optimizer, loader: Loader, config: TrainConfig, epoch: int
) -> dict[str, float]:
    """One pass over the training batches; returns the mean of each loss.

    Raises:
        UserError: the loss is no longer a number.
    """
    module.train()
    loader.set_epoch(epoch)
    sums: dict[str, torch.Tensor] = {}
    hidden = True if fabric.global_rank else None  # None: hidden where there is no terminal
    for batch in tqdm(loader, desc=f"epoch {epoch + 1}", leave=False, disable=hidden, unit="batch"):
        losses = module.loss(batch.to(fabric.device, non_blocking=True))
        fabric.backward(losses["loss"])
        if config.optim.clip is not None:
            fabric.clip_gradients(module, optimizer, max_norm=config.optim.clip, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        for name, value in losses.items():  # summed where they are: reading them here would wait for the device
            sums[name] = sums.get(name, 0) + value.detach().double()
    means = {name: float(value) / len(loader) for name, value in sums.items()}
    if not math.isfinite(means["loss"]):
        raise UserError(f"the loss became {means['loss']} in epoch {epoch + 1}; try a lower --optim.lr or --optim.clip")
    return means


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser; biases and normalisation layers decay by nothing."""
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "bert_adam": BertAdam}[optim.name]
    return kind(weight_decay_groups(model, optim.weight_decay), lr=optim.lr)


def lr_factor(optim: OptimConfig, epoch: int, epochs: int) -> float:
    """What the learning rate is multiplied by in an epoch (from 0)."""
    if optim.schedule == "linear":
        return 1 - epoch / epochs
    if optim.schedule == "step":
        return optim.step_factor ** (epoch // optim.step_epochs)
    return 1.0


def out_of_patience(config: TrainConfig, epoch: int, best_epoch: int) -> bool:
    """Whether ``patience`` epochs have passed since the best one."""
    return config.patience is not None and epoch - best_epoch >= config.patience


def open_tensorboard(output: Path, purge_step: int) -> Any:
    """A TensorBoard writer, or ``None`` where TensorBoard isn't installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(output / "tensorboard", purge_step=purge_step + 1)
