"""WSRA, equation by equation, against an independent numpy version that knows no padding and no tensors of pairs."""

import inspect
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from plain_wsra import CLIPS, CONFIGS, FEATURE_DIM, SWITCHES, WORDS, PlainWSRA, make_batch, make_model, small_config
from small import ids_of, mask_of, word_vectors

from benchmarks.field_wsra import FieldWSRA, broadcast, tiled
from vpgfast.config import parse_train
from vpgfast.data.batches import make_batch as collate
from vpgfast.data.types import Batch, Paragraph
from vpgfast.errors import ConfigError
from vpgfast.models.layers import same_videos
from vpgfast.models.registry import get_method
from vpgfast.models.wsra import (
    WSRA,
    MeanOfWords,
    Relevance,
    WSRAConfig,
    batch_loss,
    choose_queries,
    log_one_plus_sum_exp,
    segments_of_videos,
    snippet_loss,
    split_video,
    video_loss,
    window_spans,
    windows_of_videos,
)
from vpgfast.ops import boundary_matching_grid


@pytest.mark.parametrize("changes", SWITCHES, ids=ids_of)
def test_losses_equal_the_plain_ones(changes):
    model, batch = make_model(small_config(**changes)), make_batch()
    losses, expected = model.loss(batch), PlainWSRA(model, batch).losses()
    assert list(losses) == list(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("relevance", [tiled, broadcast])
@pytest.mark.parametrize(
    "changes", [{}, {"margin": 0.5, "tau": 2.0}, {"top_k": 2, "false_negatives": True}], ids=ids_of
)
def test_the_tiled_form_gives_the_same(changes, relevance):
    """Loss and all gradients of the forms that benchmarks/test_wsra.py times."""
    model, batch = make_model(small_config(**changes)), make_batch([max(count, 2) for count in CLIPS])
    batch.words[0, 0, 0] = 1  # an unknown word, whose vector is trained
    batch.video.requires_grad_()
    inputs = [batch.video, *model.parameters()]
    ours, fields = model.loss(batch)["loss"], FieldWSRA(model, relevance).loss(batch)
    torch.testing.assert_close(ours, fields, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(fields, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("changes", SWITCHES, ids=ids_of)
def test_predictions_equal_the_plain_ones(changes):
    model, batch = make_model(small_config(**changes)).eval(), make_batch()
    prediction, plain = model.predict(batch, top_n=90), PlainWSRA(model, batch)
    assert prediction.spans.shape == (8, 1, 90, 2)
    for b in range(8):
        ranking = plain.ranking(b)
        found = prediction.scores[b, 0] > -torch.inf
        assert found.sum() == len(ranking)
        np.testing.assert_allclose(prediction.scores[b, 0, found], [row[0] for row in ranking], atol=1e-9)
        spans = prediction.spans[b, 0, found]
        # Equal scores (a video of one clip gives all windows the same) may differ in their last bit, so in any order.
        expected = sorted((round(s, 9), round(x, 6), round(y, 6)) for s, x, y in ranking)
        got = zip(prediction.scores[b, 0, found].tolist(), spans.tolist(), strict=True)
        np.testing.assert_allclose(sorted((round(s, 9), round(x, 6), round(y, 6)) for s, (x, y) in got), expected)
        assert (spans[:, 0] >= 0).all()
        assert (spans[:, 0] < spans[:, 1]).all()
        assert (spans[:, 1] <= batch.durations[b] + 1e-9).all()
        assert (prediction.scores[b, 0].diff()[: len(ranking) - 1] <= 0).all()
        assert not prediction.spans[b, 0, ~found].any()
    assert not prediction.spans.requires_grad


@pytest.mark.parametrize("changes", SWITCHES[1:], ids=ids_of)
def test_every_switch_changes_something(changes):
    batch, results = make_batch(), []
    for config in (small_config(), small_config(**changes)):
        torch.manual_seed(0)
        model = WSRA(config, FEATURE_DIM, word_vectors()).double()
        prediction = model.predict(batch, 90)
        results.append((model.loss(batch)["loss"].item(), prediction.scores.tolist(), prediction.spans.tolist()))
    assert results[0] != results[1]


# values worked out by hand


def test_phi_by_hand():
    phi = Relevance(1, 1, 2).double()
    with torch.no_grad():
        phi.video.weight.copy_(torch.tensor([[1.0], [2.0]]))
        phi.video.bias.copy_(torch.tensor([0.0, -1.0]))
        phi.query.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        phi.out.weight.copy_(torch.tensor([[0.5, -1.0]]))
        phi.out.bias.fill_(0.25)
    v, t = torch.tensor([[1.0], [3.0]]).double(), torch.tensor([[2.0]]).double()
    # v = 1: hidden (3, 2 - 1 - 2 -> 0), 0.5 * 3 + 0.25; v = 3: hidden (5, 6 - 1 - 2 = 3), 2.5 - 3 + 0.25.
    expected = torch.tensor([1.75, -0.25]).double().sigmoid()
    torch.testing.assert_close(phi(v, t), expected)
    torch.testing.assert_close(phi.all_pairs(v, t)[:, 0], expected)


def test_all_pairs_equal_single_pairs():
    phi = Relevance(4, 3, 5).double()
    v, t = torch.randn(6, 4).double(), torch.randn(3, 3).double()
    torch.testing.assert_close(phi.all_pairs(v, t), phi(v.unsqueeze(1), t.unsqueeze(0)))


def test_a_single_linear_layer_could_not_rank_by_the_query():
    """Why phi has a hidden layer: the order of snippets depends on the query (methods.md)."""
    torch.manual_seed(0)
    phi = Relevance(4, 3, 32).double()
    order = phi.all_pairs(torch.randn(20, 4).double(), 3 * torch.randn(5, 3).double()).argsort(0)
    assert (order != order[:, :1]).any()


def test_split_by_hand():
    """Eq. 1, alpha = (0.5, 0.25, 0.25): foreground 0.5 * 4 + 0.25 * 8, background (0.5 * 4 + 0.75 * 8) / 2."""
    snippets = torch.tensor([[[4.0], [8.0], [0.0], [0.0]], [[6.0], [0.0], [0.0], [0.0]]])
    alpha = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]])
    foreground, background = split_video(snippets, mask_of(3, 1).new_tensor([[1, 1, 1, 0], [1, 0, 0, 0]]), alpha)
    assert foreground.flatten().tolist() == [4.0, 6.0]
    assert background.flatten().tolist() == [4.0, 0.0]


