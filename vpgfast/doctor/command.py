"""``python -m vpgfast.doctor``: versions, what was built, which implementation each op uses, and why no better one.

Exit status 0 when every op runs on a compiled or Triton kernel on every device that torch can use, else 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vpgfast.command import command


@command
def main(argv: Sequence[str]) -> int:
    """Command line of ``vpgfast doctor``."""
    parser = argparse.ArgumentParser(
        prog="python -m vpgfast.doctor",
        description="versions, what was built, which implementation each op uses, and why no better one.",
    )
    parser.parse_args(argv)

    from vpgfast.doctor.report import report  # and torch with it, which --help does without

    return 0 if report() else 1
