"""Fixtures of the data tests: a small made corpus."""

from __future__ import annotations

import pytest

from vpgfast.data.corpus import Corpus, load_corpus
from vpgfast.data.options import DataConfig, MovingShapesOptions


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    options = MovingShapesOptions(train_videos=20, val_videos=4, test_videos=4)
    return DataConfig(moving_shapes=options, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def small_corpus(small_config: DataConfig) -> Corpus:
    return load_corpus(small_config)
