#!/usr/bin/env python3
"""Adds to stored ablations the rows that their tables files have got since: runs these rows, and no others.

    python scripts/add_rows.py siamgtr-moving_shapes --output runs/added --accelerator cpu

Baselines that the stored tables lack come with them. Then `python scripts/results_page.py` writes the page.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vpgfast.ablate.plan import make_plan
from vpgfast.ablate.results import mark_shared_runs, summarize_table
from vpgfast.ablate.run import RESULT, versions, write_results
from vpgfast.ablate.runs import locked, make_corpora, run_all
from vpgfast.ablate.tables import Table, read_tables
from vpgfast.files import METRICS_FILE
from vpgfast.train.folder import look_into

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "docs" / "results" / "ablations"


def lacking(now: Sequence[Table], stored: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The tables that are stored, with the rows alone that are not."""
    known = {table["title"]: {row["name"] for row in table["rows"]} for table in stored}
    tables = [table for table in now if table.title in known]
    short = [replace(t, rows=tuple(r for r in t.rows if r.name not in known[t.title]), claims=()) for t in tables]
    return [table for table in short if table.rows]


def merge(stored: dict[str, Any], added: Mapping[str, Any], order: Sequence[str]) -> None:
    """Put the rows of one table of ``ablation.json`` into another, in the order of the tables file.

    Raises:
        SystemExit: a baseline that both have is another one: they are not of the same corpus.
    """
    for name, row in added["baselines"].items():
        for metric, value in stored["baselines"].get(name, {}).items():
            if not math.isclose(row[metric], value, abs_tol=1e-12):
                raise SystemExit(
                    f"{stored['title']}: {name}, {metric} is {value} in the stored runs, {row[metric]} here"
                )
    stored["baselines"] = {**stored["baselines"], **added["baselines"]}
    rows = {row["name"]: row for row in [*stored["rows"], *added["rows"]]}
    stored["rows"] = [rows[name] for name in order if name in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="+", help="of a folder of docs/results/ablations")
    parser.add_argument("--output", type=Path, default=Path("runs/added"), help="where the runs go")
    parser.add_argument("--workers", type=int, default=1)
    arguments, settings = parser.parse_known_args()
    for name in arguments.name:
        content = json.loads((STORE / name / RESULT).read_text())
        folder = ROOT / "configs" / content["method"]
        now = [table for file in ("ablations.yaml", "additions.yaml") for table in read_tables(folder / file)]
        tables = lacking(now, content["tables"])
        output = arguments.output / name
        # As the stored rows' epochs were chosen, whatever the config says since.
        select = [f"--select_by={way['by']}" for way in content["selection"]]
        if len(select) > 1:
            raise SystemExit(f"{name}: its rows' epochs are chosen in several ways; run the ablation anew")
        plan = make_plan(tables, [*content["settings"], *select, *settings], content["seeds"], output, str(folder))
        with locked(output) as lock:
            unfinished = [run for run in plan.runs if look_into(run.folder, run.config) != "finished"]
            make_corpora(unfinished)
            if run_all(unfinished, arguments.workers, lock):
                raise SystemExit(f"{name}: some runs failed; nothing was stored")
        found = {run.name: {} for run in plan.runs}
        for run in plan.runs:
            found[run.name][run.config.seed] = json.loads((run.folder / METRICS_FILE).read_text())
        stored = {table["title"]: table for table in content["tables"]}
        order = {table.title: [row.name for row in table.rows] for table in now}
        for table in tables:
            runs = {row.name: found[plan.names[table.title, row.name]] for row in table.rows}
            merge(stored[table.title], summarize_table(table, runs), order[table.title])
        if tables:
            rows = {table.title: [row.name for row in table.rows] for table in tables}
            mark_shared_runs(content["tables"])
            content["added"] = [*content.get("added", []), {"rows": rows, "versions": versions()}]
            write_results(content, STORE / name)


if __name__ == "__main__":
    main()
