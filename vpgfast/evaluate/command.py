"""Evaluate a checkpoint: ``python -m vpgfast.evaluate CHECKPOINT [--split test] [--output FOLDER] [--KEY VALUE ...]``.

Prints the metrics beside the baselines that watch nothing and the swapped-sentence control, and writes them to
``metrics.json``. For a method with a retrieval branch the corpus metrics follow: is the video found among all videos of
the split, and the moment in it?
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vpgfast.command import command
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
        help="a .safetensors file, the folder of a run, or an encoder's spec (objects, clip:FOLDER), which needs no "
        "training",
    )
    parser.add_argument("--split", default="test", help="train, val or test (default)")
    parser.add_argument(
        "--output", type=Path, help="folder for the results; default: evaluate-SPLIT beside the checkpoint"
    )
    add_page(parser)
    parser.add_argument(
        "--page-videos", type=Path, metavar="FOLDER", help="with --page: where the videos are, named as in the corpus"
    )
    arguments, settings = parser.parse_known_args(argv)
    check_page(arguments)

    from vpgfast.evaluate.run import run  # and torch with it, which --help does without

    run(arguments, settings)
    return 0
