"""Text as people and their editors write it: marks, scripts, byte orders, keys that are there twice."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpgfast.config import read_yaml
from vpgfast.data.annotations import _io, charades_sta, own
from vpgfast.data.text import load_word_vectors, split_sentences, tokenize
from vpgfast.errors import AnnotationError, ConfigError


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("Später schläft er.", ["später", "schläft", "er"]),
        ("एक आदमी दौड़ता है।", ["एक", "आदमी", "दौड़ता", "है"]),
        ("ผู้ชาย วิ่ง", ["ผู้ชาย", "วิ่ง"]),
        ("Một người đàn ông", ["một", "người", "đàn", "ông"]),
        ("می‌رود", ["می‌رود"]),
        ("It doesn’t walk-in, señor's 1.5", ["it", "does", "n't", "walk-in", "señor", "'s", "1.5"]),
    ],
)
def test_marks_belong_to_their_word(sentence: str, words: list[str]) -> None:
    expected = [unicodedata.normalize("NFC", word) for word in words]
    for form in ("NFC", "NFD"):
        assert tokenize(unicodedata.normalize(form, sentence)) == expected


@given(st.text())
def test_spellings_that_look_the_same_are_the_same(text: str) -> None:
    assert tokenize(unicodedata.normalize("NFD", text)) == tokenize(unicodedata.normalize("NFC", text))


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_as_ever(text: str) -> None:
    assert tokenize(text) == tokenize(text + "\u00a0"), "both ways to find words agree"


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("男が走る。犬が吠える。", ["男が走る。", "犬が吠える。"]),
        ("他说：「跑！」他跑了。", ["他说：「跑！」", "他跑了。"]),
        ("आदमी दौड़ता है। वह रुकता है।", ["आदमी दौड़ता है।", "वह रुकता है।"]),
        ("هل يركض؟ نعم.", ["هل يركض؟", "نعم."]),
        ("He runs. It stops.", ["He runs.", "It stops."]),
    ],
)
def test_ends_of_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_no_letter_is_lost(text: str) -> None:
    def letters(words: str) -> str:
        return "".join(words.split())

    assert letters("".join(split_sentences(text))) == letters(text)


def test_byte_order_marks(tmp_path: Path) -> None:
    for name, text in {"a.json": '{"v": {}}', "a.txt": "v 0.0 1.0##It\u2028runs.\r\n\r\nv 1 2##It stops.\r"}.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert _io.read_json(tmp_path / "a.json") == {"v": {}}
    assert list(_io.read_lines(tmp_path / "a.txt")) == [(1, "v 0.0 1.0##It\u2028runs."), (3, "v 1 2##It stops.")]
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfvideo,sentence\nv,It runs.\n")
    assert len(own.load(tmp_path / "a.csv", lambda video: 9.0)) == 1
    (tmp_path / "utf16.csv").write_text("video,sentence\n", encoding="utf-16")
    with pytest.raises(AnnotationError, match="UTF-16 text; save it as UTF-8"):
        own.load(tmp_path / "utf16.csv", lambda video: 9.0)
    (tmp_path / "charades_sta_train.txt").write_bytes(b"\xef\xbb\xbfAAA 0 2##It runs.\n")
    (tmp_path / "Charades_v1_train.csv").write_bytes(b"\xef\xbb\xbfid,length\nAAA,9\n")
    (paragraph,) = charades_sta.load("train", tmp_path)
    assert (paragraph.video_id, paragraph.duration) == ("AAA", 9)
    (tmp_path / "glove.txt").write_bytes(b"\xef\xbb\xbfthe 1 2\na 3 4\n")
    vectors = load_word_vectors(tmp_path / "glove.txt", {"the", "a"}, 2)
    np.testing.assert_array_equal(vectors.vectors[vectors.index("the")], [1, 2])
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfepochs: 3\n")
    assert read_yaml(tmp_path / "c.yaml") == {"epochs": 3}


def test_keys_that_are_there_twice(tmp_path: Path) -> None:
    one = json.dumps({"duration": 9, "sentences": ["It runs."], "timestamps": [[1, 2]]})
    (tmp_path / "a.json").write_text(f'{{"v": {one}, "w": {one}, "v": {one}}}')
    with pytest.raises(AnnotationError, match=r"a\.json: the key 'v' is there twice in one object"):
        own.load(tmp_path / "a.json", lambda video: None)
    (tmp_path / "a.jsonl").write_text('{"vid": "v", "query": "It runs.", "vid": "w"}')
    with pytest.raises(AnnotationError, match="line 1: the key 'vid' is there twice"):
        own.load(tmp_path / "a.jsonl", lambda video: 9.0)
    (tmp_path / "c.yaml").write_text("epochs: 3\noptim:\n  lr: 1\nepochs: 4\n")
    with pytest.raises(ConfigError, match=r"c\.yaml, line 4: not valid YAML \(the key 'epochs' is there twice\)"):
        read_yaml(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("optim:\n  lr: 1\n  lr: 2\n")
    with pytest.raises(ConfigError, match=r"line 3: .* 'lr' is there twice"):
        read_yaml(tmp_path / "c.yaml")
