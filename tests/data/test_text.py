from __future__ import annotations

import gzip
import logging
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vpgfast.data.annotations import load_annotations
from vpgfast.data.text import (
    CHARACTERS,
    NUM_CHARS,
    WordVectors,
    char_ids,
    count_content_words,
    load_word_vectors,
    split_sentences,
    tokenize,
)
from vpgfast.errors import UserError

GLOVE = "the 0.1 0.2 0.3\n, 1 1 1\ncat -1.5e-2 2 3\nThe 9 9 9\n"


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("A person puts a book, on the shelf.", ["a", "person", "puts", "a", "book", "on", "the", "shelf"]),
        ("He doesn't; it's THE chef’s.", ["he", "does", "n't", "it", "'s", "the", "chef", "'s"]),
        ("can't won't they're", ["ca", "n't", "wo", "n't", "they", "'re"]),
        ("walk-in closet - cups/containers", ["walk-in", "closet", "cups", "containers"]),
        ("1.5 liters, 1,000 of 2nd 1/2", ["1.5", "liters", "1,000", "of", "2nd", "1", "2"]),
        ("'quoted' \"words\" dogs'", ["quoted", "words", "dogs"]),
        ("snake_case café", ["snake", "case", "café"]),
        ("  ...! ", []),
        ("", []),
    ],
)
def test_tokenize(sentence, words):
    assert tokenize(sentence) == words


@pytest.mark.parametrize(
    ("sentence", "tokens"),
    [
        ("A person opens the door.", ["a", "person", "opens", "the", "door", "."]),
        ("He doesn't stop, he runs!", ["he", "does", "n't", "stop", ",", "he", "runs", "!"]),
        ("a walk-in (1.5 m) -- wait...", ["a", "walk-in", "(", "1.5", "m", ")", "--", "wait", "..."]),
        ("snake_case & co", ["snake", "_", "case", "&", "co"]),
        ("Die Tür öffnet sich – „gut“.", ["die", "tür", "öffnet", "sich", "–", "„", "gut", "“", "."]),
        ("दरवाज़ा खुलता है।", [*tokenize("दरवाज़ा खुलता है"), "।"]),
        ("?!", ["?", "!"]),
    ],
)
def test_punctuation_as_words(sentence, tokens):
    assert tokenize(sentence, punctuation=True) == tokens
    assert [token for token in tokens if any(c.isalnum() for c in token)] == tokenize(sentence)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" \n\t\r\n ", []),
        ("No stop at the end", ["No stop at the end"]),
        ("One. Two! Three? Four… Five", ["One.", "Two!", "Three?", "Four…", "Five"]),
        ("a man walks in. he sits down.", ["a man walks in.", "he sits down."]),  # Charades has no capitals
        ("a man walks in . he sits down .", ["a man walks in .", "he sits down ."]),
        ("What?! No!! Yes.", ["What?!", "No!!", "Yes."]),
        ("  One.\t  Two   words. \n", ["One.", "Two words."]),
        ("One.Two are not cut.", ["One.Two are not cut."]),
        ("He lifts 1.5 kg, then 2.50. He drops 3.", ["He lifts 1.5 kg, then 2.50.", "He drops 3."]),
        ("Mr. Smith, Mrs. Smith and Dr. No wave.", ["Mr. Smith, Mrs. Smith and Dr. No wave."]),
        ("(Mr. Smith waves.) He leaves.", ["(Mr. Smith waves.)", "He leaves."]),
        ("A tool, e.g. Bob's saw, i.e. a blade.", ["A tool, e.g. Bob's saw, i.e. a blade."]),
        ("Eggs, milk, etc. are mixed.", ["Eggs, milk, etc. are mixed."]),
        ("He mixes eggs, milk, etc. She watches.", ["He mixes eggs, milk, etc.", "She watches."]),
        ("At 5 p.m. he runs for the U.S. team.", ["At 5 p.m. he runs for the U.S. team."]),
        ("It ends at 5 p.m. He sleeps.", ["It ends at 5 p.m.", "He sleeps."]),
        ("He waits... and leaves. Then... Nothing.", ["He waits... and leaves.", "Then...", "Nothing."]),
        ("He waits… and leaves.", ["He waits… and leaves."]),
        ("He waits . . . then leaves.", ["He waits .", ". . then leaves."]),
        ('He says "Stop!" and runs. "Go." She goes.', ['He says "Stop!" and runs.', '"Go."', "She goes."]),
        ("He says “Stop.” She (alone.) stops.", ["He says “Stop.”", "She (alone.) stops."]),
        ('It waits... "then" it goes. "now" it stops.', ['It waits... "then" it goes.', '"now" it stops.']),
        ("1. Crack the egg. 2. Whisk it.", ["1. Crack the egg.", "2. Whisk it."]),
        ("... He waits. ... !", ["... He waits. ... !"]),
        ("?!", ["?!"]),
        ("5. 4. 3.", ["5. 4. 3."]),
        ("Élan vital. Über alles.", ["Élan vital.", "Über alles."]),
        ("One. Two.\nThree", ["One. Two.", "Three"]),
        ("\n\n One. Two. \n\n", ["One.", "Two."]),  # one line that isn't empty
        ("a\r\nb\r\n\r\n  c  \r\n", ["a", "b", "c"]),
        ("a\n...\nb", ["a", "...", "b"]),
    ],
)
def test_split_sentences(text, sentences):
    assert split_sentences(text) == sentences


