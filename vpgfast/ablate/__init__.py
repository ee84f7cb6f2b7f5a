"""A run over seeds, or a paper's ablation tables: ``python -m vpgfast.ablate``."""

from vpgfast.ablate.command import main

__all__ = ["main"]
