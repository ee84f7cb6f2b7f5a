"""What pages say was measured is what is stored."""

from __future__ import annotations

import importlib
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


@pytest.mark.parametrize("script", ["kernel_traffic", "kernel_resources"])
def test_tables_of_kernels_are_those_of_the_files(script: str) -> None:
    if script == "kernel_resources":
        pytest.importorskip("triton")
    module = importlib.import_module(script)
    table = module.table(json.loads(module.STORED.read_text()))
    assert f"{module.BEGIN}\n\n{table}\n\n{module.END}" in module.PAGE.read_text()


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


def printed(folder: Path) -> set[str]:
    """All numbers of the stored files of a run, in per cent, and of the texts that were made of them."""
    found: set[str] = set()
    for file in folder.rglob("*.json"):
        found |= {f"{100 * number:.1f}" for number in numbers(json.loads(file.read_text()))}
    for file in folder.rglob("*.md"):
        found |= set(FIGURE.findall(file.read_text()))
    return found


FIGURE = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\w)")
RUN = re.compile(r"results\.md#([\w-]+)|results/(?:ablations/)?([\w-]+)/")


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_each_measured_figure_is_stored(page: Path) -> None:
    """Outside of the tables that are written by themselves: a figure is in one of these, or in a run that the paragraph
    links to."""
    text = page.read_text()
    tables = "\n".join(match[0] for mark in (MARK, ABLATION_MARK) for match in mark.finditer(text))
    shown = set(FIGURE.findall(tables))
    for part in MEASURED.findall(ABLATION_MARK.sub("", MARK.sub("", text))):
        for paragraph in part.split("\n\n"):
            linked = {name for pair in RUN.findall(paragraph) for name in pair if name}
            places = [
                place for name in linked for place in (DOCS / "results" / name, DOCS / "results/ablations" / name)
            ]
            allowed = shown.union(*map(printed, places))
            figures = FIGURE.findall(re.sub(r"`[^`]*`|\(http[^)]*\)", "", paragraph))
            assert [figure for figure in figures if figure not in allowed] == [], paragraph


@pytest.mark.parametrize("name", ["seqpan", "marn", "siamgtr", "dmr_jrg", "wsra"])
def test_pages_of_methods_have_four_parts(name: str) -> None:
    parts = re.findall(r"^## (.+)$", (DOCS / "methods" / f"{name}.md").read_text(), re.MULTILINE)
    assert parts == [
        "What it does",
        "How to run it",
        "What was measured",
        "What differs from the paper, and why",
    ]
