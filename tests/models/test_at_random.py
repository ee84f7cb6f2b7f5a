"""A method's own list of spans in a random order: what its list earns without its network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from vpgfast.config import parse_train
from vpgfast.data.annotations import load_annotations
from vpgfast.data.batches import make_batch, make_loader
from vpgfast.data.features import ArrayFeatures
from vpgfast.data.text import WordVectors
from vpgfast.data.types import Paragraph
from vpgfast.evaluate.split import random_candidates
from vpgfast.models.registry import METHODS, get_config, get_method
from vpgfast.ops import temporal_iou

CONFIGS = Path(__file__).parents[2] / "configs"
LISTS = ("marn", "wsra", "dmr_jrg")


def vectors() -> WordVectors:
    words = ["<pad>", "<unk>", "a", "dog", "runs", "it", "jumps"]
    numbers = np.random.default_rng(0).standard_normal((len(words), 12), dtype=np.float32)
    return WordVectors(words, numbers, "random", content_counts=np.arange(len(words)))


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("decode", ["independent", "ordered"])
def test_a_random_order_of_the_list_with_its_suppression(
    name: str, decode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_train(["--config", str(CONFIGS / name / "moving_shapes.yaml"), f"--model.decode={decode}"])
    method = get_method(name)
    model = method(config.model, 6, vectors()).eval()
    needs = method.needs(config.model)
    several = needs.level == "paragraph" or needs.whole_paragraphs
    sentences = ("A dog runs.", "It jumps.") if several else ("A dog runs.",)
    items = [Paragraph(str(v), 30.0, sentences, np.array([[1.0, 9.0]] * len(sentences))) for v in range(3)]
    features = [np.random.default_rng(v).standard_normal((64, 6), dtype=np.float32) for v in range(3)]
    batch = make_batch(items, features, vectors(), needs, training=False)

    def network(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(method, "forward", network)
    first, again, other = (model.at_random(batch, 5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.spans, again.spans)
    assert not torch.equal(first.spans, other.spans)
    assert first.spans.shape == (3, len(sentences), 5, 2)
    assert (first.scores.diff(dim=-1) <= 0).all()
    there = first.scores > -torch.inf
    assert there.any(-1).all()
    assert ((first.spans >= 0) & (first.spans <= 30)).all()
    if config.model.nms is not None:
        iou = temporal_iou(first.spans, first.spans).triu(1)
        both = there.unsqueeze(-1) & there.unsqueeze(-2)
        assert (iou[both] <= config.model.nms + 1e-9).all()


def test_others_have_no_list() -> None:
    for name in set(METHODS) - set(LISTS):
        assert get_method(name).at_random is get_method("seqpan").at_random, name
        assert get_config(name) is not None


@pytest.mark.parametrize(("seconds", "recalls"), [("1", (0.905, 0.721, 0.335)), ("null", (0.891, 0.708, 0.310))])
def test_what_the_list_of_likely_lengths_earns_on_charades(
    shared: Path, seconds: str, recalls: tuple[float, float, float]
) -> None:
    """R@5 of chance is far above that of spans drawn at random (70.7 / 40.5 / 14.5): the paper's six lengths fit, in
    seconds as in shares of the video."""
    file = CONFIGS / "marn" / "charades_sta.yaml"
    config = parse_train(["--config", str(file), "--data.root", str(shared), f"--model.clip_seconds={seconds}"])
    config.model.dim = 16
    test = load_annotations("charades_sta", "test", shared / "charades_sta")
    model = get_method("marn")(config.model, 4, vectors()).eval()
    features = ArrayFeatures({p.video_id: np.zeros((32, 4), np.float32) for p in test}, "zeros", 4)
    loader = make_loader(test, features, vectors(), get_method("marn").needs(config.model), 256, training=False)
    found = random_candidates(Fabric(accelerator="cpu", devices=1), SimpleNamespace(module=model), loader, config)
    assert found is not None
    for name, expected in zip(("R@5 IoU=0.3", "R@5 IoU=0.5", "R@5 IoU=0.7"), recalls, strict=True):
        assert found[name] == pytest.approx(expected, abs=0.02), found
