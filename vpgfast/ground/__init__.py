"""When do sentences happen in a video? ``python -m vpgfast.ground``."""

from vpgfast.ground.command import main

__all__ = ["main"]
