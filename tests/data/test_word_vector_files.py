"""Word vectors as people have them: other programs' forms, packed by other systems, damaged."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpgfast.data.text import load_word_vectors
from vpgfast.errors import UserError

VECTORS = {"the": [1.0, 2.0, 3.0], "cat": [-4.0, 0.5, 6.25], "dog": [7.0, 8.0, 9.0]}
TEXT = "".join(f"{word} {' '.join(map(str, row))}\n" for word, row in VECTORS.items())


def binary(line_breaks: bool = False, rows: dict[str, list[float]] = VECTORS) -> bytes:
    parts = [f"{len(rows)} 3\n".encode()]
    for word, row in rows.items():
        parts.append(word.encode() + b" " + np.array(row, "<f4").tobytes() + b"\n" * line_breaks)
    return b"".join(parts)


def zipped(path: Path, members: dict[str, bytes], change: Callable[[bytearray, int], None] | None = None) -> Path:
    """A zip; ``change`` is given its bytes and where each member's general flags stand."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    if change is not None:
        content = bytearray(path.read_bytes())
        for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            change(content, content.index(magic) + offset)
        path.write_bytes(content)
    return path


def lock(content: bytearray, place: int) -> None:
    content[place] |= 1


def deflate64(content: bytearray, place: int) -> None:
    content[place + 2] = 9


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("glove.txt", TEXT.encode()),
        ("glove.txt", TEXT.replace("\n", "\r\n").encode()),
        ("glove.txt", TEXT.replace(" ", "\t").encode()),
        ("word-tab-numbers.txt", TEXT.replace(" ", "\t", 1).encode().replace(b"\ncat ", b"\ncat\t")),
        ("wiki.vec", b"3 3\n" + TEXT.encode()),
        ("glove", gzip.compress(TEXT.encode())),
        ("GoogleNews.bin", binary()),
        ("GoogleNews.bin", binary(line_breaks=True)),
        ("GoogleNews.bin.gz", gzip.compress(binary())),
    ],
    ids=["GloVe", "Windows", "tabs", "a tab", "fastText", "gzip", "word2vec", "word2vec in lines", "word2vec gzip"],
)
def test_forms(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    found = load_word_vectors(tmp_path / name, ["cat", "the", "mouse"], dim=3)
    assert found.words[2:] == ["cat", "the"]
    np.testing.assert_array_equal(found.vectors[2:], [VECTORS["cat"], VECTORS["the"]])


@pytest.mark.parametrize("name", ["glove.zip", "GLOVE.ZIP", "downloaded"])
def test_a_zip_that_a_mac_packed(name: str, tmp_path: Path) -> None:
    members = {
        "glove/glove.txt": TEXT.encode(),
        "__MACOSX/glove/._glove.txt": b"\x00\x05\x16\x07 Mac OS X",
        ".hidden.txt": b"",
        "readme.md": b"words",
    }
    found = load_word_vectors(zipped(tmp_path / name, members), ["dog"], dim=3)
    np.testing.assert_array_equal(found.vectors[2], VECTORS["dog"])


def test_an_npz_by_another_name(tmp_path: Path) -> None:
    with (tmp_path / "table").open("wb") as file:
        np.savez(file, words=np.array(["a", "b", "a"]), vectors=np.eye(3))
    assert load_word_vectors(tmp_path / "table", ["a"], dim=3).words[2:] == ["a"]


def bad(path: Path, name: str, content: bytes) -> Path:
    (path / name).write_bytes(content)
    return path / name


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "password": (lambda p: zipped(p / "g.zip", {"g.txt": TEXT.encode()}, lock), r"is locked by a password; unpack"),
    "Deflate64": (lambda p: zipped(p / "g.zip", {"g.txt": TEXT.encode()}, deflate64), r"is packed by Deflate64"),
    "no text": (lambda p: zipped(p / "g.zip", {"g.csv": b"x"}), r"no single .txt .* only \['g.csv'\]"),
    "UTF-16": (lambda p: bad(p, "g.txt", TEXT.encode("utf-16")), "UTF-16 text; save it as UTF-8"),
    "a pickle": (lambda p: bad(p, "g.txt", b"\x80\x04K\x01."), "is a pickle; give text"),
    "a web page": (lambda p: bad(p, "g.zip", b"<!DOCTYPE html><html></html>"), "is a web page; give text"),
    "an array": (lambda p: bad(p, "g.txt", b"\x93NUMPY\x01\x00"), "is a NumPy array; give text"),
    "cut binary": (lambda p: bad(p, "g.bin", binary()[:-5]), "unreadable after word 2 of 3 .it ends within a vector"),
    "long binary": (lambda p: bad(p, "g.bin", b"9" + binary()[1:]), "unreadable after word 3 of 9 .no word where"),
    "binary NaN": (
        lambda p: bad(p, "g.bin", binary(rows={"cat": [float("nan"), 0, 0]})),
        "word 1: a value is not finite",
    ),
    "cut gzip": (lambda p: bad(p, "g.gz", gzip.compress(TEXT.encode())[:-12]), "unreadable after line .; was"),
    "empty": (lambda p: bad(p, "g.txt", b""), "holds none of the 1 words"),
}


@pytest.mark.parametrize("kind", BAD)
def test_refused_by_name(kind: str, tmp_path: Path) -> None:
    make, said = BAD[kind]
    path = make(tmp_path)
    if kind == "cut gzip":
        said = r"unreadable after line \d \(.*was it fetched whole"
    with pytest.raises(UserError, match=f"word vectors {path}.*{said}"):
        load_word_vectors(path, ["cat"], dim=3)


def test_an_array_with_a_value_that_is_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", words=np.array(["a"]), vectors=np.array([[1.0, np.inf]]))
    with pytest.raises(UserError, match=r"t\.npz: a value of 'a' is not finite"):
        load_word_vectors(tmp_path / "t.npz", ["a"], dim=2)


@pytest.mark.parametrize("form", ["text", "binary", "npz"])
def test_words_that_are_there_twice_are_counted(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / ("g.npz" if form == "npz" else "g")
    if form == "text":
        path.write_text(TEXT + "cat 0 0 1\nmouse 1 1 1\nmouse 2 2 2\n")
    elif form == "binary":
        path.write_bytes(b"4" + binary()[1:] + b"cat " + np.ones(3, "<f4").tobytes())
    else:
        np.savez(path, words=np.array([*VECTORS, "cat"]), vectors=np.array([*VECTORS.values(), [0, 0, 1]]))
    found = load_word_vectors(path, ["cat", "dog"], dim=3)
    np.testing.assert_array_equal(found.vectors[2], VECTORS["cat"])
    assert "1 of the 2 words found are there twice (first 'cat'); the first vector counts" in caplog.text


@given(content=st.one_of(st.binary(max_size=200), st.text("the cat\t\n0123.-e\r", max_size=200).map(str.encode)))
def test_anything_else_is_an_error_of_the_users(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any-vectors"
    for packed in (content, gzip.compress(content), b"3 3\n" + content, TEXT.encode() + content):
        path.write_bytes(packed)
        try:
            found = load_word_vectors(path, ["the", "cat"], dim=3)
        except UserError:
            continue
        assert np.isfinite(found.vectors).all()
