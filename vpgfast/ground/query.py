"""What to look for: the sentences of a command line or of a text file."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from vpgfast.data.text import split_sentences, tokenize
from vpgfast.errors import UserError
from vpgfast.files import readable

log = logging.getLogger(__name__)


def asked_sentences(arguments: argparse.Namespace) -> list[str]:
    """What ``--sentence`` or ``--paragraph`` asks for: at least one sentence, each with a word.

    Raises:
        UserError: there is no word in a sentence; or as :func:`read_paragraph`.
    """
    sentences = [readable(sentence) for sentence in arguments.sentence or ()]
    for number, sentence in enumerate(sentences, start=1):
        if not tokenize(sentence):
            raise UserError(f"--sentence {number} ({sentence!r}) has no word in it")
    return sentences or read_paragraph(arguments.paragraph)


def read_paragraph(path: Path) -> list[str]:
    """The sentences of a UTF-8 text file, cut by :func:`split_sentences`: at least one, each with a word.

    Args:
        path: of the file; ``-`` is standard input.

    Raises:
        UserError: the file can't be read, is not UTF-8, is empty, or a line of it has no word.
    """
    where = f"--paragraph {path}"
    try:
        content = sys.stdin.buffer.read() if path == Path("-") else path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{where}: can't be read ({error.strerror}); give a text file, or - for standard input"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the text as UTF-8"
        ) from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not tokenize(line):
            raise UserError(
                f"{where}, line {number}: {line.strip()!r} has no word in it; write a sentence or delete it"
            )
    sentences = split_sentences(text)
    if not sentences:
        raise UserError(f"{where}: is empty; write at least one sentence")
    log.info("paragraph %s: %d sentences", path, len(sentences))
    return sentences
