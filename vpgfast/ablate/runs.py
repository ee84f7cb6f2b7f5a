"""Running trainings, each in a process of its own."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vpgfast.ablate.plan import Run
from vpgfast.data.moving_shapes import make_moving_shapes
from vpgfast.data.options import DataConfig
from vpgfast.errors import ConfigError
from vpgfast.files import hold, output_folder

log = logging.getLogger(__name__)
TRAIN = (sys.executable, "-m", "vpgfast.train")
OUTPUT_FILE = "output.txt"
"""In a run's folder: what its process printed."""
_LAST_LINES = 8  # of a failed run's output


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Make the folder and hold it for this command and its runs; yields the descriptor that the runs inherit.

    A run that outlives a killed command keeps the lock, so that no second process writes into its folder.

    Raises:
        ConfigError: another one holds it, or the folder can't be made or written.
    """
    with (output_folder(folder) / ".lock").open("w") as file:
        if not hold(file):
            raise ConfigError(
                f"{folder} is in use by another ablate command or a run that one has left; wait for it or stop it"
            )
        yield file.fileno()


def make_corpora(runs: Sequence[Run]) -> None:
    """Make what the runs would make, once, before two of them do it at the same time."""
    made: list[DataConfig] = []
    for data in (run.config.data for run in runs):
        if data.corpus == "moving_shapes" and data not in made:
            make_moving_shapes(data.moving_shapes, data.seed, data.cache)
            made.append(data)


def run_all(runs: Sequence[Run], workers: int, lock: int) -> list[Run]:
    """Run them all, ``workers`` at a time, each with its share of the cores, unless the environment's
    ``OMP_NUM_THREADS`` gives another number; returns those that failed.

    Whatever ends this early (Ctrl-C, a signal) stops the running ones first; they resume when run again.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    waiting, failed = list(runs), []
    running: dict[subprocess.Popen[bytes], Run] = {}
    handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with tqdm(total=len(runs), desc="runs", unit="run", disable=None if runs else True) as bar:
            while waiting or running:
                while waiting and len(running) < workers:
                    run = waiting.pop(0)
                    log.info("starting %s: %s", run, run.folder)
                    running[_start(run, environment, lock)] = run
                time.sleep(0.1)
                for process in [process for process in running if process.poll() is not None]:
                    run = running.pop(process)
                    bar.update()
                    if process.returncode != 0:
                        failed.append(run)
                        log.warning("%s failed (code %d); its last lines:\n%s", run, process.returncode, _tail(run))
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        signal.signal(signal.SIGTERM, handler)
    return failed


def _interrupt(number: int, frame: Any) -> None:
    """A polite kill is a Ctrl-C: the runs have to be stopped."""
    raise KeyboardInterrupt


def _start(run: Run, environment: Mapping[str, str], lock: int) -> subprocess.Popen[bytes]:
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / OUTPUT_FILE).open("wb") as file:
        file.write(f"{shlex.join((*TRAIN, *run.arguments))}\n".encode())
        file.flush()
        return subprocess.Popen(
            [*TRAIN, *run.arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock,),
        )


def _tail(run: Run) -> str:
    lines = (run.folder / OUTPUT_FILE).read_text(errors="replace").splitlines()[1:]
    return "\n".join(f"    {line}" for line in lines[-_LAST_LINES:])
