"""DMR-JRG's masking, its global and temporal losses, and what of its losses is not in the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import VOCABULARY, with_random_weights, word_vectors
from small_dmr_jrg import (
    FEATURE_DIM,
    SENTENCES,
    D,
    K,
    T,
    as_maps,
    fixed_draws,
    losses_of,
    make_model,
    random_batch,
    small,
    torchs_encoder,
)

from vpgfast.models.alignment import own_video, similar_spans
from vpgfast.models.dmr_jrg import DMRJRG
from vpgfast.models.dmr_jrg_parts import (
    draw_words,
    nce_loss,
    triplet_loss,
    unit,
)
from vpgfast.models.layers import sinusoid
from vpgfast.models.moment_map import SimilarityMap
from vpgfast.ops import temporal_iou_map

# --- masking


def test_masked_words() -> None:
    """A third of the words rounded down, one at least; never padding; nouns and verbs twice as often."""
    torch.manual_seed(0)
    lengths = torch.arange(1, 13)
    mask = torch.arange(12) < lengths.unsqueeze(1)
    weights = torch.ones(mask.shape)
    weights[:, 0] = 2
    drawn = torch.stack([draw_words(mask, weights, 1 / 3) for _ in range(3000)])
    assert drawn.sum(2).eq(torch.tensor([1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4])).all()
    assert not (drawn & ~mask).any()
    shares = drawn.double().mean(0)
    # One word is drawn: the first with 2 / (l + 1), every other with 1 / (l + 1).
    for row in range(5):
        expected = torch.tensor([2.0] + [1.0] * row, dtype=torch.float64) / (row + 2)
        torch.testing.assert_close(shares[row, : row + 1], expected, rtol=0, atol=0.03)
    # Two of six without putting back: 1 - P(neither is the first), 5/7 then 4/6 left.
    assert shares[5, 0].item() == pytest.approx(1 - 5 / 7 * 4 / 6, abs=0.03)
    assert draw_words(mask, weights, 1.0).equal(mask)


def test_content_words_come_from_the_training_text() -> None:
    model, batch = make_model(), random_batch()
    assert model.text.content.nonzero().flatten().tolist() == [3, 4, 7, 12]
    weights = model.text.weights(torch.tensor([[3, 5, 12, 0]]))
    assert weights.tolist() == [[2.0, 1.0, 2.0, 1.0]]
    uncounted = DMRJRG(small(), FEATURE_DIM, word_vectors(VOCABULARY)).double()
    with pytest.raises(ValueError, match="content_counts"):
        uncounted.loss(batch)
    uncounted.load_state_dict(model.state_dict())  # the content words come with the weights
    assert uncounted.text.content.equal(model.text.content)
    assert DMRJRG.needs(small()).content_words
    assert not DMRJRG.needs(small(content_weight=1.0)).content_words
    DMRJRG(small(content_weight=1.0), FEATURE_DIM, word_vectors(VOCABULARY)).double().loss(batch)


# --- the global and the temporal dimension


@pytest.mark.parametrize("changes", [{}, {"candidate_weights": None}], ids=str)
def test_global_loss_by_loops(changes: dict) -> None:
    """Eq. 14-17, one paragraph after another; what GRRM teaches is the retrieval branch alone."""
    model, batch = make_model(**changes), random_batch()
    drawn = fixed_draws(model, batch)
    h, clips = model.text(batch).sentences, model.project(batch.video)
    segments = model.segments(clips)
    moments = model(clips, h, batch.sentence_mask)
    features, logits = as_maps(moments.features), as_maps(moments.logits)
    video, paragraph = model.video_class(segments), model.text_class(h, batch.sentence_mask)
    encoder = torchs_encoder(model.video_encoder.layers, 12)  # E_3 is E_1
    weights = [0.4, 0.3, 0.3] if not changes else model.candidate_weights.tolist()
    fused, n = [], 0
    for b, count in enumerate(SENTENCES):
        rows = [model.moment_token]
        for m in range(count):
            P = logits[n + m]
            ranked = sorted(((P[i, j].item(), i, j) for i in range(K) for j in range(i, K)), reverse=True)
            cells = [features[n + m, :, i, j] for _, i, j in ranked[:3]]
            rows.append(sum(w * cell for w, cell in zip(weights, cells, strict=True)))
        x = torch.stack([rows[0], *map(model.video_encoder.norm, rows[1:])])[None]
        found = encoder(x + sinusoid(count + 1, D, x))[0, 0]
        fused.append(model.fuse_tokens(torch.cat([video[b], found])))
        n += count
    fine, coarse = unit(paragraph) @ unit(torch.stack(fused)).t(), unit(paragraph) @ unit(video).t()
    losses = model.loss(batch)
    same = torch.eye(3) > 0
    expected = triplet_loss(fine, same, drawn.negatives[1], 0.2, 20)
    expected = expected + 0.04 * nce_loss(fine * model.log_scale.exp(), same)
    torch.testing.assert_close(losses["global"], expected)
    pairs = [(coarse[i, j] - fine[i, j]).item() ** 2 for i in range(3) for j in range(3)]
    assert losses["grrm"].item() == pytest.approx(np.mean(pairs))
    model.zero_grad()
    losses["grrm"].backward()
    assert model.fuse_tokens.weight.grad is None
    assert model.text_encoder.token.grad.any()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_time_loss_by_loops(reduction: str) -> None:
    """Eq. 20-22: the best moment of P^f and of P^r is a pseudo-label, its scaled IoU the soft label of every moment."""
    model, batch = make_model(reduction=reduction), random_batch()
    h, clips = model.text(batch).sentences, model.project(batch.video)
    moments = model(clips, h, batch.sentence_mask, sync=True)
    logits, terms = as_maps(moments.logits), []
    for synced in map(as_maps, moments.synced):
        for n in range(sum(SENTENCES)):
            cells = [(i, j) for i in range(K) for j in range(i, K)]
            a, b = max(cells, key=lambda cell: synced[n, cell[0], cell[1]].item())
            overlaps = temporal_iou_map(torch.tensor([[[a / K, (b + 1) / K]]], dtype=torch.float64), K)[0, 0]
            for i, j in cells:
                target = min(max((overlaps[i, j].item() - 0.5) / 0.5, 0), 1)
                p = logits[n, i, j].sigmoid().item()
                terms.append(-target * math.log(p) - (1 - target) * math.log(1 - p))
    count = 3 if reduction == "sum" else sum(SENTENCES) * K * (K + 1) / 2
    losses = losses_of(model, batch)
    assert losses["time"].item() == pytest.approx(sum(terms) / count)
    model.zero_grad()
    losses["time"].backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.forward_score.parameters())


def test_time_loss_by_hand() -> None:
    """Two segments: IoU of the first with itself 1, with the whole 1/2, with the second 0."""
    model = make_model(segments=2, reduction="sum")
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    synced = torch.tensor([[0.9, 0.8, 0.1]])

    def softplus(x: float) -> float:
        return math.log(1 + math.exp(x))

    expected = softplus(-2.0) + softplus(-1.0) + softplus(0.5)
    assert model.time_loss(logits, synced, 1).item() == pytest.approx(expected)
    assert model.time_loss(logits, synced, 4).item() == pytest.approx(expected / 4)


# --- what is not in the paper


@pytest.mark.parametrize("names", [["a", "b", "c"], ["a", "b", "a"]], ids=str)
def test_alignment_loss_by_loops(names: list[str]) -> None:
    """Every sentence with the clips of every video, as they are before any context; a video by log-sum-exp."""
    model, batch = make_model(alignment_weight=1.0), random_batch(videos=names)
    h, alignment = model.text(batch).sentences, model.alignment
    owner = [b for b, count in enumerate(SENTENCES) for _ in range(count)]
    of_video = np.zeros((len(owner), len(names)))
    for n in range(len(owner)):
        for b in range(len(names)):
            clips = [alignment.clips(F.relu(model.clips(batch.video[b, t]))) for t in range(T)]
            cosines = torch.stack([F.cosine_similarity(h[n], clip, dim=0) for clip in clips])
            of_video[n, b] = (cosines * alignment.scale.exp()).exp().sum().item()
    losses = []
    for n, own in enumerate(owner):
        videos = [b for b in range(len(names)) if b == own or names[b] != names[own]]
        sentences = [k for k, c in enumerate(owner) if k == n or names[c] != names[own]]
        losses.append(-math.log(of_video[n, own] / of_video[n, videos].sum()))
        losses.append(-math.log(of_video[n, own] / of_video[sentences, own].sum()))
    assert losses_of(model, batch)["alignment"].item() == pytest.approx(2 * np.mean(losses))


@pytest.mark.parametrize("changes", [{}, {"train_sync_heads": False}, {"reduction": "mean"}], ids=str)
def test_pseudo_span_loss_by_loops(changes: dict) -> None:
    """Soft labels around the spans read off, for P and, where their layers are trained, for P^f and P^r."""
    model, batch = make_model(0.2, alignment_weight=1.0, pseudo_span_weight=1.0, **changes), random_batch()
    there, h, clips = batch.sentence_mask, model.text(batch).sentences, model.project(batch.video)
    aligned = model.align(h, clips, batch)
    spans = similar_spans(own_video(aligned, there), model.config.pseudo_span_share)
    moments = model(clips, h, there, aligned, sync=True)
    trained = moments.synced if changes.get("train_sync_heads", True) else []
    expected = []
    for n, (start, end) in enumerate(spans.tolist()):
        for P in map(as_maps, [moments.logits.sigmoid(), *trained]):
            for i in range(K):
                for j in range(i, K):
                    shared = max(0, min(end, (j + 1) / K) - max(start, i / K))
                    overlap = shared / (max(end, (j + 1) / K) - min(start, i / K))
                    label = min(max((overlap - 0.5) / 0.5, 0), 1)
                    p = P[n, i, j].item()
                    expected.append(-label * math.log(p) - (1 - label) * math.log(1 - p))
    total = sum(expected) / (len(spans) * K * (K + 1) / 2 if changes.get("reduction") == "mean" else len(batch))
    assert losses_of(model, batch)["pseudo_span"].item() == pytest.approx(total)


def test_similarity_map_by_loops() -> None:
    """The sum of a moment's similarities less the video's mean, and its length, through one layer."""
    layer = with_random_weights(SimilarityMap(D), 0.4)
    similarity = torch.randn(3, K, dtype=torch.float64, requires_grad=True)
    listed = layer(similarity)
    found = as_maps(listed)
    less = similarity.detach() - similarity.detach().mean(1, keepdim=True)
    for i in range(K):
        for j in range(i, K):
            both = torch.stack([less[:, i : j + 1].sum(1), torch.full((3,), j - i + 1.0, dtype=torch.float64)], 1) / K
            torch.testing.assert_close(found[:, :, i, j], layer.project(both))
    listed.sum().backward()
    assert similarity.grad is None


def test_moments_are_told_how_similar_their_clips_are() -> None:
    """The map is added to the fused features, each sentence's with its own video, before the context."""
    model, batch = make_model(alignment_weight=1.0, context="none"), random_batch()
    h, clips, there = model.text(batch).sentences, model.project(batch.video), batch.sentence_mask
    aligned = model.align(h, clips, batch)
    with_map, without = model(clips, h, there, aligned), model(clips, h, there)
    owner = [b for b, count in enumerate(SENTENCES) for _ in range(count)]
    own = torch.stack([aligned[n, b] for n, b in enumerate(owner)]).view(-1, K, T // K).mean(2)
    torch.testing.assert_close(with_map.features - without.features, model.similarity(own))


def test_the_longest_moment_above_a_level_can_win() -> None:
    """By hand: the layer asks for similarities of 0.3 above the mean; a short and a very similar moment do not win."""
    layer = SimilarityMap(8).double()
    layer.project.weight.data[:] = torch.tensor([1.0, -0.3])
    similarity = torch.tensor([[0.0, 1.4, 1.0, 1.2, 0.0, 0.0]], dtype=torch.float64) + 3
    best = layer(similarity)[0, :, 0].argmax()
    assert torch.triu_indices(6, 6)[:, best].tolist() == [1, 3]
