"""When do sentences happen in a video? ``python -m vpgfast.ground CHECKPOINT --video FILE --sentence "..."``.

Prints ranked spans in seconds, and writes them as text, json and a picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vpgfast.command import command
from vpgfast.page.options import add_page, check_page

HOW_PARAGRAPHS_ARE_CUT = (
    "of several lines has one sentence a line. A single line is cut after . ! ? and ... that a space or the end "
    "follows, but not after Mr. Mrs. Ms. Dr. Prof. St. vs. e.g. i.e., not after etc., Jr., Sr., a.m., U.S., an "
    "ellipsis or a closing quote where a lower-case letter follows, and not where a piece would have no letter."
)
"""For ``--help``; what :func:`vpgfast.data.text.split_sentences` does."""


def add_query(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Give a command the ways to say what to look for; :func:`vpgfast.ground.query.asked_sentences` reads them."""
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--sentence", action="append", help="what to look for; may be repeated")
    query.add_argument(
        "--paragraph",
        type=Path,
        metavar="FILE",
        help="text file (UTF-8) with the sentences to look for, in order; - reads standard input; see below",
    )
    return query


@command
def main(argv: Sequence[str]) -> int:
    """Command line of ``vpgfast ground``."""
    parser = argparse.ArgumentParser(
        prog="python -m vpgfast.ground",
        description="Find when sentences happen in a video.",
        epilog=f"Several --sentence make a paragraph, in that order. A --paragraph {HOW_PARAGRAPHS_ARE_CUT} Settings "
        "of the run can be changed, as in --model.language_model FOLDER where it lies elsewhere now.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="a .safetensors file, the folder of a run, or an encoder's spec (objects, clip:FOLDER), which needs no "
        "training",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--video", type=Path, help="any video file; it is encoded as the model's features were")
    source.add_argument("--features", type=Path, help=".npy or .npz file of clip features [clips, width]")
    parser.add_argument(
        "--encoder", metavar="SPEC", help="the encoder of the model's features, where its weights lie elsewhere now"
    )
    parser.add_argument(
        "--stream", type=int, help="number of the stream in the video file (default: the moving picture)"
    )
    parser.add_argument("--duration", type=float, help="length of the video in seconds, with --features")
    add_query(parser)
    parser.add_argument("--top", type=int, default=5, help="spans a sentence (default 5)")
    parser.add_argument(
        "--output", type=Path, help="folder for the results; default: ground-NAME beside the checkpoint"
    )
    add_page(parser)
    arguments, settings = parser.parse_known_args(argv)
    check_page(arguments)

    from vpgfast.ground.run import run  # and torch with it, which --help does without

    run(arguments, settings)
    return 0
