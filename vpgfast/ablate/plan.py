"""What has to be run for the tables."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from vpgfast.ablate.tables import MIN_EFFECT, Row, Table
from vpgfast.config import TrainConfig, for_method, nearest, parse_train, to_dict
from vpgfast.errors import ConfigError
from vpgfast.metrics.corpus import STRICT, corpus_metric_names
from vpgfast.metrics.rules import metric_names
from vpgfast.models.embed import finds_videos

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


def seeds_table(base: TrainConfig) -> Table:
    """The run itself as a table of one row with all metrics (of the corpus metrics, those of one count)."""
    return Table(
        title="Over seeds",
        about="",
        corpus=base.data.corpus,
        metrics=tuple(name for name in metrics_of(base) if STRICT not in name),
        judged_by=(base.select_by if base.select_by in metrics_of(base) else "mIoU",),
        min_effect=MIN_EFFECT,
        settings={},
        rows=(Row(base.method, "", {}, {}),),
        claims=(),
        line=False,
    )


def make_plan(
    tables: Sequence[Table],
    settings: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    source: str,
    wanted: Sequence[Table] | None = None,
) -> Plan:
    """The runs of the tables' rows; equal settings are one run, named after the first row.

    Args:
        tables: all of the file.
        settings: arguments of the train command that all runs share.
        seeds: of each row.
        output: folder of everything.
        source: the tables' file, for messages.
        wanted: those that are asked for; rows of others that can't be run are left out. ``None``: all.

    Raises:
        ConfigError: a row's settings are none of the method, or its run lacks a metric of the claims; names the row.
    """
    runs: list[Run] = []
    names: dict[tuple[str, str], str] = {}
    known: dict[str, str] = {}  # settings -> name
    parse = functools.cache(parse_train)  # tables of two corpora have the same rows
    base = parse_train(settings).method
    for table in tables:
        for row in table.rows:
            where = f"{source}, table {table.title!r}, row {row.name!r}"
            method = row.settings.get("method", base)
            changes = {**for_method(table.settings, base, method), **row.settings}
            for key in _OURS:
                if key in changes:
                    raise ConfigError(f"{where}: {key!r} is decided by the command; leave it out of the settings")
            arguments = run_arguments(settings, changes, base)
            try:
                config = parse(tuple(arguments))
                _check_metrics(table, row, config, base)
            except ConfigError as error:
                if wanted is not None and table not in wanted:
                    continue
                raise ConfigError(f"{where}: {error}") from None
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


def run_arguments(settings: Sequence[str], changes: Mapping[str, Any], base: str) -> list[str]:
    """Arguments of the train command for a row.

    Args:
        settings: arguments that all rows share, of runs of the method ``base``.
        changes: settings of the row, dotted, which may name another method.
    """
    shared = _arguments_for(settings, base, changes.get("method", base))
    return [*shared, *(f"--{key}={_argument(value)}" for key, value in changes.items())]


def _arguments_for(settings: Sequence[str], own: str, method: str) -> list[str]:
    """Arguments of a run of ``own`` for a row of another method, as :func:`vpgfast.config.for_method`."""
    kept: list[str] = []
    left_out = False
    for argument in settings:
        if argument.startswith("--"):
            left_out = not for_method({argument[2:].partition("=")[0]: None}, own, method)
        if not left_out:
            kept.append(argument)
    return kept


def _argument(value: Any) -> str:
    """A value of YAML as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _check_metrics(table: Table, row: Row, config: TrainConfig, base: str) -> None:
    """Claims must be judged by metrics that the runs of their rows have; the paper's other figures may stand alone.

    A row of another method than ``base`` that no claim names has those that it has.
    """
    there = metrics_of(config)
    of_claims = [claim.metrics for claim in table.claims if row.name in (claim.better, claim.worse)]
    for metric in chain(table.judged_by if config.method == base else (), *of_claims):
        if metric not in there:
            raise ConfigError(f"no metric {metric!r} in this run{nearest(metric, there)}; see --metrics.*")


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
