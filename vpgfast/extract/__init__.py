"""Features of videos, into a file that every other command reads: ``python -m vpgfast.extract``."""

from vpgfast.extract.command import main

__all__ = ["main"]
