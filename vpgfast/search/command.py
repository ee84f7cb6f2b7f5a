"""Which video does a paragraph describe, and when does each sentence happen in it? ``python -m vpgfast.search ...``.

``index`` makes a folder of vectors of videos (:mod:`vpgfast.search.index`), ``add``, ``remove`` and ``compact`` change
it, ``build-faiss`` makes it fast for large corpora, ``info`` says what it holds, and ``query`` asks it: it finds videos
by their vectors and grounds the sentences in each of them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from vpgfast.command import command
from vpgfast.config import TrainConfig
from vpgfast.errors import ConfigError
from vpgfast.ground.command import HOW_PARAGRAPHS_ARE_CUT, add_query
from vpgfast.page.options import add_page, check_page

SECONDS_BETWEEN_SHARDS = 60.0
"""What a kill may cost: a shard is written at least this often."""


@command
def main(argv: Sequence[str]) -> int:
    """Command line of ``vpgfast search``."""
    settings, others = split_settings(argv)
    arguments = _parser().parse_args(others)
    if arguments.action == "query":
        check_page(arguments)

    from vpgfast.search.actions import run  # and torch with it, which --help does without

    run(arguments, settings)
    return 0


def split_settings(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments that change settings of the model's run (``--model.language_model F``, ``--batch_size=8``), each as one
    ``--KEY=VALUE``; and the others."""
    known = {field.name for field in fields(TrainConfig)} - {"output", "resume", "overwrite"}
    settings, others = [], []
    waiting = iter(argv)
    for argument in waiting:
        key, equals, _ = argument.partition("=")
        if not key.startswith("--") or key[2:].split(".")[0] not in known:
            others.append(argument)
        elif equals:
            settings.append(argument)
        elif re.match(r"-\D", value := next(waiting, "--")):  # the next option, or none; -3 is a value
            raise ConfigError(f"the command line: {key} needs a value")
        else:
            settings.append(f"{key}={value}")
    return settings, others


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vpgfast.search",
        description="Find the video that a paragraph describes, and when each of its sentences happens in it.",
        epilog="`python -m vpgfast.search ACTION --help` says more. An index is a folder of plain files, see "
        "docs/search.md.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    changes = (
        "Settings of the model's run can be changed, as in --model.language_model FOLDER where it lies elsewhere now, "
        "--accelerator cpu or --batch_size 64 (videos at a time)."
    )

    def add(name: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=epilog)
        if name != "index":
            action.add_argument("index", type=Path, metavar="INDEX", help="folder of the index")
        return action

    index = add(
        "index",
        "make an index of videos; the same command goes on with one that was interrupted",
        f"A shard is written at least every {SECONDS_BETWEEN_SHARDS:.0f} seconds, and what is in the index is not done "
        f"again. {changes}",
    )
    index.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a .safetensors file, a run's folder, or an encoder's spec (objects, clip:FOLDER), untrained",
    )
    index.add_argument("-o", "--output", type=Path, required=True, metavar="INDEX", help="folder to make the index in")
    index.add_argument("--faiss", action="store_true", help="end with build-faiss")
    more = add("add", "add videos to an index, with the model that is in it", changes)
    more.add_argument("--replace", action="store_true", help="make the vectors of videos that are there anew")
    for action in (index, more):
        action.add_argument(
            "source",
            type=Path,
            metavar="FEATURES_OR_VIDEOS",
            help="an HDF5 file of clip features, a folder of .npy or .npz files named after the videos, or videos, "
            "which are encoded as the model's features were; a relative path is remembered as seen from the index",
        )
        action.add_argument(
            "--durations",
            type=Path,
            metavar="FILE",
            help="with features that don't tell it: seconds that the videos last, .csv (video_id,seconds) or .json",
        )
        action.add_argument("--clip-seconds", type=float, metavar="S", help="with features: length of a clip, instead")
        action.add_argument(
            "--features-key",
            metavar="KEY",
            help="where a video's features are: '{video_id}/c3d_features' (HDF5), an array's name (.npz); default: "
            "found out",
        )
        action.add_argument(
            "--on-bad", choices=("stop", "skip"), default="stop", help="if a video can't be read (default: stop)"
        )

    epilog = f"TEXT is cut as a --paragraph: one {HOW_PARAGRAPHS_ARE_CUT} {changes}"
    query = add("query", "find videos by a paragraph, and its sentences in them", epilog)
    asked = add_query(query)
    asked.add_argument("text", nargs="?", metavar="TEXT", help="the paragraph")
    asked.add_argument(
        "--queries",
        type=Path,
        metavar="FILE",
        help="text file with a paragraph a line, all asked with one start; results in numbered folders of --output",
    )
    query.add_argument("--top", type=int, default=5, help="videos (default 5)")
    query.add_argument("--spans", type=int, default=1, help="spans a sentence and video (default 1)")
    for action in (index, more, query):
        action.add_argument(
            "--encoder", metavar="SPEC", help="the encoder of the model's features, where its weights lie elsewhere now"
        )
    query.add_argument("--exact", action="store_true", help="compare with every vector, also where FAISS could search")
    query.add_argument("--output", type=Path, help="folder for the results; default: one of its own in INDEX/queries")
    add_page(query)

    remove = add("remove", "take videos out of an index")
    remove.add_argument("video", nargs="+", metavar="VIDEO", help="name of a video")
    add("compact", "write an index anew, in full shards and without what was removed")
    faiss = add("build-faiss", "let FAISS make an IVF-PQ index of what is there now", changes)
    faiss.add_argument(
        "--queries",
        type=Path,
        metavar="FILE",
        help="text file with a paragraph a line to measure the recall on; default: vectors of videos that training did "
        "not see, which are easier to search for than paragraphs",
    )
    for action in (index, faiss):
        action.add_argument(
            "--recall",
            type=float,
            default=0.95,
            metavar="R",
            help="share of the best video, and of the 10 best, that FAISS has to find; it probes as many lists as that "
            "takes (default 0.95)",
        )
    add("info", "say what an index holds, and check its files")
    return parser
