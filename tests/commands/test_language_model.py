"""The commands with a method that reads a language model's outputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from language_models import make_gpt2
from safetensors.torch import load_file

from vpgfast import evaluate, ground, train
from vpgfast.checkpoint import load_checkpoint, load_state
from vpgfast.files import MODEL_FILE, STATE_FILE
from vpgfast.train import run as training

SENTENCE = "A purple zebra, never seen, moves left."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gpt2(tmp_path_factory.mktemp("models") / "gpt2", dim=32, limit=100)


@pytest.fixture(scope="module")
def args(data_args: list[str], folder: Path) -> list[str]:
    model = ["--model.hidden=16", "--model.query_negatives=true", f"--model.language_model={folder}"]
    return ["--method=wsra", "--epochs=2", "--batch_size=3", "--accelerator=cpu", *model, *data_args]


@pytest.fixture(scope="module")
def trained(args: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "gpt2"
    assert train.main([*args, "--output", str(output)]) == 0
    return output


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_resumed_equals_uninterrupted(
    trained: Path, args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second epoch; what is then read again comes in other company, and still bit for bit the same."""
    honest, calls = training.train_epoch, []

    def stop_at_the_second(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(*given)

    monkeypatch.setattr(training, "train_epoch", stop_at_the_second)
    args = [*args, "--output", str(tmp_path / "r")]
    assert train.main(args) == 130
    monkeypatch.setattr(training, "train_epoch", honest)
    assert train.main([*args, "--resume"]) == 0
    states = [load_state(path / STATE_FILE) for path in (trained, tmp_path / "r")]
    for key in ("weights", "optimizer", "random", "history"):
        torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=0)


def test_checkpoint_holds_no_language_model(trained: Path, folder: Path) -> None:
    assert load_checkpoint(trained).settings["model"]["language_model"] == str(folder)
    tensors = load_file(trained / MODEL_FILE)
    assert {name.split(".")[1] for name in tensors if name != "word_vectors"} == {
        "sentence",
        "phi_video",
        "phi_snippet",
    }
    assert {name: len(x) for name, x in tensors.items() if ".sentence." in name} == {"weights.sentence.probe": 32}


def test_evaluate_repeats_the_result(trained: Path, tmp_path: Path) -> None:
    assert evaluate.main([str(trained), "--output", str(tmp_path)]) == 0
    first, again = (json.loads((path / "metrics.json").read_text()) for path in (trained, tmp_path))
    assert again["metrics"] == first["metrics"]
    assert again["control"] == first["control"]


def test_ground_reads_the_sentence_as_written(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one whose words the training sentences do not hold, without saying that it ignores them."""
    dim = load_checkpoint(trained).feature_dim
    np.save(tmp_path / "clip.npy", np.random.default_rng(0).normal(size=(20, dim)).astype(np.float32))
    given = [str(trained), "--features", str(tmp_path / "clip.npy"), "--duration=20", "--output", str(tmp_path)]
    assert ground.main([*given, "--sentence", SENTENCE, "--sentence", SENTENCE.replace("zebra", "giraffe")]) == 0
    assert "has not seen these words" not in capsys.readouterr().err
    zebra, giraffe = json.loads((tmp_path / "grounding.json").read_text())["sentences"]
    assert len(zebra["spans"]) == 5
    assert zebra["spans"] != giraffe["spans"]


def test_the_model_lies_elsewhere(
    trained: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluating and grounding say what is missing, take the new place, and refuse another model that is there."""
    elsewhere = tmp_path / "elsewhere"
    dim = load_checkpoint(trained).feature_dim
    np.save(tmp_path / "clip.npy", np.ones((20, dim), np.float32))
    clip = ["--features", str(tmp_path / "clip.npy"), "--duration=20", "--sentence", SENTENCE]
    commands = {
        evaluate: [str(trained), "--output", str(tmp_path / "out")],
        ground: [str(trained), *clip, "--output", str(tmp_path / "out")],
    }
    for command, given in commands.items():
        asked = [*given, f"--model.language_model={elsewhere}"]
        assert command.main(asked) == 2
        assert f"{elsewhere}: no such folder" in (message := error_line(capsys))
        assert "--model.language_model" in message
        make_gpt2(elsewhere, seed=7, dim=32, limit=100)
        assert command.main(asked) == 2
        assert "trained with the outputs of another language model" in (message := error_line(capsys))
        assert str(trained) in message
        shutil.rmtree(elsewhere)
        shutil.copytree(folder, elsewhere)
        assert command.main(asked) == 0
        shutil.rmtree(elsewhere)


def test_ground_refuses_unknown_arguments(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "clip.npy", np.ones((20, 3), np.float32))
    given = [str(trained), "--features", str(tmp_path / "clip.npy"), "--duration=20", "--sentence", SENTENCE]
    assert ground.main([*given, "--model.langage_model=x"]) == 2
    assert "did you mean '--model.language_model'?" in error_line(capsys)
