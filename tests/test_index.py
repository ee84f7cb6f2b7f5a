"""The folder of an index: what is found, what changes keep, and what damage says. No model: vectors are random."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vpgfast.errors import ConfigError, SearchIndexError, UserError
from vpgfast.search import index as module
from vpgfast.search.about import FORMAT
from vpgfast.search.index import VideoIndex
from vpgfast.search.shards import VideoEntry

WIDTH = 16
SOURCE = {"kind": "hdf5", "path": "features.h5", "key": "{video_id}"}


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def entries(names: range | list[int]) -> list[VideoEntry]:
    return [VideoEntry(f"v{i}", 10.0 + i, SOURCE) for i in names]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., VideoIndex]:
    """Makes an index; each positional argument is a shard: numbers of videos, their vectors taken from ``vectors``."""

    def make(vectors: np.ndarray, *shards: range) -> VideoIndex:
        (tmp_path / "model").write_bytes(b"weights")
        index = VideoIndex.create(
            tmp_path / "index", vectors.shape[1], tmp_path / "model", "tiny", {"source": "x", "width": 3}
        )
        with index.changing():
            for shard in shards:
                index.add(vectors[list(shard)], entries(shard))
        return index

    return make


@pytest.fixture
def vectors() -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(60, WIDTH)))


def brute_force(vectors: np.ndarray, living: list[int], query: np.ndarray, top: int) -> list[str]:
    products = {f"v{i}": float(vectors[i] @ query) for i in living}
    return sorted(products, key=lambda name: -products[name])[:top]


def names(index: VideoIndex, queries: np.ndarray, top: int, exact: bool = False) -> list[list[str]]:
    return [[found.video.video_id for found in row] for row in index.search(queries, top, exact)]


@pytest.mark.parametrize("block", [7, 65_536])
def test_exact_search_is_a_sorted_list(
    make: Callable[..., VideoIndex], vectors: np.ndarray, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several shards and blocks, with removed videos, in a folder that is opened again."""
    monkeypatch.setattr(module, "_BLOCK", block)
    index = VideoIndex.open(make(vectors, range(25), range(25, 26), range(26, 60)).folder)
    with index.changing():
        index.remove(["v3", "v25", "v59"])
    living = [i for i in range(60) if i not in (3, 25, 59)]
    queries = unit(np.random.default_rng(1).normal(size=(5, WIDTH)))
    for top in (1, 10, 57, 100):
        assert names(index, queries, top) == [brute_force(vectors, living, q, top) for q in queries]
    (best,) = index.search(vectors[7:8], 1)
    assert best[0].video == VideoEntry("v7", 17.0, SOURCE)
    assert best[0].score == pytest.approx(1.0)


def test_equal_videos_come_in_the_order_of_the_index(make: Callable[..., VideoIndex]) -> None:
    same = np.repeat(unit(np.ones((1, WIDTH))), 9, axis=0)
    index = make(same, range(4), range(4, 9))
    assert names(index, same[:1], 9) == [[f"v{i}" for i in range(9)]]


def test_changes(make: Callable[..., VideoIndex], vectors: np.ndarray) -> None:
    """Added again is replaced; compacting keeps exactly the living ones; numbers of files are never used twice."""
    index = make(vectors, range(10), range(10, 20))
    with index.changing():
        index.remove(["v1", "v12"])
        moved = VideoEntry("v5", 1.0, {"kind": "videos", "path": "/films"}, "a/v5.mp4")
        index.add(vectors[50:51], [moved])
        index.add(vectors[1:2], entries([1]))
    assert len(index) == 19
    assert [name in index for name in ("v1", "v5", "v12")] == [True, True, False]
    assert index.search(vectors[50:51], 1)[0][0].video == moved
    assert names(index, vectors[5:6], 1) != [["v5"]]  # its old vector is gone
    before = names(index, vectors[:8], 19)
    with index.changing():
        index.compact(size=8)
    assert [(shard.name, shard.videos) for shard in index.shards] == [("00004", 8), ("00005", 8), ("00006", 3)]
    assert names(VideoIndex.open(index.folder), vectors[:8], 19) == before
    assert index.search(vectors[50:51], 1)[0][0].video == moved
    assert sorted(path.name for path in index.folder.glob("*-*")) == sorted(
        file for name in ("00004", "00005", "00006") for file in (f"vectors-{name}.npy", f"videos-{name}.json")
    )
    assert not index.removed


