"""Annotations of one's own: what is read, and that every problem is named with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from video_files import numbered, write

from vpgfast.annotations import main as annotations_command
from vpgfast.data.annotations import own, qvhighlights
from vpgfast.data.corpus import load_corpus
from vpgfast.data.feature_files import FeatureStore, Source, VideoFeatures
from vpgfast.data.options import DataConfig, OwnAnnotations
from vpgfast.encoders.identity import Identity
from vpgfast.errors import AnnotationError, ConfigError

HEADER = "video,start,end,sentence\n"


def no_durations(video: str) -> float | None:
    return None


def read(path: Path, text: str, durations: dict[str, float] | None = None, name: str = "a.csv") -> list[own.Paragraph]:
    file = path / name
    file.write_text(text, encoding="utf-8")
    return own.load(file, (durations or {"v": 30.0, "w": 7200.0}).get)


def test_what_is_read(tmp_path: Path) -> None:
    text = (
        "\ufeffSentence, End ,start,video,who\n"
        '"A dog, brown, runs.",5.5,2,v.mp4,me\n'
        "Später schläft er.,1:02:03.5,1:00:00,w,you\n"
        "\n"
        "It barks.,0:30.25,6,v,me\n"
    )
    first, second = read(tmp_path, text)
    assert (first.video_id, first.duration) == ("v", 30.0)
    assert first.sentences == ("A dog, brown, runs.", "It barks.")
    assert first.spans is not None
    assert first.spans.tolist() == [[2, 5.5], [6, 30.0]]  # the end is the video's, by less than the slack
    assert second.sentences == ("Später schläft er.",)
    assert second.spans is not None
    assert second.spans.tolist() == [[3600, 3723.5]]


def test_tabs(tmp_path: Path) -> None:
    (paragraph,) = read(tmp_path, "video\tstart\tend\tsentence\nv\t0\t1\tOne, two.\n", name="a.tsv")
    assert paragraph.sentences == ("One, two.",)


def test_line_breaks_and_their_like(tmp_path: Path) -> None:
    """Within quotes a line break is a blank; what only Python takes for the end of a line is part of a sentence."""
    text = HEADER + 'v,0,1,"A dog\nruns,  \r\nfast."\r\nv,1,2,It\u2028barks\x85or\x0bsleeps.\n'
    (paragraph,) = read(tmp_path, text)
    assert paragraph.sentences == ("A dog runs, fast.", "It barks or sleeps.")
    (tmp_path / "mac.csv").write_bytes((HEADER + "v,0,1,It runs.\nv,1,2,It stops.\n").replace("\n", "\r").encode())
    (paragraph,) = own.load(tmp_path / "mac.csv", {"v": 30.0}.get)
    assert paragraph.sentences == ("It runs.", "It stops.")


def test_sentences_without_a_span(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path, "video,sentence\nv,It runs.\n")[0].spans is None
    (paragraph,) = read(tmp_path, HEADER + "v,,,It runs.\nv,1,2,It stops.\n")
    assert paragraph.spans is None
    assert "1 of 2 sentences have no span" in caplog.text


def test_durations_of_the_file(tmp_path: Path) -> None:
    text = "video,start,end,sentence,duration\nx,0,5,It runs.,0:12\nx,5,9,It stops.,\n"
    assert read(tmp_path, text)[0].duration == 12
    assert read(tmp_path, text, {"x": 12.2})[0].duration == 12.2, "the features know better"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "line 1: no column 'video' in the header"),
        ("video,text\nv,It runs.\n", "line 1: no column 'sentence' in the header, only 'video', 'text'"),
        ("video,video,sentence\n", "the column 'video' is there twice"),
        ("video,start,sentence\n", "'start' and 'end' go together"),
        (HEADER, "holds no sentence"),
        (HEADER + "v,1,2,It runs, fast.\n", "line 2: more fields than the header has; put sentences with a comma into"),
        (HEADER + ",1,2,It runs.\n", "line 2: no video"),
        (HEADER + "v,1,2,?!\n", "line 2: the sentence '?!' has no word in it"),
        (HEADER + "v,1,,It runs.\n", "line 2: a start without an end"),
        (HEADER + "v,5,5,It runs.\n", "line 2: ends at 5, not after its start 5"),
        (HEADER + "v,-1,5,It runs.\n", "line 2, start: -1 is below 0"),
        (HEADER + "v,one,5,It runs.\n", "line 2, start: 'one' is not a number"),
        (HEADER + "v,1,nan,It runs.\n", "line 2, end: 'nan' is not a number"),
        (HEADER + "v,1,1:2:3:4,It runs.\n", "line 2, end: '1:2:3:4' is not a number"),
        (HEADER + "v,25,45,It runs.\n", "line 2: 25 to 45 s lies beyond video 'v', which lasts 30 s"),
        (HEADER + "z,1,2,It runs.\n", "line 2: how long video 'z' lasts is not known"),
        (HEADER + "z,1,2,It runs.\n", "(is the name right, with its folder?)"),
        (HEADER.replace(",", ";"), "only 'video;start;end;sentence'; fields are parted by commas in .csv and by tabs"),
        (HEADER + 'v,1,2,"It runs.\n', "not CSV"),
        ("video,start,end,sentence,duration\nx,1,2,A.,9\nx,1,2,B.,8\n", "line 2: video 'x' lasts 9 and 8 s"),
    ],
)
def test_problems(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, text)
    assert expected in str(caught.value)
    assert str(tmp_path / "a.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_problems_are_counted(tmp_path: Path) -> None:
    lines = "".join(f"v,{i},{i},It runs.\n" for i in range(7))
    with pytest.raises(AnnotationError, match=r"7 problems: line 2: .*; line 3: .*; line 4: .*; and 4 more"):
        read(tmp_path, HEADER + lines)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"read from \.csv or \.tsv files with the columns video,"):
        read(tmp_path, "{}", name="a.txt")
    with pytest.raises(AnnotationError, match="unreadable"):
        own.load(tmp_path / "none.csv", no_durations)
    (tmp_path / "latin.csv").write_bytes(HEADER.encode() + "v,1,2,Später.\n".encode("latin-1"))
    with pytest.raises(AnnotationError, match="not UTF-8"):
        own.load(tmp_path / "latin.csv", no_durations)


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Of ten videos that last 10, 11, ... seconds, one of them in a folder."""
    store = FeatureStore(tmp_path / "f.h5", Identity("pixels", "pixels", None, 3, {}), {})
    for number in range(10):
        array = np.full((4, 3), number, np.float32)
        name = f"below/{number}" if number == 9 else str(number)
        store.add(name, VideoFeatures(array, np.zeros((4, 2)), 10.0 + number, (), Source(1, 1)))
    store.finish()
    return tmp_path / "f.h5"


