"""Repeat a run over seeds, or run a paper's ablations: ``python -m vpgfast.ablate --config RUN.yaml [--tables FILE]``.

Every run is a ``python -m vpgfast.train`` of its own in a folder below the output folder, so finished ones are kept and
killed ones go on when the same command is given again. Rows of the same settings, in one table or in two, are one run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vpgfast.command import command


@command
def main(argv: Sequence[str]) -> int:
    """Command line of ``vpgfast ablate``."""
    options, settings = _arguments(argv)

    from vpgfast.ablate.run import run  # and torch with it, which --help does without

    run(options, settings)
    return 0


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """This command's own arguments, and those of the runs."""
    parser = argparse.ArgumentParser(
        prog="python -m vpgfast.ablate",
        usage="python -m vpgfast.ablate [--config RUN.yaml] [--tables TABLES.yaml] [--only TITLE] [--seeds N] "
        "[--workers N] [--output FOLDER] [--KEY VALUE ...]",
        description="Repeat a run over seeds and print mean and standard deviation, or run every row of a paper's "
        "ablation tables over seeds and say which of the paper's claims hold. Finished runs are kept, and killed "
        "ones go on when the command is given again.",
        epilog="--KEY VALUE are settings of every run, as in `python -m vpgfast.train` (--data.root, --epochs, --seed "
        "for the first seed, ...; its --help lists them); where a row sets the same key, the row's value counts. "
        "A claim holds if the mean over the seeds of the better row minus the worse, seed by seed, is above 0 by more "
        "than twice its standard error, it does not hold if it is below 0 by as much, else it is undecided. "
        "FOLDER then holds ablation.json, ablation.md, ablation.png, log.txt and a folder a run.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, help="YAML file of the run's settings; default: train's own")
    parser.add_argument(
        "--tables", type=Path, help="YAML file of tables, such as configs/marn/ablations.yaml; default: only the run"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="TITLE",
        help="only the table of this title, or of this beginning up to a comma; may be given several times",
    )  # fmt: skip
    parser.add_argument("--seeds", type=_count, default=3, metavar="N", help="runs of each row (default 3)")
    parser.add_argument(
        "--workers", type=_count, default=1, metavar="N",
        help="runs at a time, which share the cores (default 1); each has a process and a model of its own",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder; default: runs/METHOD-CORPUS-ablation (or -seeds)")
    return parser.parse_known_args(argv)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)
