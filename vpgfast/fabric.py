"""Devices, precision and processes of training and evaluation, by Lightning Fabric."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from tqdm import tqdm

from vpgfast.config import TrainConfig
from vpgfast.errors import ConfigError
from vpgfast.models.embed import finds_videos
from vpgfast.processes import PatientDDP

T = TypeVar("T")


def make_fabric(config: TrainConfig) -> Fabric:
    """Devices and precision as configured; several processes if several devices (or under torchrun)."""
    devices: Any = int(config.devices) if str(config.devices).isdigit() else config.devices
    # torchrun says how many processes a node has. Those that Fabric starts know WORLD_SIZE alone, and are on this node.
    world = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))

    def make(strategy: Any) -> Fabric:
        return Fabric(
            accelerator=config.accelerator,
            devices=local if devices == "auto" and world > 1 else devices,  # who started them has decided already
            num_nodes=world // local,
            strategy=strategy,
            precision=config.precision,  # type: ignore[arg-type]  # any string may come from a config; Fabric checks it
        )

    try:
        fabric = make(config.strategy)
        if isinstance(fabric.strategy, DDPStrategy):  # Fabric's choice for several processes
            unused = "find_unused_parameters_true" in config.strategy
            fabric = make(PatientDDP(config.process_minutes, find_unused_parameters=unused))
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


def gather(fabric: Fabric, value: T) -> list[T]:
    """``value`` of every process, in their order."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values


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