def table(path: Path, numbers: range) -> Path:
    names = [f"below/{number}" if number == 9 else str(number) for number in numbers]
    path.write_text(
        HEADER + "".join(f"{name}.mp4,1,{number + 5},It runs.\n" for name, number in zip(names, numbers, strict=True))
    )
    return path


def test_corpus(tmp_path: Path, features: Path) -> None:
    annotations = OwnAnnotations(train=table(tmp_path / "a.csv", range(10)))
    config = DataConfig(corpus="own", annotations=annotations, features=str(features), val=0.2, test=0.3)
    corpus = load_corpus(config)
    videos = {split: {p.video_id for p in paragraphs} for split, paragraphs in corpus.splits.items()}
    assert {split: len(names) for split, names in videos.items()} == {"train": 6, "val": 2, "test": 2}
    assert not videos["train"] & videos["val"]
    assert not videos["test"] & (videos["train"] | videos["val"])
    for paragraphs in corpus.splits.values():
        for paragraph in paragraphs:
            number = int(paragraph.video_id.removeprefix("below/"))
            assert paragraph.duration == 10 + number
            assert corpus.features[paragraph.video_id][0, 0] == number
    assert corpus.features.encoder is not None


def test_corpus_of_several_files(tmp_path: Path, features: Path) -> None:
    files = {split: table(tmp_path / f"{split}.csv", numbers) for split, numbers in
             {"train": range(6), "val": range(6, 8), "test": range(8, 10)}.items()}  # fmt: skip
    corpus = load_corpus(DataConfig(corpus="own", annotations=OwnAnnotations(**files), features=str(features)))
    assert [len(corpus.splits[split]) for split in ("train", "val", "test")] == [6, 2, 2]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"annotations": OwnAnnotations()}, "corpus own needs data.annotations.train"),
        ({"features": None}, "how long video '0' lasts is not known"),
        ({"val": 0.01}, "data.val is 0.01, which takes 0 of 10 training videos"),
        ({"val": 0.01}, "must leave some and take some, or name a file by data.annotations.val"),
        ({"test": 1.0}, "data.test is 1.0, which takes 9 of 9 training videos"),
    ],
)
def test_corpus_errors(tmp_path: Path, features: Path, change: dict[str, object], expected: str) -> None:
    annotations = OwnAnnotations(train=table(tmp_path / "a.csv", range(10)))
    settings = {"corpus": "own", "annotations": annotations, "features": str(features)}
    with pytest.raises((ConfigError, AnnotationError)) as caught:
        load_corpus(DataConfig(**{**settings, **change}))
    assert expected in str(caught.value)


