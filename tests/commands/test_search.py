"""The search command: indexes of features and of videos, changes, queries, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny
import tiny_search

from vpgfast import ground, plots, search, train
from vpgfast.checkpoint import load_checkpoint, save_checkpoint, settings_of
from vpgfast.data.moving_shapes import make_moving_shapes
from vpgfast.errors import ConfigError
from vpgfast.files import MODEL_FILE
from vpgfast.models.registry import METHODS
from vpgfast.search import indexing
from vpgfast.search.index import VideoIndex
from vpgfast.search.searcher import Searcher
from vpgfast.search.sources import read_durations

SENTENCES = ["A red circle moves left.", "It vanishes."]
TEXT = " ".join(SENTENCES)


@pytest.fixture(autouse=True)
def _tiny_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, tiny_search.NAME, tiny_search.PLACE)


@pytest.fixture
def corpus(search_run: Path) -> Path:
    """The folder of the made corpus that the run was trained on."""
    checkpoint = load_checkpoint(search_run)
    data = settings_of(checkpoint, search_run, []).data  # other tests put other corpora into the same cache
    return make_moving_shapes(data.moving_shapes, data.seed, data.cache)


@pytest.fixture
def videos(corpus: Path, tmp_path: Path) -> Path:
    """A folder with the seven test videos, one of them in a folder below."""
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    for number, file in enumerate(sorted(corpus.rglob("test_*.mp4"))):
        shutil.copy(file, folder / ("more" if number == 6 else "") / file.name)
    (folder / "notes.txt").write_text("no video")
    return folder


@pytest.fixture
def features(corpus: Path, tmp_path: Path) -> Path:
    """An HDF5 file with the features of the test videos; ``durations.json`` beside it."""
    path = tmp_path / "features.h5"
    annotated = json.loads((corpus / "annotations.json").read_text())["test"]
    with h5py.File(corpus / "features.h5") as every, h5py.File(path, "w") as file:
        for name in annotated:
            every.copy(name, file)
    (tmp_path / "durations.json").write_text(json.dumps(annotated))
    return path


@pytest.fixture
def index(search_run: Path, features: Path, tmp_path: Path) -> Path:
    """An index of ``features``."""
    folder = tmp_path / "index"
    made = ["index", str(search_run), str(features), "-o", str(folder)]
    assert search.main([*made, "--durations", str(tmp_path / "durations.json")]) == 0
    return folder


@pytest.fixture
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that ask often."""
    monkeypatch.setattr(plots, "draw_found", lambda *arguments: None)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


def query(index: Path, *arguments: str) -> dict:
    assert search.main(["query", str(index), *arguments]) == 0
    return json.loads((answered(index) / "search.json").read_text())


def answered(index: Path) -> Path:
    """The folder of the last answer."""
    return max((index / "queries").iterdir(), key=lambda folder: (folder / "search.txt").stat().st_mtime_ns)


