"""Train a method and evaluate it: ``python -m vpgfast.train``."""

from vpgfast.train.command import main

__all__ = ["main"]
