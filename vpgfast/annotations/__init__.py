"""What a file of annotations holds, before anything is trained on it: ``python -m vpgfast.annotations check FILE``."""

from vpgfast.annotations.command import main

__all__ = ["main"]
