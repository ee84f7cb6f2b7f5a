"""The options of commands that write a page; imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from vpgfast.errors import UserError
from vpgfast.files import output_file


def add_page(parser: argparse.ArgumentParser) -> None:
    """Give a command ``--page`` and ``--page-embed``."""
    parser.add_argument(
        "--page", type=Path, metavar="FILE.html", help="write a page that plays the spans, for any browser; no network"
    )
    parser.add_argument("--page-embed", action="store_true", help="put the videos into the page, to pass it on alone")


def check_page(arguments: argparse.Namespace) -> None:
    """Find out before the work whether the page can be written.

    Raises:
        UserError: ``--page`` names a folder or another kind of file, or ``--page-embed`` stands alone.
    """
    page: Path | None = arguments.page
    if page is None:
        if arguments.page_embed:
            raise UserError("--page-embed goes with --page FILE.html")
        return
    output_file(page, "--page")
    if page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--page {page}: name a file that ends in .html")
