"""Repeat a run over seeds, or run a paper's ablations: ``python -m vpgfast.ablate --config RUN.yaml [--tables FILE]``.

Every run is a ``python -m vpgfast.train`` of its own in a folder below the output folder, so finished ones are kept and
killed ones go on when the same command is given again. Rows of the same settings, in one table or in two, are one run.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vpgfast import __version__
from vpgfast.ablation import (
    Row,
    Table,
    choose,
    claim_text,
    describe,
    heading,
    markdown,
    read_tables,
    summarize_table,
    table_text,
)
from vpgfast.checkpoint import write_file
from vpgfast.command import command, open_log
from vpgfast.config import TrainConfig, nearest, parse_train, to_dict
from vpgfast.data.moving_shapes import make_moving_shapes
from vpgfast.data.options import DataConfig
from vpgfast.embed import finds_videos
from vpgfast.errors import ConfigError, UserError
from vpgfast.evaluate import METRICS_FILE
from vpgfast.metrics.corpus import STRICT, corpus_metric_names
from vpgfast.metrics.rules import metric_names
from vpgfast.plots import draw_ablation
from vpgfast.train import look_into

log = logging.getLogger("vpgfast.ablate")

TRAIN = (sys.executable, "-m", "vpgfast.train")
RESULT, PAGE, PICTURE = "ablation.json", "ablation.md", "ablation.png"
OUTPUT_FILE = "output.txt"
"""In a run's folder: what its process printed."""
_LAST_LINES = 8  # of a failed run's output
_OURS = ("seed", "output", "pictures")  # settings of a run that this command decides


