"""Draws the bar chart and writes the tables from stored rows: ``python -m benchmarks.report``.

Reads ``benchmarks/results/*.json`` and nothing else; writes ``docs/benchmarks.md``, ``docs/images/benchmarks.png`` and
the table between the marks in ``README.md``, and ``vpgfast/doctor/measured.json``, which ``vpgfast doctor`` shows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from vpgfast.ops import OPS

from .targets import TARGETS, Target

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CHART = Path("docs/images/benchmarks.png")
PAGE = Path("docs/benchmarks.md")
MEASURED = Path("vpgfast/doctor/measured.json")
SETS = {"default": "x86-64-v2", "v3": "AVX2 (v3)", "v4": "AVX-512 (v4)"}
BEGIN, END = "<!-- benchmarks: written by `python -m benchmarks.report` -->", "<!-- /benchmarks -->"
MODES = ("forward", "forward+backward")

# The papers' own shapes: what the README and the chart show. Every other shape is in docs/benchmarks.md.
HEADLINES = {
    "proposal_conv": ("B=16 C=512 D=512 T=32 N=4x1 P=146", "B=4 C=128 D=512 T=128 N=4x1 P=942"),
    "temporal_map_max_pool": ("B=16 C=512 T=32",),
    "temporal_map_conv2d": ("B=16 C=D=512 T=16 K5L8 layer 8", "B=2 C=D=512 T=64 K5L8 layer 8"),
    "temporal_iou_map": ("B=32 M=8 T=64",),
    "temporal_map_bce": ("B=32 M=8 T=64",),
    "temporal_nms": ("L=32 N=1104 top_k=5",),
    "anchor_cross_attention": ("B=32 H=8 Q=5 T=256 d=32 one k_pos",),
    "ordered_suppression_scan": ("F: B=4 M=8 D=512 T=32",),
    "temporal_contrast_spans": ("B=4 M=4 T=200 up to 200 top_k=5",),
    "ordered_spans": ("B=16 M=4 T=200 up to 200",),
    "pairwise_relevance": ("N=1344 M=42 H=512",),
}


@dataclass(frozen=True)
class Case:
    """One op at one shape in one mode: our row, the field's and the best plain one, where there are such."""

    op: str
    shape: str
    mode: str
    ours: dict
    field: dict | None
    plain: dict | None

    @property
    def over_field(self) -> float | None:
        return self.field["p50_ms"] / self.ours["p50_ms"] if self.field else None

    @property
    def over_plain(self) -> float | None:
        return self.plain["p50_ms"] / self.ours["p50_ms"] if self.plain else None


def cases_of(rows: Iterable[dict]) -> list[Case]:
    """Rows grouped by op, shape and mode, in that order."""
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in rows:
        if row["mode"] in MODES:
            groups.setdefault((row["op"], row["shape"], row["mode"]), []).append(row)
    cases = []
    for (op, shape, mode), group in sorted(groups.items()):
        by_role = {role: [row for row in group if row["role"] == role] for role in ("ours", "field", "plain")}
        if by_role["ours"]:
            best = {r: min(g, key=lambda row: row["p50_ms"]) if g else None for r, g in by_role.items()}
            assert best["ours"] is not None
            cases.append(Case(op, shape, mode, best["ours"], best["field"], best["plain"]))
    return cases


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}x" if ratio < 20 else f"{ratio:.0f}x"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def headline(cases: Sequence[Case], headlines: Mapping[str, Sequence[str]] = HEADLINES) -> dict[tuple[str, str], Case]:
    """Each op at its paper's shape, forward and backward where that was measured, else forward."""
    by_key = {(case.op, case.shape, case.mode): case for case in cases}
    found = {
        (op, shape): by_key.get((op, shape, MODES[1])) or by_key.get((op, shape, MODES[0]))
        for op, shapes in headlines.items()
        for shape in shapes
    }
    return {key: case for key, case in found.items() if case is not None}


def machine_of(device: str) -> tuple[str, str]:
    """The processor and its instruction set, as benchmarks name a device: ``AMD EPYC x2, v3``."""
    machine, _, instruction_set = device.rpartition(", ")
    return machine, instruction_set


def best_measured(cpus: Sequence[tuple[str, Sequence[Case]]]) -> tuple[str, dict[str, Sequence[Case]]]:
    """What the README and the chart show: the machine on which most was measured, its cases by instruction set."""
    machines: dict[str, dict[str, Sequence[Case]]] = {}
    for device, cases in cpus:
        machine, instruction_set = machine_of(device)
        machines.setdefault(machine, {})[instruction_set] = cases
    return max(machines.items(), key=lambda one: sum(len(headline(cases)) for cases in one[1].values()))


