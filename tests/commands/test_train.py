"""The train command: what it leaves, resuming, early stopping, and what it says when something is wrong."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file

from vpgfast import evaluate, files, train
from vpgfast.checkpoint import load_checkpoint, load_state
from vpgfast.config import OptimConfig, TrainConfig, parse_train, to_dict
from vpgfast.data.corpus import load_corpus
from vpgfast.data.text import tokenize
from vpgfast.errors import CheckpointError
from vpgfast.files import MODEL_FILE, STATE_FILE
from vpgfast.metrics.rules import MetricRules, metric_names
from vpgfast.train import run as training
from vpgfast.train.folder import first_difference, held

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).with_name("tiny.py")


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr that is an error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


def start(args: list[str], **environment: str) -> subprocess.Popen[str]:
    """The train command in a process of its own."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, str(TINY), "train", *args],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# --- what a run leaves


def test_run_folder(run: Path) -> None:
    files = {path.name for path in run.iterdir()}
    assert files >= {MODEL_FILE, STATE_FILE, "config.yaml", "log.txt", "metrics.json", "spans.png", "training.png"}
    assert not [name for name in files if name.endswith(".tmp")]
    for name in ("spans.png", "ious.png", "training.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    log = (run / "log.txt").read_text()
    assert "epoch 3/3" in log
    assert "hashed" in log


def test_metrics_file(run: Path) -> None:
    content = json.loads((run / "metrics.json").read_text())
    names = [
        "method",
        "corpus",
        "split",
        "seed",
        "seconds",
        "metrics",
        "baselines",
        "control",
        "iou_counts",
        "selection",
    ]
    assert list(content) == names
    assert len(content["iou_counts"]) == 10
    assert (content["method"], content["corpus"], content["split"], content["seed"]) == (
        "tiny",
        "moving_shapes",
        "test",
        0,
    )
    names = metric_names(MetricRules())
    rows = [content["metrics"], content["control"], *content["baselines"].values()]
    assert list(content["baselines"]) == ["random", "uniform", "prior", "whole video", "best single span"]
    for row in rows:
        assert list(row) == names
        assert all(0 <= value <= 1 for value in row.values())


def test_table_is_printed(train_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*train_args, "--output", str(tmp_path / "r"), "--epochs=1"]) == 0
    printed = capsys.readouterr().out
    baselines = ("random", "uniform", "prior", "whole video", "best single span")
    for label in ("moving_shapes, test split", "tiny ", *baselines, "tiny, sentences swapped"):
        assert label in printed


def test_a_weakly_supervised_method_trains(data_args: list[str], tmp_path: Path) -> None:
    """WSRA by its shipped config: the command hands it no spans, and judges it like any other method."""
    config = Path(__file__).parents[2] / "configs" / "wsra" / "moving_shapes.yaml"
    args = ["--config", str(config), "--epochs=2", "--accelerator=cpu", *data_args]
    assert train.main([*args, "--output", str(tmp_path / "r")]) == 0
    content = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert content["method"] == "wsra"
    assert 0 < content["metrics"]["mIoU"] < 1


