"""Annotations of one's own: what is read, and that every problem is named with its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vpgfast.data.annotations import own
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
        ("video,text\nv,It runs.\n", "line 1: no column 'sentence' in the header, only video, text"),
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
