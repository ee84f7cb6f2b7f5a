"""Several processes of one run: they meet before they start, and none waits for ever for one that is missing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from lightning_fabric.strategies import DDPStrategy
from torch.distributed import DistError, TCPStore

from vpgfast.errors import ConfigError

SETTING = "process_minutes"
_GRACE = 10.0
"""Seconds between the first process that notices a loss and the last."""
_LOST = ("timed out", "timeout", "connection closed", "connection reset", "socket", "broken pipe", "peer")


class Meeting:
    """A place where processes leave word, kept by the first one (or by torchrun).

    Args:
        address, port: of the first process.
        rank: of this process.
        world: how many there are.
        minutes: how long to wait for others.

    Raises:
        ConfigError: some have not come by then; says which.
    """

    def __init__(self, address: str, port: int, rank: int, world: int, minutes: float) -> None:
        self.rank, self.world = rank, world
        kept_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        try:
            self._store = TCPStore(
                address,
                port,
                is_master=rank == 0 and not kept_by_torchrun,
                timeout=timedelta(minutes=minutes),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except DistError as error:
            raise ConfigError(
                f"process 0 of {world} did not answer at {address}:{port} within {minutes:g} minutes "
                f"({' '.join(str(error).split())}); see what it printed, or set --{SETTING}"
            ) from None
        try:
            missing = self.missing("here", 60 * minutes)
        except DistError:
            raise ConfigError(f"process 0 of {world} has ended; see what it printed") from None
        if missing:
            time.sleep(0 if rank else 2)  # the others, whose words are kept here, are to find out for themselves
            raise ConfigError(
                f"{_named(missing, world)} not started within {minutes:g} minutes; see what was printed there, or set "
                f"--{SETTING}"
            )

    def missing(self, word: str, seconds: float) -> set[int]:
        """Leave a word, and wait for that of the others; the processes that have not left it in time."""
        keys = [f"vpgfast/{self._attempt}/{word}/{rank}" for rank in range(self.world)]
        self._store.set(keys[self.rank], socket.gethostname())
        deadline = time.monotonic() + seconds
        while not self._store.check(keys):
            if time.monotonic() > deadline:
                return {rank for rank, key in enumerate(keys) if not self._store.check([key])}
            time.sleep(0.05)
        return set()


class PatientDDP(DDPStrategy):
    """DDP whose processes meet first, see :class:`Meeting`.

    Args:
        minutes: how long one waits for another, at the start and later.
        options: of DDP.
    """

    def __init__(self, minutes: float, **options: Any) -> None:
        super().__init__(timeout=timedelta(minutes=minutes), **options)
        self.minutes = minutes
        self.meeting: Meeting | None = None

    def setup_environment(self) -> None:
        """Called by Fabric in every process."""
        cluster = self.cluster_environment
        assert cluster is not None
        rank, world = self.node_rank * self.num_processes + self.local_rank, self.num_nodes * self.num_processes
        if world > 1 and self.meeting is None:
            self.meeting = Meeting(cluster.main_address, cluster.main_port, rank, world, self.minutes)
        super().setup_environment()


@contextmanager
def losses_are_named(strategy: Any) -> Iterator[None]:
    """Around work of several processes: an error of their connection says which process does not answer."""
    meeting = strategy.meeting if isinstance(strategy, PatientDDP) else None
    try:
        yield
    except (RuntimeError, DistError) as error:
        text = " ".join(str(error).split())
        if meeting is None or not any(sign in text.lower() for sign in _LOST):
            raise
        try:
            missing = meeting.missing("lost", _GRACE)
        except (RuntimeError, DistError):
            missing = {0}  # which keeps the words
        who = f"{_named(missing, meeting.world)} not answered" if missing else "all answer again"
        raise ConfigError(f"the processes lost each other: {who} ({text[:200]})") from None


def _named(ranks: set[int], world: int) -> str:
    listed = ", ".join(map(str, sorted(ranks)))
    return f"process {listed} of {world} has" if len(ranks) == 1 else f"processes {listed} of {world} have"
