"""Paragraphs read as a whole by the alignment: every way to place their sentences, by enumeration."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import with_random_weights, word_vectors
from torch import Tensor

from vpgfast.data.batches import make_batch
from vpgfast.data.types import Batch, Paragraph
from vpgfast.models.alignment import Alignment, similar_spans
from vpgfast.models.configs.dmr_jrg import DMRJRGConfig
from vpgfast.models.configs.plain_alignment import PlainAlignmentConfig
from vpgfast.models.configs.siamgtr import SiamGTRConfig
from vpgfast.models.dmr_jrg import DMRJRG
from vpgfast.models.paragraph_alignment import (
    order_contrast,
    ordered_evidence,
    ordered_scores,
    paragraph_alignment_loss,
)
from vpgfast.models.plain_alignment import PlainAlignment
from vpgfast.models.siamgtr import SiamGTR

T, WIDTH, VOCABULARY = 6, 12, 12
COUNTS = (3, 1, 4)
THERE = torch.arange(4) < torch.tensor(COUNTS).unsqueeze(1)


def ways(count: int, gap: int) -> list[tuple[int, ...]]:
    """All ways to give ``count`` sentences clips, each ``gap`` clips behind the last one or more."""
    rising = combinations_with_replacement(range(T), count)
    return [way for way in rising if all(b - a >= gap for a, b in pairwise(way))]


def gains_of(similarity: Tensor, gap: int) -> Tensor:
    """The sum of similarities [M, T] of every way."""
    return torch.stack([similarity[range(len(similarity)), list(way)].sum() for way in ways(len(similarity), gap)])


@pytest.mark.parametrize("gap", [0, 1])
def test_scores_by_enumeration(gap: int) -> None:
    similarity = 3 * torch.randn(3, 4, 5, T, dtype=torch.float64)
    found = ordered_scores(similarity, THERE, gap)
    assert found.shape == (3, 5)
    for b, count in enumerate(COUNTS):
        for v in range(5):
            torch.testing.assert_close(found[b, v], gains_of(similarity[b, :count, v], gap).logsumexp(0))


@pytest.mark.parametrize("gap", [0, 1])
def test_evidence_by_enumeration(gap: int) -> None:
    similarity = 3 * torch.randn(3, 4, T, dtype=torch.float64)
    found = ordered_evidence(similarity, THERE, gap)
    for b, count in enumerate(COUNTS):
        gains = gains_of(similarity[b, :count], gap)
        for m in range(count):
            at = torch.tensor([way[m] for way in ways(count, gap)])
            expected = torch.stack([gains[at == t].logsumexp(0) for t in range(T)])  # minus infinity where no way leads
            torch.testing.assert_close(found[b, m].softmax(0), expected.softmax(0))
            torch.testing.assert_close((found[b, m] - similarity[b, m]).max(), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("gap", [0, 1, T + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_sentences_and_large_similarities_are_finite(dtype: torch.dtype, gap: int) -> None:
    """More sentences than clips, at the largest scale there is."""
    similarity = (50 * torch.randn(2, 3 * T, T)).clamp(-50, 50).to(dtype).requires_grad_()
    there = torch.ones(2, 3 * T, dtype=torch.bool)
    score = ordered_scores(similarity, there, gap)
    evidence = ordered_evidence(similarity, there, gap)
    assert score.dtype == evidence.dtype == torch.float32
    assert evidence.isfinite().all()
    (gradient,) = torch.autograd.grad(score.sum(), similarity)
    assert gradient.isfinite().all()
    if gap == 0:  # there are ways, in each of which a sentence has one clip
        torch.testing.assert_close(gradient.float().sum(2), torch.ones(2, 3 * T), atol=0.02, rtol=0)


def test_the_loss_by_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    similarity = 2 * torch.randn(int(THERE.sum()), 3, T, dtype=torch.float64)
    same = torch.eye(3, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True  # no negatives of one another
    keys = torch.rand(6, 3, 4)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: keys)
    found = paragraph_alignment_loss(similarity, THERE, same, 1)
    rows = similarity.split(COUNTS)
    scores = torch.stack([torch.stack([gains_of(rows[i][:, v], 1).logsumexp(0) for v in range(3)]) for i in range(3)])
    scores[0, 2] = scores[2, 0] = -torch.inf
    item = torch.arange(3)
    expected = F.cross_entropy(scores, item) + F.cross_entropy(scores.t(), item)
    losses = []
    for b, count in enumerate(COUNTS):
        others = [keys[k, b, :count].argsort().tolist() for k in range(6)]
        others = [order for order in others if order != list(range(count))]
        of_order = [gains_of(rows[b][order, b], 1).logsumexp(0) for order in [list(range(count)), *others]]
        losses.append(-torch.stack(of_order).log_softmax(0)[0])
    torch.testing.assert_close(found, expected + 0.3 * torch.stack(losses).mean())


def test_one_sentence_has_no_other_order() -> None:
    similarity = torch.randn(2, 1, T, requires_grad=True)
    loss = order_contrast(similarity, torch.ones(2, 1, dtype=torch.bool), 1)
    assert loss == 0
    loss.backward()
    assert similarity.grad is not None
    assert similarity.grad.isfinite().all()


def batch_of(texts: list[str], seed: int = 0) -> Batch:
    """A paragraph of each text, whose words are numbers of the vocabulary."""
    paragraphs = [
        Paragraph(f"v{i}", float(T), tuple(f"word{w}." for w in text.split())) for i, text in enumerate(texts)
    ]
    features = [
        np.random.default_rng(seed + i).standard_normal((T, WIDTH)).astype(np.float32) for i in range(len(texts))
    ]
    needs = PlainAlignment.needs(PlainAlignmentConfig(max_clips=T))
    return make_batch(paragraphs, features, word_vectors(VOCABULARY, 8), needs, training=True)


def test_a_sentence_is_also_what_was_said_before() -> None:
    """And not what comes after; at the start it is itself alone."""
    alignment = Alignment(8, 0.6, paragraphs=word_vectors(VOCABULARY, 8))
    batch, sentences = batch_of(["2 3 4", "5 3 4 6"]), torch.randn(7, 8)
    assert torch.equal(alignment.read(sentences, batch), sentences)
    with_random_weights(alignment, 0.7, torch.float32)
    said = alignment.read(sentences, batch) - sentences
    later = alignment.read(sentences, batch_of(["2 3 7", "5 3 4 8"])) - sentences
    torch.testing.assert_close(later[[0, 1, 3, 4, 5]], said[[0, 1, 3, 4, 5]])
    assert (later[2] - said[2]).abs().max() > 1e-3
    before = alignment.read(sentences, batch_of(["9 3 4", "5 3 4 6"])) - sentences
    assert ((before - said).abs().amax(1) > 1e-3).tolist() == [True] * 3 + [False] * 4


def test_located_similarities() -> None:
    """What the others leave no room for is lowered, to the least at most; what they ask for stays as it is."""
    alignment = Alignment(8, 0.6, paragraphs=word_vectors(VOCABULARY, 8))
    similarity = torch.full((2, 8), -3.0)
    similarity[0, 4] = 5  # the first sentence is at 4
    similarity[1, [1, 6]] = torch.tensor([5.0, 4.0])  # the second is at 1 or, a little less, at 6: behind 4
    there = torch.ones(1, 2, dtype=torch.bool)
    located = alignment.located(similarity, there)
    assert located[1, 1] < 1
    assert (located.amin(1) >= -3).all()
    torch.testing.assert_close(located[1, 6], similarity[1, 6], atol=1e-3, rtol=0)
    torch.testing.assert_close(alignment.spans(similarity, there)[:, 0] * 8, torch.tensor([4.0, 6.0]))
    by_itself = Alignment(8, 0.6)
    assert by_itself.located(similarity, there) is similarity
    torch.testing.assert_close(by_itself.spans(similarity, there)[:, 0] * 8, torch.tensor([4.0, 1.0]))
    assert torch.equal(similar_spans(similarity, 0.6, similarity), similar_spans(similarity, 0.6))


def test_a_stretch_around_the_least_similar_clip_is_that_clip() -> None:
    """The others may leave no other place."""
    similarity, evidence = torch.tensor([[5.0, 5, 5, 5, -9, 5]]), torch.tensor([[0.0, 0, 0, 0, 50, 0]])
    start, end = (similar_spans(similarity, 0.6, evidence)[0] * 6).tolist()
    assert start <= 4 < end


# --- methods


def repeated(count: int, seed: int) -> tuple[list[Paragraph], list[np.ndarray]]:
    """Videos that show a thing, another one, the first again and the second again; sentences are names of things."""
    rng = np.random.default_rng(seed)
    paragraphs, features = [], []
    for number in range(count):
        things = rng.choice(8, 2, replace=False)[[0, 1, 0, 1]]
        clips = 0.3 * rng.standard_normal((16, WIDTH))
        starts = 4 * np.arange(4) + rng.integers(0, 2, 4)
        for thing, start in zip(things, starts, strict=True):
            clips[start : start + 3, thing] += 3
        told = np.array([0, 2]) if number % 2 else np.array([1, 3])  # the same thing twice
        spans = np.stack([starts[told], starts[told] + 3], 1).astype(float)
        sentences = tuple(f"word{2 + thing}." for thing in things[told])
        paragraphs.append(Paragraph(f"v{number}", 16.0, sentences, spans))
        features.append(clips.astype(np.float32))
    return paragraphs, features


@pytest.mark.parametrize(("reads", "least", "most"), [("paragraphs", 0.75, 1), ("sentences", 0, 0.6)])
def test_order_tells_which_moment_is_meant(reads: str, least: float, most: float) -> None:
    torch.manual_seed(0)
    vectors = word_vectors(VOCABULARY, 8)
    model = PlainAlignment(
        PlainAlignmentConfig(max_clips=16, dim=16, alignment_reads=reads, alignment_gap=3), WIDTH, vectors
    )
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    paragraphs, features = repeated(64, 0)
    for _ in range(60):
        batch = make_batch(paragraphs, features, vectors, model.needs(model.config), training=True)
        optimizer.zero_grad()
        model.loss(batch)["loss"].backward()
        optimizer.step()
    model.eval()
    others, clips = repeated(40, 1)
    found = model.predict(make_batch(others, clips, vectors, model.needs(model.config), training=False), 1)
    pairs = zip(found.spans[:, :, 0].numpy(), others, strict=True)
    right = [np.abs(span[:, 0] - paragraph.spans[:, 0]) < 1.5 for span, paragraph in pairs]
    assert least <= np.concatenate(right).mean() <= most


SIZES = {
    "siamgtr": (SiamGTR, SiamGTRConfig, {"feed_forward": 16, "heads": 2, "layers": 1, "concepts": 0}),
    "dmr_jrg": (
        DMRJRG,
        DMRJRGConfig,
        {"feed_forward": 16, "heads": 2, "layers": 1, "segments": 3, "content_weight": 1},
    ),
    "plain_alignment": (PlainAlignment, PlainAlignmentConfig, {}),
}


@pytest.mark.parametrize("method", SIZES)
def test_methods_read_paragraphs(method: str) -> None:
    """The reader is trained, and a paragraph's answer does not depend on what else is in the batch."""
    build, make_config, sizes = SIZES[method]
    weights = {} if method == "plain_alignment" else {"alignment_weight": 1.0, "pseudo_span_weight": 1.0}
    config = make_config(max_clips=T, dim=16, alignment_reads="paragraphs", **sizes, **weights)
    torch.manual_seed(0)
    model = with_random_weights(build(config, WIDTH, word_vectors(VOCABULARY, 8)), 0.4, torch.float32)
    batch = batch_of(["2 3 4", "5", "6 3 4 6"])
    losses = model.loss(batch)
    losses["loss"].backward()
    assert losses["alignment"] > 0
    assert model.alignment is not None
    assert model.alignment.reader is not None
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.alignment.reader.gru.parameters())
    model.eval()
    together = model.predict(batch, 1).spans
    for b, count in enumerate((3, 1, 4)):
        one = replace(
            batch,
            paragraphs=batch.paragraphs[b : b + 1],
            **{
                name: getattr(batch, name)[b : b + 1]
                for name in ("video", "video_mask", "words", "word_mask", "sentence_mask", "durations")
            },
        )
        torch.testing.assert_close(model.predict(one, 1).spans[0, :count], together[b, :count], atol=1e-4, rtol=1e-4)
