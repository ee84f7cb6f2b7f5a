"""The ablate command: what a tables file may hold, what is run for it, when a claim holds, and what is left behind."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import yaml

from vpgfast import ablate
from vpgfast.ablate import plan, runs
from vpgfast.ablate.results import (
    HOLDS,
    REVERSED,
    UNDECIDED,
    claim_text,
    describe,
    judged_text,
    mark_shared_runs,
    markdown,
    mean_and_spread,
    summarize_table,
    table_text,
    verdict,
)
from vpgfast.ablate.tables import choose, read_tables
from vpgfast.checkpoint import load_state
from vpgfast.config import parse_train
from vpgfast.errors import ConfigError, UserError
from vpgfast.files import STATE_FILE
from vpgfast.plots import draw_ablation

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).with_name("tiny.py")
SHIPPED = sorted(path for path in (ROOT / "configs").glob("*/*.yaml") if "\ntables:" in path.read_text())
PAPERS = [path for path in SHIPPED if path.name in ("ablations.yaml", "language_model.yaml")]

TABLES = """
tables:
  - title: Table 1, widths
    about: width
    corpus: charades_sta
    metrics: [R@1 IoU=0.5, mIoU]
    judged_by: mIoU
    settings: {model.dropout: 0}
    rows:
      - {name: narrow, settings: {model.width: 2}, paper: [10.5, 20]}
      - {name: wide, about: with more layers, settings: {model: {width: 8}}, paper: [11.5, null]}
    claims:
      - {better: [wide, narrow], claim: more width helps}
  - title: Table 2
    corpus: didemo
    judged_by: mIoU
    line: true
    rows:
      - {name: same, settings: {model.width: 8, model.dropout: 0.0}}
      - {name: other, settings: {optim.lr: 1e-4, model.level: paragraph}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "tables.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def tables_file(tmp_path: Path) -> Path:
    return write(tmp_path, TABLES)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


# --- the tables file


def test_read_tables(tables_file: Path) -> None:
    first, second = read_tables(tables_file)
    assert (first.title, first.about, first.metrics, first.judged_by) == (
        *("Table 1, widths", "width", ("R@1 IoU=0.5", "mIoU"), ("mIoU",)),
    )
    assert (first.min_effect, second.min_effect) == (0.005, 0.005)
    narrow, wide = first.rows
    assert (narrow.settings, wide.settings) == ({"model.width": 2}, {"model.width": 8})
    assert narrow.paper == pytest.approx({"R@1 IoU=0.5": 0.105, "mIoU": 0.2})
    assert wide.paper == pytest.approx({"R@1 IoU=0.5": 0.115})
    assert wide.label == "wide: with more layers"
    assert (first.claims[0].better, first.claims[0].worse, first.claims[0].metrics) == ("wide", "narrow", ("mIoU",))
    assert (first.line, second.line, second.claims) == (False, True, ())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("judged_by", "judge_by", "table 'Table 1, widths': unknown key 'judge_by' (did you mean 'judged_by'?)"),
        ("better:", "beter:", "table 'Table 1, widths', claims: unknown key 'beter' (did you mean 'better'?)"),
        (
            "[wide, narrow]",
            "[wide, narow]",
            "the row 'narow', which isn't there (did you mean 'narrow'?)",
        ),
        ("[wide, narrow]", "[wide]", "'better' takes two rows, the better one first, found ['wide']"),
        ("paper: [10.5, 20]", "paper: [10.5]", "row 'narrow': 1 figures below 'paper', the table has 2 metrics"),
        ("paper: [10.5, 20]", "paper: [10.5, much]", "row 'narrow': 'paper' takes numbers from 0 to 100"),
        ("settings: {model.width: 2}", "settings: 2", "row 'narrow': 'settings' must hold 'key: value' lines, found 2"),
        ("settings: {model.width: 2}", "setting: 2", "row 'narrow': unknown key 'setting' (did you mean 'settings'?)"),
        ("name: wide", "name: narrow", "table 'Table 1, widths': two rows are called 'narrow'"),
        ("title: Table 2", "title: Table 1, widths", "two tables are called 'Table 1, widths'"),
        ("title: Table 2\n", "about: x\n", "table number 2: the key 'title' is missing"),
        ("tables:", "table:", "unknown key 'table' (did you mean 'tables'?)"),
        ("metrics: [", "metrics: [[", "line 7: not valid YAML"),
    ],
)
def test_wrong_tables_files(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TABLES
    path = write(tmp_path, TABLES.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        read_tables(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_missing_tables_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_tables(tmp_path / "no-such.yaml")


def test_choose_by_title_or_its_beginning(tables_file: Path) -> None:
    tables = read_tables(tables_file)
    assert choose(tables, [], "f") == tables
    assert choose(tables, ["Table 1"], "f") == choose(tables, ["Table 1, widths"], "f") == tables[:1]
    assert choose(tables, ["Table 2", "Table 1"], "f") == tables
    with pytest.raises(ConfigError, match="--only 'Table': f has no such table; it has Table 1, widths; Table 2"):
        choose(tables, ["Table"], "f")


# --- the plan


def plan_of(path: Path, *settings: str, seeds: Sequence[int] = (0, 1)) -> plan.Plan:
    return plan.make_plan(read_tables(path), ["--method", "tiny", *settings], seeds, Path("out"), str(path))


def test_equal_settings_are_one_run(tables_file: Path) -> None:
    plan = plan_of(tables_file, seeds=(5, 6))
    assert plan.names == {
        ("Table 1, widths", "narrow"): "table-1-widths-narrow",
        ("Table 1, widths", "wide"): "table-1-widths-wide",
        ("Table 2", "same"): "table-1-widths-wide",
        ("Table 2", "other"): "table-2-other",
    }
    assert [(run.name, run.config.seed, run.folder) for run in plan.runs] == [
        (name, seed, Path("out") / name / f"seed-{seed}")
        for name in ("table-1-widths-narrow", "table-1-widths-wide", "table-2-other")
        for seed in (5, 6)
    ]


def test_arguments_of_a_run_make_its_config(tables_file: Path) -> None:
    for run in plan_of(tables_file, "--model.width=32", "--optim.clip=null").runs:
        assert parse_train(run.arguments) == run.config
        assert run.config.pictures == 0
        assert run.config.optim.clip is None
    widths = [run.config.model.width for run in plan_of(tables_file, "--model.width=32").runs]
    assert widths == [2, 2, 8, 8, 32, 32]  # what a row sets counts


def test_a_row_of_another_method_takes_what_both_have() -> None:
    """Of the config file, the shared arguments and the table alike; what only the other method has is left out."""
    path = ROOT / "configs" / "dmr_jrg" / "ablations.yaml"
    config = path.with_name("moving_shapes.yaml")
    settings = ["--config", str(config), "--model.segments", "8", "--model.dim=32", "--optim.lr=0.01"]
    made = plan.make_plan(read_tables(path), settings, [0], Path("out"), str(path))
    (name,) = {name for (_, row), name in made.names.items() if row == "plain alignment"}
    (run,) = [run for run in made.runs if run.name == name]
    assert parse_train(run.arguments) == run.config
    assert (run.config.method, run.config.model.dim, run.config.optim.lr) == ("plain_alignment", 32, 0.01)
    assert run.config.model.max_clips == 64
    assert all(run.config.model.segments == 8 for run in made.runs if run.name != name)


def test_rows_that_look_alike_have_folders_of_their_own(tmp_path: Path) -> None:
    text = TABLES.replace("name: other", "name: Same!").replace("model.width: 8, model", "model.width: 9, model")
    plan = plan_of(write(tmp_path, text))
    assert [plan.names["Table 2", name] for name in ("same", "Same!")] == ["table-2-same", "table-2-same-2"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{model.width: 2}", "{model.widht: 2}", "unknown argument '--model.widht' (did you mean '--model.width'?)"),
        ("{model.width: 2}", "{model.width: two}", "the command line: model.width: expected int, got two"),
        ("{model.width: 2}", "{seed: 2}", "'seed' is decided by the command; leave it out of the settings"),
        ("judged_by: mIoU", "judged_by: mIou", "no metric 'mIou' in this run (did you mean 'mIoU'?)"),
        ("{model.width: 2}", "{metrics.thresholds: [0.9]}", ""),
    ],
)
def test_every_row_is_checked_first(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path, TABLES.replace(old, new, 1))
    if not message:  # the paper's other columns may be missing in a run; the one of the claims may not
        plan_of(path)
        return
    with pytest.raises(ConfigError) as caught:
        plan_of(path)
    assert f"{path}, table 'Table 1, widths', row 'narrow': " in str(caught.value)
    assert message in str(caught.value)


@functools.cache
def shipped_plan(path: Path) -> plan.Plan:
    config = path.with_name("discourse.yaml" if "discourse" in path.name else "moving_shapes.yaml")
    return plan.make_plan(read_tables(path), ["--config", str(config)], [0], Path("out"), str(path))


def name_of(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_shipped_tables_fit_their_method(path: Path) -> None:
    """Every row is a setting of the method, and differs from the others of its table."""
    names = shipped_plan(path).names
    for table in read_tables(path):
        assert len({names[table.title, row.name] for row in table.rows}) == len(table.rows)


@pytest.mark.nightly
@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_shipped_tables_fit_every_config_of_their_method(path: Path) -> None:
    """None is trained. QVHighlights has no IoU of 0.3, by which papers' claims are judged."""
    tables = read_tables(path)
    for config in sorted(path.parent.glob("*.yaml")):
        if "\ntables:" not in config.read_text() and not config.stem.startswith("qvhighlights"):
            planned = plan.make_plan(tables, ["--config", str(config)], [0], Path("out"), str(path))
            assert len(planned.names) == sum(len(table.rows) for table in tables)


@pytest.mark.parametrize("path", PAPERS, ids=name_of)
def test_claims_are_true_of_the_papers_own_figures(path: Path) -> None:
    checked = 0
    for table in read_tables(path):
        figures = {row.name: row.paper for row in table.rows}
        for claim in table.claims:
            better, worse = (figures[name] for name in (claim.better, claim.worse))
            if all(metric in better for metric in claim.metrics):
                assert sum(better[m] for m in claim.metrics) > sum(worse[m] for m in claim.metrics), claim
                checked += 1
    expected = {"dmr_jrg": 8, "marn": 16, "seqpan": 20, "wsra": 6, "siamgtr": 15}
    assert checked == (2 if path.name == "language_model.yaml" else expected[path.parent.name])


def test_tables_of_two_corpora_are_the_same_runs() -> None:
    """Table 3 and 4 vary the same; their last row is Table 5's first."""
    plan = shipped_plan(ROOT / "configs" / "marn" / "ablations.yaml")
    assert len(plan.runs) == 9
    assert plan.names["Table 3", "(7)"] == plan.names["Table 4", "(7)"]
    assert plan.names["Table 3", "(7)"] == plan.names["Table 5, Charades-STA", "without"]


def test_only_what_is_asked_for_is_checked(tmp_path: Path) -> None:
    """A row elsewhere that can't be run doesn't stop it; what is asked for has the folder that it would have anyway."""
    path = write(tmp_path, TABLES.replace("{model.width: 2}", "{model.widht: 2}"))
    tables, whole = read_tables(path), plan_of(write(tmp_path / "..", TABLES))
    with pytest.raises(ConfigError, match="widht"):
        plan.make_plan(tables, ["--method", "tiny"], [0], Path("out"), str(path), tables[:1])
    found = plan.make_plan(tables, ["--method", "tiny"], [0], Path("out"), str(path), tables[1:])
    assert found.names["Table 2", "other"] == whole.names["Table 2", "other"]
    assert ("Table 1, widths", "narrow") not in found.names


# --- verdicts


def test_a_claim_holds_beyond_twice_the_standard_error() -> None:
    differences = [0.1, 0.2, 0.3]
    error = stdev(differences) / math.sqrt(3)  # 0.058
    assert verdict(differences, 0) == (HOLDS, pytest.approx(0.2), pytest.approx(error))
    assert verdict([-value for value in differences], 0)[0] == REVERSED
    assert verdict([-0.1, 0.1, 0.3], 0) == (UNDECIDED, pytest.approx(0.1), pytest.approx(0.2 / math.sqrt(3)))
    # Mean 1 and standard error exactly 1/2: not beyond.
    assert verdict([0.5, 1.5], 0) == (UNDECIDED, 1.0, 0.5)
    assert verdict([0.6, 1.4], 0)[0] == HOLDS
    assert verdict([0.0, 0.0], 0) == (UNDECIDED, 0.0, 0.0)
    small = [0.003, 0.004]  # by far beyond its standard error, and of no consequence
    assert verdict(small, 0.0034)[0] == HOLDS
    assert verdict(small, 0.005)[0] == UNDECIDED
    assert verdict([-value for value in small], 0.005)[0] == UNDECIDED


def test_claims_by_the_mean_of_several_columns(tmp_path: Path) -> None:
    text = TABLES.replace("judged_by: mIoU", "judged_by: [mIoU, R@1 IoU=0.5]\n    min_effect: 10", 1)
    first, _ = read_tables(write(tmp_path, text))
    assert (first.judged_by, first.min_effect) == (("mIoU", "R@1 IoU=0.5"), 0.1)

    def found(miou: float, recall: float) -> dict:
        return {**result(miou), "metrics": {"mIoU": miou, "R@1 IoU=0.5": recall}}

    runs = {"narrow": {0: found(0.2, 0.4), 1: found(0.2, 0.4)}, "wide": {0: found(0.1, 0.8), 1: found(0.1, 0.82)}}
    table = summarize_table(first, runs)
    (claim,) = table["claims"]
    assert (claim["verdict"], claim["difference"]) == (HOLDS, pytest.approx(0.155))
    assert claim["paper_difference"] is None  # one of the columns isn't given
    assert "mean of 2 columns: +15.5" in claim_text(claim)
    assert judged_text(table) == "Judged by the mean of mIoU, R@1 IoU=0.5."
    less = replace(first, min_effect=0.2)
    assert summarize_table(less, runs)["claims"][0]["verdict"] == UNDECIDED


def test_rows_of_one_run_say_so(tmp_path: Path) -> None:
    first, second = read_tables(write(tmp_path, TABLES))
    tables = [
        summarize_table(first, {"narrow": {0: result(0.2)}, "wide": {0: result(0.3)}}),
        summarize_table(second, {"same": {0: result(0.3)}, "other": {}}),
    ]
    mark_shared_runs(tables)
    assert [row.get("same_run_as") for table in tables for row in table["rows"]] == [
        *(None, None, "Table 1, widths, wide", None),
    ]
    assert "same (the run of Table 1, widths, wide)" in table_text(tables[1], 1)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("judged_by: []", "'judged_by' takes a metric or a list of metrics, found []"),
        ("judged_by: {a: 1}", "'judged_by' takes a metric or a list of metrics, found {'a': 1}"),
        ("judged_by: mIoU\n    min_effect: -1", "'min_effect' takes points from 0 to 100, found -1"),
    ],
)
def test_how_claims_are_judged_is_checked(tmp_path: Path, new: str, message: str) -> None:
    path = write(tmp_path, TABLES.replace("judged_by: mIoU", new, 1))
    with pytest.raises(ConfigError) as caught:
        read_tables(path)
    assert f"{path}, table 'Table 1, widths': {message}" == str(caught.value)


def test_one_seed_or_none_decides_nothing() -> None:
    assert verdict([0.4], 0) == (UNDECIDED, 0.4, None)
    assert verdict([], 0) == (UNDECIDED, None, None)


def result(miou: float, swapped: float = 0.05, prior: float = 0.15) -> dict[str, Any]:
    """What metrics.json of a run holds."""
    return {
        "seconds": 2.0,
        "metrics": {"R@1 IoU=0.5": miou / 2, "mIoU": miou},
        "control": {"R@1 IoU=0.5": swapped / 2, "mIoU": swapped},
        "baselines": {"random": {"R@1 IoU=0.5": 0.01, "mIoU": 0.02}, "prior": {"R@1 IoU=0.5": 0.1, "mIoU": prior}},
    }


def summary(path: Path, narrow: list[float], wide: list[float]) -> dict[str, Any]:
    """The first table with these mIoU a seed."""
    finished = {"narrow": dict(enumerate(map(result, narrow))), "wide": dict(enumerate(map(result, wide)))}
    return summarize_table(read_tables(path)[0], finished)


def test_seeds_are_compared_with_themselves(tables_file: Path) -> None:
    """Every seed of one row is better than the same seed of the other, though the seeds differ by more."""
    (claim,) = summary(tables_file, [0.1, 0.3, 0.2, 0.9], [0.12, 0.33, 0.22])["claims"]
    assert (claim["verdict"], claim["seeds"]) == (HOLDS, [0, 1, 2])
    assert claim["difference"] == pytest.approx(0.07 / 3)
    assert claim["paper_difference"] is None  # one figure is not given


def test_claims_in_words(tables_file: Path) -> None:
    def text(narrow: list[float], wide: list[float]) -> str:
        return claim_text(summary(tables_file, narrow, wide)["claims"][0])

    said = "more width helps (wide minus narrow, mIoU: "
    assert text([0.2, 0.3], [0.3, 0.41]) == f"holds: {said}+10.5, standard error 0.5, 2 seeds)."
    assert text([0.3, 0.41], [0.2, 0.3]) == (
        f"does not hold: {said}-10.5, standard error 0.5, 2 seeds). Here wide is 10.5 points below narrow in mIoU."
    )
    assert text([0.2, 0.2], [0.1, 0.4]) == f"undecided: {said}+5.0, standard error 15.0, 2 seeds)."
    assert text([0.2], [0.4]) == f"undecided: {said}+20.0, one seed)."
    assert text([0.1], [0.12]).endswith("+2.0, one seed). Neither earns what watching nothing does.")
    assert text([0.2], []) == "undecided: more width helps (no seed of both wide and narrow has finished)."


def test_published_difference_stands_beside_ours(tmp_path: Path) -> None:
    table = summary(write(tmp_path, TABLES.replace("null", "19.25")), [0.2], [0.4])
    assert "one seed; paper -0.75)" in claim_text(table["claims"][0])


# --- text and picture


def test_mean_and_spread() -> None:
    assert mean_and_spread([0.1, 0.2, 0.3]) == "20.0 ± 10.0"
    assert mean_and_spread([0.123]) == "12.3"
    assert mean_and_spread([]) == "-"


def test_table_in_words(tables_file: Path) -> None:
    lines = table_text(summary(tables_file, [0.2, 0.4], [0.3]), seeds=2).splitlines()
    assert lines[0].split() == ["R@1", "IoU=0.5", "mIoU", "mIoU,", "swapped"]
    assert len(lines[1]) == len(lines[0])
    assert [" ".join(line.split()) for line in lines[2:]] == [
        "narrow 15.0 ± 7.1 30.0 ± 14.1 5.0 ± 0.0",
        "paper 10.50 20.00",
        "wide: with more layers [1 of 2 seeds] 15.0 30.0 5.0",
        "paper 11.50 -",
        "random 1.0 2.0",
        "prior 10.0 15.0",
    ]


def test_a_row_without_results_is_a_dash(tables_file: Path, tmp_path: Path) -> None:
    table = summary(tables_file, [], [])
    assert "narrow [0 of 2 seeds] - - -" in [" ".join(line.split()) for line in table_text(table, 2).splitlines()]
    content = {"method": "tiny", "corpus": "c", "split": "test", "seeds": [0, 1], "tables": [table]}
    draw_ablation(content, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").read_bytes().startswith(b"\x89PNG")


def test_baselines_that_differ_between_rows_are_hidden(tables_file: Path) -> None:
    finished = {"narrow": {0: result(0.2, prior=0.3)}, "wide": {0: result(0.2)}}
    table = summarize_table(read_tables(tables_file)[0], finished)
    assert list(table["baselines"]) == ["random"], "what all rows have in common stays"
    assert "prior" not in table_text(table, 1)


def test_a_row_without_a_list_or_that_finds_no_video_hides_no_baseline_of_others(tables_file: Path) -> None:
    chance = {"R@10": 0.1}
    retrieval = {"metrics": {"R@10": 0.5}, "baselines": {"chance": chance, "uniform": {}}}
    finder = {**result(0.2), "retrieval": retrieval}
    lists = {**result(0.3), "baselines": {**result(0.3)["baselines"], "random candidates": {"mIoU": 0.1}}}
    for finished in ({"narrow": {0: finder}, "wide": {0: lists}}, {"narrow": {0: lists}, "wide": {0: finder}}):
        table = summarize_table(read_tables(tables_file)[0], finished)
        assert table["baselines"]["chance"] == {"corpus R@10": 0.1}
        assert table["baselines"]["random candidates"] == {"mIoU": 0.1}
    other = {**lists, "baselines": {**lists["baselines"], "random candidates": {"mIoU": 0.2}}}
    table = summarize_table(read_tables(tables_file)[0], {"narrow": {0: lists}, "wide": {0: other}})
    assert "random candidates" not in table["baselines"], "the rows choose among different spans"


def test_corpus_metrics_in_tables(tmp_path: Path) -> None:
    """A method that finds videos: judged by a joint metric, beside chance; the swapped control has none."""

    def found(joint: float) -> dict[str, Any]:
        metrics = {"R@10": 0.5, "median rank": 8.0, "R@10 IoU=0.5": joint}
        chance = {"R@10": 0.1, "median rank": 50.0, "R@10 IoU=0.5": 0.01}
        own = {
            "uniform": {"R@10 IoU=0.5": joint / 2},  # differs from run to run
            "bag of words": {"R@10": 0.3, "median rank": 20.0},
        }
        retrieval = {"videos": 100, "paragraphs": 90, "metrics": metrics, "baselines": {"chance": chance, **own}}
        return {**result(0.2), "retrieval": retrieval}

    text = TABLES.replace("judged_by: mIoU", "judged_by: corpus R@10 IoU=0.5")
    finished = {"narrow": {0: found(0.2), 1: found(0.3)}, "wide": {0: found(0.3), 1: found(0.41)}}
    table = summarize_table(read_tables(write(tmp_path, text))[0], finished)
    (claim,) = table["claims"]
    assert (claim["verdict"], claim["metrics"], claim["below_baselines"]) == (HOLDS, ["corpus R@10 IoU=0.5"], False)
    assert claim["difference"] == pytest.approx(0.105)
    assert table["rows"][0]["runs"][0]["metrics"]["corpus R@10"] == 0.5
    table["metrics"].append("corpus R@10")
    lines = [" ".join(line.split()) for line in table_text(table, 2).splitlines()]
    assert lines[2:4] == [
        "narrow 10.0 ± 0.0 20.0 ± 0.0 50.0 ± 0.0 25.0 ± 7.1 5.0 ± 0.0",  # swapped, mIoU: videos are given there
        "videos found, uniform split - - - 12.5 ± 3.5",
    ]
    assert lines[-4:] == [
        "random 1.0 2.0 - -",
        "prior 10.0 15.0 - -",
        "chance - - 10.0 1.0",
        "bag of words - - 30.0 -",
    ]
    content = {"method": "tiny", "corpus": "c", "split": "test", "seeds": [0, 1], "tables": [table]}
    draw_ablation(content, tmp_path / "corpus.png")
    assert (tmp_path / "corpus.png").read_bytes().startswith(b"\x89PNG")


def test_markdown_says_whose_figures_they_are(tables_file: Path) -> None:
    table = summary(tables_file, [0.2, 0.4], [0.3, 0.4])
    page = markdown(
        {"method": "tiny", "corpus": "c", "split": "test", "seeds": [0, 1], "tables": [table]}, "###", "a.png"
    )
    assert "### Table 1, widths: width\n\nThe paper's figures are of charades_sta.\n\n```\n" in page
    assert "seeds 0 to 1" in page
    assert page.count("- undecided: more width helps") == 1
    assert page.endswith("(a.png)\n")


def test_what_chose_the_epochs_is_said() -> None:
    content = {"method": "tiny", "corpus": "c", "split": "test", "seeds": [0]}
    content["selection"] = [{"by": "last", "sees_spans": False}]
    assert describe(content).endswith(" In each run the last epoch counts.")
    content["selection"] = [{"by": "loss", "sees_spans": False}, {"by": "mIoU", "sees_spans": True}]
    assert describe(content).endswith(
        " In each run the epoch is chosen by validation loss, which sees no timestamp or, depending on the row, "
        "the epoch is chosen by validation mIoU, which sees timestamps."
    )


# --- the command, before any run


def test_wrong_calls(tables_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--method=tiny", "--output", str(tmp_path / "out")]
    for wrong, message in (
        (["--tables", str(tables_file), "--only", "Table 7"], "it has Table 1, widths; Table 2"),
        (["--only", "Table 1"], "name it by --tables"),
        (["--model.widht=3"], "did you mean '--model.width'?"),
        (["--overwrite"], "--resume and --overwrite"),
        (["--tables", str(tmp_path / "none.yaml")], "no such file"),
    ):
        assert ablate.main([*args, *wrong]) == 2
        assert message in error_line(capsys)
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        ablate.main(["--seeds", "0"])
    assert "must be a whole number from 1 on" in capsys.readouterr().err


def test_another_run_in_the_folder(
    tables_file: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], train_args: list[str]
) -> None:
    """Before anything is started: a row's folder holds a run with other settings."""
    place = tmp_path / "out" / "table-2-other" / "seed-0"
    place.parent.mkdir(parents=True)
    place.symlink_to(run)
    args = [*train_args, "--tables", str(tables_file), "--output", str(tmp_path / "out"), "--seeds=1"]
    assert ablate.main(args) == 2
    assert "holds a run with other settings (model.level: sentence there, paragraph here)" in error_line(capsys)


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with (
        pytest.raises(UserError, match=r"out: nothing can be written there \(a file is there\)"),
        runs.locked(tmp_path / "out"),
    ):
        pass


def test_two_commands_in_one_folder(tmp_path: Path) -> None:
    with (
        runs.locked(tmp_path),
        pytest.raises(ConfigError, match="in use by another ablate command"),
        runs.locked(tmp_path),
    ):
        pass
    with runs.locked(tmp_path):
        pass


# --- runs


@pytest.mark.nightly  # its parts are in test_interrupted_and_failing_runs, with a smaller method
def test_seeds_of_a_run(data_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """WSRA over two seeds, each a process of the real train command; what they left is what the table says."""
    config = str(ROOT / "configs" / "wsra" / "moving_shapes.yaml")
    out = tmp_path / "out"
    args = ["--config", config, "--epochs=1", "--accelerator=cpu", "--seed=3", *data_args]
    args += ["--seeds=2", "--workers=2", "--output", str(out)]
    assert ablate.main(args) == 0
    printed = capsys.readouterr().out
    content = json.loads((out / "ablation.json").read_text())
    (table,) = content["tables"]
    (row,) = table["rows"]
    assert content["seeds"] == [run["seed"] for run in row["runs"]] == [3, 4]
    for run in row["runs"]:
        left = json.loads((out / "over-seeds-wsra" / f"seed-{run['seed']}" / "metrics.json").read_text())
        assert {key: left[key] for key in run} == run
    first, second = (run["metrics"] for run in row["runs"])
    assert first != second
    assert mean_and_spread([first["mIoU"], second["mIoU"]]) in printed
    for label in ("wsra ", "random", "uniform", "prior", "whole video", "best single span", "wsra, sentences swapped"):
        assert f"\n{label}" in printed
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert "seeds 3 to 4" in (out / "ablation.md").read_text()
    assert content["selection"] == [{"by": "last", "sees_spans": False}]


class Interrupt:
    """In the place of ``time`` in the command: Ctrl-C once a run has finished and another waits to be killed."""

    def __init__(self, *files: Path) -> None:
        self.files = files

    def sleep(self, seconds: float) -> None:
        if all(file.exists() for file in self.files):
            raise KeyboardInterrupt
        time.sleep(seconds)


@pytest.mark.slow
def test_interrupted_and_failing_runs(
    train_args: list[str],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C stops the run under way; the same command resumes it, keeps what is finished, and names what fails."""
    good = [{"name": "long", "settings": {"epochs": 2}}, {"name": "short", "settings": {"epochs": 1}}]
    bad = [*good, {"name": "bad", "settings": {"data.features": str(tmp_path / "none.h5")}}]
    claims = [{"better": ["long", "bad"], "claim": "bad is worse"}]
    tables = [{"title": "T", "rows": good}, {"title": "U", "rows": bad, "claims": claims}]
    content = {"tables": [{**table, "corpus": "c", "judged_by": "mIoU"} for table in tables]}
    file, out, marker = write(tmp_path, yaml.safe_dump(content)), tmp_path / "out", tmp_path / "waiting"
    finished = out / "t-short" / "seed-0" / "metrics.json"
    args = [*train_args, "--tables", str(file), "--seeds=1", "--workers=2", "--output", str(out)]
    monkeypatch.setattr(runs, "TRAIN", (sys.executable, str(TINY), "train"))

    (steps,) = map(int, re.findall(r"(\d+) steps an epoch", (run / "log.txt").read_text()))
    with monkeypatch.context() as first:
        first.setenv("TINY_PAUSE", f"{steps + 1}:{marker}")
        first.setattr(runs, "time", Interrupt(marker, finished))
        assert ablate.main([*args, "--only", "T"]) == 130
    assert load_state(out / "t-long" / "seed-0" / STATE_FILE)["epoch"] == 1
    assert not (out / "t-long" / "seed-0" / "metrics.json").exists()
    assert not (out / "ablation.json").exists()
    before = finished.stat().st_mtime_ns

    capsys.readouterr()
    assert ablate.main(args) == 2  # the folder is not locked: nothing of the first command is still running
    captured = capsys.readouterr()
    assert finished.stat().st_mtime_ns == before
    assert "resuming after epoch 1" in (out / "t-long" / "seed-0" / "log.txt").read_text()
    assert "1 of 3 runs failed, so the tables lack U bad (seed 0)" in captured.err
    assert "u-bad, seed 0 failed (code 2); its last lines:\n" in captured.err
    assert f"{tmp_path / 'none.h5'}" in captured.err
    _, second = json.loads((out / "ablation.json").read_text())["tables"]
    assert [len(row["runs"]) for row in second["rows"]] == [1, 1, 0]
    assert "bad [0 of 1 seeds]" in captured.out
    assert "undecided: bad is worse (no seed of both long and bad has finished)." in captured.out


@pytest.mark.parametrize(("given", "expected"), [(None, max(1, (os.cpu_count() or 1) // 2)), ("3", 3)])
def test_threads_of_a_run(given: str | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An equal share of the cores, unless the environment says otherwise."""
    threads = []

    def start(run: plan.Run, environment: dict[str, str], lock: int) -> subprocess.Popen[bytes]:
        threads.append(environment["OMP_NUM_THREADS"])
        return subprocess.Popen([sys.executable, "-c", ""])

    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(runs, "_start", start)
    plan = shipped_plan(ROOT / "configs" / "wsra" / "ablations.yaml")
    runs.run_all(plan.runs[:2], 2, 0)
    assert threads == [str(expected)] * 2
