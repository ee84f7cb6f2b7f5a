"""A run of ``pytest benchmarks``: chooses and orders its cases, says how far it is, prints what was measured.

Under pytest-xdist the processes that measure choose; the one that reports, which gets their reports, does the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from vpgfast.ops import OPS

from .measure import commit, device_name
from .plan import (
    Clock,
    Seen,
    Unfinished,
    add_seen,
    by_cost,
    device_of,
    duration,
    first_of_each,
    op_of,
    read_seen,
)

RESULTS = Path(__file__).parent / "results"
SEEN = Path("run/seconds.json")


def results_folder() -> Path:
    return Path(os.environ.get("VPGFAST_BENCHMARK_RESULTS", RESULTS))


def result_file(device: str) -> Path:
    return results_folder() / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json")


def runs_here(case: str) -> bool:
    return device_of(case) == "cpu" or torch.cuda.is_available()


def unfinished(config: pytest.Config) -> Unfinished:
    cpu, cuda = device_name(torch.device("cpu")), torch.cuda.is_available()
    about = {
        "commit": commit(),
        "torch": str(torch.__version__),
        "cpu": cpu,
        "cuda": torch.cuda.get_device_name() if cuda else None,
    }
    call = f"{' '.join(config.args)} -k {config.option.keyword!r} -m {config.option.markexpr!r}"
    return Unfinished(results_folder() / "run" / f"unfinished-{result_file(cpu).name}", about, call)


class BenchmarkSession:
    """The hooks of one run."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.full: bool = config.getoption("full", False)
        self.reports = not hasattr(config, "workerinput")  # is not a process of pytest-xdist that measures
        self.seen = read_seen(RESULTS / SEEN, results_folder() / SEEN)
        self.unfinished = unfinished(config) if self.full else None
        self.clock: Clock | None = None
        self.cases: list[str] = []
        self.rows: list[dict[str, Any]] = []
        if self.unfinished and self.reports and config.getoption("again", False):
            self.unfinished.forget()

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
        self._only_the_op(config, items)
        yield  # pytest leaves out what -k and -m don't name
        by_case = {item.nodeid: item for item in items if "record" in getattr(item, "fixturenames", ())}
        chosen = list(by_case) if self.full else first_of_each(list(by_case), OPS)
        done = self.unfinished.measured() if self.unfinished else []
        left = by_cost([case for case in chosen if case not in done], self.seen)
        order = [case for case in left if runs_here(case)] + [case for case in left if not runs_here(case)]
        others = [item for item in items if item.nodeid not in by_case]
        keep(config, items, others + [by_case[case] for case in order])

    @staticmethod
    def _only_the_op(config: pytest.Config, items: list[pytest.Item]) -> None:
        """``-k`` with the name of an op means that op, not also those whose names it begins."""
        named = {item: op_of(item.nodeid, OPS) for item in items}
        if config.option.keyword in named.values():
            keep(config, items, [item for item in items if named[item] == config.option.keyword])
            config.option.keyword = ""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if self.reports:
            self.begin([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: Sequence[str]) -> None:
        if self.clock is None:  # the first of them; all choose the same
            self.begin(ids)

    def begin(self, cases: Sequence[str]) -> None:
        self.cases = [case for case in cases if runs_here(case)]
        self.clock = Clock(self.cases, self.seen)
        left = self.clock.seconds_left()
        takes = "" if left is None else f", about {duration(left)} where they were timed last"
        if self.unfinished is None:
            self.say(f"each op at the first of its shapes: {len(self.cases)} cases{takes}; nothing is stored")
            self.say("(--full: all shapes, whole steps compiled by torch too, stored; -k NAME: one op)")
            return
        self.say(f"all shapes: {len(self.cases)} cases{takes}; rows are stored in {results_folder()}")
        if done := self.unfinished.measured():
            self.say(f"{len(done)} more were measured at {commit()} before this call was stopped (--again: anew)")
        if not self.unfinished.keeps:
            self.say("this code is in no commit: if the run is stopped, the next one begins anew")

    def say(self, line: str) -> None:
        if reporter := self.config.pluginmanager.get_plugin("terminalreporter"):
            reporter.ensure_newline()
            reporter.write_line(line)
            reporter.flush()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self.clock and nodeid in self.clock.left:
            if reporter := self.config.pluginmanager.get_plugin("terminalreporter"):
                reporter.showfspath = False  # the line below says it
            self.say(self.clock.start(nodeid))

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """No dot after a line."""
        quiet = self.config.get_verbosity() <= 0
        return ("passed", "", "") if quiet and report.when == "call" and report.passed and rows_of(report) else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not self.reports or self.clock is None or report.when != "call":
            return
        rows = rows_of(report)
        self.rows += rows
        seen = Seen(rows[0]["op"], rows[0]["shape"], round(report.duration, 1)) if rows else None
        self.clock.finish(report.nodeid, seen)
        if self.unfinished and seen and report.passed:
            add_seen(results_folder() / SEEN, report.nodeid, seen)
            self.unfinished.add(report.nodeid)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if self.reports and self.unfinished and exitstatus == pytest.ExitCode.OK and self.cases:
            self.unfinished.forget()  # through: the next run is a new one

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None]:
        yield  # the table comes last: it is what one wants to read
        from .report import MODES, measured_table  # matplotlib takes a second to import

        write = terminalreporter.write_line
        for device in sorted({row["device"] for row in self.rows}):
            rows = [row for row in self.rows if row["device"] == device]
            about = f"torch {rows[0]['torch']}, {rows[0]['threads']} threads, commit {rows[0]['commit']}"
            write("")
            write(f"{device}, {about}, medians:")
            for line in measured_table(rows).splitlines():
                write(line)
            details([row for row in rows if self.full or row["mode"] not in MODES], write)
            if self.full:
                write(f"stored in {result_file(device)}")


def keep(config: pytest.Config, items: list[pytest.Item], kept: Sequence[pytest.Item]) -> None:
    """Only these, in this order."""
    left = set(kept)
    if dropped := [item for item in items if item not in left]:
        config.hook.pytest_deselected(items=dropped)
    items[:] = kept


def rows_of(report: pytest.TestReport) -> list[dict[str, Any]]:
    return [row for name, rows in report.user_properties if name == "rows" and isinstance(rows, list) for row in rows]


def details(rows: Sequence[Mapping[str, Any]], write: Callable[[str], None]) -> None:
    """Every provider's row; ``ratio`` is the best peer's median over this one's."""
    if not rows:
        return
    write("")
    write(f"{'op':24} {'shape':34} {'mode':17} {'provider':22} {'ms':>9} {'ratio':>7} {'of floor':>9} {'peak MiB':>9}")
    before = None
    for row in rows:
        case = (row["op"], row["shape"], row["mode"])
        shown = case if case != before else ("", "", "")
        before = case
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}"
        write(
            f"{shown[0]:24} {shown[1]:34} {shown[2]:17} {row['provider']:22} {row['p50_ms']:9.3f} "
            f"{row['ratio']:6.1f}x {100 * row['share_of_floor']:8.1f}% {peak:>9}"
        )
