"""Annotation files of the field, read as they are published; one module a data set."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from vpgfast.data.annotations import activitynet, charades_cd, charades_sta, didemo, qvhighlights, tacos
from vpgfast.data.types import Paragraph
from vpgfast.errors import AnnotationError, ConfigError

DATASETS: dict[str, ModuleType] = {
    "activitynet": activitynet,
    "charades_sta": charades_sta,
    "charades_cd": charades_cd,
    "tacos": tacos,
    "didemo": didemo,
    "qvhighlights": qvhighlights,
}
"""Each data set's module has ``load(split, root, level, **options)`` and the names of its ``SPLITS``."""


def load_annotations(
    corpus: str, split: str, root: str | Path, level: str = "paragraph", **options: Any
) -> list[Paragraph]:
    """Read one split of a data set.

    Args:
        corpus: a name in :data:`DATASETS`.
        split: one of that data set's splits.
        root: folder of its files, each plain or ``.gz``.
        level: ``"paragraph"``, or ``"sentence"`` for paragraphs of one sentence each.
        options: of the data set, see its ``load``.

    Raises:
        AnnotationError: a file is missing or malformed; names it, and the line or key.
        ConfigError: no such data set.
    """
    if corpus not in DATASETS:
        raise ConfigError(f"data set {corpus!r} is not known; choose from {', '.join(DATASETS)}")
    root = Path(root)
    if not root.is_dir():
        raise AnnotationError(f"{root}: no such folder; it should hold the annotation files of {corpus}")
    return DATASETS[corpus].load(split, root, level, **options)
