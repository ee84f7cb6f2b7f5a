"""Commands are tested with a tiny method on a tiny ``moving_shapes`` corpus, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import tiny_search

from vpgfast import train
from vpgfast.models.registry import METHODS


@pytest.fixture(autouse=True)
def _tiny_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "tiny", tiny.PLACE)


@pytest.fixture(scope="session")
def data_args(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that choose the tiny corpus."""
    sizes = {"train_videos": 20, "val_videos": 6, "test_videos": 7}
    args = ["--data.cache", str(tmp_path_factory.mktemp("cache")), "--data.word_dim=20"]
    return args + [f"--data.moving_shapes.{name}={size}" for name, size in sizes.items()]


@pytest.fixture(scope="session")
def train_args(data_args: list[str]) -> list[str]:
    """Arguments of a short run; the caller adds ``--output``."""
    return ["--method", "tiny", "--epochs=3", "--batch_size=8", "--optim.lr=0.01", "--accelerator=cpu", *data_args]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, train_args: list[str]) -> Path:
    """The folder of a finished run; look, don't touch."""
    tiny.register()
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main([*train_args, "--output", str(folder)]) == 0
    del METHODS["tiny"]
    return folder


@pytest.fixture(scope="session")
def search_run(tmp_path_factory: pytest.TempPathFactory, train_args: list[str]) -> Path:
    """The folder of a finished run of a method that finds videos; look, don't touch."""
    METHODS[tiny_search.NAME] = tiny_search.PLACE
    folder = tmp_path_factory.mktemp("runs") / "search"
    assert train.main([*train_args, "--method", tiny_search.NAME, "--output", str(folder)]) == 0
    del METHODS[tiny_search.NAME]
    return folder