def readme_table(by_set: Mapping[str, Sequence[Case]], headlines: Mapping[str, Sequence[str]] = HEADLINES) -> str:
    by_name = {name: headline(cases, headlines) for name, cases in sorted(by_set.items())}
    names = [SETS.get(name, name) for name in by_name]
    lines = [
        "| | | |" + "".join(f" {name} | | |" for name in names),
        "|---|---|---|" + "---|---|---|" * len(names),
        "| op | shape | mode |" + " vpgfast | over the field | over PyTorch |" * len(names),
    ]
    for key in [(op, shape) for op, shapes in headlines.items() for shape in shapes]:
        cases = [found.get(key) for found in by_name.values()]
        mode = next((case.mode for case in cases if case), None)
        if mode is not None:
            cells = [f"`{key[0]}`", key[1], mode]
            for case in cases:
                shown = case and [f"{_number(case.ours['p50_ms'])} ms", times(case.over_field), times(case.over_plain)]
                cells += shown or ["", "", ""]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measured_table(rows: Sequence[dict]) -> str:
    """The README's table of one device's rows as they were just measured: the README's shapes, then all others."""
    cases, device = cases_of(rows), rows[0]["device"]
    shapes = {op: list(shapes) for op, shapes in HEADLINES.items()}
    for case in cases:
        if case.shape not in shapes.setdefault(case.op, []):
            shapes[case.op].append(case.shape)
    return aligned(readme_table({machine_of(device)[1]: cases}, shapes))


