"""``pytest benchmarks``: what is chosen, in which order, how long it says is left, where it goes on, what it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import plan, report, session
from benchmarks.plan import Clock, Seen, Unfinished

OPS = ("temporal_nms", "temporal_iou")
ABOUT = {"commit": "abc", "torch": "2.13", "cpu": "EPYC x2, v4", "cuda": None}

# Two ops; one has a benchmark more in its file, which is not named after it. Nothing is measured.
FAKES = {
    "fake_rows.py": """
from benchmarks.measure import Row

def rows(op, shape):
    about = ("float32", "EPYC x2, v4", "cpu", 2, "2.13", "abc")
    for name, role, ms in (("vpgfast", "ours", 2.0), ("loop", "field", 30.0), ("plain", "plain", 5.0)):
        yield Row(op, name, role, "forward", shape, *about, ms, ms, ms, 5 / ms, 1.0, 1 / ms, None)
""",
    "test_temporal_nms.py": """
from pathlib import Path

import pytest
from fake_rows import rows

@pytest.mark.parametrize("N", [1104, 136])
def test_temporal_nms(N, device, record):
    record(list(rows("temporal_nms", f"L=32 N={N} top_k=5")))

def test_listed(device, record):
    if Path("stop").exists():
        raise KeyboardInterrupt
    record(list(rows("temporal_nms", "listed")))
""",
    "test_temporal_iou.py": """
from fake_rows import rows

def test_temporal_iou(record):
    record(list(rows("temporal_iou", "L=1")))
""",
    "test_temporal_iou_map.py": """
from fake_rows import rows

def test_temporal_iou_map(record):
    record(list(rows("temporal_iou_map", "B=1")))