def test_a_very_long_line_is_cut_quickly():
    assert len(split_sentences("He walks. " * 5000)) == 5000


def test_char_ids():
    assert char_ids("ab!") == [2, 3, 1]
    assert char_ids("abc", max_chars=2) == [2, 3]
    assert max(char_ids(CHARACTERS, max_chars=100)) == NUM_CHARS - 1
    assert char_ids("") == []


def test_encode():
    vectors = WordVectors(["<pad>", "<unk>", "cat", "the"], np.zeros((4, 3), np.float32), "test")
    assert vectors.dim == 3
    assert vectors.encode("The cat sat!", max_words=10) == [3, 2, 1]
    assert vectors.encode("the cat sat", max_words=2) == [3, 2]
    assert vectors.encode(" ?! ", max_words=5) == [1]  # a sentence is never empty, so no mask is all false


def test_words_and_vectors_must_fit():
    with pytest.raises(ValueError, match="3 words"):
        WordVectors(["<pad>", "<unk>", "cat"], np.zeros((4, 3), np.float32), "test")


def write_glove(folder: Path, kind: str, text: str = GLOVE) -> Path:
    path = folder / f"glove.test.3d{kind}"
    if kind == ".txt":
        path.write_text(text)
    elif kind == ".txt.gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif kind == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("glove.test.2d.txt", "the 7 7\n")
            archive.writestr("glove.test.3d.txt", text)
    else:
        words = np.array(["<PAD>", "the", "cat", "zero"])
        np.savez(
            path, words=words, vectors=np.array([[0, 0, 0], [0.1, 0.2, 0.3], [-0.015, 2, 3], [0, 0, 0]], np.float32)
        )
    return path


