"""The command line of ``serve``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vpgfast.command import command, open_log
from vpgfast.errors import UserError


@command
def main(argv: Sequence[str]) -> int:
    """Command line of ``vpgfast serve``."""
    parser = argparse.ArgumentParser(
        prog="python -m vpgfast.serve",
        description="Serve a page that finds moments in a folder of videos as one types. Stop it with Ctrl-C.",
        epilog="What was encoded once is kept in the cache. Videos that are put into the folder, or added on the page, "
        "are encoded while the server runs.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "model",
        nargs="?",
        type=Path,
        metavar="MODEL",
        help="a .safetensors file, the folder of a run, or an encoder's spec (objects, clip:FOLDER), which needs no "
        "training; default: the encoder that find takes",
    )
    parser.add_argument(
        "--library", type=Path, metavar="DIR", help="folder of videos; default: an empty one that is gone afterwards"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="default 8000; 0 takes a free one")
    parser.add_argument(
        "--encoder", metavar="SPEC", help="the encoder of the model's features, where its weights lie elsewhere now"
    )
    parser.add_argument("--top", type=int, default=5, help="spans a sentence, or videos (default 5)")
    parser.add_argument("--no-upload", action="store_true", help="take no videos from the page")
    parser.add_argument("--most-mib", type=int, default=2048, help="size of a video that is added (default 2048)")
    parser.add_argument(
        "--most-videos", type=int, default=1000, help="in the library; no more are added (default 1000)"
    )
    arguments = parser.parse_args(argv)
    open_log()
    for name in ("top", "most_mib", "most_videos"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    if not 0 <= arguments.port <= 65535:
        raise UserError(f"--port must be between 0 and 65535, got {arguments.port}")
    if arguments.library is not None and not arguments.library.is_dir():
        raise UserError(f"--library {arguments.library}: no such folder")

    from vpgfast.serve.run import run  # and torch with it, which --help does without

    run(arguments)
    return 0
