"""A checkpoint beside the baselines and the swapped-sentence control: ``python -m vpgfast.evaluate``."""

from vpgfast.evaluate.command import main

__all__ = ["main"]