@dataclass(frozen=True)
class Run:
    """One training to be done.

    Attributes:
        name: of its settings; its folder's parent is called so.
        config: every setting, seed and output folder included.
        arguments: of the train command.
    """

    name: str
    config: TrainConfig
    arguments: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where it goes."""
        return self.config.output_folder()

    def __str__(self) -> str:
        return f"{self.name}, seed {self.config.seed}"


@dataclass(frozen=True)
class Plan:
    """What has to be run for the tables.

    Attributes:
        runs: all of them, a row's seeds together.
        names: (title, row) -> the name of the row's runs.
    """

    runs: list[Run]
    names: dict[tuple[str, str], str]


@command
def main(argv: Sequence[str]) -> int:
    """Command line of ``vpgfast ablate``."""
    options, settings = _arguments(argv)
    if options.config is not None:
        settings = ["--config", str(options.config), *settings]
    base = parse_train(settings)
    if base.resume or base.overwrite:
        raise ConfigError("--resume and --overwrite: runs go on by themselves here, and another --output starts anew")
    if options.tables is None:
        tables = wanted = [seeds_table(base)]
        if options.only:
            raise ConfigError("--only chooses among the tables of a file; name it by --tables")
    else:
        tables = read_tables(options.tables)
        wanted = choose(tables, options.only, str(options.tables))
    kind = "seeds" if options.tables is None else "ablation"
    output = options.output or Path("runs") / f"{base.method}-{base.data.corpus}-{kind}"
    seeds = [base.seed + i for i in range(options.seeds)]

    # All tables are planned and checked, so that a run has the same folder whichever of them are asked for.
    plan = make_plan(tables, settings, seeds, output, str(options.tables or "the command line"))
    needed = {plan.names[table.title, row.name] for table in wanted for row in table.rows}
    runs = [run for run in plan.runs if run.name in needed]
    with locked(output) as lock:
        open_log(output / "log.txt")
        unfinished = [run for run in runs if look_into(run.folder, run.config) != "finished"]
        log.info("%d runs: %d are finished, %d to do", len(runs), len(runs) - len(unfinished), len(unfinished))
        make_corpora(unfinished)
        failed = run_all(unfinished, options.workers, lock)
        content = collect(plan, runs, wanted, base, seeds, settings)
        write_results(content, output)
    print_results(content, output)
    if failed:
        rows = [
            f"{table.title} {row.name} (seed {run.config.seed})"
            for table in wanted
            for row in table.rows
            for run in failed
            if plan.names[table.title, row.name] == run.name
        ]
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed, so the tables lack {', '.join(rows)}; what they printed is in "
            f"{OUTPUT_FILE} in their folders, and the same command tries them again"
        )
    return 0


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """This command's own arguments, and those of the runs."""
    parser = argparse.ArgumentParser(
        prog="python -m vpgfast.ablate",
        usage="python -m vpgfast.ablate [--config RUN.yaml] [--tables TABLES.yaml] [--only TITLE] [--seeds N] "
        "[--workers N] [--output FOLDER] [--KEY VALUE ...]",
        description="Repeat a run over seeds and print mean and standard deviation, or run every row of a paper's "
        "ablation tables over seeds and say which of the paper's claims hold. Finished runs are kept, and killed "
        "ones go on when the command is given again.",
        epilog="--KEY VALUE are settings of every run, as in `python -m vpgfast.train` (--data.root, --epochs, --seed "
        "for the first seed, ...; its --help lists them); where a row sets the same key, the row's value counts. "
        "A claim holds if the mean over the seeds of the better row minus the worse, seed by seed, is above 0 by more "
        "than twice its standard error, it does not hold if it is below 0 by as much, else it is undecided. "
        "FOLDER then holds ablation.json, ablation.md, ablation.png, log.txt and a folder a run.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, help="YAML file of the run's settings; default: train's own")
    parser.add_argument(
        "--tables", type=Path, help="YAML file of tables, such as configs/marn/ablations.yaml; default: only the run"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="TITLE",
        help="only the table of this title, or of this beginning up to a comma; may be given several times",
    )  # fmt: skip
    parser.add_argument("--seeds", type=_count, default=3, metavar="N", help="runs of each row (default 3)")
    parser.add_argument(
        "--workers", type=_count, default=1, metavar="N",
        help="runs at a time, which share the cores (default 1); each has a process and a model of its own",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder; default: runs/METHOD-CORPUS-ablation (or -seeds)")
    return parser.parse_known_args(argv)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


# --- what has to be run


def seeds_table(base: TrainConfig) -> Table:
    """The run itself as a table of one row with all metrics (of the corpus metrics, those of one count)."""
    return Table(
        title="Over seeds",
        about="",
        corpus=base.data.corpus,
        metrics=tuple(name for name in metrics_of(base) if STRICT not in name),
        judged_by=base.select_by,
        settings={},
        rows=(Row(base.method, "", {}, {}),),
        claims=(),
        line=False,
    )


def make_plan(
    tables: Sequence[Table], settings: Sequence[str], seeds: Sequence[int], output: Path, source: str
) -> Plan:
    """The runs of the tables' rows, every one of them checked; equal settings are one run, named after the first row.

    Args:
        tables: all of the file.
        settings: arguments of the train command that all runs share.
        seeds: of each row.
        output: folder of everything.
        source: the tables' file, for messages.

    Raises:
        ConfigError: a row's settings are none of the method, or its run lacks a metric of the claims; names the row.
    """
    runs: list[Run] = []
    names: dict[tuple[str, str], str] = {}
    known: dict[str, str] = {}  # settings -> name
    for table in tables:
        for row in table.rows:
            where = f"{source}, table {table.title!r}, row {row.name!r}"
            changes = {**table.settings, **row.settings}
            for key in _OURS:
                if key in changes:
                    raise ConfigError(f"{where}: {key!r} is decided by the command; leave it out of the settings")
            arguments = [*settings, *(f"--{key}={_argument(value)}" for key, value in changes.items())]
            try:
                config = parse_train(arguments)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None
            _check_metrics(table, config, where)
            described = json.dumps({k: v for k, v in to_dict(config).items() if k not in _OURS}, sort_keys=True)
            if described not in known:
                known[described] = name = _folder_name(f"{table.title} {row.name}", known.values())
                for seed in seeds:
                    folder = output / name / f"seed-{seed}"
                    ours = (f"--seed={seed}", f"--output={folder}", "--pictures=0")
                    seeded = replace(config, seed=seed, output=folder, pictures=0)
                    runs.append(Run(name, seeded, (*arguments, *ours)))
            names[table.title, row.name] = known[described]
    return Plan(runs, names)


def _argument(value: Any) -> str:
    """A value of YAML as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _check_metrics(table: Table, config: TrainConfig, where: str) -> None:
    """Claims must be judged by metrics that the run has; the paper's other figures may stand alone."""
    there = metrics_of(config)
    for metric in (table.judged_by, *(claim.metric for claim in table.claims)):
        if metric not in there:
            raise ConfigError(f"{where}: no metric {metric!r} in this run{nearest(metric, there)}; see --metrics.*")


def metrics_of(config: TrainConfig) -> list[str]:
    """Names of what a run measures; of a method that finds videos the corpus metrics, too."""
    return metric_names(config.metrics) + (corpus_metric_names(config.metrics) if finds_videos(config.method) else [])


def _folder_name(text: str, taken: Collection[str]) -> str:
    """``Table 3 (1)`` -> ``table-3-1``, and ``table-3-1-2`` if that is another row's."""
    name = stem = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    number = 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return name


# --- running it


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Make the folder and hold it for this command and its runs; yields the descriptor that the runs inherit.

    A run that outlives a killed command keeps the lock, so that no second process writes into its folder.

    Raises:
        ConfigError: another one holds it, or the folder can't be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"output folder {folder}: {error.strerror}") from None
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{folder} is in use by another ablate command or a run that one has left; wait for it or stop it"
            ) from None
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
        with tqdm(total=len(runs), desc="runs", unit="run", disable=not runs) as bar:
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


# --- what came out


def collect(
    plan: Plan,
    runs: Sequence[Run],
    tables: Sequence[Table],
    base: TrainConfig,
    seeds: Sequence[int],
    settings: Sequence[str],
) -> dict[str, Any]:
    """``ablation.json``: all that the finished runs have found."""
    finished: dict[str, dict[int, dict[str, Any]]] = {run.name: {} for run in runs}
    for run in runs:
        if (run.folder / METRICS_FILE).is_file():
            finished[run.name][run.config.seed] = json.loads((run.folder / METRICS_FILE).read_text())
    everything = [result for by_seed in finished.values() for result in by_seed.values()]
    return {
        "method": base.method,
        "corpus": everything[0]["corpus"] if everything else base.data.corpus,
        "split": "test",
        "seeds": list(seeds),
        "settings": list(settings),
        "seconds": sum(result["seconds"] for result in everything),
        "versions": versions(),
        "tables": [
            summarize_table(table, {row.name: finished[plan.names[table.title, row.name]] for row in table.rows})
            for table in tables
        ],
    }


def versions() -> dict[str, str]:
    """Of this package, Python and torch, and the commit where the package is in a git checkout."""
    found = {"vpgfast": __version__, "python": platform.python_version(), "torch": torch.__version__}
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():  # installed; git would name the commit of whatever lies around it
        return found
    try:
        git = ["git", "rev-parse", "--short", "HEAD"]
        done = subprocess.run(git, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return found
    return {**found, "commit": done.stdout.strip()}


def write_results(content: Mapping[str, Any], output: Path) -> None:
    """The three files of results."""
    write_file(output / RESULT, (json.dumps(content, indent=2) + "\n").encode())
    write_file(output / PAGE, (f"# {output.name}\n\n" + markdown(content, "##", PICTURE)).encode())
    draw_ablation(content, output / PICTURE)


def print_results(content: Mapping[str, Any], output: Path) -> None:
    """The tables and claims, and where the files are."""
    print(describe(content))
    for table in content["tables"]:
        print(f"\n{heading(table)}\n{table_text(table, len(content['seeds']))}")
        for claim in table["claims"]:
            print(claim_text(claim))
    print(f"\nresults: {output / RESULT}, {output / PAGE}, {output / PICTURE}")


if __name__ == "__main__":
    sys.exit(main())