def aligned(table: str) -> str:
    """The same table with columns of equal width, to be read as it is."""
    cells = [line.strip("|").split("|") for line in table.splitlines()]
    widths = [max(len(row[column].strip()) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "| "
        + " | ".join(
            cell.strip().ljust(width, "-" if cell == "---" else " ") for cell, width in zip(row, widths, strict=True)
        )
        + " |"
        for row in cells
    )


def by_instruction_set(by_set: Mapping[str, Sequence[Case]]) -> str:
    """Every case over the best plain PyTorch, a column for each instruction set; what is behind it is marked red."""
    ratios: dict[tuple[str, str, str], dict[str, float]] = {}
    for name, cases in by_set.items():
        for case in cases:
            if case.over_plain is not None:
                ratios.setdefault((case.op, case.shape, case.mode), {})[name] = case.over_plain
    names = sorted(by_set)
    lines = [
        "| op | shape | mode |" + "".join(f" {SETS.get(name, name)} |" for name in names),
        "|---|---|---|" + "---|" * len(names),
    ]
    for (op, shape, mode), found in sorted(ratios.items()):
        cells = [(times(found[n]) + (" 🔴" if found[n] < 1 else "")) if n in found else "" for n in names]
        lines.append("| " + " | ".join([f"`{op}`", shape, mode, *cells]) + " |")
    return "\n".join(lines)


def measured_by_op(cpus: Sequence[tuple[str, Sequence[Case]]]) -> dict[str, dict[str, object]]:
    """By instruction set: the machine, and over all shapes of an op the least and the most over plain PyTorch."""
    found: dict[str, dict[str, object]] = {}
    for device, cases in sorted(cpus, key=lambda cpu: len(cpu[1])):
        machine, instruction_set = machine_of(device)
        by_op: dict[str, list[float]] = {}
        for case in cases:
            if case.op in OPS and case.over_plain is not None:
                by_op.setdefault(case.op, []).append(round(case.over_plain, 2))
        found[instruction_set] = {
            "machine": machine, "ops": {op: [min(ratios), max(ratios)] for op, ratios in sorted(by_op.items())}
        }  # fmt: skip
    return found


def overview(machine: str, by_set: Mapping[str, Sequence[Case]]) -> str:
    about = (
        "Eager or compiled, whichever is faster; so is ours where it was measured compiled, too. "
        "🔴: it is faster than ours."
    )
    return f"## Over the best plain PyTorch, {machine}\n\n{about}\n\n{by_instruction_set(by_set)}"


def page(rows: Sequence[dict], cases: Sequence[Case], device: str) -> str:
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    threads = ", ".join(sorted({str(row["threads"]) for row in rows}))
    versions = ", ".join(sorted({row["torch"] for row in rows}))
    lines = [
        f"## {device}",
        "",
        f"torch {versions}, {threads} threads, float32 unless said otherwise, measured at {commits}. Medians.",
        "",
    ]
    op = ""
    for case in cases:
        if case.op != op:
            op = case.op
            lines += [
                "",
                f"### `{op}`",
                "",
                "| shape | mode | ours, ms | of floor | field's, ms | over it | best plain, ms | which | over it "
                "| peak MiB: ours, field's, plain |",
                "|---|---|---|---|---|---|---|---|---|---|",
            ]
        peaks = ", ".join(
            _number(row["peak_mib"]) or "-" if row else "-" for row in (case.ours, case.field, case.plain)
        )
        field, plain = case.field, case.plain
        shape = case.shape + ("" if case.ours["dtype"] == "float32" else f" {case.ours['dtype']}")
        cells = [shape, case.mode, _number(case.ours["p50_ms"]), f"{100 * case.ours['share_of_floor']:.0f}%"]
        cells += [_number(field["p50_ms"]) if field else "", times(case.over_field)]
        cells += [_number(plain["p50_ms"]) if plain else "", plain["provider"] if plain else "", times(case.over_plain)]
        lines.append("| " + " | ".join([*cells, peaks]) + " |")
    lines += ["", *behind(cases)]
    return "\n".join(line for i, line in enumerate(lines) if line or lines[i - 1])


def slowest(cases: Sequence[Case]) -> list[Case]:
    """Those that take longer than the best plain PyTorch, the worst first."""
    return sorted((c for c in cases if c.over_plain is not None and c.over_plain < 1), key=lambda c: c.over_plain or 0)


def behind(cases: Sequence[Case]) -> list[str]:
    """A table of the slowest; nothing where there is none."""
    slower = slowest(cases)
    if not slower:
        return []
    rows = [f"| `{c.op}` | {c.shape} | {c.mode} | {c.over_plain:.2f}x 🔴 |" for c in slower]
    return ["### Behind the best plain PyTorch", "", "| op | shape | mode | over it |", "|---|---|---|---|", *rows]


def as_graphs(rows: Iterable[dict]) -> list[dict]:
    """The rows that were captured as CUDA graphs, with those times in the place of the calls'."""
    return [
        row | {"p50_ms": row["graph_ms"], "share_of_floor": row["floor_ms"] / row["graph_ms"]}
        for row in rows
        if row["mode"] in MODES and row.get("graph_ms")
    ]


def pages(rows: Sequence[dict]) -> list[str]:
    """A device's tables: of a GPU one of CUDA graphs and one of calls."""
    device, called = rows[0]["device"], [row for row in rows if row["mode"] in MODES]
    if rows[0]["on"] == "cpu":
        return [page(called, cases_of(rows), device)]
    graphs = as_graphs(rows)
    return [
        page(graphs, cases_of(graphs), f"{device}, as CUDA graphs"),
        page(called, cases_of(rows), f"{device}, as called"),
    ]


def _target_line(target: Target, times_faster: float, case: Case) -> str:
    peer = case.field if target.over_field else min(filter(None, (case.field, case.plain)), key=lambda r: r["p50_ms"])
    assert peer is not None, f"no row of a peer of {case.op} at {case.shape}"
    ratio = peer["p50_ms"] / case.ours["p50_ms"]
    cells = [
        f"`{case.op}`",
        case.shape,
        case.mode,
        f"{times_faster:g}x over the {'field' if target.over_field else 'best'}",
    ]
    cells += [times(ratio), times(case.over_field), times(peer["p50_ms"] / case.ours["floor_ms"])]
    return "| " + " | ".join([*cells, "met" if ratio >= times_faster else target.why_short]) + " |"


def targets_table(cases: Sequence[Case]) -> str:
    """What was aimed for on two CPU cores, what was measured, and what an op at its floor would reach."""
    by_key = {(case.op, case.shape, case.mode): case for case in cases}
    lines = [
        "### Targets",
        "",
        "How many times faster than the best of all peers, or than the field's code alone, as the target says; and how "
        "many times an op that ran at its floor would be.",
        "",
        "| op | shape | mode | target | measured | over the field | at the floor | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        for mode, wanted in zip(MODES, (target.forward, target.both), strict=True):
            case = by_key.get((target.op, target.shape, mode))
            if wanted is not None and case is not None:
                lines.append(_target_line(target, wanted, case))
    return "\n".join(lines)


def draw(by_set: Mapping[str, Sequence[Case]], machine: str, path: Path) -> None:
    """Bars, a panel for each instruction set: how many times faster than the field's code, and than plain PyTorch."""
    headlines = {name: headline(cases) for name, cases in sorted(by_set.items())}
    keys = [(op, shape) for op, shapes in HEADLINES.items() for shape in shapes]
    keys = [key for key in keys if any(key in found for found in headlines.values())]
    size = (4.5 + 4.5 * len(headlines), 0.62 * len(keys) + 1.8)
    figure, panels = plt.subplots(1, len(headlines), figsize=size, sharey=True, squeeze=False, layout="constrained")
    colours, height = ("#7a9cc6", "#1f4e8c"), 0.38
    cases = [case for found in headlines.values() for case in found.values()]
    widest = max(r for case in cases for r in (case.over_field, case.over_plain) if r is not None)
    for axes, (name, found) in zip(panels[0], headlines.items(), strict=True):
        for position, key in enumerate(keys):
            ratios = (found[key].over_field, found[key].over_plain) if key in found else (None, None)
            for offset, ratio, colour in zip((-height / 2, height / 2), ratios, colours, strict=True):
                if ratio is not None:
                    axes.barh(position + offset, ratio, height, color=colour, left=0)
                    axes.text(ratio * 1.04, position + offset, times(ratio), va="center", fontsize=9)
        axes.set_xscale("log")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlim(0.5, 2.2 * widest)
        ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]
        axes.set_xticks(ticks, [f"{tick}x" for tick in ticks], fontsize=7)
        axes.minorticks_off()
        axes.set_xlabel("times faster (logarithmic)")
        axes.set_title(f"{machine}, {SETS.get(name, name)}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    modes = {key: next(found[key].mode for found in headlines.values() if key in found) for key in keys}
    labels = [f"{op}\n{shape}" + ("" if modes[op, shape] == MODES[1] else ", forward") for op, shape in keys]
    panels[0][0].set_yticks(range(len(keys)), labels, fontsize=8)
    panels[0][0].invert_yaxis()
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours]
    figure.legend(
        handles, ["than the field's code", "than the best plain PyTorch"], loc="outside upper center", ncols=2
    )
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=130)
    os.replace(temporary, path)
    plt.close(figure)


