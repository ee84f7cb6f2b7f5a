"""What is installed, what was built, and which backend each op uses: ``python -m vpgfast.doctor``."""

from vpgfast.doctor.command import main

__all__ = ["main"]
