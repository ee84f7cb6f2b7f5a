"""The ground command: videos, feature files, and what it refuses."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from vpgfast import evaluate, ground, train
from vpgfast.checkpoint import load_checkpoint, save_checkpoint
from vpgfast.files import MODEL_FILE

SENTENCE = "A red circle moves left."


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def video(run: Path) -> Path:
    """A test video of the tiny corpus."""
    return min(Path(load_checkpoint(run).settings["data"]["cache"]).rglob("test_*.mp4"))


@pytest.fixture
def features(run: Path, tmp_path: Path) -> Path:
    """A feature file of the right width, of a video much longer than any in training."""
    path = tmp_path / "long.npy"
    np.save(path, np.random.default_rng(0).normal(size=(5000, load_checkpoint(run).feature_dim)).astype(np.float32))
    return path


def read(folder: Path) -> dict:
    return json.loads((folder / "grounding.json").read_text())


def test_video(run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--sentence", SENTENCE, "--sentence", "It vanishes.", "--top=3", "--output", str(tmp_path)]
    assert ground.main([str(run), "--video", str(video), *args]) == 0
    content = read(tmp_path)
    with av.open(str(video)) as container:
        duration = float(container.duration / av.time_base)
    assert content["duration"] == pytest.approx(duration, abs=0.2)
    assert [entry["sentence"] for entry in content["sentences"]] == [SENTENCE, "It vanishes."]
    for entry in content["sentences"]:
        assert len(entry["spans"]) == 3
        assert all(0 <= span["start"] < span["end"] <= content["duration"] + 1e-3 for span in entry["spans"])
        scores = [span["score"] for span in entry["spans"]]
        assert scores == sorted(scores, reverse=True)
    text = (tmp_path / "grounding.txt").read_text()
    assert text.strip() in capsys.readouterr().out
    lines = text.splitlines()
    assert [lines[0], lines[4]] == [f"1. {SENTENCE}", "2. It vanishes."]
    assert (tmp_path / "grounding.png").read_bytes().startswith(b"\x89PNG")


def test_features_of_a_long_video(run: Path, features: Path, tmp_path: Path) -> None:
    args = ["--features", str(features), "--duration=7200", "--sentence", SENTENCE, "--output", str(tmp_path)]
    assert ground.main([str(run), *args]) == 0
    (entry,) = read(tmp_path)["sentences"]
    assert (tmp_path / "grounding.txt").read_text().splitlines()[0] == SENTENCE
    assert len(entry["spans"]) == 5
    assert all(0 <= span["start"] < span["end"] <= 7200 for span in entry["spans"])


def test_features_in_npz(run: Path, features: Path, tmp_path: Path) -> None:
    array = np.load(features)[:20]
    np.savez(tmp_path / "a.npz", features=array, shape=np.array([20]))
    np.savez(tmp_path / "b.npz", anything=array)
    np.save(tmp_path / "c.npy", array)
    found = []
    for name in ("a.npz", "b.npz", "c.npy"):
        args = ["--features", str(tmp_path / name), "--duration=10", "--sentence", SENTENCE]
        assert ground.main([str(run), *args, "--output", str(tmp_path / "out")]) == 0
        found.append(read(tmp_path / "out")["sentences"])
    assert found[0] == found[1] == found[2]


def test_paragraph_longer_than_the_method_takes_at_once(
    features: Path, tmp_path: Path, train_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every sentence keeps its place and its spans, whichever piece it is in."""
    folder, out, text = tmp_path / "r", tmp_path / "out", tmp_path / "p.txt"
    assert train.main([*train_args, "--epochs=1", "--model.level=paragraph", "--output", str(folder)]) == 0
    shapes = ("red circle", "blue square", "green triangle")
    sentences = [f"The {shape} {verb}." for verb in ("appears", "moves left", "vanishes") for shape in shapes]
    text.write_text("\n".join(sentences))
    asked = [str(folder), "--features", str(features), "--duration=90", "--top=4", "--output", str(out)]
    assert ground.main([*asked, "--paragraph", str(text)]) == 0
    assert "the method takes 4 sentences at a time: 9 are cut into pieces" in capsys.readouterr().err
    together = read(out)["sentences"]
    assert [entry["sentence"] for entry in together] == sentences
    assert len({str(entry["spans"]) for entry in together}) == 9
    for entry in together:
        assert ground.main([*asked, "--sentence", entry["sentence"]]) == 0
        (alone,) = read(out)["sentences"]
        for key in ("start", "end", "score"):
            found = [span[key] for span in entry["spans"]]
            assert found == pytest.approx([span[key] for span in alone["spans"]], rel=1e-4), key
    assert "are cut into pieces" not in capsys.readouterr().err


