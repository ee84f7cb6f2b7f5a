"""The evaluate command, and checkpoints that it must refuse."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from safetensors.torch import save_file

from vpgfast import evaluate
from vpgfast.checkpoint import load_checkpoint, save_checkpoint
from vpgfast.files import MODEL_FILE
from vpgfast.models.registry import METHODS


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_repeats_the_numbers_of_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), "--output", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    assert "moving_shapes, test split" in table
    first, again = (json.loads((folder / "metrics.json").read_text()) for folder in (run, tmp_path / "out"))
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    assert (tmp_path / "out" / "spans.png").read_bytes().startswith(b"\x89PNG")


def test_other_split_and_rules(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--split=val", "--metrics.comparison=>", "--metrics.clips=10", "--metrics.thresholds=[0.1]"]
    assert evaluate.main([str(run / MODEL_FILE), "--output", str(tmp_path), *args]) == 0
    assert "val split, in % (IoU > m, spans in 10 clips)" in capsys.readouterr().out
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["split"] == "val"
    assert list(content["metrics"]) == ["R@1 IoU=0.1", "R@5 IoU=0.1", "mIoU"]


def test_unknown_split(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), "--split=tset", "--output", str(tmp_path)]) == 2
    assert error_line(capsys).endswith("(did you mean 'test'?)")


def test_unknown_option(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), "--metrics.clip=3"]) == 2
    assert "did you mean '--metrics.clips'" in error_line(capsys)


def test_another_method(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), "--method=seqpan"]) == 2
    assert "made by method 'tiny', not by 'seqpan'" in error_line(capsys)


def test_method_that_is_not_installed(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(METHODS, "tiny")
    assert evaluate.main([str(run)]) == 2
    assert "made by method 'tiny', known here are seqpan" in error_line(capsys)


def test_weights_of_another_method(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that says it is of a method whose weights it doesn't hold."""
    checkpoint = load_checkpoint(run)
    checkpoint.weights["head.weight"] = checkpoint.weights.pop("clips.weight")
    save_checkpoint(tmp_path / MODEL_FILE, checkpoint)
    assert evaluate.main([str(tmp_path)]) == 2
    assert "has no weight 'clips.weight' of tiny" in error_line(capsys)


def test_another_width_of_the_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), "--model.width=8"]) == 2
    message = error_line(capsys)
    assert "weight 'query.weight' is (32, 20)" in message
    assert "(16, 20)" in message


def test_features_of_another_width(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import h5py

    source = next(Path(load_checkpoint(run).settings["data"]["cache"]).rglob("annotations.json"))
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for split in json.loads(source.read_text()).values():
            for video in split:
                file[video] = torch.ones(4, 33).numpy()
    assert evaluate.main([str(run), "--data.features", str(tmp_path / "f.h5"), "--output", str(tmp_path)]) == 2
    message = error_line(capsys)
    assert "takes features of width" in message
    assert "has 33 (f.h5)" in message


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "foreign"])
def test_damaged_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    path = tmp_path / MODEL_FILE
    shutil.copy(run / MODEL_FILE, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("no checkpoint")
    else:
        save_file({"weight": torch.ones(2)}, path)
    assert evaluate.main([str(path)]) == 2
    message = error_line(capsys)
    assert str(path) in message
    assert ("not a vpgfast checkpoint" if damage == "foreign" else "damaged") in message


def test_missing_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(tmp_path)]) == 2
    assert f"checkpoint {tmp_path / MODEL_FILE}: no such file" in error_line(capsys)


def test_single_video_has_no_control(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--data.moving_shapes.test_videos=1", "--output", str(tmp_path)]
    assert evaluate.main([str(run), *args]) == 0
    assert "swapped" not in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text())["control"] is None


def test_a_page_of_all_videos(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "gallery.html"
    assert evaluate.main([str(run), "--output", str(tmp_path), "--page", str(page)]) == 0
    assert capsys.readouterr().out.endswith(f"page: {page}\n")
    (text,) = re.findall(r'id="content">(.*?)</script>', page.read_text())
    videos = json.loads(text)["videos"]
    assert [video["name"] for video in videos] == [f"test_{number:05d}" for number in range(7)]
    for video in videos:
        assert (page.parent / unquote(video["src"])).is_file()
        assert all(lane["truth"] and 0 <= lane["spans"][0]["iou"] <= 1 for lane in video["lanes"])
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(page.parent / unquote(videos[2]["src"]), tmp_path / "elsewhere")
    args = ["--output", str(tmp_path), "--page", str(page), "--page-videos", str(tmp_path / "elsewhere")]
    assert evaluate.main([str(run), *args]) == 0
    (text,) = re.findall(r'id="content">(.*?)</script>', page.read_text())
    found = [video for video in json.loads(text)["videos"] if video["src"]]
    assert [video["name"] for video in found] == ["test_00002"]
    assert "its file is not known" in json.loads(text)["videos"][0]["missing"]
