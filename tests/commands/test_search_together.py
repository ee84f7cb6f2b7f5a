"""``search`` beside other processes, on odd files and machines: nothing is lost, mixed up or passed over in silence."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_search

from vpgfast import plots, search
from vpgfast.data.types import BatchNeeds
from vpgfast.errors import CheckpointError, SearchIndexError, UserError
from vpgfast.files import temporary_name, write_file
from vpgfast.models.registry import METHODS
from vpgfast.search.about import INDEX_FILE
from vpgfast.search.index import VideoIndex
from vpgfast.search.shards import VideoEntry

TEXT = "The red circle moves to the left. Then the blue square grows."


@pytest.fixture(autouse=True)
def _tiny_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, tiny_search.NAME, tiny_search.PLACE)
    monkeypatch.setattr(plots, "draw_found", lambda *arguments: None)


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """A folder of twelve feature files."""
    folder = tmp_path / "features"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        np.save(folder / f"v{number:02d}.npy", random.standard_normal((9, 144)).astype(np.float32))
    return folder


def make(search_run: Path, features: Path, folder: Path, *options: str) -> int:
    made = ["index", str(search_run), str(features), "-o", str(folder), "--clip-seconds=1"]
    return search.main([*made, *options])


@pytest.fixture
def index(search_run: Path, features: Path, tmp_path: Path) -> Path:
    assert make(search_run, features, tmp_path / "index") == 0
    return tmp_path / "index"


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


# --- settings


@pytest.mark.parametrize("action", ["query", "add"])
def test_settings_that_change_vectors_are_refused(
    action: str, index: Path, features: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what they do, whatever their name is."""
    asked = {"query": [TEXT], "add": [str(features), "--clip-seconds=1", "--replace"]}[action]
    before = (index / INDEX_FILE).read_bytes()
    needs = tiny_search.TinySearch.needs

    def shorter(config: tiny.TinyConfig) -> BatchNeeds:
        return replace(needs(config), max_clips=4)

    with monkeypatch.context() as patch:
        patch.setattr(tiny_search.TinySearch, "needs", staticmethod(shorter))
        assert search.main([action, str(index), *asked, "--model.dropout=0.2"]) == 2
    assert "--model.dropout=0.2 changes vectors, and those in the index were made without" in error_line(capsys)
    assert (index / INDEX_FILE).read_bytes() == before
    assert search.main([action, str(index), *asked, "--model.dropout=0.2", "--batch_size=3"]) == 0