@pytest.mark.parametrize("text", [f"{SENTENCE}\n\n It vanishes. \n", f"\ufeff{SENTENCE} It vanishes.\r\n"])
def test_paragraph_is_its_sentences(
    run: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """From a file and from standard input."""
    path, out = tmp_path / "p.txt", tmp_path / "out"
    path.write_bytes(text.encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    found = []
    for query in (
        ["--sentence", SENTENCE, "--sentence", "It vanishes."],
        ["--paragraph", str(path)],
        ["--paragraph=-"],
    ):
        assert ground.main([str(run), "--video", str(video), *query, "--output", str(out)]) == 0
        found.append((read(out), (out / "grounding.png").read_bytes()))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "p.txt: is empty"),
        (b"\xef\xbb\xbf \r\n\n", "p.txt: is empty"),
        (b"It stops.\n\n ?! \n", "p.txt, line 3: '?!' has no word in it"),
        (b"...", "p.txt, line 1: '...' has no word in it"),
        (b"It stops.\nA caf\xe9.\n", "p.txt, line 2: byte 0xe9 is not UTF-8"),
        ("It stops.".encode("utf-16"), "p.txt, line 1: byte 0xff is not UTF-8"),
    ],
)
def test_paragraph_that_is_none(
    run: Path, features: Path, capsys: pytest.CaptureFixture[str], content: bytes, expected: str
) -> None:
    path = features.with_name("p.txt")
    path.write_bytes(content)
    assert ground.main([str(run), "--features", str(features), "--duration=9", "--paragraph", str(path)]) == 2
    assert expected in error_line(capsys)


