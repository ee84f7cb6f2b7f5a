"""Every method is trained on annotations of one's own, whose sentences may be true of several moments."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vpgfast import train
from vpgfast.data.feature_files import FeatureStore, Source, VideoFeatures
from vpgfast.encoders.identity import Identity
from vpgfast.models.registry import METHODS

WEAK = ("marn", "wsra", "dmr_jrg", "siamgtr", "plain_alignment")
SETTINGS = {
    "seqpan": ["--model.dim=16", "--model.heads=2"],
    "marn": [],
    "wsra": [],
    "siamgtr": ["--model.dim=16", "--model.feed_forward=16", "--model.max_clips=16"],
    "plain_alignment": ["--model.dim=16", "--model.max_clips=16"],
    "dmr_jrg": ["--model.dim=16", "--model.max_clips=16", "--model.segments=8"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of twelve videos, and annotations of two sentences each, one of them true of two moments."""
    folder = tmp_path_factory.mktemp("own")
    store, rng = FeatureStore(folder / "f.h5", Identity("pixels", "pixels", None, 8, {}), {}), np.random.default_rng(0)
    known, unknown = [], []
    for number in range(12):
        rows = rng.standard_normal((20, 8)).astype(np.float32)
        times = np.stack([np.arange(20), np.arange(1, 21)], 1).astype(np.float64)
        store.add(f"v{number}", VideoFeatures(rows, times, 20.0, (), Source(1, 1)))
        for m, moments in enumerate(([[1, 5]], [[6, 9], [12, 18]])):
            record = {
                "qid": 2 * number + m,
                "vid": f"v{number}",
                "query": f"The {'red' if m else 'blue'} dog runs {m}.",
            }
            known.append({**record, "relevant_windows": moments})
            unknown.append(record)
    store.finish()
    (folder / "known.jsonl").write_text("\n".join(map(json.dumps, known)))
    (folder / "unknown.jsonl").write_text("\n".join(map(json.dumps, unknown)))
    (folder / "held.jsonl").write_text("\n".join(map(json.dumps, known[:8])))
    return folder


def run(place: Path, output: Path, method: str, *settings: str, file: str = "known.jsonl") -> int:
    files = {"train": file, "val": "held.jsonl", "test": "held.jsonl"}
    splits = [f"--data.annotations.{split}={place / name}" for split, name in files.items()]
    data = ["--data.corpus=own", *splits, f"--data.features={place / 'f.h5'}", "--metrics.average_precision=true"]
    common = ["--epochs=1", "--batch_size=6", "--accelerator=cpu", "--pictures=1", f"--output={output}"]
    return train.main([f"--method={method}", *data, *common, *SETTINGS[method], *settings])


def test_settings_are_of_every_method() -> None:
    assert set(SETTINGS) == set(METHODS) - {"similarity", "tiny"}


@pytest.mark.parametrize("method", SETTINGS)
def test_several_moments(place: Path, tmp_path: Path, method: str) -> None:
    assert run(place, tmp_path / "run", method) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["metrics"].keys() == metrics["control"].keys() == metrics["baselines"]["uniform"].keys()
    assert metrics["baselines"]["whole video"]["mIoU"] == pytest.approx((4 / 20 + 6 / 20) / 2), (
        "the better of two counts"
    )
    assert 0 <= metrics["metrics"]["mAP"] <= 1
    answers = [json.loads(line) for line in (tmp_path / "run" / "submission.jsonl").read_text().splitlines()]
    assert sorted(answer["qid"] for answer in answers) == list(range(8))
    assert all(answer["pred_relevant_windows"] for answer in answers)


@pytest.mark.parametrize("method", WEAK)
def test_without_moments(place: Path, tmp_path: Path, method: str) -> None:
    """A method that needs no label learns the same where the file has none."""
    losses = {}
    for file in ("known.jsonl", "unknown.jsonl"):
        assert run(place, tmp_path / file, method, file=file) == 0
        log = (tmp_path / file / "log.txt").read_text()
        losses[file] = [line.split("loss ")[1].split(",")[0] for line in log.splitlines() if "epoch 1/1: loss" in line]
    assert losses["known.jsonl"] == losses["unknown.jsonl"] != []


def test_labels_of_a_paragraph_method(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place, tmp_path / "run", "siamgtr", "--model.supervision=fully") == 0
    assert run(place, tmp_path / "none", "siamgtr", "--model.supervision=fully", file="unknown.jsonl") == 2
    assert "has no spans, but the method trains on those" in capsys.readouterr().err
