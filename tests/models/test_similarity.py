"""``similarity``: planted moments are found, order tells apart what sentences alone can't, padding changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from vpgfast.data.batches import make_batch
from vpgfast.data.features import ArrayFeatures
from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, Paragraph
from vpgfast.errors import ConfigError
from vpgfast.models.configs.similarity import SimilarityConfig
from vpgfast.models.similarity import Similarity, smoothed

NOTHING = WordVectors(["<pad>", "<unk>"], np.zeros((2, 1), np.float32), "none")
WIDTH = 16
EXACT = {"smooth": 0.0, "neutral": (), "min_seconds": 0.0}


class Tower:
    """Sentence "N" is the N-th unit vector; anything else is far from all clips."""

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        rows = torch.zeros(len(sentences), WIDTH)
        for row, sentence in zip(rows, sentences, strict=True):
            row[int(sentence) if sentence.isdigit() else WIDTH - 1] = 1
        return rows


def model(**settings: object) -> Similarity:
    made = Similarity(SimilarityConfig(**{**EXACT, **settings}), WIDTH, NOTHING).eval()
    made.tower = Tower()
    return made


def video(events: Sequence[tuple[int, int, int]], clips: int, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """float32 [clips, WIDTH]: event (number, first clip, end) shows that unit vector; elsewhere something else."""
    rng = np.random.default_rng(seed)
    features = np.zeros((clips, WIDTH), np.float32)
    features[:, WIDTH - 2] = 1
    for number, start, end in events:
        features[start:end] = np.eye(WIDTH)[number]
    return features + noise * rng.standard_normal(features.shape).astype(np.float32)


def batch(model: Similarity, items: Sequence[tuple[np.ndarray, Sequence[str]]], seconds: float = 1.0) -> Batch:
    """One paragraph an item; a clip lasts ``seconds``."""
    paragraphs = [Paragraph(f"v{i}", len(x) * seconds, tuple(s)) for i, (x, s) in enumerate(items)]
    return make_batch(paragraphs, [x for x, _ in items], NOTHING, model.needs(model.config), training=False)


@pytest.mark.parametrize("span", ["sum", "contrast"])
@pytest.mark.parametrize("order", ["none", "paragraph"])
@pytest.mark.parametrize("overlap", ["none", "starts"])
def test_planted_moments_are_found_exactly(span: str, order: str, overlap: str) -> None:
    one = model(span=span, order=order, overlap=overlap)
    events = [(0, 3, 9), (1, 9, 12), (2, 20, 31)]
    found = one.predict(batch(one, [(video(events, 40), "012")], seconds=0.5), 3)
    assert found.spans[0, :, 0].tolist() == [[start / 2, end / 2] for _, start, end in events]
    assert (found.scores.diff(dim=-1) <= 0).all()


def test_with_noise_most_are_found() -> None:
    """200 videos of three moments under noise, of which a clip has as much as of its event: most have an IoU of 0.5."""
    one, rng, good = model(order="paragraph", smooth=1.0), np.random.default_rng(1), 0
    for seed in range(200):
        edges = np.sort(rng.choice(np.arange(1, 20), 6, replace=False)) * 3
        events = [(m, int(edges[2 * m]), int(edges[2 * m + 1])) for m in range(3)]
        found = one.predict(batch(one, [(video(events, 64, noise=0.25, seed=seed), "012")]), 1).spans[0, :, 0]
        for (_, start, end), (a, b) in zip(events, found.tolist(), strict=True):
            shared = max(0, min(end, b) - max(start, a))
            good += shared / (max(end, b) - min(start, a)) >= 0.5
    assert good / 600 > 0.85


def test_order_tells_repeated_events_apart() -> None:
    """Event 0 happens twice; only the order says which of the two each sentence means."""
    events = [(0, 2, 6), (1, 10, 14), (0, 20, 26)]
    expected = [[2.0, 6.0], [10.0, 14.0], [20.0, 26.0]]
    ordered, single = model(order="paragraph", overlap="none"), model(order="none")
    items = [(video(events, 30), ("0", "1", "0"))]
    assert ordered.predict(batch(ordered, items), 2).spans[0, :, 0].tolist() == expected
    alone = single.predict(batch(single, items), 2).spans[0, :, 0].tolist()
    assert alone[0] == alone[2]


@pytest.mark.parametrize("order", ["none", "paragraph"])
def test_padding_changes_nothing(order: str) -> None:
    one = model(order=order, smooth=0.7, neutral=("x", "1"))
    items = [
        (video([(0, 3, 9), (1, 12, 14)], 17, 0.3, 1), ("0", "1")),
        (video([(2, 30, 35)], 50, 0.3, 2), ("2", "3", "0", "1")),
        (video([], 1), ("0",)),
    ]
    together = one.predict(batch(one, items), 4)
    for i, item in enumerate(items):
        alone = one.predict(batch(one, [item]), 4)
        count = len(item[1])
        assert torch.equal(together.scores[i, :count] == -torch.inf, alone.scores[0] == -torch.inf)
        torch.testing.assert_close(together.scores[i, :count], alone.scores[0])
        real = alone.scores[0] > -torch.inf
        torch.testing.assert_close(together.spans[i, :count][real], alone.spans[0][real])


def test_ranked_spans_are_apart() -> None:
    one = model(order="none", overlap_of_ranked=0.3)
    found = one.predict(batch(one, [(video([(0, 3, 9), (0, 30, 38)], 60, 0.1), ("0",))]), 5)
    spans = found.spans[0, 0][found.scores[0, 0] > -torch.inf]
    for i in range(len(spans)):
        for j in range(i):
            shared = (torch.minimum(spans[i, 1], spans[j, 1]) - torch.maximum(spans[i, 0], spans[j, 0])).clamp(min=0)
            assert shared / (spans[i].diff() + spans[j].diff() - shared) <= 0.3 + 1e-6


def test_limits_of_length() -> None:
    one = model(order="none", min_seconds=4.0, max_share=0.25)
    (span,) = one.predict(batch(one, [(video([(0, 10, 11)], 40), ("0",))]), 1).spans[0, 0].tolist()
    assert span[1] - span[0] >= 4
    (span,) = one.predict(batch(one, [(video([(0, 4, 36)], 40), ("0",))]), 1).spans[0, 0].tolist()
    assert span[1] - span[0] <= 10


def test_neutral_texts_are_taken_off() -> None:
    plain, less = model(), model(neutral=("0", "3"))
    items = [(video([(0, 2, 5)], 8), ("0",))]
    assert plain.curves(batch(plain, items))[0, 0].tolist() == [0, 0, 1, 1, 1, 0, 0, 0]
    assert less.curves(batch(less, items))[0, 0].tolist() == [0, 0, 0.5, 0.5, 0.5, 0, 0, 0]
    found = less.predict(batch(less, items))  # which keeps the curve
    assert found.curves is not None
    assert found.curves[0, 0].tolist() == [0, 0, 0.5, 0.5, 0.5, 0, 0, 0]


def test_smoothing_is_a_gaussian_over_the_real_clips() -> None:
    generator = torch.Generator().manual_seed(0)
    curve = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    mask = torch.arange(12) < 9
    made = smoothed(curve, mask, 1.3)
    for t in range(12):
        weights = torch.tensor(
            [np.exp(-0.5 * ((s - t) / 1.3) ** 2) if s < 9 and abs(s - t) <= 4 else 0 for s in range(12)]
        )
        expected = (curve * weights).sum(-1) / weights.sum() if t < 9 else torch.zeros(2, dtype=torch.float64)
        torch.testing.assert_close(made[:, t], expected)
    assert torch.equal(smoothed(curve, mask, 0.0), curve * mask)


def test_videos_are_found_by_paragraphs() -> None:
    one = model()
    shows = [video([(i, 0, 9)], 10, 0.05, i) for i in range(6)]
    made = batch(one, [(x, (str(i),)) for i, x in enumerate(shows)])
    vectors = one.embed_videos(made.video, made.video_mask)
    texts = one.embed_paragraphs(made)
    assert (texts @ vectors.T).argmax(-1).tolist() == list(range(6))
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(6))


def test_errors() -> None:
    one = Similarity(SimilarityConfig(**EXACT), WIDTH, NOTHING)
    with pytest.raises(ConfigError, match=r"nothing reads the sentences; name an encoder by --model\.encoder"):
        one.predict(batch(one, [(video([], 4), ("0",))]), 1)
    with pytest.raises(ConfigError, match="nothing tells what made the features"):
        one.read_with(ArrayFeatures({"v": np.zeros((2, WIDTH))}))
    with pytest.raises(ConfigError, match="encoder pixels reads no text"):
        Similarity(SimilarityConfig(encoder="pixels"), WIDTH, NOTHING).read_with(
            ArrayFeatures({"v": np.zeros((2, WIDTH))})
        )
    with pytest.raises(ConfigError, match="has nothing to train"):
        one.loss(batch(one, [(video([], 4), ("0",))]))
    for settings, expected in (
        ({"template": "a video"}, "template must hold {}"),
        ({"max_share": 0.0}, "max_share must be above 0"),
        ({"smooth": -1.0}, "smooth must be 0 or more"),
        ({"overlap_of_ranked": 2.0}, "overlap_of_ranked must be from 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=expected):
            SimilarityConfig(**settings)
