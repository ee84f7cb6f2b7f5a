"""Evaluate a checkpoint: ``python -m vpgfast.evaluate CHECKPOINT [--split test] [--output FOLDER] [--KEY VALUE ...]``;
or answers in QVHighlights' format, whoever made them: ``--submission FILE --truth FILE [--output FOLDER]``.

Prints the metrics beside the baselines that watch nothing and the swapped-sentence control, and writes them to
``metrics.json``. For a method with a retrieval branch the corpus metrics follow: is the video found among all videos of
the split, and the moment in it?
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vpgfast.command import command
from vpgfast.errors import ConfigError
from vpgfast.page.options import add_page, check_page


@command
def main(argv: Sequence[str]) -> int:
    """Command line of ``vpgfast evaluate``."""
    parser = argparse.ArgumentParser(
        prog="python -m vpgfast.evaluate",
        description="Evaluate a checkpoint beside the baselines and the swapped-sentence control.",
        epilog="Any setting of the run that made the checkpoint can be changed, as in --data.root ../annotations or "
        "--metrics.comparison '>'; `python -m vpgfast.train --help` lists them.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        nargs="?",
        help="a .safetensors file, the folder of a run, or an encoder's spec (objects, clip:FOLDER), which needs no "
        "training",
    )
    parser.add_argument("--split", default="test", help="train, val or test (default)")
    parser.add_argument(
        "--output", type=Path, help="folder for the results; default: evaluate-SPLIT beside the checkpoint"
    )
    parser.add_argument(
        "--submission", type=Path, help="JSON lines as QVHighlights' submissions have them, to be scored by --truth"
    )
    parser.add_argument("--truth", type=Path, help="the annotation file that they answer, highlight_val_release.jsonl")
    add_page(parser)
    parser.add_argument(
        "--page-videos", type=Path, metavar="FOLDER", help="with --page: where the videos are, named as in the corpus"
    )
    arguments, settings = parser.parse_known_args(argv)
    if arguments.submission is not None or arguments.truth is not None:
        for name in ("submission", "truth"):
            if getattr(arguments, name) is None:
                raise ConfigError(f"--submission and --truth go together, --{name} is missing")
        if arguments.checkpoint is not None or settings:
            rest = settings[0] if arguments.checkpoint is None else arguments.checkpoint
            raise ConfigError(f"{rest}: --submission is scored by its file alone; give no checkpoint and no settings")
        from vpgfast.evaluate.submission import score_file

        score_file(arguments.submission, arguments.truth, arguments.output)
        return 0
    if arguments.checkpoint is None:
        parser.error("give a checkpoint, or --submission and --truth")
    check_page(arguments)

    from vpgfast.evaluate.run import run  # and torch with it, which --help does without

    run(arguments, settings)
    return 0
