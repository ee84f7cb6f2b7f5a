#!/usr/bin/env python3
"""Stored results in pages, between two marks: what scripts measure, docs/results/tables/NAME.json, and single tables of
what `vpgfast ablate` ran, docs/results/ablations/NAME/ablation.json.

    <!-- table: NAME -->
    ... (rewritten by `python scripts/stored_tables.py`)
    <!-- /table -->

    <!-- ablation: NAME, TITLE OF THE TABLE -->
    ...
    <!-- /ablation -->

No number there is typed by hand.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpgfast.ablate.results import claim_text, describe, heading, judged_text, table_text
from vpgfast.ablate.run import RESULT
from vpgfast.metrics.table import align

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "docs" / "results" / "tables"
ABLATIONS = ROOT / "docs" / "results" / "ablations"
MARK = re.compile(r"<!-- table: (\S+) -->\n.*?<!-- /table -->", re.DOTALL)
ABLATION_MARK = re.compile(r"<!-- ablation: (\S+), (.+?) -->\n.*?<!-- /ablation -->", re.DOTALL)


def store(
    name: str, about: str, command: str, columns: Mapping[str, str], rows: Sequence[tuple[str, Sequence[Any]]]
) -> None:
    """Write a table's file and bring the pages up to date.

    Args:
        name: of the file.
        about: one line: what was measured, on what.
        command: that measures it again.
        columns: each with its format ("%": a fraction in per cent, else as of ``format``).
        rows: label and values, ``None`` for none.
    """
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    content = {
        "about": about,
        "command": command,
        "commit": commit,
        "columns": dict(columns),
        "rows": [[label, list(values)] for label, values in rows],
    }
    STORE.mkdir(parents=True, exist_ok=True)
    (STORE / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(text(content))
    write_pages()


def text(content: Mapping[str, Any]) -> str:
    """A stored table as text."""

    def cell(value: Any, form: str) -> str:
        if value is None:
            return "-"
        return f"{100 * value:.1f}" if form == "%" else format(value, form)

    forms = list(content["columns"].values())
    rows = [
        (label, [cell(v, form) for v, form in zip(values, forms, strict=True)]) for label, values in content["rows"]
    ]
    return align(list(content["columns"]), rows)


def block(name: str) -> str:
    """What stands between the marks."""
    content = json.loads((STORE / f"{name}.json").read_text())
    about = f"{content['about']} `{content['command']}`, commit {content['commit']}."
    return f"<!-- table: {name} -->\n{about}\n\n```\n{text(content)}\n```\n<!-- /table -->"


def ablation_block(name: str, title: str) -> str:
    """What stands between the marks of one table of an ablation.

    Raises:
        SystemExit: there is no such ablation or table.
    """
    file = ABLATIONS / name / RESULT
    content = json.loads(file.read_text()) if file.is_file() else {"tables": []}
    table = next((table for table in content["tables"] if table["title"] == title), None)
    if table is None:
        raise SystemExit(f"{file}: no such file, or no table {title!r} in it")
    about = f"{heading(table)}. {describe(content)} Commit {content['versions'].get('commit', 'unknown')}."
    claims = "".join(f"\n- {claim_text(claim)}" for claim in table["claims"])
    about = " ".join(filter(None, (about, judged_text(table))))
    text = f"```\n{table_text(table, len(content['seeds']))}\n```\n" + (f"{claims}\n" if claims else "")
    return f"<!-- ablation: {name}, {title} -->\n{about}\n\n{text}<!-- /ablation -->"


def rewritten(page: str) -> str:
    """A page with what is stored between its marks."""
    page = MARK.sub(lambda match: block(match[1]) if (STORE / f"{match[1]}.json").is_file() else match[0], page)
    return ABLATION_MARK.sub(lambda match: ablation_block(match[1], match[2]), page)


def write_pages() -> None:
    """Rewrite what stands between the marks of all pages."""
    for page in (ROOT / "docs").rglob("*.md"):
        old = page.read_text()
        new = rewritten(old)
        if new != old:
            page.write_text(new)


if __name__ == "__main__":
    write_pages()