def test_an_index_that_does_not_know_its_model_again(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = json.loads((index / INDEX_FILE).read_text())
    del about["probe"]
    (index / INDEX_FILE).write_text(json.dumps(about))
    assert search.main(["query", str(index), TEXT]) == 0
    capsys.readouterr()
    assert search.main(["query", str(index), TEXT, "--model.dropout=0.2"]) == 2
    assert "does not say how its model is known again" in error_line(capsys)


# --- bad files


def test_skip_skips_whatever_is_bad(
    search_run: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (features / "a_first.npy").write_bytes(b"no array")
    np.save(features / "a_narrow.npy", np.ones((3, 7), np.float32))
    np.save(features / "huge.npy", np.full((4, 144), 3e38, np.float32))
    np.save(features / "nan.npy", np.full((4, 144), np.nan, np.float32))
    np.savez(features / "v03.npz", np.ones((4, 144), np.float32))
    (features / os.fsdecode(b"caf\xe9.npy")).write_bytes((features / "v00.npy").read_bytes())
    assert make(search_run, features, tmp_path / "i") == 2
    assert "Mend it, or leave such videos out with --on-bad skip" in error_line(capsys)
    assert make(search_run, features, tmp_path / "i", "--on-bad=skip") == 0
    captured = capsys.readouterr()
    assert "11 added, 6 left out as unreadable, 11 videos" in captured.out
    for reason in (
        "a_first.npy: not a readable .npy",
        "a_narrow.npy: width 7, expected 144",
        "'huge': the model makes no finite vector of them",
        "NaN or infinity in 4 of 4 clips",
        "v03.npy and v03.npz; delete one",
        "the name is not in UTF-8",
    ):
        assert captured.err.count(reason) == 1, reason


def test_files_of_another_width_altogether(
    search_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    for name in "ab":
        np.save(tmp_path / "other" / f"{name}.npy", np.ones((3, 7), np.float32))
    assert make(search_run, tmp_path / "other", tmp_path / "i", "--on-bad=skip") == 2
    assert "features of width 7, but the model takes 144" in error_line(capsys)


# --- links, and folders that can't be written


def test_an_index_behind_a_link_finds_its_features(
    search_run: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert make(search_run, Path("features"), Path("deep/er/index")) == 0
    (tmp_path / "link").symlink_to("deep/er/index")
    monkeypatch.chdir(tmp_path / "deep")
    for folder in ("../link", str(tmp_path / "link"), "er/index"):
        answers = search.open_index(folder).ask(TEXT, top=2)
        assert all(one.grounding is not None for one in answers), folder
        assert all(one.path.samefile(features) for one in answers)


def test_an_index_that_can_not_be_written_answers(
    index: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (index / "queries").write_text("in the way of the folder")  # root may write everywhere
    assert search.main(["query", str(index), TEXT, "--top=2"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("score") == 2
    assert "the answer is printed only: " in captured.err
    assert "--output names one" in captured.err


# --- several at once


def test_questions_at_the_same_time_keep_their_answers(index: Path, tmp_path: Path) -> None:
    texts = [f"The {color} circle moves." for color in ("red", "green", "blue", "white")]
    threads = [threading.Thread(target=search.main, args=(["query", str(index), text],)) for text in texts * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = [json.loads(path.read_text()) for path in (index / "queries").glob("*/search.json")]
    assert sorted(content["sentences"][0] for content in written) == sorted(texts)


def test_writers_of_one_file_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    contents = [bytes([65 + number]) * 50_000 for number in range(4)]
    seen: set[bytes] = set()
    threads = [
        threading.Thread(target=lambda content=content: [write_file(path, content) for _ in range(25)])
        for content in contents
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            seen.add(path.read_bytes())
    assert seen <= set(contents), "a mixture was seen"
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_a_file_with_a_long_name(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)
    assert len(os.fsencode(temporary_name(path).name)) <= 255
    write_file(path, b"x")
    assert path.read_bytes() == b"x"
    with pytest.raises(CheckpointError, match="can't write"):
        write_file(tmp_path / ("x" * 256), b"x")


def test_two_that_make_one_index(search_run: Path, features: Path, tmp_path: Path) -> None:
    """One makes it, the other is told; what is there is whole."""
    codes: list[int] = []
    folder = tmp_path / "i"
    threads = [threading.Thread(target=lambda: codes.append(make(search_run, features, folder))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 in codes
    assert set(codes) <= {0, 2}
    assert len(VideoIndex.open(folder)) == 12


@pytest.fixture
def large(tmp_path: Path) -> VideoIndex:
    """An index of vectors alone, in many shards."""
    (tmp_path / "model").write_bytes(b"model")
    index = VideoIndex.create(tmp_path / "large", 8, tmp_path / "model", "m", {"source": "s", "width": 1})
    random = np.random.default_rng(0)
    with index.changing():
        for shard in range(12):
            vectors = random.standard_normal((100, 8)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            source = {"kind": "folder", "path": "/f", "key": None}
            index.add(vectors, [VideoEntry(f"v{shard}-{row}", 1.0, source) for row in range(100)])
    return index


def ask_while(index: VideoIndex, change: threading.Thread) -> int:
    """How often the index gave the right answer while it was changed."""
    queries = np.eye(8, dtype=np.float32)[:2]
    expected = [[found.video.video_id for found in row] for row in index.search(queries, 5, exact=True)]
    asked = 0
    change.start()
    while change.is_alive() or not asked:
        reader = VideoIndex.open(index.folder)
        time.sleep(0.001)
        for _ in range(3):
            assert [[found.video.video_id for found in row] for row in reader.search(queries, 5)] == expected
        asked += 1
    change.join()
    return asked


def test_readers_go_on_while_it_is_compacted(large: VideoIndex) -> None:
    def compact() -> None:
        writer = VideoIndex.open(large.folder)
        for number in range(30):
            with writer.changing():
                writer.compact(size=100 + number)

    assert ask_while(large, threading.Thread(target=compact)) > 3


def test_readers_go_on_while_faiss_is_built_again(large: VideoIndex) -> None:
    pytest.importorskip("faiss", reason="needs the extra `faiss` (the extra `test` brings it)")

    def build() -> None:
        writer = VideoIndex.open(large.folder)
        for seed in range(4):
            with writer.changing():
                writer.build_faiss(recall=1.0, seed=seed)

    assert ask_while(large, threading.Thread(target=build)) > 3


def test_a_file_that_is_really_gone_is_told(large: VideoIndex) -> None:
    (large.folder / "vectors-00003.npy").unlink()
    with pytest.raises(SearchIndexError, match=r"vectors-00003\.npy is damaged or missing"):
        VideoIndex.open(large.folder).search(np.eye(8, dtype=np.float32)[:1], 5)


def test_what_a_kill_leaves_goes_with_the_next_change(large: VideoIndex) -> None:
    left = [".faiss-00012.index.tmp", "faiss-00077.index", ".index.json.tmp", "vectors-00099.npy"]
    for name in left:
        (large.folder / name).write_bytes(b"half")
    with large.changing():
        large.remove(["v0-0"])
    assert not any((large.folder / name).exists() for name in left)


# --- many paragraphs


def test_several_paragraphs_with_one_start(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [TEXT, "", "The green circle shrinks.", "A square moves."]
    (tmp_path / "q.txt").write_text("\n".join(lines))
    loads: list[object] = []
    real = search.session.Searcher.load
    monkeypatch.setattr(search.session.Searcher, "load", lambda *a: loads.append(a) or real(*a))
    asked = ["query", str(index), "--queries", str(tmp_path / "q.txt"), "--top=2"]
    assert search.main([*asked, "--output", str(tmp_path / "out")]) == 0
    assert len(loads) == 1
    out = capsys.readouterr().out
    assert f"1. {TEXT}" in out
    assert "3. A square moves." in out
    for number, line in enumerate([line for line in lines if line], start=1):
        content = json.loads((tmp_path / "out" / str(number) / "search.json").read_text())
        assert " ".join(content["sentences"]) == line
        assert search.main(["query", str(index), line, "--top=2", "--output", str(tmp_path / "one")]) == 0
        assert json.loads((tmp_path / "one" / "search.json").read_text()) == content
    assert search.main(asked) == 0
    assert len(list((index / "queries").iterdir())) == 3
    (tmp_path / "q.txt").write_text("A square.\n...\n")
    capsys.readouterr()
    assert search.main(asked) == 2
    assert "q.txt, line 2: '...' has no word in it" in error_line(capsys)


def test_from_python(index: Path, features: Path) -> None:
    session = search.open_index(index)
    answers = session.ask(TEXT, top=3, spans=2)
    assert [one.found.score for one in answers] == sorted((one.found.score for one in answers), reverse=True)
    assert answers[0].grounding is not None
    assert answers[0].grounding.spans.shape == (2, 2, 2)
    (again,) = session.ask(["The red circle moves to the left.", "Then the blue square grows."], top=1, spans=2)
    assert again.as_dict() == answers[0].as_dict()
    begin = time.perf_counter()
    session.ask(TEXT, top=1)
    assert time.perf_counter() - begin < 2, "nothing is loaded again"
    np.save(features / "later.npy", np.load(features / "v00.npy") * 2)
    assert search.main(["add", str(index), str(features), "--clip-seconds=1"]) == 0
    assert len(session.ask(TEXT, top=20)) == 13, "what came meanwhile is asked, too"
    for nothing in ("", "...", ["A dog.", "!"]):
        with pytest.raises(UserError, match="without a word in it"):
            session.ask(nothing)


def test_threads_share_a_session_while_the_index_changes(index: Path) -> None:
    """None of them sees half of a change."""
    session = search.open_index(index)
    every = {one.found.video.video_id: one.found.score for one in session.ask(TEXT, top=12)}
    problems: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                found = {one.found.video.video_id: one.found.score for one in session.ask(TEXT, top=12)}
                assert found == pytest.approx({name: every[name] for name in found}, abs=1e-6)
                assert len(found) in (11, 12)
        except BaseException as error:  # it is the test's own
            problems.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    writer = VideoIndex.open(index)
    for number in range(15):
        with writer.changing():
            row = next(row for row in writer.living() if row[2].video_id == "v03")
            vector = writer.vectors(row[0])[row[1]][None].copy()
            writer.remove(["v03"])
            writer.compact(size=2 + number % 3)
            writer.add(vector, [row[2]])
    done.set()
    for thread in threads:
        thread.join()
    assert not problems, problems


def test_an_index_that_is_made_anew(index: Path, search_run: Path, features: Path) -> None:
    """Its files have the old names and hold something else; another model's is refused."""
    session = search.open_index(index)
    before = session.ask(TEXT, top=1)[0].found.video.video_id
    shutil.rmtree(index)
    (features / f"{before}.npy").unlink()
    assert make(search_run, features, index) == 0
    assert len(session.ask(TEXT, top=20)) == 11
    assert before not in {one.found.video.video_id for one in session.ask(TEXT, top=20)}
    about = json.loads((index / INDEX_FILE).read_text())
    about["model"]["sha256"] = "0" * 64
    (index / INDEX_FILE).write_text(json.dumps(about))
    with pytest.raises(SearchIndexError, match="made anew by another model meanwhile; open it again"):
        session.ask(TEXT)
