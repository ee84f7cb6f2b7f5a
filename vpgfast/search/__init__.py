"""Which video does a paragraph describe, and when does each sentence happen in it? ``python -m vpgfast.search``."""

from vpgfast.search.command import main

__all__ = ["main"]