def test_config_file_repeats_the_run(run: Path, tmp_path: Path) -> None:
    assert train.main(["--config", str(run / "config.yaml"), "--output", str(tmp_path / "again")]) == 0
    first, again = (load_file(folder / MODEL_FILE) for folder in (run, tmp_path / "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert results(tmp_path / "again") == results(run)


def results(folder: Path) -> dict:
    content = json.loads((folder / "metrics.json").read_text())
    del content["seconds"]
    return content


def test_tensorboard_curves(run: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    events = event_accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val/mIoU")] == [1, 2, 3]
    assert [event.step for event in events.Scalars("train/double")] == [1, 2, 3]


def test_best_epoch_is_kept_not_the_last(train_args: list[str], tmp_path: Path) -> None:
    """A learning rate that ruins the model after a while: the file holds the best epoch, the state the last."""
    folder = tmp_path / "r"
    args = [*train_args, "--epochs=6", "--optim.lr=0.3", "--optim.schedule=constant", "--output", str(folder)]
    assert train.main(args) == 0
    state = load_state(folder / STATE_FILE)
    scores = [row["val mIoU"] for row in state["history"]]
    saved = load_checkpoint(folder)
    assert saved.epoch == int(np.argmax(scores)) + 1 == state["best_epoch"]
    assert saved.score == max(scores)
    assert state["epoch"] == 6


def test_early_stopping(train_args: list[str], tmp_path: Path) -> None:
    """Without labels nothing is learned by chance either once the rate is tiny: the first epoch stays the best."""
    folder = tmp_path / "r"
    args = [*train_args, "--epochs=50", "--patience=2", "--optim.lr=1e-12", "--output", str(folder)]
    assert train.main(args) == 0
    state = load_state(folder / STATE_FILE)
    assert (state["epoch"], state["best_epoch"]) == (3, 1)


@pytest.mark.parametrize("level", ["sentence", "paragraph"])
def test_weakly_supervised_batches_hold_no_spans(train_args: list[str], tmp_path: Path, level: str) -> None:
    """The method itself asserts it, at every batch."""
    args = [*train_args, "--epochs=1", "--model.labelled_share=0", f"--model.level={level}"]
    assert train.main([*args, "--output", str(tmp_path / "r")]) == 0
    content = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert content["metrics"]["mIoU"] > 0


@pytest.mark.parametrize("level", ["sentence", "paragraph"])
def test_labels_on_a_share_of_the_paragraphs(
    train_args: list[str], tmp_path: Path, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the 20 training videos, the same ones in both epochs; validation and test keep their spans."""
    epochs: list[dict[str, bool]] = []
    honest, loss = training.train_epoch, tiny.Tiny.loss

    def watched_epoch(*args) -> dict[str, float]:
        epochs.append({})
        return honest(*args)

    def watched_loss(self, batch) -> dict:
        for b, item in enumerate(batch.paragraphs):
            label = batch.labelled is not None and bool(batch.labelled[b])
            assert label == (item.spans is not None) == epochs[-1].setdefault(item.video_id, label)
        return loss(self, batch)

    monkeypatch.setattr(training, "train_epoch", watched_epoch)
    monkeypatch.setattr(tiny.Tiny, "loss", watched_loss)
    args = [*train_args, "--epochs=2", "--model.labelled_share=0.5", f"--model.level={level}"]
    assert train.main([*args, "--output", str(tmp_path / "r")]) == 0
    assert epochs[0] == epochs[1]
    assert (len(epochs[0]), sum(epochs[0].values())) == (20, 10)
    assert json.loads((tmp_path / "r" / "metrics.json").read_text())["metrics"]["mIoU"] > 0


def test_a_share_beyond_all_is_an_error(
    train_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*train_args, "--model.labelled_share=1.5", "--output", str(tmp_path / "r")]) == 2
    assert "labelled_share is 1.5; give the share" in error_line(capsys)


def test_nouns_and_verbs_reach_the_method(train_args: list[str], tmp_path: Path) -> None:
    """Those of the training split alone; the method keeps them, the checkpoint's vocabulary does not."""
    args, folder = [*train_args, "--epochs=1", "--model.content_words=true"], tmp_path / "r"
    assert train.main([*args, "--output", str(folder)]) == 0
    corpus = load_corpus(parse_train(args).data)
    spoken = [word for p in corpus.splits["train"] for sentence in p.sentences for word in tokenize(sentence)]
    saved = load_checkpoint(folder)
    assert saved.word_vectors.content_counts is None
    counts = dict(zip(saved.word_vectors.words, saved.weights["counts"].tolist(), strict=True))
    for word in ("circle", "ring", "is", "appears", "vanishes"):
        assert counts[word] == spoken.count(word) > 0, word
    assert all(counts[word] == 0 for word in ("the", "a", "blue", "to", "<unk>"))
    assert "nouns and verbs of the training sentences" in (folder / "log.txt").read_text()
    assert evaluate.main([str(folder), "--output", str(tmp_path / "e")]) == 0


# --- learning rate and weight decay


def test_learning_rate_schedules() -> None:
    linear, step = OptimConfig(schedule="linear"), OptimConfig(schedule="step", step_epochs=20, step_factor=0.8)
    assert [training.lr_factor(linear, epoch, 4) for epoch in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [training.lr_factor(step, epoch, 100) for epoch in (0, 19, 20, 45)] == pytest.approx([1, 1, 0.8, 0.64])
    assert training.lr_factor(OptimConfig(schedule="constant"), 99, 100) == 1


def test_biases_and_normalisation_do_not_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Conv1d(4, 2, 3))
    optimizer = training.make_optimizer(model, OptimConfig(weight_decay=0.5))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.5, "0.bias": 0, "1.weight": 0, "1.bias": 0, "2.weight": 0.5, "2.bias": 0,
    }  # fmt: skip


def test_a_diverging_loss_is_an_error(
    train_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiny

    honest = tiny.Tiny.loss
    monkeypatch.setattr(tiny.Tiny, "loss", lambda self, batch: {"loss": honest(self, batch)["loss"] * float("nan")})
    assert train.main([*train_args, "--output", str(tmp_path / "r")]) == 2
    assert "the loss became nan in epoch 1" in error_line(capsys)


# --- resuming


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(train_args: list[str], tmp_path: Path, run: Path) -> None:
    """SIGKILL in the middle of the third epoch of four; then the same command again, with other loader processes."""
    args = [*train_args, "--epochs=4"]
    marker = tmp_path / "waiting"
    (steps,) = map(int, re.findall(r"(\d+) steps an epoch", (run / "log.txt").read_text()))
    killed = start([*args, "--output", str(tmp_path / "killed")], TINY_PAUSE=f"{2 * steps + 4}:{marker}")
    deadline = time.monotonic() + 120
    while not marker.exists():
        assert killed.poll() is None, killed.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert load_state(tmp_path / "killed" / STATE_FILE)["epoch"] == 2
    assert not (tmp_path / "killed" / "metrics.json").exists()

    assert train.main([*args, "--output", str(tmp_path / "killed"), "--num_workers=1"]) == 0
    assert "resuming after epoch 2" in (tmp_path / "killed" / "log.txt").read_text()
    assert train.main([*args, "--output", str(tmp_path / "whole")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def assert_same_run(a: Path, b: Path) -> None:
    first, second = load_file(a / MODEL_FILE), load_file(b / MODEL_FILE)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    states = [load_state(folder / STATE_FILE) for folder in (a, b)]
    for key in ("weights", "optimizer", "random", "history", "epoch", "best", "best_epoch"):
        torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=0)
    assert results(a) == results(b)


def test_resume_flag_needs_something_to_resume(
    train_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*train_args, "--resume", "--output", str(tmp_path / "r")]) == 2
    assert "holds no training state" in error_line(capsys)
    assert not (tmp_path / "r").exists()


def test_finished_run_is_shown_again_not_trained_again(
    run: Path, train_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert train.main([*train_args, "--output", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "finished run; --overwrite" in printed
    assert "tiny, sentences swapped" in printed
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_two_processes_in_one_folder(train_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second is refused; a child that loads data, and outlives a run that was killed, is in nobody's way."""
    folder = tmp_path / "r"
    args = [*train_args, "--output", str(folder)]
    with held(folder, parse_train(args)):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        assert train.main(args) == 2
        assert f"{folder}: another process is training there" in capsys.readouterr().err
        assert not (folder / "config.yaml").exists()
        done = subprocess.run(
            [sys.executable, "-m", "vpgfast.train", *args, "--method=wsra", "--devices=2"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 2
        assert f"{folder}: another process is training there" in done.stderr
        assert "Traceback" not in done.stderr
    assert train.main(args) == 0
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_another_run_in_the_folder_is_an_error(
    run: Path, train_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*train_args, "--output", str(run), "--optim.lr=0.5"]) == 2
    message = error_line(capsys)
    assert "optim.lr: 0.01 there, 0.5 here" in message
    assert "--overwrite" in message


def test_a_run_that_failed_at_once_leaves_its_folder_usable(train_args: list[str], tmp_path: Path) -> None:
    args = [*train_args, "--epochs=1", "--output", str(tmp_path / "r")]
    assert train.main([*args, "--data.features", str(tmp_path / "missing.hdf5")]) == 2
    assert train.main(args) == 0


def test_overwrite_deletes_the_run_and_nothing_else(train_args: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "r"
    assert train.main([*train_args, "--epochs=1", "--output", str(folder)]) == 0
    (folder / "notes.txt").write_text("mine")
    assert train.main([*train_args, "--epochs=2", "--output", str(folder), "--overwrite"]) == 0
    assert (folder / "notes.txt").read_text() == "mine"
    assert yaml.safe_load((folder / "config.yaml").read_text())["epochs"] == 2
    assert load_state(folder / STATE_FILE)["epoch"] == 2


def test_damaged_training_state(train_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "r"
    assert train.main([*train_args, "--output", str(folder)]) == 0
    (folder / "metrics.json").unlink()  # as if it had been killed before the evaluation
    state = (folder / STATE_FILE).read_bytes()
    (folder / STATE_FILE).write_bytes(state[: len(state) // 2])
    capsys.readouterr()
    assert train.main([*train_args, "--output", str(folder)]) == 2
    assert "damaged" in error_line(capsys)


def test_a_damaged_training_state_is_told_of_once(tmp_path: Path) -> None:
    """Of a protocol that it does not know torch warns, too."""
    (tmp_path / STATE_FILE).write_bytes(b"\x80\x67}q\x00.")
    with warnings.catch_warnings(record=True) as told, pytest.raises(CheckpointError, match="damaged"):
        load_state(tmp_path / STATE_FILE)
    assert not told


# --- a full disk


def test_disk_full_during_a_checkpoint(
    train_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills half-way through the second epoch's training state: the first one stays and can be resumed."""
    folder, honest, states = tmp_path / "r", files._write, []

    def full_at_the_second(file, data) -> None:
        states.append(STATE_FILE in file.name)
        if sum(states) == 2 and states[-1]:
            file.write(data[: len(data) // 2])
            file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(file, data)

    monkeypatch.setattr(files, "_write", full_at_the_second)
    args = [*train_args, "--output", str(folder)]
    assert train.main(args) == 2
    message = error_line(capsys)
    assert f"can't write {folder / STATE_FILE}: No space left on device" in message
    assert "untouched" in message
    assert load_state(folder / STATE_FILE)["epoch"] == 1
    assert load_checkpoint(folder).method == "tiny"
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]

    monkeypatch.setattr(files, "_write", honest)
    assert train.main(args) == 0
    assert load_state(folder / STATE_FILE)["epoch"] == 3


@pytest.mark.slow
def test_really_full_disk(train_args: list[str], tmp_path: Path) -> None:
    """A file system of 300 kB, about two thirds of it taken: it fills during the first files of the run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mount.returncode != 0:
        pytest.skip(f"mounting a small file system is not permitted here: {mount.stderr.strip()}")
    try:
        process = start([*train_args, "--model.width=2000", "--output", str(disk / "r")])
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 2, output
        assert "Traceback" not in output
        assert len([line for line in output.splitlines() if line.startswith("error: can't write")]) == 1, output
        assert "No space left on device" in output
        assert not [path for path in (disk / "r").iterdir() if path.name.endswith(".tmp")]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- bad input


def test_unknown_metric_to_select_by(train_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*train_args, "--select_by=R@1 IoU=0.8", "--output", str(tmp_path / "r")]) == 2
    assert "did you mean 'R@1 IoU=" in error_line(capsys)


def test_unknown_config_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("optim:\n  lrr: 0.1\n")
    assert train.main(["--config", str(file)]) == 2
    assert error_line(capsys) == f"error: {file}: unknown key 'optim.lrr' (did you mean 'optim.lr'?)"


@pytest.mark.parametrize("workers", [0, 1])
def test_features_that_are_missing(
    train_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["another_video"] = np.zeros((4, 8), np.float32)
    args = ["--data.features", str(tmp_path / "features.h5"), f"--num_workers={workers}"]
    assert train.main([*train_args, *args, "--output", str(tmp_path / "r")]) == 2
    message = error_line(capsys)
    assert "features.h5" in message
    assert "train_" in message


def test_feature_file_that_is_missing_or_cut(
    train_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "features.h5"
    args = [*train_args, "--data.features", str(path), "--output", str(tmp_path / "r")]
    assert train.main(args) == 2
    assert str(path) in error_line(capsys)
    with h5py.File(path, "w") as file:
        file["train_00000"] = np.zeros((400, 80), np.float32)
    path.write_bytes(path.read_bytes()[:5000])
    assert train.main(args) == 2
    assert str(path) in error_line(capsys)


def test_malformed_annotation_file(train_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "val_1", "val_2"):
        (tmp_path / f"{name}.json").write_text('{"v_x": {"duration": 10.0, "timestamps": [[0, 5]], "sentences": }}')
    args = ["--data.corpus=activitynet", "--data.root", str(tmp_path), "--data.features=simulated"]
    assert train.main([*train_args, *args, "--output", str(tmp_path / "r")]) == 2
    message = error_line(capsys)
    assert ".json" in message
    assert "line 1" in message


def test_output_that_is_a_file(train_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r").write_text("")
    assert train.main([*train_args, "--output", str(tmp_path / "r")]) == 2
    assert "--output" in error_line(capsys)


def test_first_difference_ignores_what_changes_no_result() -> None:
    config = to_dict(TrainConfig())
    assert first_difference(config, {**config, "num_workers": 7, "output": "elsewhere"}) == ""
    assert first_difference(config, {**config, "seed": 3}) == "seed: 0 there, 3 here"


@pytest.mark.parametrize("option", ["--accelerator=abacus", "--precision=7", "--devices=many", "--strategy=luck"])
def test_devices_that_do_not_exist(
    train_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert train.main([*train_args, option, "--output", str(tmp_path / "r")]) == 2
    assert "accelerator, devices, strategy or precision" in error_line(capsys)
    assert not (tmp_path / "r").exists()


# --- several processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trained", "evaluated"),
    [("--devices", "torchrun"), pytest.param("torchrun", "--devices", marks=pytest.mark.nightly)],
)
def test_two_processes(train_args: list[str], tmp_path: Path, trained: str, evaluated: str) -> None:
    """Two CPU processes, however they are started: one folder, every test sentence predicted once."""
    args = [*train_args, "--epochs=1", "--output", str(tmp_path / "r")]
    done = in_two_processes(trained, "train", *args)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("moving_shapes, test split") == 1
    assert len(load_state(tmp_path / "r" / STATE_FILE)["random"]) == 2
    assert evaluate.main([str(tmp_path / "r"), "--output", str(tmp_path / "alone"), "--devices=1"]) == 0
    again = in_two_processes(evaluated, "evaluate", str(tmp_path / "r"), "--output", str(tmp_path / "two"))
    assert again.returncode == 0, again.stdout + again.stderr
    alone = results(tmp_path / "alone")
    for together in (results(tmp_path / "r"), results(tmp_path / "two")):
        assert together["metrics"] == pytest.approx(alone["metrics"])
        assert together["baselines"] == alone["baselines"]


def in_two_processes(start: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command with ``tiny`` in two CPU processes that torchrun or Fabric starts; hangs are errors."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    before = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if start == "torchrun" else []
    devices = [] if start == "torchrun" else ["--accelerator=cpu", "--devices=2"]
    return subprocess.run(
        [sys.executable, *before, str(TINY), *arguments, *devices],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def ranks(folder: Path, args: list[str], world: int, started: list[int], minutes: str) -> list[subprocess.Popen[str]]:
    """Some of the processes of a run that says there are ``world``, on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    common |= {"LOCAL_WORLD_SIZE": str(world), "NODE_RANK": "0", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    command = [sys.executable, str(TINY), "train", *args, "--output", str(folder), f"--process_minutes={minutes}"]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in started
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("started", "said"),
    [
        ([0, 2], "process 1 of 3 has not started within 0.1 minutes"),
        pytest.param([1], "process 0 of 3 did not answer at 127.0.0.1", marks=pytest.mark.nightly),
    ],
)
def test_a_process_that_never_starts_is_named(
    train_args: list[str], tmp_path: Path, started: list[int], said: str
) -> None:
    for process in ranks(tmp_path / "r", [*train_args, "--epochs=1"], 3, started, "0.1"):
        output, _ = process.communicate(timeout=120)
        assert said in output
        assert process.returncode == 2


@pytest.mark.nightly
def test_a_process_that_stops_answering_is_named(train_args: list[str], tmp_path: Path) -> None:
    """Frozen in the middle of an epoch, as by a machine that is gone."""
    processes = ranks(tmp_path / "r", [*train_args, "--epochs=50"], 2, [0, 1], "0.1")
    deadline = time.monotonic() + 60
    while not (tmp_path / "r" / STATE_FILE).is_file():  # the first epoch is over
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGSTOP)
    try:
        output, _ = processes[0].communicate(timeout=120)
    finally:
        processes[1].kill()
        processes[1].communicate()
    assert "error: the processes lost each other: process 1 of 2 has not answered" in output, output
    assert processes[0].returncode == 2
