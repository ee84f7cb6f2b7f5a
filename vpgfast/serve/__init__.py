"""The page with a query, for one's browser: ``python -m vpgfast.serve [MODEL] [--library DIR]``."""

from vpgfast.serve.command import main

__all__ = ["main"]