def test_judged_sentences_need_spans(tmp_path: Path, features: Path) -> None:
    (tmp_path / "a.csv").write_text("video,sentence\n" + "".join(f"{number},It runs.\n" for number in range(9)))
    annotations = OwnAnnotations(train=tmp_path / "a.csv")
    with pytest.raises(AnnotationError, match="in the val split, which is judged by spans, and has a sentence"):
        load_corpus(DataConfig(corpus="own", annotations=annotations, features=str(features)))


# JSON lines and JSON


def lines(*records: object) -> str:
    return "\n".join(map(json.dumps, records))


def test_json_lines(tmp_path: Path) -> None:
    text = lines(
        {
            "qid": 7,
            "query": "It  runs.",
            "vid": "v",
            "duration": 29.8,
            "relevant_windows": [[2, 4], [10, 20], [21, 31]],
        },
        {"qid": "b", "query": "It\u2028stops.", "vid": "v.mp4", "relevant_windows": [["0:01", 3]], "more": 1},
        {"query": "It sleeps.", "vid": "w", "relevant_windows": []},
    )
    first, second = read(tmp_path, text, {"v": 30.8, "w": 9.0}, "a.jsonl")
    assert first.sentences == ("It runs.", "It stops.")
    assert first.spans is not None
    assert first.spans.tolist() == [[10, 20], [1, 3]], "the longest, the first of equals"
    assert first.all_spans is not None
    assert [spans.tolist() for spans in first.all_spans] == [[[2, 4], [10, 20], [21, 30.8]], [[1, 3]]]
    assert (first.query_ids, second.query_ids) == ((7, "b"), None)
    assert second.spans is None
    # The same, gzipped, and as a list.
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.json").write_text(json.dumps([json.loads(line) for line in text.split("\n")]))
    for name in ("a.jsonl.gz", "a.json"):
        again = own.load(tmp_path / name, {"v": 30.8, "w": 9.0}.get)
        assert [p.sentences for p in again] == [first.sentences, second.sentences]


