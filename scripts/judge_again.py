#!/usr/bin/env python3
"""Judges stored ablations again, by what their tables files ask for now: from the stored runs, nothing is trained.

Then `python scripts/results_page.py` and `python scripts/stored_tables.py` write the pages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vpgfast.ablate.results import judged, mark_shared_runs
from vpgfast.ablate.run import RESULT, write_results
from vpgfast.ablate.tables import MIN_EFFECT, Claim, Table, read_tables

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "docs" / "results" / "ablations"


def asked(table: dict[str, Any], files: dict[str, Table]) -> tuple[list[str], float, list[Claim]]:
    """By which metrics, from how much on, and what: of the file, or as it was stored of tables that no file has."""
    names = {row["name"] for row in table["rows"]}
    if (now := files.get(table["title"])) is not None:
        return list(now.judged_by), now.min_effect, [c for c in now.claims if {c.better, c.worse} <= names]
    by = table["judged_by"] if isinstance(table["judged_by"], list) else [table["judged_by"]]
    claims = [
        Claim(c["better"], c["worse"], c["claim"], tuple(c.get("metrics") or [c["metric"]])) for c in table["claims"]
    ]
    return by, table.get("min_effect", MIN_EFFECT), claims


def main() -> None:
    for file in sorted(STORE.glob(f"*/{RESULT}")):
        content = json.loads(file.read_text())
        own = "decode-" not in file.parent.name and "seeds-" not in file.parent.name
        folder = ROOT / "configs" / content["method"]
        files = {
            t.title: t for path in sorted(folder.glob("*.yaml")) if own and is_tables(path) for t in read_tables(path)
        }
        for table in content["tables"]:
            table["judged_by"], table["min_effect"], claims = asked(table, files)
            if table["title"] in files:
                table["metrics"] = list(files[table["title"]].metrics)
                labels = {row.name: row.label for row in files[table["title"]].rows}
                for row in table["rows"]:
                    row["label"] = labels.get(row["name"], row["label"])
            runs = {row["name"]: {run["seed"]: run["metrics"] for run in row["runs"]} for row in table["rows"]}
            paper = {row["name"]: row["paper"] for row in table["rows"]}
            table["claims"] = [
                judged(claim, table["min_effect"], runs[claim.better], runs[claim.worse], table["baselines"], paper)
                for claim in claims
            ]
        mark_shared_runs(content["tables"])
        write_results(content, file.parent)


def is_tables(path: Path) -> bool:
    """Whether a file of settings is one of tables."""
    return "\ntables:" in path.read_text()


if __name__ == "__main__":
    main()
