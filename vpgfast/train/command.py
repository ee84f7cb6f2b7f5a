"""Train a method and evaluate it: ``python -m vpgfast.train [--config FILE] [--output FOLDER] [--optim.lr 1e-4 ...]``.

Without arguments: SeqPAN on ``moving_shapes``, a corpus of small videos made on the spot.
"""

from __future__ import annotations

from collections.abc import Sequence

from vpgfast.command import command
from vpgfast.config import parse_train


@command
def main(argv: Sequence[str]) -> int:
    """Command line of ``vpgfast train``."""
    config = parse_train(argv)

    from vpgfast.train.run import run  # and torch with it, which --help does without

    run(config)
    return 0
