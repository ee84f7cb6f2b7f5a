"""When does something happen in my videos? ``python -m vpgfast.find VIDEOS "sentence"``; nothing needs training."""

from vpgfast.find.command import main

__all__ = ["main"]
