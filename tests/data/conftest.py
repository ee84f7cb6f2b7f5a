"""Fixtures of the data tests: the shared real annotation files, and a small made corpus."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vpgfast.data.corpus import Corpus, load_corpus
from vpgfast.data.options import DataConfig, MovingShapesOptions

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the real annotation files and samples, which are not part of the project."""
    folder = Path(os.environ.get("VPGFAST_SHARED", PROJECT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"the real annotation files are not here ({folder}); VPGFAST_SHARED says where they are")
    return folder


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    options = MovingShapesOptions(train_videos=20, val_videos=4, test_videos=4)
    return DataConfig(moving_shapes=options, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def small_corpus(small_config: DataConfig) -> Corpus:
    return load_corpus(small_config)
