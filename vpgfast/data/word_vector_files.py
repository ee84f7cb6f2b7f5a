"""Reading word vectors: GloVe and fastText text, word2vec binary, plain or packed, and ``.npz`` tables."""

from __future__ import annotations

import gzip
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

import numpy as np
from tqdm import tqdm

from vpgfast.errors import UserError
from vpgfast.files import kind_of, reading

log = logging.getLogger(__name__)

Found = dict[str, np.ndarray]

_BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile)
_LOCKED = 0x1  # flag of a zip's member
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_LONGEST_WORD = 10_000  # bytes, in a binary file; beyond, it is something else


def read_word_vectors(path: Path, wanted: set[str], dim: int) -> Found:
    """The vectors, float32 [d_w], of the wanted words that a file holds.

    Args:
        path: text with a word and its numbers a line, parted by blanks or tabs (GloVe, fastText), or word2vec's binary
            form, either of them plain, in ``.gz``, or in a ``.zip`` as published; or an ``.npz`` with ``words`` and
            ``vectors``. Files are told by their first bytes, and streamed.
        wanted: the words to keep. Of a word that is there twice the first vector counts, and the log says so.
        dim: which file of a ``.zip`` with several widths is read. Other files decide their own width.

    Raises:
        UserError: it is no such file, or damaged; names the file, the line and why.
    """
    kind = kind_of(path)
    if kind not in ("", "a zip archive", "a gzip file"):
        raise UserError(f"word vectors {path}: is {kind}; give text, .gz or .zip of GloVe's form, or an .npz")
    if path.suffix == ".npz" or (kind == "a zip archive" and _holds_arrays(path)):
        found, twice = _read_npz(path, wanted)
    else:
        with _opened(path, kind, dim) as (stream, tick):
            try:
                head = stream.readline(4096)
                start = stream.peek(4096)  # type: ignore[attr-defined]
            except _BROKEN as error:
                raise _unreadable(path, "line 0", error) from None
            if head.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UserError(f"word vectors {path}: UTF-16 text; save it as UTF-8")
            count, _, width = head.strip().partition(b" ")
            if count.isdigit() and width.isdigit() and _is_binary(start):
                found, twice = _read_binary(path, stream, tick, wanted, int(count), int(width))
            else:
                found, twice = _read_text(path, stream, tick, wanted, head)
    if twice:
        log.warning(
            "word vectors %s: %d of the %d words found are there twice (first %r); the first vector counts",
            *(path.name, len(twice), len(found), min(twice)),
        )
    return found


def _holds_arrays(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return "words.npy" in archive.namelist()
    except _BROKEN:
        return False


def _read_npz(path: Path, wanted: set[str]) -> tuple[Found, set[str]]:
    what = "not an .npz with arrays 'words' and 'vectors'"
    with (
        reading(lambda error: UserError(f"word vectors {path}: {what} ({' '.join(str(error).split())})")),
        np.load(path, allow_pickle=False) as arrays,
    ):
        words, vectors = arrays["words"], arrays["vectors"].astype(np.float32)
    if words.ndim != 1 or vectors.ndim != 2 or len(words) != len(vectors):
        raise UserError(f"word vectors {path}: 'words' {words.shape} and 'vectors' {vectors.shape} do not fit")
    found: Found = {}
    twice = set()
    for word, vector in zip(map(str, words), vectors, strict=True):
        if word not in wanted or not vector.any():  # zeros are how such tables mark padding and words without a vector
            continue
        if not np.isfinite(vector).all():
            raise UserError(f"word vectors {path}: a value of {word!r} is not finite")
        if word in found:
            twice.add(word)
        else:
            found[word] = vector
    return found, twice


@contextmanager
def _opened(path: Path, kind: str, dim: int) -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
    """The stream of what is inside, and what moves the progress bar on."""
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))
            size, stream, measured = path.stat().st_size, cast(IO[bytes], raw), cast(IO[bytes], raw)
            if kind == "a gzip file":
                stream = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw)))
            elif kind == "a zip archive":
                archive = stack.enter_context(zipfile.ZipFile(path))
                member = _member(path, archive, dim)
                stream = measured = stack.enter_context(archive.open(member))
                size = member.file_size
        except _BROKEN as error:
            raise _unreadable(path, "its first byte", error) from None
        bar = stack.enter_context(
            tqdm(total=size, unit="B", unit_scale=True, desc=path.name, delay=1, leave=False, disable=None)
        )
        yield stream, lambda: cast(None, bar.update(measured.tell() - bar.n))


