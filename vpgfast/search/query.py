"""``search query``: one paragraph or many, printed and written."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from vpgfast.data.text import split_sentences, tokenize
from vpgfast.errors import ConfigError, UserError
from vpgfast.files import output_folder, readable, write_file
from vpgfast.ground.grounding import warn_of_unknown_words
from vpgfast.ground.query import asked_sentences
from vpgfast.search.answers import Answer
from vpgfast.search.session import Session

log = logging.getLogger(__name__)


def command_query(arguments: argparse.Namespace, settings: list[str]) -> None:
    """Ask an index."""
    for name in ("top", "spans"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    several = arguments.queries is not None
    if several and arguments.page is not None:
        raise UserError("--page shows one paragraph; ask --queries without it")
    paragraphs = read_queries(arguments.queries) if several else [_asked(arguments)]
    session = Session.open(arguments.index, settings, arguments.encoder)
    base: Path | None = arguments.output
    if base is not None:
        output_folder(base)
    for number, sentences in enumerate(paragraphs, start=1):
        searcher = session.searcher
        warn_of_unknown_words(sentences, searcher.checkpoint.word_vectors, searcher.needs)
        answers = session.ask(sentences, top=arguments.top, spans=arguments.spans, exact=arguments.exact)
        if base is None:
            how = [arguments.top, arguments.spans, arguments.exact, settings]
            output = _own_place(session.index.folder, sentences, how)
        else:
            output = base / f"{number:0{len(str(len(paragraphs)))}d}" if several else base
        try:
            if output is not None:
                _write(session, sentences, answers, output)
            if arguments.page is not None:
                from vpgfast.page.results import search_content
                from vpgfast.page.write import write_page

                content = search_content(answers, sentences, len(session.index))
                write_page(arguments.page, content, arguments.page_embed)
        finally:  # the answer is not lost with a full disk
            if several:
                print(f"{number}. {' '.join(sentences)}")
            print(_text(answers))
        if output is not None:
            print(f"written to {output}: search.txt, search.json, search.png")
        if arguments.page is not None:
            print(f"page: {arguments.page}")


def _asked(arguments: argparse.Namespace) -> list[str]:
    if arguments.text is None:
        return asked_sentences(arguments)
    if not tokenize(arguments.text):
        raise UserError(f"the text to look for ({arguments.text!r}) has no word in it")
    return split_sentences(readable(arguments.text))


def read_queries(path: Path) -> list[list[str]]:
    """Paragraphs of a text file, one a line, as sentences.

    Raises:
        ConfigError: it can't be read, or a line has no word.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--queries {path}: can't be read ({error})") from None
    paragraphs = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and not tokenize(line):
            raise ConfigError(f"--queries {path}, line {number}: {line.strip()!r} has no word in it")
        if line.strip():
            paragraphs.append(split_sentences(line))
    if not paragraphs:
        raise ConfigError(f"--queries {path}: holds no paragraph; write one a line")
    return paragraphs


def _own_place(index: Path, sentences: Sequence[str], how: Sequence[object]) -> Path | None:
    """A folder in the index for these sentences, asked this way, alone, so that others asked meanwhile keep theirs.

    ``None``, after a word, where the index can't be written: it answers all the same.
    """
    words = re.sub(r"\W+", "-", sentences[0].lower())[:40].strip("-")
    name = words.encode()[:100].decode(errors="ignore")
    mark = hashlib.sha256(json.dumps([sentences, how]).encode()).hexdigest()[:8]
    try:
        return output_folder(index / "queries" / f"{name}-{mark}")
    except UserError as error:
        log.warning("the answer is printed only: %s", str(error).replace("name another folder", "--output names one"))
        return None


def _text(answers: Sequence[Answer]) -> str:
    return "\n".join(one.as_text(rank) for rank, one in enumerate(answers, start=1))


def _write(session: Session, sentences: Sequence[str], answers: Sequence[Answer], output: Path) -> None:
    """``search.txt``, ``search.json`` and ``search.png``."""
    output_folder(output)
    folder = session.index.folder
    content = {"sentences": list(sentences), "index": str(folder), "videos": [one.as_dict() for one in answers]}
    write_file(output / "search.txt", (readable(_text(answers)) + "\n").encode())
    write_file(output / "search.json", (readable(json.dumps(content, indent=2, ensure_ascii=False)) + "\n").encode())

    from vpgfast.plots import draw_found  # and matplotlib with it, which takes longer than short answers

    rows = [
        (
            f"{rank}. {one.found.video.video_id}   ({one.found.score:.3f})",
            one.found.video.duration,
            None if one.grounding is None else (one.grounding.spans[:, 0], one.grounding.scores[:, 0]),
        )
        for rank, one in enumerate(answers, start=1)
    ]
    title = f"the {len(answers)} of {len(session.index)} videos that fit best"
    draw_found(sentences, rows, output / "search.png", title)
