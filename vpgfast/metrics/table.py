"""Results as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def format_table(rows: Mapping[str, Mapping[str, float]], title: str = "") -> str:
    """Results by name as text, in per cent with one decimal; a dash where a row lacks a number.

    The first row is the method; the others are what it is compared with.
    """
    names = list(next(iter(rows.values())))
    cells = {label: [f"{100 * row[name]:.1f}" if name in row else "-" for name in names] for label, row in rows.items()}
    return align(names, list(cells.items()), title)


def align(names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], title: str = "") -> str:
    """A table of text: columns ``names``, right-aligned, and labelled rows of cells."""
    width = max(len(label) for label, _ in rows)
    widths = [max(len(name), *(len(cells[i]) for _, cells in rows)) for i, name in enumerate(names)]
    header = " " * width + "".join(f"  {name:>{w}}" for name, w in zip(names, widths, strict=True))
    lines = [*([title] if title else []), header, "-" * len(header)]
    for label, cells in rows:
        lines.append(f"{label:<{width}}" + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths, strict=True)))
    return "\n".join(line.rstrip() for line in lines)