def test_removing_what_is_not_there_removes_nothing(make: Callable[..., VideoIndex], vectors: np.ndarray) -> None:
    index = make(vectors, range(10))
    with index.changing(), pytest.raises(SearchIndexError, match="has no video 'v77'; nothing was removed"):
        index.remove(["v1", "v77"])
    assert len(VideoIndex.open(index.folder)) == 10


def test_an_empty_index_says_so(make: Callable[..., VideoIndex], vectors: np.ndarray) -> None:
    index = make(vectors, range(1))
    with index.changing():
        index.remove(["v0"])
    with pytest.raises(SearchIndexError, match="holds no video"):
        index.search(vectors[:1], 3)


@pytest.mark.parametrize("change", ["add", "remove", "compact"])
def test_a_kill_at_any_write_leaves_the_index_as_it_was(
    make: Callable[..., VideoIndex], vectors: np.ndarray, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make(vectors, range(20), range(20, 40))
    with index.changing():
        index.remove(["v2"])
    expected = names(index, vectors[:5], 39)
    real, writes = module.write_file, 0

    def run(allowed: int) -> None:
        """The change, killed at the write after the ``allowed`` ones."""
        nonlocal writes
        writes = 0

        def write(path: Path, data: bytes) -> None:
            nonlocal writes
            if writes == allowed:
                raise KeyboardInterrupt
            writes += 1
            real(path, data)

        monkeypatch.setattr(module, "write_file", write)
        opened = VideoIndex.open(index.folder)
        with opened.changing():
            if change == "add":
                opened.add(vectors[40:], entries(range(40, 60)))
            elif change == "remove":
                opened.remove(["v0", "v30"])
            else:
                opened.compact(size=15)

    steps = {"add": 3, "remove": 1, "compact": 7}[change]
    for allowed in range(steps):
        with pytest.raises(KeyboardInterrupt):
            run(allowed)
        assert names(VideoIndex.open(index.folder), vectors[:5], 39) == expected
    run(steps)
    after = VideoIndex.open(index.folder)
    assert len(after) == {"add": 59, "remove": 37, "compact": 39}[change]
    named = {shard.name for shard in after.shards}
    assert {path.stem.split("-")[1] for path in index.folder.glob("v*-*")} == named  # what kills left is gone


def test_one_change_at_a_time(make: Callable[..., VideoIndex], vectors: np.ndarray) -> None:
    index = make(vectors, range(5))
    other = VideoIndex.open(index.folder)
    with index.changing(), pytest.raises(SearchIndexError, match="another process is changing it"), other.changing():
        pass
    with index.changing():
        index.add(vectors[5:9], entries(range(5, 9)))
    with other.changing():  # starts from what is there now
        other.remove(["v7"])
    assert len(VideoIndex.open(index.folder)) == 8


def replace_in(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new))


def test_a_video_is_read_from_its_own_line(tmp_path: Path, vectors: np.ndarray) -> None:
    """Whatever its name, and what is wrong with others is found when they are read."""
    (tmp_path / "model").write_bytes(b"weights")
    index = VideoIndex.create(tmp_path / "index", WIDTH, tmp_path / "model", "tiny", {"source": "x", "width": 3})
    videos = [
        VideoEntry("a\nb\u2028c", 1.5, SOURCE),
        VideoEntry("},\n{", 2.0, {"kind": "videos", "path": "/fïlms"}, "ä/ö.mp4"),
        VideoEntry("last", 3.0, SOURCE),
    ]
    with index.changing():
        index.add(vectors[:3], videos)
    (shard,) = index.shards
    rows = VideoIndex.open(index.folder).videos(shard)
    assert len(rows) == 3
    assert list(rows) == [rows[row] for row in range(3)] == videos
    replace_in(index.folder / "videos-00000.json", b'"last"', b"last")
    rows = VideoIndex.open(index.folder).videos(shard)
    assert rows[1] == videos[1]
    with pytest.raises(SearchIndexError, match=r"videos-00000.json is damaged"):
        rows[2]
    with pytest.raises(SearchIndexError, match=r"videos-00000.json is damaged"):
        list(rows)


