"""Tables come from stored rows and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import pytest

from benchmarks import report
from benchmarks.targets import TARGETS, Target

ROOT = Path(__file__).resolve().parent.parent


def row(provider: str, role: str, mode: str, ms: float, **changes: object) -> dict:
    named = {"op": "temporal_map_bce", "shape": "B=32 M=8 T=64", "dtype": "float32", "device": "d", "on": "cpu"}
    return named | {
        "provider": provider, "role": role, "mode": mode, "p50_ms": ms, "floor_ms": ms / 2, "share_of_floor": 0.5,
        "peak_mib": ms * 10, "commit": "abc", "threads": 2, "torch": "2.13",
    } | changes  # fmt: skip


ROWS = [
    row("ours", "ours", "forward", 2.0),
    row("field", "field", "forward", 30.0),
    row("slow", "plain", "forward", 9.0),
    row("fast", "plain", "forward", 5.0),
    row("ours", "ours", "forward+backward", 4.0),
    row("fast", "plain", "forward+backward", 6.0, peak_mib=None),
    row("loader", "ours", "training", 6.0),
]


def test_ratios_are_those_of_the_rows() -> None:
    forward, both = report.cases_of(ROWS)
    assert (forward.over_field, forward.over_plain) == (15.0, 2.5)
    assert (both.over_field, both.over_plain) == (None, 1.5)
    table = report.readme_table({"v4": [forward, both], "v3": [forward, both]})
    assert table.splitlines()[0] == "| | | | AVX2 (v3) | | | AVX-512 (v4) | | |"
    assert "| `temporal_map_bce` | B=32 M=8 T=64 | forward+backward | 4 ms |  | 1.5x | 4 ms |  | 1.5x |" in table
    page = report.page(ROWS, [forward, both], "a machine")
    assert "| B=32 M=8 T=64 | forward | 2 | 50% | 30 | 15.0x | 5 | fast | 2.5x | 20, 300, 50 |" in page
    assert "| B=32 M=8 T=64 | forward+backward | 4 | 50% |  |  | 6 | fast | 1.5x | 40, -, - |" in page


def test_targets_are_held_against_the_rows() -> None:
    table = report.targets_table(report.cases_of(ROWS))
    assert "| `temporal_map_bce` | B=32 M=8 T=64 | forward | 2x over the best | 2.5x | 15.0x | 5.0x | met |" in table
    assert "| forward+backward | 2x over the best | 1.5x |  | 3.0x | Bound by" in table


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.op} {target.shape}")
def test_every_target_is_measured(target: Target) -> None:
    """Its shape is written as the benchmarks write theirs."""
    rows = [row for path in report.RESULTS.glob("*.json") for row in json.loads(path.read_text())]
    assert (target.op, target.shape) in {(row["op"], row["shape"]) for row in rows if row["on"] == "cpu"}


def test_draws_a_chart(tmp_path: Path) -> None:
    cases = report.cases_of(ROWS)
    report.draw({"v3": cases[:1], "v4": cases}, "a machine", tmp_path / "chart.png")
    assert matplotlib.image.imread(tmp_path / "chart.png").shape[1] > 800


def test_what_is_written_is_what_is_stored() -> None:
    """`python -m benchmarks.report` was run after the last measurement."""
    page, cpus = (ROOT / report.PAGE).read_text(), []
    for path in sorted(report.RESULTS.glob("*.json")):
        rows = json.loads(path.read_text())
        cases, device = report.cases_of(rows), rows[0]["device"]
        assert all(section in page for section in report.pages(rows))
        if rows[0]["on"] == "cpu":
            assert report.targets_table(cases) in page
            cpus.append((device, cases))
    machine, by_set = report.best_measured(cpus)
    assert f"{machine}, medians:\n\n{report.readme_table(by_set)}\n" in (ROOT / "README.md").read_text()
    assert report.overview(machine, by_set) in page
    assert json.loads((ROOT / report.MEASURED).read_text()) == report.measured_by_op(cpus)


def test_what_is_slower_than_plain_pytorch_is_listed() -> None:
    def case(op: str, ours: float, plain: float) -> report.Case:
        return report.Case(op, "T=1", "forward", {"p50_ms": ours}, None, {"p50_ms": plain})

    lines = report.behind([case("fast", 1, 2), case("slow", 4, 2), case("slower", 8, 2), case("equal", 1, 1)])
    assert lines[-2:] == ["| `slower` | T=1 | forward | 0.25x 🔴 |", "| `slow` | T=1 | forward | 0.50x 🔴 |"]
    assert not any("fast" in line or "equal" in line for line in lines)
    assert report.behind([case("fast", 1, 2)]) == []


def test_instruction_sets_stand_side_by_side() -> None:
    def case(mode: str, ours: float, plain: float) -> report.Case:
        return report.Case("temporal_iou", "T=1", mode, {"p50_ms": ours}, None, {"p50_ms": plain})

    by_set = {"v3": [case("forward", 2, 1)], "v4": [case("forward", 1, 2), case("forward+backward", 1, 3)]}
    assert report.by_instruction_set(by_set).splitlines() == [
        "| op | shape | mode | AVX2 (v3) | AVX-512 (v4) |",
        "|---|---|---|---|---|",
        "| `temporal_iou` | T=1 | forward | 0.5x 🔴 | 2.0x |",
        "| `temporal_iou` | T=1 | forward+backward |  | 3.0x |",
    ]
    assert report.measured_by_op([(f"a machine, {name}", cases) for name, cases in by_set.items()]) == {
        "v3": {"machine": "a machine", "ops": {"temporal_iou": [0.5, 0.5]}},
        "v4": {"machine": "a machine", "ops": {"temporal_iou": [2.0, 3.0]}},
    }