def _member(path: Path, archive: zipfile.ZipFile, dim: int) -> zipfile.ZipInfo:
    """The file of an archive that holds the vectors, of width ``dim`` if there are several."""
    members = [
        info
        for info in archive.infolist()
        if PurePosixPath(info.filename).suffix in (".txt", ".vec", ".bin")
        and not info.filename.startswith("__MACOSX/")  # what a Mac packs beside each file
        and not PurePosixPath(info.filename).name.startswith(".")
    ]
    fitting = [info for info in members if f".{dim}d." in info.filename] if len(members) > 1 else members
    if len(fitting) != 1:
        names = [info.filename for info in members] or archive.namelist()
        raise UserError(f"word vectors {path}: no single .txt of width {dim} inside, only {names}")
    if fitting[0].flag_bits & _LOCKED:
        raise UserError(f"word vectors {path}: is locked by a password; unpack it and give {fitting[0].filename}")
    if fitting[0].compress_type not in _PACKINGS:
        how = {9: "Deflate64"}.get(fitting[0].compress_type, f"method {fitting[0].compress_type}")
        raise UserError(f"word vectors {path}: is packed by {how}, which Python can't; unpack it and give the .txt")
    return fitting[0]


def _is_binary(content: bytes) -> bool:
    """Whether it is no text of words and numbers, by its control characters."""
    return any(byte < 32 and byte not in b"\t\r\n" for byte in content)


def _read_binary(
    path: Path, stream: IO[bytes], tick: Callable[[], None], wanted: set[str], count: int, width: int
) -> tuple[Found, set[str]]:
    """word2vec's: each word, a blank, ``width`` float32 numbers, and in some files a line break."""
    wanted_bytes = {word.encode() for word in wanted}
    found: Found = {}
    twice: set[str] = set()
    for number in range(1, count + 1):
        try:
            word = bytearray()
            while (byte := stream.read(1)) != b" ":
                if not byte or len(word) > _LONGEST_WORD:
                    raise EOFError("no word where one should begin")
                word += byte
            values = stream.read(4 * width)
            if len(values) < 4 * width:
                raise EOFError("it ends within a vector")
        except _BROKEN as error:
            raise _unreadable(path, f"word {number - 1} of {count}", error) from None
        if number % 5000 == 0:
            tick()
        name = bytes(word).lstrip(b"\n")
        if name in wanted_bytes:
            vector = np.frombuffer(values, "<f4").astype(np.float32)
            if not np.isfinite(vector).all():
                raise UserError(f"word vectors {path}, word {number}: a value is not finite")
            _keep(found, twice, name, vector)
    return found, twice


def _read_text(
    path: Path, stream: IO[bytes], tick: Callable[[], None], wanted: set[str], head: bytes
) -> tuple[Found, set[str]]:
    wanted_bytes = {word.encode() for word in wanted}
    found: Found = {}
    twice: set[str] = set()
    number, width = 0, 0
    line = head.removeprefix(b"\xef\xbb\xbf")  # the mark of Windows editors, else lost with the first word
    if not line.endswith(b"\n"):
        line += stream.readline()
    try:
        while line:
            number += 1
            if number % 5000 == 0:
                tick()
            line = line.replace(b"\t", b" ").rstrip()
            word, _, values = line.partition(b" ")
            if number == 1 and word.isdigit() and values.isdigit():
                pass  # the "count width" line of word2vec and fastText
            else:
                width = width or line.count(b" ")
                if line.count(b" ") != width:
                    _check_spaced_word(path, number, line, width)
                elif word in wanted_bytes:
                    _keep(found, twice, word, _parse(path, number, values))
            line = stream.readline()
    except _BROKEN as error:
        raise _unreadable(path, f"line {number}", error) from None
    return found, twice


def _unreadable(path: Path, after: str, error: Exception) -> UserError:
    return UserError(f"word vectors {path}: unreadable after {after} ({error}); was it fetched whole?")


def _keep(found: Found, twice: set[str], word: bytes, vector: np.ndarray) -> None:
    name = word.decode()
    if name in found:
        twice.add(name)
    else:
        found[name] = vector


def _parse(path: Path, number: int, values: bytes) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # what is too large is infinite then
            vector = np.array(values.split(b" "), dtype=np.float32)
    except ValueError as error:
        raise UserError(f"word vectors {path}, line {number}: {error}") from None
    if not np.isfinite(vector).all():
        raise UserError(f"word vectors {path}, line {number}: a value is not finite")
    return vector


def _check_spaced_word(path: Path, number: int, line: bytes, width: int) -> None:
    """A line of more fields is fine if the first ones are a word with spaces (GloVe 840B has some), else an error."""
    fields = line.split(b" ")
    extra = fields[1:-width] if width else fields
    if len(fields) <= width or any(_is_number(part) for part in extra):
        raise UserError(
            f"word vectors {path}, line {number}: {len(fields) - 1} values after the word, not {width} as before"
        )


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.lower() not in (b"nan", b"inf", b"infinity")  # these may be words