def write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of stored rows (default: %(default)s)")
    folder = parser.parse_args().results
    files = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    if not files:
        raise SystemExit(f"no stored rows in {folder}; run `pytest benchmarks --full` first")
    sections, cpus = [], []
    for rows in files.values():
        sections += pages(rows)
        device, cases = rows[0]["device"], cases_of(rows)
        if rows[0]["on"] == "cpu":
            cpus.append((device, cases))
            sections.append(targets_table(cases))
    about = (
        "# Measured speed\n\nWritten by `python -m benchmarks.report` from the rows in `benchmarks/results/`; how they "
        "are measured: [benchmarks/results/README.md](../benchmarks/results/README.md).\n\n"
        "![Bars: how many times faster than the field's code and than plain PyTorch](images/benchmarks.png)\n"
    )
    if cpus:
        machine, by_set = best_measured(cpus)
        sections.insert(0, overview(machine, by_set))
    write(ROOT / PAGE, "\n\n".join([about.rstrip(), *sections]) + "\n")
    if cpus:
        write(ROOT / MEASURED, json.dumps(measured_by_op(cpus), indent=1) + "\n")
        draw(by_set, machine, ROOT / CHART)
        readme = (ROOT / "README.md").read_text()
        before, _, rest = readme.partition(BEGIN)
        _, _, after = rest.partition(END)
        if not rest or not after:
            raise SystemExit(f"README.md has no lines {BEGIN} and {END} to write the table between")
        write(ROOT / "README.md", f"{before}{BEGIN}\n{machine}, medians:\n\n{readme_table(by_set)}\n{END}{after}")
    slower = [
        f"{device}: {c.op} {c.shape} {c.mode} {c.over_plain:.2f}x" for device, cases in cpus for c in slowest(cases)
    ]
    red, plain = ("\033[31m", "\033[0m") if sys.stdout.isatty() else ("", "")
    for line in slower:
        print(f"{red}behind the best plain PyTorch: {line}{plain}")
    print(f"wrote {PAGE}, {CHART}, {MEASURED} and the table in README.md")


if __name__ == "__main__":
    main()
