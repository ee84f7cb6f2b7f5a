"""``python two_processes.py NAME...``: gradients over two processes, by DDP and by FSDP2, beside those of one.

For each name and each of the two prints a line: both, and "same" or what differs.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent))
from cases import inputs, loss, make

HALVES = (slice(0, 2), slice(2, 4))


class Loss(nn.Module):
    """What DDP wraps: its forward pass is the loss."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any) -> Tensor:
        return loss(self.module, *arguments)


def alone(name: str) -> dict[str, Tensor]:
    """The mean of both halves' gradients, by the weights' names."""
    module = make(name)
    torch.stack([loss(module, *inputs(name, module, half)) for half in HALVES]).mean().backward()
    return {key: weight.grad for key, weight in module.named_parameters() if weight.grad is not None}


def together(kind: str, name: str, rank: int) -> dict[str, Tensor]:
    module = make(name)
    arguments = inputs(name, module, HALVES[rank])
    if kind == "ddp":
        wrapped = DistributedDataParallel(Loss(module), find_unused_parameters=True)
        wrapped(*arguments).backward()
        return {key: weight.grad for key, weight in module.named_parameters() if weight.grad is not None}
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    if hasattr(module, "loss"):
        register_fsdp_forward_method(module, "loss")
    loss(module, *arguments).backward()
    return {key: weight.grad.full_tensor() for key, weight in module.named_parameters() if weight.grad is not None}


def work(rank: int, names: list[str], store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for name in names:
        expected = alone(name)
        for kind in ("ddp", "fsdp"):
            found = together(kind, name, rank)
            off = [
                key
                for key, gradient in expected.items()
                if not torch.allclose(found.get(key, torch.zeros_like(gradient)), gradient, rtol=1e-4, atol=1e-6)
            ]
            if rank == 0:
                print(f"{name}, {kind}: {'same' if not off else ', '.join(off)}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (sys.argv[1:], f"{folder}/store"), nprocs=2)
