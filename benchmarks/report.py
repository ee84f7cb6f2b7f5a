"""Draws the bar chart and writes the tables from stored rows: ``python -m benchmarks.report``.

Reads ``benchmarks/results/*.json`` and nothing else; writes ``docs/benchmarks.md``, ``docs/images/benchmarks.png`` and
the table between the marks in ``README.md``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from .targets import TARGETS, Target

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CHART = Path("docs/images/benchmarks.png")
PAGE = Path("docs/benchmarks.md")
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


def headline(cases: Sequence[Case]) -> list[tuple[Case, Case | None]]:
    """For each op at its paper's shape: forward, and forward+backward where it was measured."""
    by_key = {(case.op, case.shape, case.mode): case for case in cases}
    shown = []
    for op, shapes in HEADLINES.items():
        for shape in shapes:
            if forward := by_key.get((op, shape, MODES[0])):
                shown.append((forward, by_key.get((op, shape, MODES[1]))))
    return shown


def best_measured(cpus: Sequence[tuple[str, Sequence[Case]]]) -> tuple[str, Sequence[Case]]:
    """The device and its cases that the README and the chart show: the one on which most was measured."""
    return max(cpus, key=lambda cpu: len(headline(cpu[1])))


def readme_table(cases: Sequence[Case]) -> str:
    lines = [
        "| | | forward | | | forward and backward | | |",
        "|---|---|---|---|---|---|---|---|",
        "| op | shape | vpgfast | over the field | over PyTorch | vpgfast | over the field | over PyTorch |",
    ]
    for forward, both in headline(cases):
        cells = [f"`{forward.op}`", forward.shape, f"{_number(forward.ours['p50_ms'])} ms"]
        cells += [times(forward.over_field), times(forward.over_plain)]
        if both is None:
            cells += ["", "", ""]
        else:
            cells += [f"{_number(both.ours['p50_ms'])} ms", times(both.over_field), times(both.over_plain)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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


def behind(cases: Sequence[Case]) -> list[str]:
    """Where ours takes longer than the best plain PyTorch, the worst first; nothing where that is nowhere."""
    slower = sorted(
        (c for c in cases if c.over_plain is not None and c.over_plain < 1), key=lambda c: c.over_plain or 0
    )
    if not slower:
        return []
    rows = [f"| `{c.op}` | {c.shape} | {c.mode} | {c.over_plain:.2f}x |" for c in slower]
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


def draw(cases: Sequence[Case], device: str, path: Path) -> None:
    """Bars, forward+backward where it exists: how many times faster than the field's code, and than plain PyTorch."""
    chosen = [both or forward for forward, both in headline(cases)]
    figure, axes = plt.subplots(figsize=(9, 0.62 * len(chosen) + 1.6), layout="constrained")
    height = 0.38
    for position, case in enumerate(chosen):
        bars = ((-height / 2, case.over_field, "#7a9cc6"), (height / 2, case.over_plain, "#1f4e8c"))
        for offset, ratio, colour in bars:
            if ratio is not None:
                axes.barh(position + offset, ratio, height, color=colour, left=0)
                axes.text(ratio * 1.04, position + offset, times(ratio), va="center", fontsize=9)
    labels = [f"{case.op}\n{case.shape}" + ("" if case.mode == MODES[1] else ", forward") for case in chosen]
    axes.set_yticks(range(len(chosen)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(0.5, 1.6 * max(r for case in chosen for r in (case.over_field, case.over_plain) if r is not None))
    ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    axes.set_xticks(ticks, [f"{tick}x" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("times faster, forward and backward (logarithmic)")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in ("#7a9cc6", "#1f4e8c")]
    figure.legend(
        handles, ["than the field's code", "than the best plain PyTorch"], loc="outside upper center", ncols=2
    )
    axes.set_title(device, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
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
        raise SystemExit(f"no stored rows in {folder}; run `pytest benchmarks` first")
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
    write(ROOT / PAGE, "\n\n".join([about.rstrip(), *sections]) + "\n")
    if cpus:
        device, cases = best_measured(cpus)
        draw(cases, device, ROOT / CHART)
        readme = (ROOT / "README.md").read_text()
        before, _, rest = readme.partition(BEGIN)
        _, _, after = rest.partition(END)
        if not rest or not after:
            raise SystemExit(f"README.md has no lines {BEGIN} and {END} to write the table between")
        write(ROOT / "README.md", f"{before}{BEGIN}\n{device}, medians:\n\n{readme_table(cases)}\n{END}{after}")
    print(f"wrote {PAGE}, {CHART} and the table in README.md")


if __name__ == "__main__":
    main()