def change(folder: Path, **values: object) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda f: (f / "index.json").unlink(), "no index.json there; make one with `python -m vpgfast.search index"),
        (lambda f: (f / "index.json").write_text('{"for'), "its index.json is damaged"),
        (lambda f: (f / "index.json").write_text('{"format": "x"}'), "not of an index that this package made"),
        (
            lambda f: (f / "index.json").write_text(json.dumps({"format": FORMAT, "version": 2})),
            "format 2, this is format 1",
        ),
        (
            lambda f: (f / "index.json").write_text(json.dumps({"format": FORMAT, "version": 1, "width": 1})),
            "lacks method, features",
        ),
        (lambda f: change(f, removed={"00001": [30]}), "its index.json contradicts itself"),
        (lambda f: change(f, removed={"00007": [0]}), "its index.json contradicts itself"),
        (lambda f: change(f, shards=[{"name": "00001"}]), "its index.json contradicts itself"),
        (lambda f: change(f, faiss={"shards": ["00009"]}), "its index.json contradicts itself"),
        (lambda f: (f / "vectors-00001.npy").unlink(), "vectors-00001.npy is damaged or missing (the file is gone)"),
        (
            lambda f: (f / "vectors-00001.npy").write_bytes((f / "vectors-00001.npy").read_bytes()[:-9]),
            "vectors-00001.npy is damaged or missing (mmap length is greater than file size)",
        ),
        (
            lambda f: np.save(f / "vectors-00001.npy", np.ones((30, WIDTH))),
            "vectors-00001.npy is damaged or missing (float64 [30, 16], not float32 [30, 16])",
        ),
        (lambda f: (f / "videos-00000.json").write_text("[]"), "videos-00000.json is damaged or missing"),
        (
            lambda f: shutil.copy(f / "videos-00000.json", f / "videos-00001.json"),
            "videos-00001.json is damaged or missing (20 videos, not 30)",
        ),
        (lambda f: (f / "videos-00000.json").write_bytes(b""), "videos-00000.json is damaged or missing"),
        (
            lambda f: (f / "videos-00001.json").write_bytes((f / "videos-00001.json").read_bytes()[:-9]),
            "videos-00001.json is damaged or missing (an unknown number of videos, not 30)",
        ),
        (
            lambda f: replace_in(f / "videos-00001.json", b'"duration"', b'"seconds!"'),
            "videos-00001.json is damaged or missing ('duration')",
        ),
        (
            lambda f: replace_in(f / "videos-00001.json", b'"source": 0', b'"source": 7'),
            "videos-00001.json is damaged or missing (list index out of range)",
        ),
        (
            lambda f: replace_in(f / "videos-00001.json", b"}", b"]"),
            "videos-00001.json is damaged or missing (Expecting",
        ),
    ],
)
def test_damage_names_the_file(
    make: Callable[..., VideoIndex], vectors: np.ndarray, damage: Callable[[Path], None], expected: str
) -> None:
    folder = make(vectors, range(20), range(20, 50)).folder
    damage(folder)
    with pytest.raises(UserError) as caught:
        VideoIndex.open(folder).search(vectors[:1], 50)
    assert str(folder) in str(caught.value)
    assert expected in str(caught.value)


def test_another_model(make: Callable[..., VideoIndex], vectors: np.ndarray) -> None:
    index = make(vectors, range(3))
    index.check_model()
    index.model_file.write_bytes(b"other weights")
    with pytest.raises(SearchIndexError, match=r"not the one that made the vectors; put back a copy of .*model"):
        index.check_model()
    index.model_file.unlink()
    with pytest.raises(SearchIndexError, match=r"its model.safetensors is gone"):
        index.check_model()


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SearchIndexError, match=r"holds other files \(thesis.tex\)"):
        VideoIndex.create(tmp_path, 3, tmp_path / "thesis.tex", "tiny", {})


# --- FAISS


@pytest.fixture
def clustered() -> np.ndarray:
    """1,300 vectors around 30 places, as videos of a few kinds have."""
    rng = np.random.default_rng(2)
    return unit(rng.normal(size=(30, WIDTH))[rng.integers(30, size=1300)] + 0.4 * rng.normal(size=(1300, WIDTH)))


def recall(index: VideoIndex, queries: np.ndarray, top: int) -> float:
    pairs = zip(names(index, queries, top), names(index, queries, top, exact=True), strict=True)
    return float(np.mean([len(set(found) & set(true)) / top for found, true in pairs]))