def test_lines_of_the_published_file(shared: Path) -> None:
    """As the reader of the data set has them, but for queries of one video, which are a paragraph here."""
    path = shared / "qvhighlights" / "highlight_val_release.jsonl.gz"
    ours = own.load(path, no_durations)
    theirs = qvhighlights.load("val", shared / "qvhighlights", "paragraph")
    assert [p.query_ids for p in ours] == [p.query_ids for p in theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(np.concatenate(a.true_spans or ()), np.concatenate(b.true_spans or ()))


def test_map_of_videos(tmp_path: Path) -> None:
    content = {
        "v": {"duration": 30, "sentences": ["It runs.", "It stops."], "timestamps": [[0, 2.5], ["0:03", 9]]},
        "w": {"duration": 12.5, "sentences": ["It sleeps."]},
    }
    first, second = read(tmp_path, json.dumps(content), {"v": 30.0}, "a.json")
    assert first.spans is not None
    assert first.spans.tolist() == [[0, 2.5], [3, 9]]
    assert (first.all_spans, second.spans, second.duration) == (None, None, 12.5)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", "{", "line 1: not json"),
        ("a.jsonl", "\n[1]", "line 2: list, where an object"),
        ("a.jsonl", lines({"vid": "v"}), "line 1: no 'query', only ['vid']"),
        ("a.jsonl", lines({"vid": "v", "query": 3}), "'query' is int, expected str"),
        ("a.jsonl", lines({"vid": "v", "query": "It runs.", "relevant_windows": 3}), "'relevant_windows' is int"),
        (
            "a.jsonl",
            lines({"vid": "v", "query": "It runs.", "relevant_windows": [[1]]}),
            "the moment [1] is not a pair",
        ),
        (
            "a.jsonl",
            lines({"vid": "v", "query": "It runs.", "relevant_windows": [[1, "x"]]}),
            "end: 'x' is not a number",
        ),
        ("a.jsonl", lines({"vid": "v", "query": "It runs.", "qid": [1]}), "'qid' is [1], expected a number or text"),
        ("a.jsonl", lines(*[{"vid": "v", "query": f"It {x}.", "qid": 1} for x in "ab"]), "qid 1 was there in line 1"),
        ("a.jsonl", lines({"vid": "v", "query": "It runs.", "duration": 0}), "a duration of 0"),
        ("a.json", "3", "int, where a map from video"),
        ("a.json", '{"v": 3}', "video 'v': int, where a map was expected"),
        ("a.json", '{"v": {"timestamps": []}}', "video 'v': no list of 'sentences', only ['timestamps']"),
        ("a.json", '{"v": {"sentences": ["A."], "timestamps": []}}', "1 sentences and 0 timestamps"),
        (
            "a.json",
            '{"v": {"sentences": ["A b."], "timestamps": [[1, 2, 3]]}}',
            "sentence 1: the moment [1, 2, 3] is not",
        ),
        ("a.json", '{"v": {"sentences": [3], "timestamps": [[1, 2]]}}', "the sentence 3 is not text"),
        ("a.csv", HEADER + "v,1,2,It runs.\nv,1,2,It runs.\n", "line 3: the same as line 2"),
    ],
)
def test_problems_of_formats(tmp_path: Path, name: str, text: str, expected: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, text, name=name)
    assert expected in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(1000, 2500), (0, 29000), (12000, 30000)], "all of its 3 moments look like milliseconds, not seconds"),
        (
            [(25, 250), (100, 700), (300, 749.25)],
            "all of its 3 moments look like frames, not seconds: up to 25.0 a second",
        ),
        ([(9, 4), (30, 2), (3, 4)], "2 of its 3 moments look as if start and end were swapped"),
        ([(1, 4), (30, 40), (3, 4)], None),
        ([(1, 4), (3000, 30000), (3, 4)], None),
    ],
)
def test_hints(tmp_path: Path, rows: list[tuple[float, float]], expected: str | None) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "".join(f"v,{s},{e},It runs {i}.\n" for i, (s, e) in enumerate(rows)))
    content = own.read(tmp_path / "a.csv", {"v": 30.0}.get)
    assert content.problems
    assert (content.hint or "").startswith(expected or "")
    assert bool(content.hint) == bool(expected)
    if expected:
        with pytest.raises(AnnotationError, match=expected):
            own.load(tmp_path / "a.csv", {"v": 30.0}.get)


# The command


def check(*arguments: object) -> int:
    return annotations_command([str(a) for a in ("check", *arguments)])


def test_check(tmp_path: Path, features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "a.csv", range(9))
    assert check(file, "--features", features) == 0
    out = capsys.readouterr().out
    assert "9; 10 to 18 s long, median 14" in out
    assert "9 of 9 videos" in out
    assert "1 videos that are there" in out
    assert (tmp_path / "a.csv.png").stat().st_size > 5000
    file.write_text(file.read_text() + "other,9,4,It stops.\n")
    assert check(file, "--features", features, "--no-picture") == 1
    out = capsys.readouterr().out
    assert "2 problems:" in out
    assert "line 11: ends at 4, not after its start 9" in out
    assert "how long video 'other' lasts is not known" in out
    assert "1 videos, first 'other'" in out


def test_check_without_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing tells durations: what depends on them is left out, and is no problem."""
    assert check(table(tmp_path / "a.csv", range(3))) == 0
    assert "3 of them, all; 4 to 6 s long" in capsys.readouterr().out
    assert not (tmp_path / "a.csv.png").exists()
    (tmp_path / "b.csv").write_text(HEADER)
    assert check(tmp_path / "b.csv") == 1
    assert check(tmp_path / "none.csv") == 2


def test_check_of_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "videos").mkdir()
    write(tmp_path / "videos" / "a.mp4", [numbered(i) for i in range(20)], rate=10)
    (tmp_path / "videos" / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "a.csv").write_text(HEADER + "a.mp4,0,1.5,It runs.\nbad.mp4,0,1,It stops.\n")
    assert check(tmp_path / "a.csv", "--videos", tmp_path / "videos") == 1
    assert "2 of 2 videos" in (out := capsys.readouterr().out)
    assert "how long video 'bad' lasts is not known" in out
