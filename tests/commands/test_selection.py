"""What chooses the epoch that is kept, and what it looks at."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_search

from vpgfast import plots, train
from vpgfast.config import parse_train
from vpgfast.data import corpus as corpora
from vpgfast.data.annotations import load_annotations
from vpgfast.data.types import Paragraph
from vpgfast.evaluate import selection
from vpgfast.models.registry import METHODS, get_method


def history_of(run: Path) -> tuple[dict, list[str]]:
    return json.loads((run / "metrics.json").read_text()), (run / "log.txt").read_text().splitlines()


def test_the_last_epoch(train_args: list[str], tmp_path: Path) -> None:
    assert train.main([*train_args, "--select_by=last", "--patience=1", "--output", str(tmp_path / "r")]) == 0
    content, log = history_of(tmp_path / "r")
    assert content["selection"] == {"by": "last", "sees_spans": False, "test_videos": 0}
    assert any("3 epochs, 3 is kept: not chosen by any score; this choice sees no span" in line for line in log)


def test_the_loss_on_validation(train_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.3, 0.1, 0.2])
    monkeypatch.setattr(selection, "validation_loss", lambda *_: next(losses))
    assert train.main([*train_args, "--select_by=loss", "--output", str(tmp_path / "r")]) == 0
    content, log = history_of(tmp_path / "r")
    assert content["selection"]["by"] == "loss"
    assert content["selection"]["sees_spans"] is True  # of this method, which learns from them
    assert any("3 epochs, 2 is kept: val loss 0.1000; this choice looks at its spans" in line for line in log)


@pytest.mark.parametrize("by", ["loss", "last"])
def test_a_weakly_supervised_choice_sees_no_span(
    by: str, data_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other spans in the validation split change neither what is chosen nor why."""
    config = Path(__file__).parents[2] / "configs" / "wsra" / "moving_shapes.yaml"
    args = ["--config", str(config), "--epochs=2", "--accelerator=cpu", f"--select_by={by}", *data_args]
    assert train.main([*args, "--output", str(tmp_path / "true")]) == 0

    read = corpora.read_moving_shapes

    def with_other_spans(folder: Path) -> dict[str, list[Paragraph]]:
        splits = read(folder)
        splits["val"] = [
            Paragraph(p.video_id, p.duration, p.sentences, np.tile([0.0, p.duration / 7], (len(p.sentences), 1)))
            for p in splits["val"]
        ]
        return splits

    monkeypatch.setattr(corpora, "read_moving_shapes", with_other_spans)
    assert train.main([*args, "--output", str(tmp_path / "other")]) == 0
    (true, one), (other, two) = history_of(tmp_path / "true"), history_of(tmp_path / "other")
    assert true["selection"] == other["selection"] == {"by": by, "sees_spans": False, "test_videos": 0}
    assert true["metrics"] == other["metrics"]
    kept = [next(line for line in log if "is kept" in line).split("is kept")[1] for log in (one, two)]
    assert kept[0] == kept[1]


def test_how_often_the_video_is_found(train_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, tiny_search.NAME, tiny_search.PLACE)
    args = [*train_args, "--method", tiny_search.NAME, "--select_by=corpus R@10"]
    assert train.main([*args, "--output", str(tmp_path / "r")]) == 0
    content, log = history_of(tmp_path / "r")
    assert content["selection"]["sees_spans"] is False
    assert any("is kept: val corpus R@10 " in line for line in log)


def test_only_methods_that_find_videos_have_corpus_metrics(
    train_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*train_args, "--select_by=corpus R@10", "--output", str(tmp_path / "r")]) == 2
    assert "select_by: no metric 'corpus R@10'" in capsys.readouterr().err


def test_test_videos_that_chose_the_epoch_are_told() -> None:
    def video(name: str) -> Paragraph:
        return Paragraph(name, 1.0, ("It runs.",), np.array([[0.0, 1.0]]))

    splits = {"train": [video("a")], "val": [video("b"), video("b"), video("c")], "test": [video("c"), video("d")]}
    assert corpora.tested_and_validated(splits) == 1
    assert corpora.tested_and_validated({**splits, "test": splits["val"]}) == 2


def test_a_run_that_validates_on_its_test_videos_says_so(train_args: list[str], tmp_path: Path) -> None:
    """In its log and in metrics.json, how many of them there are."""
    for split, count in (("train", 8), ("test", 5)):
        video = {"timestamps": [[0, 100], [150, 300]], "sentences": ["She cuts a carrot.", "He eats it."]}
        videos = {f"{split}-{i}.avi": {**video, "fps": 10.0, "num_frames": 400} for i in range(count)}
        (tmp_path / f"{split}.json").write_text(json.dumps(videos))
    data = ["--data.corpus=tacos", "--data.root", str(tmp_path), "--data.val_split=test", "--data.features=simulated"]
    assert train.main([*train_args, *data, "--epochs=1", "--output", str(tmp_path / "r")]) == 0
    content, log = history_of(tmp_path / "r")
    assert content["selection"]["test_videos"] == 5
    assert [line for line in log if "5 of the test videos are among the validation videos, which choose the" in line]


def test_both_validation_files_of_activitynet(shared: Path) -> None:
    root = shared / "activitynet_captions"
    both, first, second = (load_annotations("activitynet", s, root) for s in ("val_1+val_2", "val_1", "val_2"))
    assert len(both) == len(first) + len(second)
    assert both[len(first)].sentences == second[0].sentences


def test_the_picture_marks_the_lowest_loss(tmp_path: Path) -> None:
    history = [{"epoch": e, "train loss": 1.0 / e, "val mIoU": 0.1, "val loss": abs(e - 2.0)} for e in (1, 2, 3)]
    plots.draw_curves(history, "loss", tmp_path / "t.png", "")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*/*.yaml"))
TRAINED = [path for path in CONFIGS if re.search(r"(?m)^method:", path.read_text())]


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_config_that_trains_without_spans_selects_without_them(path: Path) -> None:
    config = parse_train(["--config", str(path)])
    if get_method(config.method).needs(config.model).labelled_share == 0:
        assert not selection.sees_spans(config)