def test_faiss_stays_right_while_the_index_changes(make: Callable[..., VideoIndex], clustered: np.ndarray) -> None:
    index = make(clustered, range(600), range(600, 1200))
    with index.changing():
        index.remove(["v10"])
        index.build_faiss()
    assert index.faiss is not None
    assert index.faiss["measured_on"] == "119 videos that training did not see"
    assert index.faiss["recall"]["@10"] >= 0.95
    assert set(index.faiss["recall"]) == {"@1", "@10", "@100"}

    index = VideoIndex.open(index.folder)
    queries = clustered[1200:1280]
    assert recall(index, queries, 10) > 0.9
    scores = [[found.score for found in row] for row in index.search(queries, 10)]
    exact = {found.video.video_id: found.score for found in index.search(queries, 1199, exact=True)[0]}
    for found in index.search(queries, 10)[0]:  # no approximate scores
        assert found.score == pytest.approx(exact[found.video.video_id], abs=1e-6)
    assert all(row == sorted(row, reverse=True) for row in scores)

    with index.changing():  # videos that FAISS has not seen are found at once, removed ones never again
        gone = names(index, queries[:1], 3)[0]
        index.remove(gone)
        index.add(clustered[1200:1300], entries(range(1200, 1300)))
    assert names(index, queries, 1) == [[f"v{i}"] for i in range(1200, 1280)]
    assert [len(row) for row in names(index, queries[:2], 1100)] == [1100, 1100]  # more than a few lists hold
    everything = {name for row in names(index, queries, 200) for name in row}
    assert not everything & {"v10", *gone}
    assert recall(index, queries, 10) > 0.9
    with index.changing():
        index.compact()
    assert index.faiss is None
    assert not list(index.folder.glob("faiss-*"))
    assert recall(index, queries, 10) == 1


def test_nothing_is_left_of_what_faiss_knows(make: Callable[..., VideoIndex], clustered: np.ndarray) -> None:
    index = make(clustered, range(1200))
    with index.changing():
        index.build_faiss()
        index.add(clustered[1200:1210], entries(range(1200, 1210)))
        index.remove([f"v{i}" for i in range(1200)])
    assert index.faiss is not None
    assert names(index, clustered[1200:1202], 1) == [["v1200"], ["v1201"]]
    assert len(index.search(clustered[:1], 50)[0]) == 10


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_vectors_that_are_no_numbers(make: Callable[..., VideoIndex], clustered: np.ndarray, wrong: float) -> None:
    index = make(clustered, range(600), range(600, 1200))
    with index.changing():
        index.build_faiss()
    path = index.folder / "vectors-00001.npy"
    stored = np.load(path)
    stored[7, 3] = wrong
    np.save(path, stored)
    index = VideoIndex.open(index.folder)
    for exact in (True, False):
        with pytest.raises(SearchIndexError, match=r"vectors-00001\.npy is damaged .*row 7 holds what is no number"):
            index.search(clustered[607:608], 3, exact)
    with pytest.raises(ValueError, match="queries hold what is no number"):
        index.search(np.full((1, WIDTH), wrong, np.float32), 3)


def test_faiss_is_measured_on_given_queries(make: Callable[..., VideoIndex], clustered: np.ndarray) -> None:
    """Here by the definition: what is found of the k best, on average."""
    index = make(clustered, range(1200))
    queries = clustered[1200:1260]
    with index.changing():
        index.build_faiss(recall=0.5, queries=queries)
    assert index.faiss is not None
    assert index.faiss["measured_on"] == "60 given queries"
    assert index.faiss["recall"]["@10"] == pytest.approx(recall(index, queries, 10), abs=0.05)
    assert index.faiss["nprobe"] < index.faiss["lists"]


def test_few_videos_need_no_faiss(make: Callable[..., VideoIndex], vectors: np.ndarray) -> None:
    index = make(vectors, range(60))
    with index.changing(), pytest.raises(ConfigError, match="60 videos; FAISS needs 1000"):
        index.build_faiss()


def test_damaged_or_missing_faiss(
    make: Callable[..., VideoIndex],
    clustered: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    index = make(clustered, range(1200))
    with index.changing():
        index.build_faiss()
    assert index.faiss is not None
    path = index.folder / index.faiss["file"]
    content = path.read_bytes()
    for broken in (content[:-100], b"\0" * len(content)):
        path.write_bytes(broken)
        opened = VideoIndex.open(index.folder)
        with pytest.raises(SearchIndexError, match=r"damaged or missing .*; make it anew with build-faiss"):
            opened.search(clustered[:1], 3)
        assert names(opened, clustered[:1], 1, exact=True) == [["v0"]]
    path.unlink()
    with pytest.raises(SearchIndexError, match="the file is gone"):
        VideoIndex.open(index.folder).search(clustered[:1], 3)

    monkeypatch.setitem(sys.modules, "faiss", None)  # not installed: an index that has it is searched exactly
    with caplog.at_level("WARNING"):
        assert names(VideoIndex.open(index.folder), clustered[:1], 1) == [["v0"]]
    assert "FAISS is not installed; pip install 'vpgfast[faiss]'; searching exactly" in caplog.text
