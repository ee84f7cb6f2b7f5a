"""Which video does a paragraph describe, and when does each sentence happen in it? ``python -m vpgfast.search``.

From Python, ``open_index("my_index").ask("A man opens a door.")`` answers again and again without starting up.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vpgfast.search.command import main

if TYPE_CHECKING:
    from vpgfast.search.session import Session

__all__ = ["main", "open_index"]


def open_index(folder: str | Path, settings: Sequence[str] = (), encoder: str | None = None) -> Session:
    """An index with its model, ready to be asked; see :meth:`vpgfast.search.session.Session.open`."""
    from vpgfast.search.session import Session  # and torch with it, which --help does without

    return Session.open(folder, settings, encoder)