def test_paragraph_that_cannot_be_read(run: Path, features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [str(run), "--features", str(features), "--duration=9", "--paragraph"]
    for path in (features.with_name("none.txt"), features.parent):
        assert ground.main([*asked, str(path)]) == 2
        assert f"--paragraph {path}: can't be read" in error_line(capsys)


def test_either_sentences_or_a_paragraph(run: Path, features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [str(run), "--features", str(features), "--duration=9"]
    for query, expected in (
        ([], "one of the arguments --sentence --paragraph is required"),
        (["--sentence", SENTENCE, "--paragraph", "p.txt"], "--paragraph: not allowed with argument --sentence"),
    ):
        with pytest.raises(SystemExit) as caught:
            ground.main([*asked, *query])
        assert caught.value.code == 2
        assert expected in capsys.readouterr().err


def test_unknown_words_are_named(run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--sentence", "A red zebra moves left, zebra!", "--sentence", "Quietly", "--output", str(tmp_path)]
    assert ground.main([str(run), "--video", str(video), *args]) == 0
    assert (
        "warning: the model has not seen these words and ignores their meaning: zebra, quietly"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("method", ["marn", "wsra", "siamgtr", "plain_alignment"])
def test_weakly_supervised_methods(method: str, data_args: list[str], tmp_path: Path) -> None:
    """Trained, evaluated and asked with the commands alone, on the features of motion that `ground` makes again."""
    args = ["--method", method, "--data.features=motion", "--epochs=1", "--accelerator=cpu", *data_args]
    sizes = {
        "marn": ["--model.reduction=1", "--model.dim=8"],
        "wsra": ["--model.hidden=8"],
        "siamgtr": ["--model.dim=8", "--model.max_clips=16", "--model.alignment_weight=1"],
        "plain_alignment": ["--model.dim=8", "--model.max_clips=16"],
    }[method]
    folder = tmp_path / "run"
    assert train.main([*args, *sizes, "--output", str(folder)]) == 0
    assert evaluate.main([str(folder), "--output", str(tmp_path / "val"), "--split=val"]) == 0
    video = min(Path(load_checkpoint(folder).settings["data"]["cache"]).rglob("test_*.mp4"))
    asked = [
        "--video",
        str(video),
        "--sentence",
        SENTENCE,
        "--sentence",
        "It vanishes.",
        "--output",
        str(tmp_path / "o"),
    ]
    assert ground.main([str(folder), *asked]) == 0
    content = read(tmp_path / "o")
    assert [entry["sentence"] for entry in content["sentences"]] == [SENTENCE, "It vanishes."]
    for entry in content["sentences"]:
        assert entry["spans"]
        assert all(0 <= span["start"] < span["end"] <= content["duration"] + 1e-3 for span in entry["spans"])


@pytest.mark.parametrize("sentence", ["", "   ", "?!"])
def test_empty_sentence(run: Path, video: Path, capsys: pytest.CaptureFixture[str], sentence: str) -> None:
    assert ground.main([str(run), "--video", str(video), "--sentence", SENTENCE, "--sentence", sentence]) == 2
    assert "--sentence 2" in error_line(capsys)


def test_video_that_cannot_be_decoded(
    run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.mp4"
    for content in (b"not a video", video.read_bytes()[:400], b""):
        bad.write_bytes(content)
        assert (
            ground.main([str(run), "--video", str(bad), "--sentence", SENTENCE, "--output", str(tmp_path / "o")]) == 2
        )
        assert str(bad) in error_line(capsys)
    assert ground.main([str(run), "--video", str(tmp_path / "none.mp4"), "--sentence", SENTENCE]) == 2
    assert "none.mp4: no such file" in error_line(capsys)
    assert not (tmp_path / "o").exists()


def test_model_of_features_that_are_not_made_here(
    run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(run)
    foreign = replace(checkpoint, encoder=None, feature_source="i3d.h5")
    save_checkpoint(tmp_path / MODEL_FILE, foreign)
    assert ground.main([str(tmp_path), "--video", str(video), "--sentence", SENTENCE]) == 2
    message = error_line(capsys)
    assert "i3d.h5" in message
    assert "--features FILE --duration SECONDS" in message


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.ones((5, 7), np.float32), "width 7, but the checkpoint takes"),
        (np.ones(5, np.float32), "an array [clips, width] is needed"),
        (np.ones((0, 7), np.float32), "an array [clips, width] is needed"),
        (np.array([["a"]]), "an array [clips, width] is needed"),
    ],
)
def test_unfit_features(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], array: np.ndarray, expected: str
) -> None:
    np.save(tmp_path / "f.npy", array)
    args = ["--features", str(tmp_path / "f.npy"), "--duration=10", "--sentence", SENTENCE]
    assert ground.main([str(run), *args]) == 2
    message = error_line(capsys)
    assert "f.npy" in message
    assert expected in message


def test_features_with_nan(run: Path, features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array = np.load(features)
    array[3, 3] = np.nan
    np.save(features, array)
    assert ground.main([str(run), "--features", str(features), "--duration=10", "--sentence", SENTENCE]) == 2
    assert "not finite" in error_line(capsys)


def test_feature_file_that_is_none(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f.npz"
    for content in (b"", b"PK\x03\x04broken", b"text"):
        path.write_bytes(content)
        assert ground.main([str(run), "--features", str(path), "--duration=10", "--sentence", SENTENCE]) == 2
        assert "not a readable .npy or .npz file" in error_line(capsys)
    np.savez(path, a=np.ones(2), b=np.ones(2))
    assert ground.main([str(run), "--features", str(path), "--duration=10", "--sentence", SENTENCE]) == 2
    assert "needs an array named 'features', has a, b" in error_line(capsys)


def test_duration_is_needed_with_features_only(
    run: Path, video: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["--sentence", SENTENCE]
    assert ground.main([str(run), "--features", str(features), *ask]) == 2
    assert "--features needs --duration" in error_line(capsys)
    for duration in ("0", "-3", "nan"):
        assert ground.main([str(run), "--features", str(features), f"--duration={duration}", *ask]) == 2
        assert "--duration must be above 0" in error_line(capsys)
    assert ground.main([str(run), "--video", str(video), "--duration=3", *ask]) == 2
    assert "--duration goes with --features" in error_line(capsys)


def test_a_page(run: Path, video: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--sentence", SENTENCE, "--output", str(tmp_path), "--page", str(tmp_path / "page.html")]
    assert ground.main([str(run), "--video", str(video), *args]) == 0
    assert f"page: {tmp_path / 'page.html'}" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert SENTENCE in page
    assert f"{video.name}" in page
    assert ground.main([str(run), "--features", str(features), "--duration=7200", *args]) == 0
    assert "only its features were given" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--page", "{folder}"], "is a folder; name a file in it"),
        (["--page", "page.txt"], "--page page.txt: name a file that ends in .html"),
        (["--page-embed"], "--page-embed goes with --page FILE.html"),
    ],
)
def test_pages_that_can_not_be(
    run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    asked = ["--video", str(video), "--sentence", SENTENCE, *(text.format(folder=tmp_path) for text in arguments)]
    assert ground.main([str(run), *asked]) == 2
    assert expected in error_line(capsys)