""",
}
SECONDS = {
    "test_temporal_nms.py::test_temporal_nms[cpu-1104]": Seen("temporal_nms", "L=32 N=1104 top_k=5", 40.0),
    "test_temporal_nms.py::test_temporal_nms[cpu-136]": Seen("temporal_nms", "L=32 N=136 top_k=5", 20.0),
    "test_temporal_iou.py::test_temporal_iou": Seen("temporal_iou", "L=1", 10.0),
    "test_temporal_nms.py::test_listed[cpu]": Seen("temporal_nms", "listed", 300.0),
}


@pytest.fixture
def benchmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs ``pytest`` over the fakes with the benchmarks' own conftest; gives its status and what it printed."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    for name, text in FAKES.items():
        (tmp_path / name).write_text(text)
    for case, seen in SECONDS.items():
        plan.add_seen(tmp_path / "results" / session.SEEN, case, seen)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VPGFAST_BENCHMARK_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(session, "commit", lambda: "abc")
    monkeypatch.setattr(session, "device_name", lambda device: "EPYC x2, v4")

    def run(*options: str) -> tuple[int, str]:
        capsys.readouterr()
        by = ["-p", "benchmarks.conftest", "-p", "no:cacheprovider", "--import-mode=importlib", "-m", "not gpu"]
        status = pytest.main([*by, *options])
        return int(status), capsys.readouterr().out

    yield run
    sys.modules.pop("fake_rows", None)


def lines_of(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("[")]


def test_a_plain_run_measures_the_first_shape_of_each_op_and_stores_nothing(
    benchmarks: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    status, printed = benchmarks()
    assert status == 0
    assert "each op at the first of its shapes: 3 cases, about 75 s where they were timed last" in printed
    assert "nothing is stored" in printed
    lines = lines_of(printed)
    assert lines[0] == "[1/3] temporal_iou L=1: 10 s, about 75 s left"
    assert lines[1].startswith("[2/3] test_temporal_iou_map.py::test_temporal_iou_map: not timed yet, about ")
    assert lines[2].startswith("[3/3] temporal_nms L=32 N=1104 top_k=5: 40 s, about ")
    table = printed[printed.index("EPYC x2, v4, torch 2.13, 2 threads, commit abc, medians:") :].splitlines()
    nms = "| `temporal_nms`     | L=32 N=1104 top_k=5 | forward | 2 ms         | 15.0x          | 2.5x         |"
    assert table[1].split() == ["|", "|", "|", "|", "AVX-512", "(v4)", "|", "|", "|"]
    assert nms in table
    assert [line.split()[1] for line in table[4:7]] == ["`temporal_iou_map`", "`temporal_nms`", "`temporal_iou`"]
    assert [path.name for path in (tmp_path / "results").rglob("*.json")] == ["seconds.json"]
    assert plan.read_seen(tmp_path / "results" / session.SEEN) == SECONDS


def test_full_measures_all_the_cheapest_first_and_stores_rows_and_seconds(
    benchmarks: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    status, printed = benchmarks("--full")
    assert status == 0
    names = [line.partition("] ")[2].partition(": ")[0] for line in lines_of(printed)]
    assert names == [
        *("temporal_iou L=1", "temporal_nms L=32 N=136 top_k=5", "temporal_nms L=32 N=1104 top_k=5"),
        *("test_temporal_iou_map.py::test_temporal_iou_map", "temporal_nms listed"),
    ]
    rows = json.loads((tmp_path / "results" / "epyc-x2-v4.json").read_text())
    assert len(rows) == 5 * 3
    assert f"stored in {tmp_path / 'results' / 'epyc-x2-v4.json'}" in printed
    seen = plan.read_seen(tmp_path / "results" / session.SEEN)
    assert len(seen) == 5
    assert max(one.seconds for one in seen.values()) < 10  # what it took now
    assert not list((tmp_path / "results" / "run").glob("unfinished*"))


def test_full_goes_on_where_the_same_call_was_stopped(
    benchmarks: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stop").touch()
    status, printed = benchmarks("--full")
    assert status == pytest.ExitCode.INTERRUPTED
    assert len(lines_of(printed)) == 5
    assert len(json.loads((tmp_path / "results" / "epyc-x2-v4.json").read_text())) == 4 * 3

    _, printed = benchmarks("--full", "-k", "temporal_iou_map")  # another call
    assert len(lines_of(printed)) == 1

    _, printed = benchmarks("--full")
    assert "4 more were measured at abc before this call was stopped" in printed
    assert len(lines_of(printed)) == 1

    _, printed = benchmarks("--full", "--again")
    assert len(lines_of(printed)) == 5

    monkeypatch.setattr(session, "commit", lambda: "def")
    _, printed = benchmarks("--full")
    assert len(lines_of(printed)) == 5

    (tmp_path / "stop").unlink()
    assert benchmarks("--full")[0] == 0
    assert len(lines_of(benchmarks("--full")[1])) == 5  # that one was through


def test_k_with_the_name_of_an_op_is_that_op(benchmarks: Callable[..., tuple[int, str]]) -> None:
    _, printed = benchmarks("-k", "temporal_iou")
    assert lines_of(printed) == ["[1/1] temporal_iou L=1: 10 s, about 10 s left"]
    _, printed = benchmarks("-k", "temporal_nms")
    assert lines_of(printed) == ["[1/1] temporal_nms L=32 N=1104 top_k=5: 40 s, about 40 s left"]
    _, printed = benchmarks("-k", "temporal_nms", "--full")
    assert len(lines_of(printed)) == 3
    _, printed = benchmarks("-k", "136 or iou")  # of what -k leaves, the first shape of each op
    assert len(lines_of(printed)) == 3


def test_what_is_left_grows_with_a_slow_machine() -> None:
    seen = {case: Seen("op", case, 30.0) for case in "abcd"}
    at = iter([0.0, 90.0, 180.0])
    clock = Clock(list("abcd"), seen, now=lambda: next(at))
    assert clock.seconds_left() == 120
    clock.finish("a")  # 90 s for 30
    assert clock.seconds_left() == 90 * (90 + 60) / (30 + 60)
    clock.finish("b")
    assert clock.start("c") == "[1/4] op c: 30 s, about 2 min left"
    assert Clock(["new"], {}).start("new") == "[1/1] new: not timed yet"
    assert Clock(["f[cuda-1]"], {"f[cuda-1]": seen["a"]}).start("f[cuda-1]").startswith("[1/1] op a on the GPU: 30 s")


def test_the_next_run_goes_on_from_the_same_code_only(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    Unfinished(file, ABOUT, "all").add("a")
    Unfinished(file, ABOUT, "all").add("b")
    Unfinished(file, ABOUT, "some").add("c")
    assert Unfinished(file, ABOUT, "all").measured() == ["a", "b"]
    assert Unfinished(file, {**ABOUT, "torch": "2.14"}, "all").measured() == []
    assert Unfinished(file, {**ABOUT, "cpu": "EPYC x2, v3"}, "all").measured() == []
    Unfinished(file, ABOUT, "all").forget()
    dirty = {**ABOUT, "commit": "abc-dirty"}
    Unfinished(file, dirty, "all").add("a")  # of that code the next run knows nothing
    assert Unfinished(file, dirty, "all").measured() == []
    assert Unfinished(file, ABOUT, "some").measured() == ["c"]
    Unfinished(file, ABOUT, "some").forget()
    assert not file.exists()


def test_an_op_is_known_by_its_function_or_its_file() -> None:
    assert plan.op_of("benchmarks/test_temporal_nms.py::test_temporal_iou[cpu-1]", OPS) == "temporal_iou"
    assert plan.op_of("benchmarks/test_temporal_nms.py::test_listed[cpu-1]", OPS) == "temporal_nms"
    assert plan.op_of("benchmarks/test_marn.py::test_marn[cpu-1]", OPS) == "marn"


def test_the_readmes_shapes_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    """Of every op that the README's table has; what a case measures is known from when it was measured."""
    seen = plan.read_seen(session.RESULTS / session.SEEN)
    pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", str(session.RESULTS.parent)])
    chosen = {line for line in capsys.readouterr().out.splitlines() if "::" in line and "[cuda" not in line}
    shapes = {seen[case].op: seen[case].shape for case in chosen}
    assert {op: shapes[op] for op in report.HEADLINES} == {op: of[0] for op, of in report.HEADLINES.items()}