def test_even_attention_splits_nothing():
    """With equal weights foreground and background are both the mean: the gap of Eq. 3 is 0, the loss log(1+N e^m)."""
    snippets = torch.randn(3, 4, 2)
    foreground, background = split_video(snippets, torch.ones(3, 4, dtype=torch.bool), torch.full((3, 4), 0.25))
    torch.testing.assert_close(foreground, snippets.mean(1))
    torch.testing.assert_close(background, snippets.mean(1))
    even = torch.zeros(3, 1)
    loss = video_loss(even, even, torch.ones(3, 1, dtype=torch.bool), 0.2, 1.0)
    assert loss.item() == pytest.approx(math.log(1 + 3 * math.exp(0.2)), rel=1e-6)


def test_video_loss_by_hand():
    """Eq. 3: gaps -0.4 + 0.2 and 0.1 + 0.2; the third video has no background."""
    positive, negative = torch.tensor([[0.9], [0.5], [0.1]]).double(), torch.tensor([[0.5], [0.6], [0.9]]).double()
    there = torch.tensor([[True], [True], [False]])
    loss = video_loss(positive, negative, there, 0.2, 2.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.4) + math.exp(0.6)))


def test_snippet_loss_by_hand():
    """Eq. 4 and 5: two videos, video 0 with one snippet and query 1 as negative, video 1 with no negative."""
    scores = torch.tensor([[[0.8, 0.2], [9.0, 9.0]], [[0.5, 0.5], [0.5, 0.5]]]).double()
    negatives = torch.tensor([[False, True], [False, False]])
    mask = torch.tensor([[True, False], [True, True]])
    plus = math.exp(0.8) / (math.exp(0.8) + math.exp(0.2))
    expected = math.log(1 + math.exp(plus * 0.2 - (1 - plus) * 0.8 + 0.3)) / 2
    assert snippet_loss(scores, mask, negatives, 0.3, 1.0).item() == pytest.approx(expected)
    unweighted = math.log(1 + math.exp(0.2 - 0.8 + 0.3)) / 2
    assert snippet_loss(scores, mask, negatives, 0.3, 1.0, False).item() == pytest.approx(unweighted)


