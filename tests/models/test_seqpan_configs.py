"""The shipped configs are read, and hold what the paper says."""

from pathlib import Path

import pytest

from vpgfast.config import parse_train
from vpgfast.data.corpus import SPLITS

FOLDER = Path(__file__).parents[2] / "configs" / "seqpan"


def read(name):
    return parse_train(["--config", str(FOLDER / f"{name}.yaml")])


RUNS = sorted(path for path in FOLDER.glob("*.yaml") if "\ntables:" not in path.read_text())


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_config_is_read(path):
    config = read(path.stem)
    assert config.method == "seqpan"
    corpus = "discourse" if config.data.moving_shapes.discourse else config.data.corpus
    assert path.stem.startswith(corpus)


@pytest.mark.parametrize(("name", "clips"), [("charades_sta", 64), ("activitynet", 100), ("tacos", 256)])
def test_the_papers_settings(name, clips):
    config = read(name)
    model, optim = config.model, config.optim
    assert (model.dim, model.heads, model.attention_blocks, model.tau, model.dropout) == (128, 8, 2, 0.3, 0.2)
    assert (model.attention, model.matching, model.gumbel, model.as_released) == ("sgpa", "sq", True, False)
    assert (model.max_clips, model.localizer, model.punctuation) == (clips, "two", True)
    assert (optim.name, optim.lr, optim.weight_decay, optim.clip) == ("adamw", 1e-4, 0.01, 1.0)
    assert optim.schedule == "linear"
    assert (config.batch_size, config.epochs, config.patience) == (16, 100, 10)


def test_as_released():
    """All that the released code does otherwise, its choice of the epoch on the test split included."""
    config = read("charades_sta_as_released")
    assert config.model.as_released
    assert config.model.layers_as_released
    assert (config.model.clip_times, config.model.localizer, config.model.punctuation) == ("extents", "shared", True)
    assert (config.optim.name, config.data.val_split, config.patience) == ("bert_adam", "test", None)


def test_activitynet_is_tested_on_val_1():
    data = read("activitynet").data
    assert (data.val_split, data.test_split) == ("val_2", "val_1")
    assert SPLITS["activitynet"][2] == "val_2"  # what the paragraph methods take, and the reason for saying it


def test_simulated_features_are_called_so():
    data = read("charades_sta_simulated").data
    assert data.features == "simulated"
    assert data.corpus == "charades_sta"
