"""The command line of ``find``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vpgfast.command import command, open_log
from vpgfast.errors import UserError
from vpgfast.files import readable
from vpgfast.page.options import add_page, check_page

NOTHING_FITS = 1
"""Exit code when no moment fits."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vpgfast.find",
        usage="%(prog)s VIDEO_OR_FOLDER... SENTENCE... [options]",
        description="Find when something happens in videos. Nothing has to be trained.",
        epilog="Arguments up to the first that is no file or folder are videos, the rest are sentences. Several\n"
        "sentences are a paragraph: they happen one after the other. What was encoded once is kept in the cache.\n\n"
        "Exit code 0: found; 1: nothing fits; 2: an error.\n\n"
        "  python -m vpgfast.find holiday.mp4 'a dog jumps into the water'\n"
        "  python -m vpgfast.find videos/ 'She opens the door.' 'She sits down.' --clips found/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="+", metavar="VIDEO_OR_FOLDER... SENTENCE...", help=argparse.SUPPRESS)
    parser.add_argument(
        "--encoder",
        metavar="SPEC",
        help="what looks and reads: clip:FOLDER, objects, ... (default: the environment's VPGFAST_ENCODER, else a CLIP "
        "or SigLIP model in the cache of Hugging Face, else objects)",
    )
    parser.add_argument("--top", type=int, default=5, help="moments to show, or videos of a paragraph (default 5)")
    parser.add_argument("--min-score", type=float, help="leave out what scores less, whatever fits")
    parser.add_argument(
        "--false-alarms",
        type=float,
        default=0.05,
        metavar="P",
        help="how often a sentence that is about something else may be taken for fitting a video (default 0.05)",
    )
    parser.add_argument("--all", action="store_true", help="show the best moments even where nothing fits")
    parser.add_argument("--no-order", action="store_true", help="take each sentence by itself, in any order")
    parser.add_argument("--json", action="store_true", help="print JSON, with the keys that docs/find.md lists")
    parser.add_argument("--clips", type=Path, metavar="DIR", help="cut the moments out of the videos, into this folder")
    parser.add_argument("--stream", type=int, help="number of the stream in every file (default: the moving picture)")
    add_page(parser)
    return parser


def split_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The videos and the sentences of a command line.

    Raises:
        UserError: one of both is missing, or a path is among the sentences.
    """
    count = next((i for i, word in enumerate(words) if not Path(word).exists()), len(words))
    if count == 0:
        raise UserError(f"{words[0]}: no such file or folder; name videos or folders first, then what to find in them")
    if count == len(words):
        raise UserError("what is to be found? Write a sentence behind the videos, in quotes")
    if late := next((word for word in words[count:] if Path(word).exists() and len(word.split()) == 1), None):
        raise UserError(
            f"{late}: is a file or folder, but stands behind the sentence {words[count]!r}; name videos first"
        )
    return [Path(word) for word in words[:count]], [readable(word) for word in words[count:]]


@command
def main(argv: Sequence[str]) -> int:
    """Command line of ``vpgfast find``."""
    arguments = _parser().parse_args(argv)
    open_log()
    if arguments.top < 1:
        raise UserError(f"--top must be at least 1, got {arguments.top}")
    if not 0 < arguments.false_alarms < 1:
        raise UserError(f"--false-alarms must be between 0 and 1, got {arguments.false_alarms:g}")
    check_page(arguments)
    videos, sentences = split_words(arguments.words)

    from vpgfast.find.run import run  # and torch with it, which --help does without

    return 0 if run(arguments, videos, sentences) else NOTHING_FITS
