"""Several processes, started by ``torchrun``, that write to one output: who is done, and who is stuck."""

from __future__ import annotations

import json
import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from vpgfast.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import Store

log = logging.getLogger("vpgfast.extract")

PATIENCE = 3600.0
"""Seconds that one video may take in another process before the first one gives up waiting for it."""


class Ranks:
    """What the processes of one run tell each other; of a single one, nothing.

    Args:
        rank: of this process.
        world: how many there are.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self._store: Store | None = None
        if world > 1:
            from torch.distributed import PrefixStore, rendezvous

            try:
                store, _, _ = next(rendezvous("env://", rank, world, timeout=timedelta(minutes=5)))
            except ValueError:
                raise UserError(
                    f"the environment's WORLD_SIZE is {world}, but the other processes can't be found (no MASTER_ADDR "
                    "or MASTER_PORT); start extract by torchrun, or unset it"
                ) from None
            self._store = PrefixStore("vpgfast.extract", store)

    def at(self, name: str) -> None:
        """Tell that this process has come to a video."""
        if self._store is not None:
            self._store.set(f"at/{self.rank}", name)

    def report(self, tried: int, failed: dict[str, str]) -> None:
        """Tell that this process has finished, how many videos it had, and which failed."""
        assert self._store is not None
        self._store.set(f"done/{self.rank}", json.dumps([tried, failed]))

    def gather(self) -> tuple[int, dict[str, str]]:
        """Wait until all other processes have finished; how many videos they had, and which failed.

        Raises:
            UserError: one has been at the same video for :data:`PATIENCE` seconds; names both.
        """
        tried, failed = 0, dict[str, str]()
        waiting = set(range(1, self.world))
        seen: dict[int, tuple[str, float]] = {}
        told = time.monotonic()
        while waiting:
            assert self._store is not None
            for rank in sorted(waiting):
                if self._store.check([f"done/{rank}"]):
                    count, found = json.loads(self._store.get(f"done/{rank}"))
                    tried, failed = tried + count, failed | found
                    waiting.discard(rank)
                    continue
                here = self._store.check([f"at/{rank}"])
                name = self._store.get(f"at/{rank}").decode() if here else "its first video"
                if seen.get(rank, ("", 0.0))[0] != name:
                    seen[rank] = (name, time.monotonic())
                elif time.monotonic() - seen[rank][1] > PATIENCE:
                    minutes = PATIENCE / 60
                    raise UserError(f"process {rank} of {self.world} has been at {name} for {minutes:.0f} minutes")
            if waiting and time.monotonic() - told > 60:
                told = time.monotonic()
                log.info(
                    "waiting for %s", ", ".join(f"process {rank} (at {seen[rank][0]})" for rank in sorted(waiting))
                )
            time.sleep(0.1)
        return tried, failed
