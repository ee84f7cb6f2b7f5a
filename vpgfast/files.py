"""The files of a run, and how every file of results is written: whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from vpgfast.errors import CheckpointError, UserError

log = logging.getLogger(__name__)

LONGEST_NAME = 255
"""Bytes that file systems allow."""

CONFIG_FILE = "config.yaml"
MODEL_FILE = "best.safetensors"
STATE_FILE = "training_state.pt"
METRICS_FILE = "metrics.json"
"""In a run's folder."""
SHARED_MODEL_FILE = "model.safetensors"
SHARED_CONFIG_FILE = "config.json"
"""In the folder of a model that is shared, named as Hugging Face has it."""


_KINDS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip file",
    b"\x93NUMPY": "a NumPy array",
    **{bytes((0x80, protocol)): "a pickle" for protocol in range(2, 6)},
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF document",
    b"7z\xbc\xaf": "a 7z archive",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"SQLite format 3": "an SQLite database",
    b"version https://git-lfs": "a pointer to a file of git LFS, which has not been fetched (git lfs pull)",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"\x00\x05\x16\x07": "what a Mac keeps beside a file (AppleDouble)",
}
"""By first bytes."""


def kind_of(path: Path) -> str:
    """What a file is by its first bytes, as in "an HDF5 file"; "" where they say nothing."""
    try:
        with path.open("rb") as file:
            head = file.read(300)
    except OSError:
        return ""
    if len(head) > 262 and head[257:262] == b"ustar":
        return "a tar archive"
    return next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), "")


def warn_of_folder(error: OSError) -> None:
    """``onerror`` of ``os.walk``, which passes over folders that it can't look into without a word."""
    log.warning("folder %s: can't be looked into (%s), so what is in it is left out", error.filename, error.strerror)


@contextmanager
def reading(say: Callable[[Exception], UserError]) -> Iterator[None]:
    """Around the reading of a file by a library: what it raises for a damaged one is not bounded, and becomes
    ``say(error)``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise say(error) from None


def readable(text: str) -> str:
    """Text that can be stored and printed.

    Bytes that Python has kept as surrogates (of file names, and of arguments where the locale is not UTF-8) are read as
    UTF-8 again; what is no text even then becomes a replacement sign.
    """
    if text.isascii():
        return text
    text = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", text)  # halves of characters, as JSON may hold them
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def output_folder(folder: Path, option: str = "--output", keep: bool = True) -> Path:
    """Make a folder for results and write into it once, so that what can't be kept is known before it is computed.

    Args:
        folder: to be made; returned.
        option: of the command that names it, for the error.
        keep: leave it there; else it is made again when there are results.

    Raises:
        UserError: it can't be made or written; names the option, the folder and why.
    """
    try:
        missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
        for place in () if keep else missing:
            place.rmdir()
    except OSError as error:
        reason = "a file is there" if isinstance(error, FileExistsError) else error.strerror or error
        raise UserError(f"{option} {folder}: nothing can be written there ({reason}); name another folder") from None
    return folder


def output_file(path: Path, option: str) -> None:
    """As :func:`output_folder`, for one file, which is not touched."""
    output_folder(path.parent, f"{option} {path}: folder", keep=False)
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; name a file in it")


def hold(file: IO[Any]) -> bool:
    """Lock an open file for this process, until it is closed; ``False`` where another process holds it.

    Processes that it forks, such as those that load data, don't hold it. A file system that has no locks is told by a
    warning, and nothing keeps others away.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("%s: can't be locked (%s); don't let two commands write here at once", file.name, error.strerror)
    _held.add(file)
    return True


_held: weakref.WeakSet[IO[Any]] = weakref.WeakSet()


def _let_go() -> None:
    for file in list(_held):
        file.close()


os.register_at_fork(after_in_child=_let_go)


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: to a temporary name in the same folder, to the disk, then moved into place.

    Raises:
        CheckpointError: it can't be written (disk full, no permission); what was at ``path`` before is untouched and no
            temporary file stays.
    """
    temporary = temporary_name(path)
    try:
        with _in_turn(temporary) as file:
            try:
                _write(file, data)
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        before = "; the file before it is untouched" if os.path.lexists(path) else ""
        raise CheckpointError(f"can't write {path}: {error.strerror or error}{before}") from None


def temporary_name(path: Path) -> Path:
    """Where a file is written before it is moved into place: always the same, so what a kill leaves is overwritten."""
    name = f".{path.name}.tmp"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}.tmp"
    return path.with_name(name)


@contextmanager
def _in_turn(temporary: Path) -> Iterator[BinaryIO]:
    """An empty file for one writer at a time: threads and processes that write the same file wait for each other."""
    while True:
        with open(temporary, "r+b", opener=lambda path, _: os.open(path, os.O_RDWR | os.O_CREAT, 0o666)) as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                mine = os.path.samestat(os.fstat(file.fileno()), os.stat(temporary))
            except FileNotFoundError:
                mine = False
            if not mine:  # the writer before has moved it into place
                continue
            file.truncate()
            yield file
            return


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
