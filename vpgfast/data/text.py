"""From a sentence to indices: tokens, characters, and word vectors (GloVe files, ``.npz`` tables, or hashed ones)."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vpgfast.data.word_vector_files import read_word_vectors
from vpgfast.errors import UserError

log = logging.getLogger(__name__)

PAD, UNKNOWN = 0, 1
"""Indices of padding and of an unknown word (or character)."""

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789'-.,"
"""Characters with an index of their own: 2, 3, ... in this order."""
NUM_CHARS = len(CHARACTERS) + 2
"""Size of a character table: padding (0), unknown (1), :data:`CHARACTERS`."""

_TOKEN = re.compile(r"\d+(?:[.,]\d+)+|n't(?!\w)|'(?:s|m|d|re|ve|ll)(?!\w)|[^\W_]+?(?=n't(?!\w))|[^\W_]+(?:-[^\W_]+)*")
_MARKS = r"|\.{2,}|--+|[^\w\s]|_"
"""What else is a token where punctuation is kept."""
_TOKEN_OR_MARK = re.compile(_TOKEN.pattern + _MARKS)
_CHARACTER_INDEX = {character: i for i, character in enumerate(CHARACTERS, start=2)}


@cache
def _unicode_token() -> re.Pattern[str]:
    """:data:`_TOKEN` where marks (vowel signs, accents) and joiners belong to the letter before them."""
    marks = "".join(chr(code) for code in range(0x300, 0x1F000) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
    letters = rf"(?:[^\W_][{re.escape(marks)}\u200c\u200d]*)"
    return re.compile(_TOKEN.pattern.replace(r"[^\W_]", letters))


def tokenize(sentence: str, punctuation: bool = False) -> list[str]:
    """Lower-cased words of a sentence; punctuation is split off and dropped, or with ``punctuation`` kept.

    The rule follows the tokens of GloVe: letters and digits make a word, inner hyphens stay (``walk-in``), the endings
    ``n't 's 'm 'd 're 've 'll`` become words of their own (``doesn't`` -> ``does n't``), numbers keep inner dots and
    commas (``1.5``). Letters are those of any script, with their marks; spellings that look the same are the same
    (Unicode's NFC). A script that writes no blanks, such as Thai, has a word between two. A mark that is kept is a
    token of its own; several full stops or dashes in a row are one.
    """
    if sentence.isascii():
        return (_TOKEN_OR_MARK if punctuation else _TOKEN).findall(sentence.lower())
    sentence = unicodedata.normalize("NFC", sentence).lower().replace("’", "'")
    if not punctuation:
        return _unicode_token().findall(sentence)
    tokens = re.findall(_unicode_token().pattern + _MARKS, sentence)
    return [token for token in tokens if token[0].isalnum() or unicodedata.category(token[0])[0] in "PS"]


_OPENING, _CLOSING = "\"'“‘([", "\"'”’)]"
_OTHER_END = re.compile(r"""[。！？｡।॥؟۔።]+["'”’)\]」』】）]*""")
"""What ends a sentence of other scripts, with what closes behind it."""
_NEVER_LAST = frozenset(("mr.", "mrs.", "ms.", "dr.", "prof.", "st.", "vs.", "e.g.", "i.e."))
_OPEN_END = re.compile(r".*(\.\.|…)|(etc|jr|sr)\.|([^\W\d_]\.){2,}")


def split_sentences(text: str) -> list[str]:
    """The sentences of a paragraph, in order, each without white space around it.

    A text of several lines holds one sentence a line; empty lines don't count. A single line is cut after every word
    that ends in ``.``, ``!``, ``?`` or ``…``, or in what ends a sentence in another script (``。 ！ ？ । ؟`` and the
    like, which need no blank behind them), with or without closing quotes or brackets, except

    * after ``Mr. Mrs. Ms. Dr. Prof. St. vs. e.g. i.e.``;
    * before a lower-case letter, where the word is ``etc.``, ``Jr.``, ``Sr.`` or letters with full stops (``a.m.``,
      ``U.S.``), or ends in several full stops, ``…``, or a closing quote or bracket;
    * where the piece would have no letter, such as ``2.`` in front of the second step of a list: it stays with what
      follows it, or at the end with what precedes it.

    What this gets wrong (``George W. Bush waves.``) is written one sentence a line instead.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != 1:
        return lines
    sentences, words = [], _OTHER_END.sub(r"\g<0> ", lines[0]).split()
    start = 0
    for stop, (word, following) in enumerate(pairwise([*words, ""]), start=1):
        if _is_last(word, following) and _has_letter(words[start:stop]) and _has_letter(words[stop:]):
            sentences.append(" ".join(words[start:stop]))
            start = stop
    return [*sentences, " ".join(words[start:])]


def _is_last(word: str, following: str) -> bool:
    """Whether a sentence ends with ``word``, by the word and the one that follows."""
    bare = word.rstrip(_CLOSING)
    name = bare.lstrip(_OPENING).lower()
    if re.search(f"{_OTHER_END.pattern}$", word):
        return True
    if not bare.endswith((".", "!", "?", "…")) or name in _NEVER_LAST:
        return False
    goes_on = following.lstrip(_OPENING)[:1].islower()
    return not (goes_on and (bare != word or _OPEN_END.fullmatch(name)))


def _has_letter(words: Iterable[str]) -> bool:
    return any(character.isalpha() for word in words for character in word)


def char_ids(word: str, max_chars: int = 16) -> list[int]:
    """Index of each of the first ``max_chars`` characters of a word; see :data:`NUM_CHARS`."""
    return [_CHARACTER_INDEX.get(character, UNKNOWN) for character in word[:max_chars]]


@dataclass
class WordVectors:
    """A vocabulary and a vector for each of its words.

    Attributes:
        words: V words; ``words[0]`` is ``"<pad>"`` and ``words[1]`` is ``"<unk>"``.
        vectors: float32 [V, d_w]; row 0 is zero, row 1 is the value from which a trained unknown word starts (the mean
            of the other rows).
        source: where the vectors come from, for logs and tables.
        content_counts: int64 [V], how often the training sentences have each word as a noun or a verb (0 in rows 0 and
            1), see :func:`count_content_words`; ``None`` where nobody counted. Checkpoints do not hold it: what a
            method takes from the counts, it keeps in its weights.
    """

    words: list[str]
    vectors: np.ndarray
    source: str
    content_counts: np.ndarray | None = field(default=None, repr=False, compare=False)
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.words[:2] != ["<pad>", "<unk>"] or self.vectors.shape[:1] != (len(self.words),):
            raise ValueError(
                f"{len(self.words)} words (starting {self.words[:2]}) do not fit {self.vectors.shape} vectors"
            )
        if self.content_counts is not None and self.content_counts.shape != (len(self.words),):
            raise ValueError(f"{self.content_counts.shape} content counts do not fit {len(self.words)} words")
        self._index = {word: i for i, word in enumerate(self.words)}

    @property
    def dim(self) -> int:
        """Width d_w of a word vector."""
        return int(self.vectors.shape[1])

    def index(self, word: str) -> int:
        """Row of a (lower-case) word; 1 if it is unknown."""
        return self._index.get(word, UNKNOWN)

    def encode(self, sentence: str, max_words: int, punctuation: bool = False) -> list[int]:
        """Rows of the first ``max_words`` words. A sentence without any word is one unknown word: it is never empty."""
        return [self.index(word) for word in tokenize(sentence, punctuation)[:max_words]] or [UNKNOWN]


def load_word_vectors(path: str | Path | None, vocabulary: Iterable[str], dim: int = 300, seed: int = 0) -> WordVectors:
    """Vectors of the words of ``vocabulary``; a word that the file lacks is left out and so becomes the unknown word.

    Args:
        path: a file as :func:`vpgfast.data.word_vector_files.read_word_vectors` takes it, or ``None`` for fixed
            pseudo-random vectors that depend on nothing but the word and ``seed``.
        vocabulary: the words wanted; duplicates are fine.
        dim: width of the hashed vectors, and which file of a ``.zip`` with several widths is read. Other files decide
            their own width.
        seed: of the hashed vectors.

    Raises:
        UserError: the file is missing or malformed (names the file and the line), or holds none of the words.
    """
    wanted = sorted(set(vocabulary) - {"<pad>", "<unk>"})
    if path is None:
        log.info(
            "no word vectors given: using hashed ones (%d words, width %d), which know nothing of meaning",
            len(wanted),
            dim,
        )
        found = {word: _hashed(word, dim, seed) for word in wanted}
        source = "hashed (no word vectors given)"
    else:
        path = Path(path)
        if not path.is_file():
            raise UserError(
                f"word vectors {path}: no such file; give a GloVe .txt, .txt.gz or .zip, an .npz, or none at all"
            )
        found = read_word_vectors(path, set(wanted), dim)
        if wanted and not found:
            raise UserError(f"word vectors {path}: holds none of the {len(wanted)} words of the vocabulary")
        log.info("word vectors %s: %d of %d words found", path.name, len(found), len(wanted))
        source = path.name
    kept = [word for word in wanted if word in found]
    width = len(found[kept[0]]) if kept else dim
    vectors = np.zeros((len(kept) + 2, width), np.float32)
    for row, word in enumerate(kept, start=2):
        vectors[row] = found[word]
    if kept:
        vectors[UNKNOWN] = vectors[2:].mean(axis=0)
    return WordVectors(["<pad>", "<unk>", *kept], vectors, source)


def count_content_words(word_vectors: WordVectors, sentences: Iterable[str]) -> WordVectors:
    """The same vocabulary, with how often ``sentences`` have each of its words as a noun or a verb.

    Parts of speech are those of TextBlob's English lexicon, which is part of its package: the commonest tag of a word,
    whatever stands beside it, and by its ending for a word that the lexicon lacks. So "slides" is a noun wherever it
    stands, and auxiliaries ("is") are verbs. Words outside the vocabulary are not counted.

    Args:
        word_vectors: the vocabulary; stays as it is.
        sentences: as written, those of the training split.

    Returns:
        A copy with ``content_counts`` filled (int64 [V]); words and vectors are shared.
    """
    from textblob.en import tag  # brings all of nltk along, which takes a second or two

    counts = np.zeros(len(word_vectors.words), np.int64)
    for sentence in tqdm(sentences, desc="nouns and verbs", unit=" sentences", delay=1, leave=False, disable=None):
        # Our tokens hold neither blanks nor line breaks, so TextBlob tags exactly them: it splits at nothing else here.
        for word, part_of_speech in tag(" ".join(tokenize(sentence)), tokenize=False):
            if part_of_speech.startswith(("NN", "VB")):
                counts[word_vectors.index(word)] += 1
    counts[: UNKNOWN + 1] = 0  # words outside the vocabulary, and the noun that TextBlob finds in an empty text
    commonest = [word_vectors.words[row] for row in np.argsort(-counts, kind="stable")[:5] if counts[row]]
    log.info(
        "nouns and verbs of the training sentences: %d words of the vocabulary, %d times; commonest: %s",
        *(np.count_nonzero(counts), counts.sum(), ", ".join(commonest) or "none"),
    )
    return replace(word_vectors, content_counts=counts)


def _hashed(word: str, dim: int, seed: int) -> np.ndarray:
    """float32 [dim]: uniform values with standard deviation 0.4 (about GloVe's), from a hash that never changes."""
    digest = hashlib.shake_256(f"{seed} {word}".encode()).digest(2 * dim)
    uniform = np.frombuffer(digest, dtype="<u2").astype(np.float64) / 65535.0
    return ((2 * uniform - 1) * 0.4 * math.sqrt(3)).astype(np.float32)