@pytest.mark.parametrize("kind", [".txt", ".txt.gz", ".zip", ".npz"])
def test_files(tmp_path, kind):
    path = write_glove(tmp_path, kind)
    vectors = load_word_vectors(path, ["the", "cat", "dog", "the", "zero"], dim=3)
    assert vectors.words == ["<pad>", "<unk>", "cat", "the"]
    assert vectors.vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors.vectors[0], 0)
    np.testing.assert_allclose(vectors.vectors[2:], [[-0.015, 2, 3], [0.1, 0.2, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(vectors.vectors[1], vectors.vectors[2:].mean(axis=0))
    assert vectors.source == path.name
    assert vectors.index("dog") == vectors.index("zero") == 1


def test_samples_hold_real_vectors(shared):
    """GloVe 6B's `the` starts 0.04656 0.21318 -0.00744; almost all of Charades-STA's words are found."""
    read = load_annotations("charades_sta", "test", shared / "charades_sta")
    words = [word for p in read for sentence in p.sentences for word in tokenize(sentence)]
    vectors = load_word_vectors(shared / "samples/word_vectors/charades_sta_glove_6B_300d.npz", words)
    assert vectors.dim == 300
    np.testing.assert_allclose(vectors.vectors[vectors.index("the"), :3], [0.04656, 0.21318, -0.00744], atol=1e-5)
    assert sum(vectors.index(word) == 1 for word in words) < 0.01 * len(words)
    tacos = load_word_vectors(shared / "samples/word_vectors/tacos_glove_42B_300d.npz", ["knife", "the", "<UNK>"])
    assert tacos.words == ["<pad>", "<unk>", "knife", "the"]


def test_header_line_of_word2vec_text_is_skipped(tmp_path):
    vectors = load_word_vectors(write_glove(tmp_path, ".txt", "2 3\nthe 1 2 3 \ncat 4 5 6 \n"), ["the", "2"])
    assert vectors.words == ["<pad>", "<unk>", "the"]
    np.testing.assert_array_equal(vectors.vectors[2], [1, 2, 3])


def test_words_with_spaces_are_passed_over(tmp_path):
    """GloVe 840B has some, such as `. . .` and `at name@domain.com`."""
    text = "the 1 2 3\n. . . 4 5 6\nat name@domain.com 7 8 9\ncat 4 5 6\n"
    assert load_word_vectors(write_glove(tmp_path, ".txt", text), ["the", "cat", "at"]).words[2:] == ["cat", "the"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the 1 2 3\ncat 1 2\n", "line 2: 2 values after the word, not 3 as before"),
        ("the 1 2 3\ncat 1 2 3 4\n", "line 2: 4 values after the word, not 3 as before"),
        ("the 1 2 3\ncat 1 x 3\n", "line 2: could not convert"),
        ("the 1 2 3\ncat 1 nan 3\n", "line 2: a value is not finite"),
        ("the 1 2 3\n\ncat 1 2 3\n", "line 2: 0 values"),
        ("the 1 2 3\nother 1 2\ncat 1 2 3\n", "line 2"),  # found though the word is not wanted
        ("dog 1 2 3\n", "holds none of the 2 words"),
    ],
)
def test_malformed_line_is_named(tmp_path, text, message):
    path = write_glove(tmp_path, ".txt", text)
    with pytest.raises(UserError, match=message) as error:
        load_word_vectors(path, ["the", "cat"])
    assert str(path) in str(error.value)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_word_vectors(tmp_path / "glove.txt", ["the"])
    packed = write_glove(tmp_path, ".txt.gz", GLOVE * 1000)
    packed.write_bytes(packed.read_bytes()[:60])
    with pytest.raises(UserError, match=r"unreadable after line .*; was it fetched whole\?"):
        load_word_vectors(packed, ["the"])
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match=r"x\.zip: unreadable"):
        load_word_vectors(tmp_path / "x.zip", ["the"])
    with pytest.raises(UserError, match=r"no single \.txt of width 300"):
        load_word_vectors(write_glove(tmp_path, ".zip"), ["the"], dim=300)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(UserError, match=r"not an \.npz with arrays 'words' and 'vectors'"):
        load_word_vectors(tmp_path / "other.npz", ["the"])
    np.savez(tmp_path / "misfit.npz", words=np.array(["a"]), vectors=np.zeros((2, 3)))
    with pytest.raises(UserError, match="do not fit"):
        load_word_vectors(tmp_path / "misfit.npz", ["a"])


def test_hashed_vectors(caplog):
    with caplog.at_level(logging.INFO):
        vectors = load_word_vectors(None, ["b", "a"], dim=2000)
    assert "hashed" in caplog.text
    assert vectors.source == "hashed (no word vectors given)"
    assert vectors.words == ["<pad>", "<unk>", "a", "b"]
    a, b = vectors.vectors[2:]
    assert a.std() == pytest.approx(0.4, rel=0.1)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1
    assert not np.array_equal(a, load_word_vectors(None, ["a"], dim=2000, seed=1).vectors[2])
    np.testing.assert_array_equal(a, load_word_vectors(None, ["a", "c"], dim=2000).vectors[2])  # others don't matter


def test_hashed_vectors_are_the_same_in_every_process():
    code = "from vpgfast.data.text import load_word_vectors as l; print(l(None, ['cat'], 4).vectors[2].tolist())"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert out.stdout.strip() == str(load_word_vectors(None, ["cat"], 4).vectors[2].tolist())


# --- nouns and verbs


def counts_of(*sentences: str, vocabulary: tuple[str, ...] = ()) -> dict[str, int]:
    """How often each word of the sentences, or else of the vocabulary, is counted; words that are not, left out."""
    words = vocabulary or [word for sentence in sentences for word in tokenize(sentence)]
    vectors = count_content_words(load_word_vectors(None, words, dim=2), sentences)
    assert vectors.content_counts.dtype == np.int64
    assert vectors.content_counts[:2].tolist() == [0, 0]
    return {word: int(n) for word, n in zip(vectors.words, vectors.content_counts, strict=True) if n}


def test_nouns_and_verbs_of_moving_shapes():
    counts = counts_of("A blue ring slides to the right.", "The blue one grows.", "The ring that is blue disappears.")
    assert counts == {"ring": 2, "slides": 1, "right": 1, "grows": 1, "is": 1, "disappears": 1}


def test_nouns_and_verbs_of_activitynet():
    """Words are those of ``tokenize``, in upper case and with endings split off too."""
    counts = counts_of(
        "A young woman is seen standing in a room and leads into her dancing.",
        "The WOMAN doesn't stop; the dog's owner quickly walks over, laughing (2 times)!",
    )
    assert counts == {
        "woman": 2, "is": 1, "seen": 1, "standing": 1, "room": 1, "leads": 1, "dancing": 1, "does": 1, "stop": 1,
        "dog": 1, "owner": 1, "walks": 1, "laughing": 1, "times": 1,
    }  # fmt: skip


@pytest.mark.parametrize("sentence", ["", " ... !", "1,000 2.5 7", "/", "a\n\nthe"])
def test_sentences_without_nouns_and_verbs(sentence):
    assert counts_of(sentence, vocabulary=("man", "a", "the", "7", "1,000")) == {}


def test_odd_sentences():
    long = "x" * 100_000
    assert counts_of(f"{long} 你好, man/woman\n\nman", vocabulary=(long, "你好", "man", "woman")) == {
        long: 1, "你好": 1, "man": 2, "woman": 1,
    }  # fmt: skip


def test_counting_leaves_the_vocabulary_as_it_is(caplog):
    before = load_word_vectors(None, ["man", "the"], dim=2)
    with caplog.at_level(logging.INFO):
        counted = count_content_words(before, (s for s in ("The man.", "A man runs.")))  # "runs" is not in it
    assert before.content_counts is None
    assert counted.content_counts.tolist() == [0, 0, 2, 0]
    assert (counted.words, counted.source, counted.index("the")) == (before.words, before.source, 3)
    assert counted.vectors is before.vectors
    assert "1 words of the vocabulary, 2 times; commonest: man" in caplog.text
    with pytest.raises(ValueError, match="content counts do not fit 4 words"):
        WordVectors(before.words, before.vectors, "test", np.zeros(3, np.int64))


def test_counting_fetches_nothing_and_is_imported_late():
    """In a fresh process that may not use the network; nltk's data is none that could be found."""
    code = """if True:
        import sys
        from vpgfast.data.text import count_content_words, load_word_vectors
        assert "textblob" not in sys.modules and "nltk" not in sys.modules
        def refuse(event, arguments):
            assert not event.startswith(("socket.connect", "socket.getaddrinfo", "urllib.Request")), event
        sys.addaudithook(refuse)
        print(count_content_words(load_word_vectors(None, ["man"], 2), ["A man.", "..."]).content_counts.tolist())
    """
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "NLTK_DATA": "/nowhere", "HOME": "/nowhere"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.strip() == "[0, 0, 1]"


def test_nouns_and_verbs_of_a_whole_training_split(shared):
    """The commonest words are what videos are about, and no function word is among them."""
    paragraphs = load_annotations("activitynet", "train", shared / "activitynet_captions", "paragraph")
    sentences = [sentence for paragraph in paragraphs for sentence in paragraph.sentences]
    vocabulary = {word for sentence in sentences for word in tokenize(sentence)}
    vectors = count_content_words(load_word_vectors(None, vocabulary, dim=1), sentences)
    common = [vectors.words[row] for row in np.argsort(-vectors.content_counts)[:100]]
    assert {"man", "woman", "people", "camera", "water", "playing", "standing", "walks", "holding"} <= set(common)
    assert not {"the", "a", "and", "in", "his", "then", "white", "two", "slowly"} & set(common)


@pytest.mark.parametrize(
    ("corpus", "folder", "splits", "without", "with_marks"),
    [
        ("charades_sta", "charades_sta", ("train", "test"), 6.22, 7.22),
        ("activitynet", "activitynet_captions", ("train", "val_1"), 13.57, 14.78),
        ("tacos", "tacos", ("train", "val", "test"), 8.50, 9.42),
    ],
)
def test_words_a_query_as_seqpan_counts_them(shared, corpus, folder, splits, without, with_marks):
    """Its Table 7 counts punctuation marks."""
    paragraphs = [p for split in splits for p in load_annotations(corpus, split, shared / folder, "paragraph")]
    sentences = [sentence for p in paragraphs for sentence in p.sentences]
    for punctuation, expected in ((False, without), (True, with_marks)):
        words = [len(tokenize(sentence, punctuation)) for sentence in sentences]
        assert sum(words) / len(words) == pytest.approx(expected, abs=0.005)