def test_query(search_run: Path, index: Path, features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Videos by falling score; in each what `ground` finds there; the same in text, json and a picture."""
    content = query(index, TEXT, "--top=3", "--spans=2")
    printed = capsys.readouterr().out
    assert content["sentences"] == SENTENCES
    scores = [video["score"] for video in content["videos"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    durations = json.loads((features.parent / "durations.json").read_text())
    for video in content["videos"]:
        assert video["path"] == str(features)
        assert video["duration"] == durations[video["video"]]["duration"]
        with h5py.File(features) as file:
            np.save(features.parent / "one.npy", file[video["video"]][()])
        asked = ["--features", str(features.parent / "one.npy"), f"--duration={video['duration']}", "--top=2"]
        asked += ["--sentence", SENTENCES[0], "--sentence", SENTENCES[1], "--output", str(features.parent / "out")]
        assert ground.main([str(search_run), *asked]) == 0
        assert json.loads((features.parent / "out" / "grounding.json").read_text())["sentences"] == video["sentences"]
    text = (answered(index) / "search.txt").read_text()
    assert text.strip() in printed
    assert text.startswith(f"  1.  {content['videos'][0]['video']}   score {scores[0]:.4f}")
    assert (answered(index) / "search.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("_no_picture")
def test_ways_to_ask(index: Path, tmp_path: Path) -> None:
    """One text, a file, or sentence by sentence; settings of the run may stand anywhere."""
    (tmp_path / "p.txt").write_text("\n".join(SENTENCES))
    found = [
        query(index, TEXT),
        query(index, "--paragraph", str(tmp_path / "p.txt"), "--accelerator", "cpu"),
        query(index, "--batch_size", "3", "--sentence", SENTENCES[0], "--sentence", SENTENCES[1], "--exact"),
    ]
    assert found[0] == found[1] == found[2]
    assert len(found[0]["videos"]) == 5


def test_an_accelerator_that_is_not_there(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search.main(["query", str(index), TEXT, "--accelerator", "abacus"]) == 2
    assert "accelerator is 'abacus', but torch sees " in error_line(capsys)


@pytest.mark.usefixtures("_no_picture")
def test_every_feature_layout_is_the_same_index(
    search_run: Path, index: Path, features: Path, videos: Path, tmp_path: Path
) -> None:
    """HDF5, .npy, .npz under a key, and the videos themselves; lengths from .csv, .json, or the length of a clip."""
    expected = query(index, TEXT, "--top=7")
    rows = json.loads((tmp_path / "durations.json").read_text())
    lengths = {name: row["duration"] for name, row in rows.items()}
    (tmp_path / "seconds.csv").write_text("video,seconds\n" + "".join(f"{k},{v}\n" for k, v in lengths.items()))
    (tmp_path / "seconds.json").write_text(json.dumps(lengths))
    with h5py.File(features) as file:
        for name, array in file.items():
            for kind in ("npy", "npz"):
                (tmp_path / kind).mkdir(exist_ok=True)
            np.save(tmp_path / "npy" / f"{name}.npy", array[()])
            np.savez(tmp_path / "npz" / f"{name}.npz", c3d=array[()], other=np.zeros(1))
    for source, arguments in (
        (tmp_path / "npy", ["--durations", str(tmp_path / "seconds.csv")]),
        (tmp_path / "npz", ["--durations", str(tmp_path / "seconds.json"), "--features-key", "c3d"]),
        (videos, []),
    ):
        folder = tmp_path / f"index of {source.name}"
        assert search.main(["index", str(search_run), str(source), "-o", str(folder), *arguments]) == 0
        again = query(folder, TEXT, "--top=7")
        for one, other in zip(expected["videos"], again["videos"], strict=True):
            assert one["video"] == other["video"].removeprefix("more/")
            assert one["score"] == pytest.approx(other["score"], abs=1e-6)
            # Annotated lengths and those of the files differ by less than a frame.
            assert one["duration"] == pytest.approx(other["duration"], abs=0.2)
            assert [len(s["spans"]) for s in one["sentences"]] == [len(s["spans"]) for s in other["sentences"]]


def test_length_of_a_clip(search_run: Path, features: Path, tmp_path: Path) -> None:
    folder = tmp_path / "i"
    assert search.main(["index", str(search_run), str(features), "-o", str(folder), "--clip-seconds=0.5"]) == 0
    with h5py.File(features) as file:
        clips = {name: len(array) for name, array in file.items()}
    assert {entry.video_id: entry.duration for _, _, entry in VideoIndex.open(folder).living()} == {
        name: count / 2 for name, count in clips.items()
    }


@pytest.mark.usefixtures("_no_picture")
def test_changes_by_command(index: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    all_names = [video["video"] for video in query(index, TEXT, "--top=7")["videos"]]
    best = all_names[0]
    assert search.main(["remove", str(index), best, all_names[3]]) == 0
    left = [name for name in all_names if name not in (best, all_names[3])]
    assert [video["video"] for video in query(index, TEXT, "--top=7")["videos"]] == left
    assert search.main(["remove", str(index), best]) == 2
    assert f"has no video '{best}'" in error_line(capsys)

    add = ["add", str(index), str(features), "--durations", str(tmp_path / "durations.json")]
    assert search.main(add) == 0
    captured = capsys.readouterr()
    assert "5 of 7 videos are in the index already" in captured.err
    assert "2 added, 7 videos in 2 shards" in captured.out
    assert [video["video"] for video in query(index, TEXT, "--top=7")["videos"]] == all_names

    assert search.main([*add[:3], "--replace", "--clip-seconds=1"]) == 0
    assert search.main(["info", str(index)]) == 0
    assert "removed       9 (compact drops them)" in capsys.readouterr().out
    assert search.main(["compact", str(index)]) == 0
    assert "7 videos in 1 shards" in capsys.readouterr().out
    assert [video["video"] for video in query(index, TEXT, "--top=7")["videos"]] == all_names


@pytest.mark.usefixtures("_no_picture")
def test_killed_index_resumes(
    search_run: Path,
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What was written before is not done again, and the result is that of an uninterrupted run."""
    made = ["index", str(search_run), str(features), "-o", str(tmp_path / "i"), "--clip-seconds=1", "--batch_size=2"]
    real, calls = Searcher.embed_videos, []

    def embed(self: Searcher, clips: list[np.ndarray]) -> np.ndarray:
        calls.append(len(clips))
        if len(calls) == 4:  # the first is a trial for the width
            raise KeyboardInterrupt
        return real(self, clips)

    monkeypatch.setattr(indexing, "SHARD", 2)
    monkeypatch.setattr(Searcher, "embed_videos", embed)
    assert search.main(made) == 130
    assert len(VideoIndex.open(tmp_path / "i")) == 4
    capsys.readouterr()
    assert search.main(made) == 0
    captured = capsys.readouterr()
    assert "4 of 7 videos are in the index already" in captured.err
    assert "3 added, 7 videos in 4 shards" in captured.out
    assert calls[4:] == [2, 1]

    monkeypatch.undo()
    monkeypatch.setitem(METHODS, tiny_search.NAME, tiny_search.PLACE)
    made[4] = str(tmp_path / "at once")
    assert search.main(made) == 0
    asked = [query(tmp_path / name, TEXT, "--top=7")["videos"] for name in ("i", "at once")]
    assert [video["video"] for video in asked[0]] == [video["video"] for video in asked[1]]
    for one, other in zip(*asked, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)
        assert one["sentences"] == other["sentences"]


def test_bad_videos(search_run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (videos / "test_00003.mp4").write_bytes(b"no video")
    made = ["index", str(search_run), str(videos), "-o", str(tmp_path / "i")]
    assert search.main(made) == 2
    message = error_line(capsys)
    assert "test_00003.mp4" in message
    assert message.endswith("or leave such videos out with --on-bad skip")
    assert len(VideoIndex.open(tmp_path / "i")) == 4  # `more` comes first; nothing that was done is lost
    assert search.main([*made, "--on-bad=skip"]) == 0
    captured = capsys.readouterr()
    assert "warning: left out: video" in captured.err
    assert "2 added, 1 left out as unreadable, 6 videos" in captured.out


def test_a_name_that_is_no_text_costs_its_video(
    search_run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (videos / os.fsdecode(b"caf\xe9.mp4")).write_bytes((videos / "test_00003.mp4").read_bytes())
    assert search.main(["index", str(search_run), str(videos), "-o", str(tmp_path / "i"), "--on-bad=skip"]) == 0
    captured = capsys.readouterr()
    assert "its name is not in UTF-8, which an index is written in; rename it" in captured.err
    assert "7 added, 1 left out as unreadable, 7 videos" in captured.out


def test_videos_that_are_gone(index: Path, features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are found, and it is said why they aren't grounded."""
    features.unlink()
    content = query(index, TEXT, "--top=2")
    captured = capsys.readouterr()
    assert f"not grounded: {features} is gone; put it back" in captured.out
    assert captured.err.count("is found but can't be grounded") == 2
    assert [video["sentences"] for video in content["videos"]] == [None, None]
    assert (answered(index) / "search.png").is_file()
    assert search.main(["info", str(index)]) == 0
    assert f"hdf5 {features}: 7, of which 7 are gone" in capsys.readouterr().out


def test_relative_paths_move_with_the_index(
    search_run: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert search.main(["index", str(search_run), "videos", "-o", "index"]) == 0
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("videos", "index"):
        shutil.move(name, moved)
    found = query(moved / "index", TEXT, "--top=1")["videos"][0]
    assert found["sentences"] is not None
    assert Path(found["path"]).is_relative_to(moved / "videos")


@pytest.mark.usefixtures("_no_picture")
def test_faiss(search_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    width = load_checkpoint(search_run).feature_dim
    with h5py.File(tmp_path / "many.h5", "w") as file:
        for i in range(1050):
            file[f"v{i}"] = rng.normal(size=(2, width)).astype(np.float32)
    folder = tmp_path / "i"
    made = ["index", str(search_run), str(tmp_path / "many.h5"), "-o", str(folder), "--clip-seconds=1", "--faiss"]
    assert search.main([*made, "--recall=0.9"]) == 0
    printed = capsys.readouterr().out
    assert "1050 added, 1050 videos in 1 shards" in printed
    assert "of exact search, on 105 videos that training did not see" in printed
    (tmp_path / "queries.txt").write_text(f"{TEXT}\n\nA blue square grows. It stops.\n")
    assert search.main(["build-faiss", str(folder), "--queries", str(tmp_path / "queries.txt"), "--recall=1"]) == 0
    assert "recall @1 100.0%, @10 100.0%" in capsys.readouterr().out
    assert len(list(folder.glob("faiss-*"))) == 1
    exact = query(folder, TEXT, "--exact")["videos"]
    found = query(folder, TEXT)["videos"]
    assert [video["video"] for video in found] == [video["video"] for video in exact]
    assert search.main(["info", str(folder)]) == 0
    assert "search        FAISS, " in capsys.readouterr().out


@pytest.mark.parametrize("action", ["index", "query"])
def test_method_without_retrieval(
    run: Path, index: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    if action == "index":
        asked = ["index", str(run), str(features), "-o", str(tmp_path / "other"), "--clip-seconds=1"]
        METHODS["tiny"] = tiny.PLACE
        assert search.main(asked) == 2
        message = error_line(capsys)
        assert "method 'tiny' grounds sentences in a given video and can't find the video" in message
        assert re.search("train one that can: .*tiny_search", message)
        assert not (tmp_path / "other").exists()
    else:
        shutil.copy(run / MODEL_FILE, index / "model.safetensors")
        assert search.main(["query", str(index), TEXT]) == 2
        assert "not the one that made the vectors" in error_line(capsys)


def test_another_model_or_settings(
    search_run: Path, index: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(search_run)
    checkpoint.weights["video_vector.bias"] += 1
    save_checkpoint(tmp_path / MODEL_FILE, checkpoint)
    for model, change in ((tmp_path, []), (search_run, ["--model.dropout=0.3"])):
        made = ["index", str(model), str(features), "-o", str(index), "--clip-seconds=1", *change]
        assert search.main(made) == 2
        assert f"made by another model ({search_run / MODEL_FILE})" in error_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{features}"], "give either --durations FILE (.csv or .json, seconds by video) or --clip-seconds S"),
        (["{features}", "--clip-seconds=0"], "--clip-seconds must be above 0, got 0"),
        (["{features}", "--durations={dir}/none.csv"], "none.csv: can't be read"),
        (["{features}", "--durations={dir}/bad.csv"], "entry 2: 'b' is not 'video_id,seconds'"),
        (["{features}", "--durations={dir}/bad.json"], "'a' lasts -3, which is no number of seconds above 0"),
        (["{features}", "--durations={dir}/few.csv"], "--durations does not tell its length in seconds"),
        (["{dir}/nothing"], "nothing: no such file or folder"),
        (["{videos}", "--clip-seconds=1"], "--clip-seconds goes with feature files"),
        (["{features}", "--clip-seconds=1", "--model.wdith=3"], "did you mean '--model.width'"),
        (["{features}", "--clip-seconds=1", "--model.width"], "--model.width needs a value"),
        (["{features}", "--clip-seconds=1", "--faiss", "--recall=95"], "--recall must be above 0 and at most 1"),
        (["{narrow}", "--clip-seconds=1"], "features of width 3, but the model takes"),
    ],
)
def test_refused_sources(
    search_run: Path,
    features: Path,
    videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    (tmp_path / "bad.csv").write_text("a,3\nb\n")
    (tmp_path / "few.csv").write_text("a,3\n")
    (tmp_path / "bad.json").write_text('{"a": -3}')
    (tmp_path / "narrow").mkdir()
    np.save(tmp_path / "narrow" / "v.npy", np.ones((4, 3)))
    places = {"features": features, "videos": videos, "dir": tmp_path, "narrow": tmp_path / "narrow"}
    filled = [argument.format(**places) for argument in arguments]
    assert search.main(["index", str(search_run), *filled, "-o", str(tmp_path / "i")]) == 2
    assert expected in error_line(capsys)
    assert not (tmp_path / "i").exists() or not len(VideoIndex.open(tmp_path / "i"))


def test_model_of_features_that_are_not_made_here(
    search_run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(search_run)
    checkpoint.encoder, checkpoint.feature_source = None, "c3d.h5"
    save_checkpoint(tmp_path / MODEL_FILE, checkpoint)
    assert search.main(["index", str(tmp_path), str(videos), "-o", str(tmp_path / "i")]) == 2
    assert "this model takes c3d.h5 (width 144) and does not know what made them" in error_line(capsys)


def test_two_videos_of_one_name(
    search_run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(videos / "test_00000.mp4", videos / "test_00000.mkv")
    assert search.main(["index", str(search_run), str(videos), "-o", str(tmp_path / "i")]) == 2
    assert "two videos of one name" in error_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["?!"], "the text to look for ('?!') has no word in it"),
        (["--sentence", "It stops.", "--sentence", ""], "--sentence 2 ('') has no word in it"),
        ([TEXT, "--top=0"], "--top must be at least 1, got 0"),
        ([TEXT, "--spans=-1"], "--spans must be at least 1, got -1"),
    ],
)
def test_refused_queries(index: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert search.main(["query", str(index), *arguments]) == 2
    assert expected in error_line(capsys)


def test_one_way_to_ask_at_a_time(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for asked in ([], [TEXT, "--sentence", "It stops."]):
        with pytest.raises(SystemExit) as caught:
            search.main(["query", str(index), *asked])
        assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert "one of the arguments --sentence --paragraph TEXT --queries is required" in printed
    assert "argument --sentence: not allowed with argument TEXT" in printed


def test_no_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in (["query", str(tmp_path), TEXT], ["info", str(tmp_path)], ["remove", str(tmp_path), "v"]):
        assert search.main(action) == 2
        assert f"index {tmp_path}: no index.json there" in error_line(capsys)


def test_words_that_are_not_known(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query(index, "A zebra moves left.")
    assert "ignores their meaning: zebra" in capsys.readouterr().err


def test_paragraph_method(train_args: list[str], features: Path, tmp_path: Path) -> None:
    """More sentences than the method takes at a time: pieces for grounding, one vector for the search."""
    folder = tmp_path / "run"
    args = [*train_args, "--method=tiny_search", "--epochs=1", "--model.level=paragraph", "--output", str(folder)]
    assert train.main(args) == 0
    made = ["index", str(folder), str(features), "-o", str(tmp_path / "i"), "--clip-seconds=0.5"]
    assert search.main(made) == 0
    sentences = [
        f"The {shape} {verb}." for verb in ("appears", "moves left") for shape in ("red circle", "blue square")
    ]
    content = query(tmp_path / "i", " ".join([*sentences, "It stops."]))
    assert content["sentences"] == [*sentences, "It stops."]
    assert all(len(video["sentences"]) == 5 for video in content["videos"])


def test_code_of_the_page(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/search.md says to export, and the query it says to make."""
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_index").symlink_to(index)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    rows = [json.loads(line) for line in (tmp_path / "videos.jsonl").read_text().splitlines()]
    found = query(index, "--sentence", "A man opens a door.", "--sentence", "He walks in.", "--top=1")["videos"][0]
    products = {row["id"]: float(np.array(row["vector"]) @ names["query"][0]) for row in rows}
    assert len(products) == 7
    assert max(products, key=products.__getitem__) == found["video"]
    assert products[found["video"]] == pytest.approx(found["score"], abs=1e-6)


def test_a_page(
    search_run: Path, videos: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert search.main(["query", str(index), TEXT, "--page", str(page)]) == 0
    assert "only its features were given" in page.read_text()
    assert search.main(["index", str(search_run), str(videos), "-o", str(tmp_path / "of_videos")]) == 0
    assert search.main(["query", str(tmp_path / "of_videos"), TEXT, "--top=2", "--page", str(page)]) == 0
    assert f"page: {page}" in capsys.readouterr().out
    (text,) = re.findall(r'id="content">(.*?)</script>', page.read_text())
    found = json.loads(text)["videos"]
    assert len(found) == 2
    for video in found:
        assert (tmp_path / video["src"]).is_file()
        assert [lane["sentence"] for lane in video["lanes"]] == SENTENCES
    assert found[0]["score"] >= found[1]["score"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.csv", "a,1\nb,2\na,3\n", "'a' is there twice; delete one of the lines"),
        ("d.json", '{"a": 1, "b": 2, "a": 1}', "the key 'a' is there twice in one object"),
    ],
)
def test_durations_that_are_there_twice(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=f"--durations {tmp_path / name}.*{said}"):
        read_durations(tmp_path / name)