def test_batch_loss_by_hand():
    """Eq. 6 and 7: video 0's foreground is its pseudo-positive's, its background is at a right angle."""
    foreground, background = torch.tensor([[2.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    similarity = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    positives = torch.tensor([[False, True], [False, False]])
    gamma = 1 / (1 + math.e)
    loss = batch_loss(foreground, background, similarity, positives, 0.2, 1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(gamma * (0 - 1 + 0.2))), rel=1e-6)


def test_queries_chosen_by_hand():
    """Queries at angles 0, 10, 20, ... degrees from the first: ranked 1, 2, 3, 4, 5 for it."""
    angle = torch.arange(6).double() * math.pi / 18
    query = torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor([1.0, 5, 2, 3, 4, 7]).unsqueeze(1)
    alone = torch.eye(6, dtype=torch.bool)
    first = choose_queries(query, alone, 2, 1, False)
    assert first.pseudo_positives[0].tolist() == [False, True, True, False, False, False]
    assert first.negatives[0].tolist() == [False, False, False, True, True, False]
    assert first.similarity[0, 3].item() == pytest.approx(math.cos(math.pi / 6))
    same = alone.clone()
    same[0, 1] = same[1, 0] = True
    without = choose_queries(query, same, 2, 1, False)
    assert without.pseudo_positives[0].tolist() == [False, False, True, True, False, False]
    assert without.negatives[0].tolist() == [False, False, False, False, True, False]
    assert torch.equal(choose_queries(query, same, 2, 1, True).negatives, first.negatives)
    assert choose_queries(query, alone, 0, 0, False).negatives.equal(~alone)
    assert not choose_queries(query, alone, 0, 0, False).pseudo_positives.any()


def test_the_same_words_are_never_negatives():
    query = torch.tensor([[1.0, 0], [2, 0], [3, 0], [0, 1], [1, 1]])
    alone = torch.eye(5, dtype=torch.bool)
    assert choose_queries(query, alone, 1, 0, False).negatives[0].tolist() == [False, False, False, True, True]
    assert choose_queries(query, alone, 1, 0, True).negatives[0].tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("size", range(1, 9))
def test_small_batches_have_fewer_negatives(size):
    """And the loss of what has none is 0, with gradients that are."""
    query = torch.randn(size, 3)
    chosen = choose_queries(query, torch.eye(size, dtype=torch.bool), 3, 3, False)
    assert chosen.pseudo_positives.sum(1).tolist() == [min(3, size - 1)] * size
    assert chosen.negatives.sum(1).tolist() == [max(size - 7, 0)] * size
    assert not (chosen.negatives & chosen.pseudo_positives).any()
    model = make_model(small_config(top_k=3, last_k=3))
    losses = model.loss(make_batch(CLIPS[:size], WORDS[:size], tuple("abcdefgh")[:size]))
    if size < 8:
        assert losses["snippet"].item() == 0
    losses["loss"].backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_same_videos_by_name():
    same = same_videos(make_batch())
    assert same.sum() == 8 + 2
    assert same[0, 3]
    assert same[3, 0]


def test_log_one_plus_sum_exp_is_exact_and_safe():
    x = torch.tensor([[1.0, 2.0, 50.0], [1e4, -1e4, 0.0], [5.0, 5.0, 5.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    loss = log_one_plus_sum_exp(x, mask)
    assert loss.tolist() == pytest.approx([math.log(1 + math.e + math.e**2), 1e4, 0.0])
    loss.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad[0, 2] == 0
    assert not x.grad[2].any()


# candidate moments


def test_charades_windows():
    """20, 30, 40 and 50% of the video, each shifted by a fifth of itself: 21 + 12 + 8 + 6 windows."""
    spans = window_spans(WSRAConfig().windows, 0.8, "cpu")
    assert len(spans) == 47
    torch.testing.assert_close(spans[:3], torch.tensor([[0, 0.2], [0.04, 0.24], [0.08, 0.28]]).double())
    torch.testing.assert_close(spans[20], torch.tensor([0.8, 1.0]).double())
    torch.testing.assert_close(spans[46], torch.tensor([0.5, 1.0]).double())
    moments = windows_of_videos(spans, mask_of(10, 5))
    # 20% of 10 clips, shifted by 0.4 clips: 0.6 of clip 0, all of clip 1, 0.4 of clip 2.
    torch.testing.assert_close(moments.shares[0, 1, :4], torch.tensor([0.3, 0.5, 0.2, 0]).double())
    torch.testing.assert_close(moments.shares[1, 1, :3], torch.tensor([0.8, 0.2, 0]).double())
    torch.testing.assert_close(moments.shares.sum(-1), torch.ones(2, 47).double())
    assert not moments.shares[1, :, 5:].any()


def test_didemo_moments():
    """21 of six segments, 15 of five; spans in seconds are whole segments of five seconds."""
    mask = mask_of(6, 5)
    moments = segments_of_videos(boundary_matching_grid(6).spans, mask)
    assert moments.mask.sum(1).tolist() == [21, 15]
    for row, count in ((0, 6), (1, 5)):
        seconds = (moments.spans[row] * count * 5)[moments.mask[row]].round(decimals=9).tolist()
        assert sorted(seconds) == sorted([5.0 * i, 5.0 * j] for i in range(count) for j in range(i + 1, count + 1))
    assert not moments.shares[1, ~moments.mask[1]].any()


def test_nms_thins_the_ranking():
    model, batch = make_model(small_config(nms=0.4)), make_batch()
    prediction = model.predict(batch, 10)
    assert prediction.spans.shape == (8, 1, 10, 2)
    best = make_model().predict(batch, 1)
    torch.testing.assert_close(prediction.scores[:, :, :1], best.scores)
    for spans, scores in zip(prediction.spans[:, 0], prediction.scores[:, 0], strict=True):
        kept = spans[scores > -torch.inf]
        assert 2 <= len(kept) < 10
        for i, a in enumerate(kept):
            for b in kept[:i]:
                shared = (torch.minimum(a[1], b[1]) - torch.maximum(a[0], b[0])).clamp_min(0)
                assert shared / (torch.maximum(a[1], b[1]) - torch.minimum(a[0], b[0])) <= 0.4 + 1e-9 or shared == 0


# padding, order, precision, what training may see


@pytest.mark.parametrize("changes", SWITCHES, ids=ids_of)
def test_padding_changes_nothing(changes):
    """Neither how much there is of it, nor what stands in it."""
    model, batch = make_model(small_config(**changes)), make_batch()
    pad = torch.nn.functional.pad
    junk = replace(
        batch,
        video=pad(torch.where(batch.video_mask.unsqueeze(-1), batch.video, torch.nan), (0, 0, 0, 3), value=torch.nan),
        video_mask=pad(batch.video_mask, (0, 3)),
        words=pad(torch.where(batch.word_mask, batch.words, 7), (0, 1), value=3),
        word_mask=pad(batch.word_mask, (0, 1)),
    )
    assert model.loss(junk)["loss"].item() == pytest.approx(model.loss(batch)["loss"].item(), rel=1e-9)
    a, b = model.predict(batch, 5), model.predict(junk, 5)
    torch.testing.assert_close(b.scores, a.scores)
    distinct = [i for i in range(8) if i != 2]  # one clip: all windows score the same
    torch.testing.assert_close(b.spans[distinct], a.spans[distinct])


def reordered(batch, order):
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    rows = {name: value[order] for name, value in values.items() if isinstance(value, torch.Tensor)}
    return replace(batch, paragraphs=[batch.paragraphs[i] for i in order], **rows)


@pytest.mark.parametrize("changes", SWITCHES, ids=ids_of)
def test_the_order_of_the_batch_does_not_matter(changes):
    model, batch = make_model(small_config(**changes)), make_batch()
    batch.words[7, 0, 0] = batch.words[6, 0, 0] % 19 + 1  # no ties between queries
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    shuffled = reordered(batch, order)
    for name, value in model.loss(batch).items():
        assert model.loss(shuffled)[name].item() == pytest.approx(value.item(), rel=1e-9), name
    torch.testing.assert_close(model.predict(shuffled, 3).spans, model.predict(batch, 3).spans[order])


def test_spans_are_never_read():
    """Training batches hold none, and even one full of NaN changes neither a loss nor a gradient."""
    paragraph = Paragraph("a", 10.0, ("word1 word2",), np.array([[1.0, 2.0]]))
    features = np.ones((4, FEATURE_DIM), np.float32)
    needs = WSRA.needs(small_config())
    batch = collate([paragraph], [features], word_vectors(), needs, training=True)
    assert batch.spans is None
    assert batch.paragraphs[0].spans is None
    gradients = []
    for spans in (None, torch.full((8, 1, 2), torch.nan)):
        model = make_model()
        model.loss(replace(make_batch(), spans=spans))["loss"].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("changes", SWITCHES, ids=ids_of)
def test_gradient_reaches_every_parameter(changes):
    model = make_model(small_config(**changes))
    model.loss(make_batch())["loss"].backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_gradients_by_finite_differences():
    scores = torch.rand(3, 2, 3, dtype=torch.float64, requires_grad=True)
    negatives = ~torch.eye(3, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda s: snippet_loss(s, mask_of(2, 1, 2), negatives, 0.2, 1.0), scores)
    both = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    similarity = torch.rand(3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f, b: batch_loss(f, b, similarity, negatives, 0.2, 1.0), both)
    config = small_config(top_k=1, last_k=0)
    model, batch = make_model(config), make_batch(CLIPS[:4], WORDS[:4], tuple("abcd"))
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters() if "words" not in name}

    def loss(*values):
        named = dict(zip(weights, values, strict=True))
        return torch.func.functional_call(LossOf(model), {f"model.{n}": v for n, v in named.items()}, (batch,))

    assert torch.autograd.gradcheck(loss, tuple(weights.values()))


class LossOf(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model.loss(batch)["loss"]


@pytest.mark.parametrize(
    ("clips", "words"),
    [((1,), (1,)), ((5,), (3,)), ((1, 12), (6, 1)), ((4, 4), (0, 2)), ((4,), (0,)), ((1,) * 8, (2,) * 8)],
    ids=["one of each", "batch of one", "mixed", "a sentence without words", "only such a sentence", "single clips"],
)
@pytest.mark.parametrize("scale", [0.5, 100.0])
def test_edges_give_finite_numbers(clips, words, scale):
    model = make_model(dtype=torch.float32, scale=scale)
    batch = make_batch(clips, words, tuple("abcdefgh"), dtype=torch.float32)
    losses = model.loss(batch)
    assert all(torch.isfinite(value) for value in losses.values())
    losses["loss"].backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    prediction = model.predict(batch)
    assert torch.isfinite(prediction.spans).all()
    assert not prediction.scores.isnan().any()


def test_bfloat16_autocast():
    model, batch = make_model(dtype=torch.float32, scale=0.3), make_batch(dtype=torch.float32)
    exact = model.loss(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        loss, prediction = model.loss(batch)["loss"], model.predict(batch)
    loss.backward()
    assert loss.dtype == prediction.scores.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_query_negatives_by_hand():
    """Eq. 3 with the background and one negative query beside it: two terms of one video in the sum."""
    negative = torch.tensor([[0.5, 0.3, 9.0]])
    there = torch.tensor([[True, True, False]])
    loss = video_loss(torch.tensor([[0.9]]), negative, there, 0.2, 1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.2) + math.exp(-0.4)), rel=1e-6)


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    model, batch = make_model(small_config(query_negatives=True)), make_batch()
    compiled = torch.compile(model.loss, fullgraph=True, backend="eager")(batch)["loss"]
    assert compiled.item() == pytest.approx(model.loss(batch)["loss"].item())
    model.eval()
    spans = torch.compile(model.predict, fullgraph=True, backend="eager")(batch, 3).spans
    torch.testing.assert_close(spans, model.predict(batch, 3).spans)


def test_sentence_is_the_mean_of_its_words():
    mean, vectors = MeanOfWords(word_vectors()), word_vectors().vectors
    got = mean(torch.tensor([[3, 5, 9], [4, 0, 0]]), torch.tensor([[True, True, False], [False, False, False]]))
    np.testing.assert_allclose(got[0].detach(), (vectors[3] + vectors[5]) / 2, rtol=1e-6)
    assert not got[1].any()


@pytest.mark.parametrize(
    ("changes", "least", "most"),
    [
        ({}, 0.55, 1.0),
        ({"query_negatives": True}, 0.85, 1.0),
        # Eq. 3 alone asks nothing of the query: the shortcut that query_negatives closes. Chance is a fifth.
        ({"snippet_loss": 0.0, "batch_loss": 0.0}, 0.0, 0.5),
    ],
    ids=["as published", "with query negatives", "Eq. 3 alone"],
)
def test_finds_the_marked_clips_without_spans(changes, least, most):
    """Each sentence is one word; its video shows that word's direction in a quarter of the clips, others elsewhere."""
    torch.manual_seed(0)
    model = WSRA(WSRAConfig(hidden=32, max_clips=16, windows=[0.25], **changes), 16, word_vectors(10))
    shown = torch.randn(10, 16)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)

    def draw(size):
        words, start = torch.randint(2, 10, (size,)), torch.randint(0, 13, (size,))
        clip = torch.arange(16)
        inside = (clip >= start.unsqueeze(1)) & (clip < start.unsqueeze(1) + 4)
        others = shown[torch.randint(2, 10, (size, 16))]
        video = torch.where(inside.unsqueeze(-1), shown[words].unsqueeze(1), others) + 0.3 * torch.randn(size, 16, 16)
        batch = Batch(
            paragraphs=[Paragraph(str(b), 16.0, ("word",)) for b in range(size)],
            video=video,
            video_mask=torch.ones(size, 16, dtype=torch.bool),
            words=words.view(size, 1, 1),
            word_mask=torch.ones(size, 1, 1, dtype=torch.bool),
            sentence_mask=torch.ones(size, 1, dtype=torch.bool),
            durations=torch.full((size,), 16.0, dtype=torch.float64),
        )
        return batch, start

    for _ in range(150):
        batch, _ = draw(32)
        optimiser.zero_grad()
        model.loss(batch)["loss"].backward()
        optimiser.step()
    batch, start = draw(200)
    found = model.predict(batch, 1).spans[:, 0, 0, 0]
    assert least <= ((found - start).abs() <= 1).double().mean() <= most


# the interface


def test_needs_and_registry():
    assert get_method("wsra") is WSRA
    needs = WSRA.needs(WSRAConfig(max_clips=100, max_words=30))
    assert (needs.level, needs.labelled_share, needs.max_clips, needs.max_words) == ("sentence", 0, 100, 30)
    assert (needs.resample, needs.fixed_length, needs.chars) == ("pool", False, False)


def test_every_setting_is_documented():
    for f in fields(WSRAConfig):
        assert f"\n    {f.name}: " in inspect.getdoc(WSRAConfig)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"snippet_loss": -1.0}, "snippet_loss must be 0 or more, got -1.0"),
        ({"video_loss": 0.0, "snippet_loss": 0.0, "batch_loss": 0.0}, "video_loss or snippet_loss must be above 0"),
        ({"video_loss": 0.0}, "batch_loss needs video_loss"),
        ({"top_k": -1}, "top_k must be 0 or more"),
        ({"tau": 0.0}, "tau must be above 0"),
        ({"windows": []}, r"windows must be shares of the video.*got \[\]"),
        ({"windows": [0.2, 1.5]}, "windows must be shares of the video"),
        ({"overlap": 1.0}, "overlap must lie in"),
        ({"nms": 2.0}, "nms must be from 0 to 1"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        WSRAConfig(**changes)


def test_wrong_batches_are_named():
    model, batch = make_model(), make_batch()
    with pytest.raises(ValueError, match="this batch has up to 2"):
        model.loss(replace(batch, words=batch.words.expand(-1, 2, -1)))


@pytest.mark.parametrize(
    "path",
    sorted(path for path in CONFIGS.glob("*.yaml") if "\ntables:" not in path.read_text()),
    ids=lambda path: path.stem,
)
def test_every_config_is_read(path):
    config = parse_train(["--config", str(path)])
    assert config.method == "wsra"
    assert path.stem.startswith(config.data.corpus)


@pytest.mark.parametrize(("name", "last_k"), [("charades_sta", 3), ("didemo", 2)])
def test_the_papers_settings(name, last_k):
    config = parse_train(["--config", str(CONFIGS / f"{name}.yaml")])
    model, optim = config.model, config.optim
    assert not model.query_negatives
    assert (model.video_loss, model.snippet_loss, model.batch_loss) == (0.1, 1.0, 0.1)
    assert (model.margin, model.tau, model.hidden, model.top_k, model.last_k) == (0.2, 1.0, 512, 3, last_k)
    assert (optim.name, optim.lr, optim.schedule, optim.weight_decay) == ("adam", 1e-4, "constant", 0)
    assert config.batch_size == 42


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu():
    model, batch = make_model(), make_batch()
    expected, spans = model.loss(batch)["loss"], model.predict(batch, 3).spans
    model, batch = model.cuda(), batch.to("cuda")
    torch.testing.assert_close(model.loss(batch)["loss"].cpu(), expected)
    torch.testing.assert_close(model.predict(batch, 3).spans.cpu()[[0, 1, 3, 4]], spans[[0, 1, 3, 4]])
