"""By what the best epoch of a run is chosen: ``select_by``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric

from vpgfast.config import TrainConfig, nearest
from vpgfast.data.batches import Loader
from vpgfast.errors import ConfigError, UserError
from vpgfast.fabric import gather
from vpgfast.metrics.corpus import IN_TABLES, corpus_metric_names
from vpgfast.metrics.rules import metric_names
from vpgfast.models.embed import finds_videos
from vpgfast.models.registry import get_method

LAST, LOSS = "last", "loss"
"""No choice at all: the last epoch. The method's own loss on the validation split: the lowest."""


def check(config: TrainConfig) -> None:
    """Raise :class:`ConfigError` where nothing is called as ``select_by`` says."""
    known = [LAST, LOSS, *metric_names(config.metrics)]
    if finds_videos(config.method):
        known += corpus_metric_names(config.metrics)
    if config.select_by not in known:
        hint = nearest(config.select_by, known)
        raise ConfigError(f"select_by: no metric {config.select_by!r}{hint}; add it by metrics.top_n or .thresholds")


def is_of_videos(select_by: str) -> bool:
    """Whether it is a metric of finding the paragraph's video."""
    return select_by.startswith(IN_TABLES)


def sees_spans(config: TrainConfig) -> bool:
    """Whether the choice looks at the validation split's timestamps."""
    if config.select_by == LAST:
        return False
    if config.select_by == LOSS:
        return get_method(config.method).needs(config.model).labelled_share > 0
    return not is_of_videos(config.select_by) or "IoU" in config.select_by


@torch.no_grad()
def validation_loss(fabric: Fabric, module: Any, loader: Loader, seed: int) -> float:
    """The mean loss over the batches, which are training batches of the validation split.

    What a loss draws at random (other videos, labels' noise) is the same in every epoch.

    Args:
        module: a method, as ``fabric.setup`` returns it, in evaluation mode.

    Raises:
        UserError: it is no number.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mine = [float(module.loss(batch.to(fabric.device))["loss"]) for batch in loader]
    losses = [loss for rank in gather(fabric, mine) for loss in rank]
    mean = sum(losses) / len(losses)
    if not math.isfinite(mean):
        raise UserError(f"the loss on the validation split became {mean}, so it can't choose an epoch; see select_by")
    return mean


def score_of(select_by: str, epoch: int, scores: Mapping[str, float]) -> float:
    """What is to be high.

    Args:
        epoch: how many there have been.
        scores: on the validation split, by name.
    """
    if select_by == LAST:
        return epoch
    return -scores[LOSS] if select_by == LOSS else scores[select_by]


def describe(select_by: str, scores: Mapping[str, float]) -> str:
    """For the log: the validation split's score."""
    if select_by == LAST:
        return "not chosen by any score"
    return f"val loss {scores[LOSS]:.4f}" if select_by == LOSS else f"val {select_by} {100 * scores[select_by]:.2f}%"
