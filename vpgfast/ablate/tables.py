"""The tables of a paper: what it varied, what it got and what it concludes from it.

A tables file is ``configs/<method>/ablations.yaml``. Its figures are per cent, as in papers; here they are fractions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vpgfast.config import flatten, nearest, read_yaml
from vpgfast.errors import ConfigError

MIN_EFFECT = 0.005
"""How far apart two rows must be for a verdict, if a table does not say: half a point."""


@dataclass(frozen=True)
class Row:
    """One setting of the method.

    Attributes:
        name: as the paper numbers it; claims name rows by it.
        about: what it is, in a few words.
        settings: of the run, dotted (``{"model.conv_kernel": 1}``), on top of the table's.
        paper: the paper's figures by metric, fractions; what it doesn't give is absent.
    """

    name: str
    about: str
    settings: dict[str, Any]
    paper: dict[str, float]

    @property
    def label(self) -> str:
        """What tables and pictures call it."""
        between = " " if self.name.endswith(")") else ": "  # "(a) neither", but "semi: 10% labelled"
        return between.join(filter(None, (self.name, self.about)))


@dataclass(frozen=True)
class Claim:
    """What the paper says of two rows.

    Attributes:
        better: name of the row that does better.
        worse: name of the other.
        claim: what the paper says, in one line.
        metrics: by whose mean it is judged.
    """

    better: str
    worse: str
    claim: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table (or figure) of the paper.

    Attributes:
        title: as the paper calls it.
        about: what it varies.
        corpus: of the paper's figures.
        metrics: those of the paper's figures; columns of the text.
        judged_by: the metrics of the claims and of the picture, of which the mean counts: one, or those that the paper
            prints of this table.
        min_effect: how far apart rows must be for a verdict, a fraction (0.005: half a point).
        settings: of all its rows, dotted.
        rows: in the paper's order.
        claims: what the paper says of them.
        line: draw the rows as points of a line, in their order.
    """

    title: str
    about: str
    corpus: str
    metrics: tuple[str, ...]
    judged_by: tuple[str, ...]
    min_effect: float
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    line: bool


def read_tables(path: Path) -> list[Table]:
    """The tables of a file, in its order.

    Raises:
        ConfigError: unreadable, or a key that is unknown, missing or wrong; names the file, the table and the row.
    """
    content = read_yaml(path, "tables file")
    entries = _checked(content, str(path), required=("tables",))["tables"]
    tables = [_table(entry, str(path), number) for number, entry in enumerate(_list(entries, str(path), "tables"), 1)]
    _unique([table.title for table in tables], str(path), "table")
    return tables


def choose(tables: Sequence[Table], only: Sequence[str], source: str) -> list[Table]:
    """The tables that ``only`` names by title, or by its beginning up to a comma; all if it names none.

    Raises:
        ConfigError: a title that isn't there; lists those that are.
    """
    for title in only:
        if not any(title in _titles(table) for table in tables):
            there = "; ".join(table.title for table in tables)
            raise ConfigError(f"--only {title!r}: {source} has no such table; it has {there}")
    return [table for table in tables if not only or any(title in _titles(table) for title in only)]


def _titles(table: Table) -> tuple[str, str]:
    return table.title, table.title.split(",")[0]


def _table(entry: Any, source: str, number: int) -> Table:
    title = entry.get("title") if isinstance(entry, Mapping) else None
    where = f"{source}, table {title!r}" if title else f"{source}, table number {number}"
    entry = _checked(
        entry,
        where,
        required=("title", "corpus", "judged_by", "rows"),
        optional=("about", "metrics", "settings", "claims", "line", "min_effect"),
    )
    metrics = tuple(map(str, _list(entry.get("metrics", []), where, "metrics")))
    rows = tuple(_row(row, where, metrics) for row in _list(entry["rows"], where, "rows"))
    names = _unique([row.name for row in rows], where, "row")
    judged_by = _metrics(entry["judged_by"], f"{where}: 'judged_by'")
    least = entry.get("min_effect", 100 * MIN_EFFECT)
    if not isinstance(least, int | float) or not 0 <= least <= 100:
        raise ConfigError(f"{where}: 'min_effect' takes points from 0 to 100, found {least!r}")
    claims = tuple(_claim(claim, where, names, judged_by) for claim in _list(entry.get("claims", []), where, "claims"))
    return Table(
        title=str(entry["title"]),
        about=str(entry.get("about", "")),
        corpus=str(entry["corpus"]),
        metrics=metrics,
        judged_by=judged_by,
        min_effect=least / 100,
        settings=_settings(entry.get("settings"), where),
        rows=rows,
        claims=claims,
        line=bool(entry.get("line", False)),
    )


def _row(entry: Any, where: str, metrics: Sequence[str]) -> Row:
    if isinstance(entry, Mapping) and "name" in entry:
        where = f"{where}, row {entry['name']!r}"
    entry = _checked(entry, where, required=("name",), optional=[field.name for field in fields(Row)])
    figures = _list(entry.get("paper", []), where, "paper")
    if figures and len(figures) != len(metrics):
        raise ConfigError(f"{where}: {len(figures)} figures below 'paper', the table has {len(metrics)} metrics")
    if not all(figure is None or (isinstance(figure, int | float) and 0 <= figure <= 100) for figure in figures):
        raise ConfigError(f"{where}: 'paper' takes numbers from 0 to 100, or null, found {figures}")
    paper = {name: figure / 100 for name, figure in zip(metrics, figures, strict=False) if figure is not None}
    return Row(str(entry["name"]), str(entry.get("about", "")), _settings(entry.get("settings"), where), paper)


def _metrics(value: Any, where: str) -> tuple[str, ...]:
    """One metric, or a list of several."""
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(name, str) for name in found):
        raise ConfigError(f"{where} takes a metric or a list of metrics, found {value!r}")
    return tuple(found)


def _claim(entry: Any, where: str, names: Sequence[str], judged_by: tuple[str, ...]) -> Claim:
    entry = _checked(entry, f"{where}, claims", required=("better", "claim"), optional=("metric",))
    pair = list(map(str, _list(entry["better"], where, "better")))
    if len(pair) != 2:
        raise ConfigError(f"{where}: 'better' takes two rows, the better one first, found {pair}")
    for name in pair:
        if name not in names:
            raise ConfigError(f"{where}: a claim names the row {name!r}, which isn't there{nearest(name, names)}")
    metrics = _metrics(entry["metric"], f"{where}, claims: 'metric'") if "metric" in entry else judged_by
    return Claim(pair[0], pair[1], str(entry["claim"]), metrics)


def _checked(entry: Any, where: str, required: Sequence[str], optional: Sequence[str] = ()) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: must hold 'key: value' lines, found {type(entry).__name__}")
    valid = dict.fromkeys((*required, *optional))
    for key in entry:
        if key not in valid:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(str(key), valid)}; there are {', '.join(valid)}")
    for key in required:
        if key not in entry:
            raise ConfigError(f"{where}: the key {key!r} is missing")
    return entry


def _list(value: Any, where: str, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{where}: {key!r} must be a list, found {value!r}")
    return value


def _settings(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping | None):
        raise ConfigError(f"{where}: 'settings' must hold 'key: value' lines, found {value!r}")
    return flatten(value or {})


def _unique(names: list[str], where: str, what: str) -> list[str]:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"{where}: two {what}s are called {twice[0]!r}")
    return names
