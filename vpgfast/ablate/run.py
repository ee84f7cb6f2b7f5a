"""From a file of tables (or a run alone) to its results."""

from __future__ import annotations

import argparse
import json
import logging
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vpgfast import __version__
from vpgfast.ablate.plan import Plan, Run, make_plan, seeds_table
from vpgfast.ablate.results import (
    claim_text,
    describe,
    heading,
    judged_text,
    mark_shared_runs,
    markdown,
    summarize_table,
    table_text,
)
from vpgfast.ablate.runs import OUTPUT_FILE, locked, make_corpora, run_all
from vpgfast.ablate.tables import Table, choose, read_tables
from vpgfast.command import open_log
from vpgfast.config import TrainConfig, parse_train
from vpgfast.errors import ConfigError, UserError
from vpgfast.files import METRICS_FILE, write_file
from vpgfast.plots import draw_ablation
from vpgfast.train.folder import look_into

log = logging.getLogger(__name__)
RESULT, PAGE, PICTURE = "ablation.json", "ablation.md", "ablation.png"


def run(options: argparse.Namespace, settings: list[str]) -> None:
    """Do what the command line asks; ``settings`` are arguments of the train command that all runs share."""
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

    # All tables are planned, so that a run has the same folder whichever of them are asked for; these are checked.
    plan = make_plan(tables, settings, seeds, output, str(options.tables or "the command line"), wanted)
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
    summaries = [
        summarize_table(table, {row.name: finished[plan.names[table.title, row.name]] for row in table.rows})
        for table in tables
    ]
    mark_shared_runs(summaries)
    return {
        "method": base.method,
        "corpus": everything[0]["corpus"] if everything else base.data.corpus,
        "split": "test",
        "seeds": list(seeds),
        "settings": list(settings),
        "seconds": sum(result["seconds"] for result in everything),
        "selection": selections(everything),
        "versions": versions(),
        "tables": summaries,
    }


def selections(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By what the runs' epochs were chosen, and whether that sees timestamps; each way once."""
    ways = {(result["selection"]["by"], result["selection"]["sees_spans"]) for result in results}
    return [{"by": by, "sees_spans": sees} for by, sees in sorted(ways)]


def versions() -> dict[str, str]:
    """Of this package, Python and torch, and the commit where the package is in a git checkout."""
    found = {"vpgfast": __version__, "python": platform.python_version(), "torch": torch.__version__}
    root = Path(__file__).parents[2]
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
        if text := judged_text(table):
            print(text)
        for claim in table["claims"]:
            print(claim_text(claim))
    print(f"\nresults: {output / RESULT}, {output / PAGE}, {output / PICTURE}")
