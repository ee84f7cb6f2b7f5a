"""The papers' configs read what the papers say of their data: how much of it, and features of which width."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from vpgfast.config import parse_train
from vpgfast.data import corpus as corpora
from vpgfast.data.annotations import load_annotations
from vpgfast.data.corpus import read_splits
from vpgfast.data.options import DataConfig

ROOT = Path(__file__).parents[2]
COUNTS = {
    "seqpan/charades_sta": ((5338, 12408), (1334, 3720)),
    "seqpan/charades_sta_as_released": ((5338, 12408), (1334, 3720)),
    "marn/charades_sta": ((5338, 12408), (1334, 3720)),
    "wsra/charades_sta": ((5338, 12408), (1334, 3720)),
    "dmr_jrg/charades_sta": ((5338, 12408), (1334, 3720)),
    "siamgtr/charades_cd": ((4564, 11071), (1440, 3372)),
    # The papers have 10,009 and 37,421: four sentences have no length, and drop their paragraphs where these are read.
    "seqpan/activitynet": ((10009, 37417), (4917, 17505)),
    "marn/activitynet": ((10009, 37417), (9802, 34536)),
    "siamgtr/activitynet": ((10005, 37395), (4885, 17031)),
    "dmr_jrg/activitynet": ((10005, 37395), (4885, 17031)),
    # DepNet's 1,107 and 380 paragraphs, which SiamGTR's and DMR-JRG's papers have, are not public.
    "seqpan/tacos": ((1263, 9790), (444, 4001)),
    "siamgtr/tacos": ((1526, 9732), (673, 3989)),
    "dmr_jrg/tacos": ((1263, 9790), (444, 4001)),
}
"""Paragraphs and sentences to train on, those held out for validation included, and to test on."""
NO_TRAINING_FILE = {"wsra/didemo"}  # it has no stable place to come from
NO_PAPER = {"seqpan/qvhighlights"}


def with_features_of_the_field() -> Iterator[str]:
    """Names of the configs that leave to the caller where annotations and features are."""
    for path in sorted((ROOT / "configs").glob("*/*.yaml")):
        data = yaml.safe_load(path.read_text()).get("data", {"corpus": "own"})  # tables have none
        if "features" not in data and data["corpus"] not in ("moving_shapes", "own"):
            yield f"{path.parent.name}/{path.stem}"


OF_PAPERS = sorted(set(with_features_of_the_field()) - NO_PAPER)


def data_of(name: str) -> DataConfig:
    return parse_train(["--config", str(ROOT / "configs" / f"{name}.yaml")]).data


def test_no_config_is_left_out() -> None:
    assert set(OF_PAPERS) == set(COUNTS) | NO_TRAINING_FILE


@pytest.fixture(scope="module")
def _read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "load_annotations", functools.cache(load_annotations))
        yield


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.usefixtures("_read_once")
def test_counts(name: str, shared: Path) -> None:
    data = data_of(name)
    splits = read_splits(replace(data, root=shared))
    trained = [*splits["train"], *(splits["val"] if data.val_split == "held_out" else ())]
    counts = tuple((len(split), sum(len(p.sentences) for p in split)) for split in (trained, splits["test"]))
    assert counts == COUNTS[name]


def published_widths() -> dict[tuple[str, str], set[int]]:
    """(method, corpus) -> widths of the files that docs/feature_files.md names for its config."""
    names = {
        "ActivityNet Captions": "activitynet",
        "Charades-STA": "charades_sta",
        "Charades-CD": "charades_cd",
        "TACoS": "tacos",
        "DiDeMo": "didemo",
        "QVHighlights": "qvhighlights",
    }
    widths: dict[tuple[str, str], set[int]] = {}
    corpus = ""
    for line in (ROOT / "docs" / "feature_files.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 7 and cells[0] != "corpus, videos":
            corpus = names[cells[0].split(",")[0]] if cells[0] else corpus
            for method in re.findall(r"`(\w+)`", cells[6]):
                widths.setdefault((method, corpus), set()).update(int(n) for n in re.findall(r"\d+", cells[5]))
    return widths


@pytest.mark.parametrize("name", OF_PAPERS)
def test_widths(name: str) -> None:
    """C3D of 500 where 4096 is meant is an error: each config says which of the page's files it means."""
    data = data_of(name)
    assert data.features_dim in published_widths()[name.split("/")[0], data.corpus]


def test_the_pages_table_is_read() -> None:
    widths = published_widths()
    assert widths["wsra", "didemo"] == {4096, 1024}
    assert widths["dmr_jrg", "activitynet"] == {500}


def test_any_width_may_be_asked_for() -> None:
    config = str(ROOT / "configs" / "wsra" / "didemo.yaml")
    assert parse_train(["--config", config, "--data.features_dim=null"]).data.features_dim is None
