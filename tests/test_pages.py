"""What pages say was measured is what is stored."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "scripts"))

from stored_tables import ABLATION_MARK, MARK, rewritten  # noqa: E402

PAGES = sorted(DOCS.rglob("*.md"))
METHODS = sorted((DOCS / "methods").glob("*.md"))
MEASURED = re.compile(r"^## (?:What was measured|Measured)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_stored_tables_are_those_of_the_files(page: Path) -> None:
    """`python scripts/stored_tables.py` writes them again."""
    text = page.read_text()
    assert rewritten(text) == text


def numbers(stored: Any) -> Iterator[float]:
    """All numbers of a JSON file."""
    if isinstance(stored, dict):
        stored = stored.values()
    elif not isinstance(stored, list):
        if isinstance(stored, float | int) and not isinstance(stored, bool):
            yield stored
        return
    for value in stored:
        yield from numbers(value)


@pytest.fixture(scope="module")
def stored() -> set[str]:
    """Every stored number as pages print it, in per cent and as it is, and all numbers of stored texts."""
    found: set[str] = set()
    for file in (DOCS / "results").rglob("*.json"):
        for number in numbers(json.loads(file.read_text())):
            found |= {f"{100 * number:.1f}", f"{number:.1f}", f"{abs(100 * number):.1f}"}
    for file in [*(DOCS / "results").rglob("*.md"), *(DOCS / "results").rglob("*.txt")]:
        found |= set(re.findall(r"\d+\.\d+", file.read_text()))
    return found


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_each_measured_figure_is_stored(page: Path, stored: set[str]) -> None:
    """Of what is said outside of the tables that are written by themselves."""
    text = ABLATION_MARK.sub("", MARK.sub("", page.read_text()))
    for part in MEASURED.findall(text):
        prose = re.sub(r"`[^`]*`|\(http[^)]*\)", "", part)
        figures = re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\w)", prose)
        assert [figure for figure in figures if figure not in stored] == []
