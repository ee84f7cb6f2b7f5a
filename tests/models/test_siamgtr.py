"""SiamGTR, equation by equation: against plain re-statements that know no batches, and hand-worked values."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import with_random_weights, word_vectors
from torch import Tensor

from benchmarks.field_siamgtr import FieldSiamGTR, plain_attention
from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, Paragraph
from vpgfast.models.siamgtr import (
    Insertions,
    SiamGTR,
    SiamGTRConfig,
    attention_loss,
    boundary_error,
    clips_inside,
    cross_branch_loss,
    draw_insertions,
    insert_videos,
    mean_where,
    order_loss,
    sinusoid,
)

T, D, FEATURE_DIM, VOCABULARY = 11, 8, 6, 20


def small(**changes) -> SiamGTRConfig:
    settings = {"max_clips": T, "dim": D, "heads": 2, "layers": 2, "feed_forward": 12, "dropout": 0.0, "concepts": 6}
    return SiamGTRConfig(**{**settings, **changes})


def counted() -> WordVectors:
    counts = np.zeros(VOCABULARY, np.int64)
    counts[[3, 7, 4, 12]] = [5, 9, 2, 2]
    return replace(word_vectors(VOCABULARY), content_counts=counts)


def make_model(scale: float = 0.5, **changes) -> SiamGTR:
    return with_random_weights(SiamGTR(small(**changes), FEATURE_DIM, counted()), scale)


def with_settings(model: SiamGTR, **changes) -> SiamGTR:
    """The same weights with other settings of the loss."""
    other = copy(model)
    other.config = replace(model.config, **changes)
    return other


def random_batch(sentences=(3, 1, 4), seed: int = 0, labelled=None, videos=None) -> Batch:
    """Paragraphs of that many sentences of 1 to 5 words; ``labelled`` says which have spans."""
    generator = torch.Generator().manual_seed(seed)
    B, M = len(sentences), max(sentences)
    there = torch.arange(M) < torch.tensor(sentences).unsqueeze(1)
    lengths = torch.randint(1, 6, (B, M, 1), generator=generator) * there.unsqueeze(2)
    lengths[0, 0] = 5
    word_mask = torch.arange(5) < lengths
    names = videos or [f"v{b}" for b in range(B)]
    items = zip(names, sentences, range(1, B + 1), strict=True)
    spans = torch.rand(B, M, 2, generator=generator).sort(-1).values * there.unsqueeze(2)
    known = None if labelled is None else torch.tensor(labelled)
    return Batch(
        paragraphs=[Paragraph(name, 10.0 * place, ("a",) * count) for name, count, place in items],
        video=torch.randn(B, T, FEATURE_DIM, generator=generator, dtype=torch.float64),
        video_mask=torch.ones(B, T, dtype=torch.bool),
        words=torch.randint(1, VOCABULARY, word_mask.shape, generator=generator) * word_mask,
        word_mask=word_mask,
        sentence_mask=there,
        durations=10.0 * torch.arange(1, B + 1, dtype=torch.float64),
        labelled=known,
        spans=None if known is None else spans.double() * known[:, None, None],
    )


# --- pseudo videos


def plain_insertion(video: Tensor, background: Tensor, stride: float, place: int, shift) -> tuple[Tensor, list[float]]:
    """Eq. 1-2 for one video [T, D], step by step."""
    inserted, i = [], 0
    while i * stride < len(video):
        inserted.append(video[math.floor(i * stride)])
        i += 1
    whole = torch.stack([*background[:place], *inserted, *background[place:]])
    resampled = F.interpolate(whole.t()[None], len(video), mode="linear", align_corners=False)[0].t()
    start = (place + shift[0] * len(inserted)) / len(whole)
    end = (place + len(inserted) - shift[1] * len(inserted)) / len(whole)
    return resampled, [start, end]


@pytest.mark.parametrize("seed", range(4))
def test_insertion_by_loops(seed: int) -> None:
    """A whole batch at once is exactly what one video after another gives, gradients too."""
    generator = torch.Generator().manual_seed(seed)
    B = 12
    clips = torch.randn(B, T, D, dtype=torch.float64, generator=generator).requires_grad_()
    stride = 0.3 + 20 * torch.rand(B, dtype=torch.float64, generator=generator) ** 3
    stride[:4] = torch.tensor([1.0, 0.5, T, 3 * T])
    place = torch.randint(0, T + 1, (B,), generator=generator)
    place[2:4] = torch.tensor([0, T])
    background = torch.randint(0, B, (B,), generator=generator)
    shift = 0.5 * torch.rand(B, 2, dtype=torch.float64, generator=generator)
    there = torch.ones(B, dtype=torch.bool)
    pseudo, interval = insert_videos(clips, Insertions(background, stride, place, shift, there))

    plain = [
        plain_insertion(clips[b], clips[background[b]], stride[b].item(), int(place[b]), shift[b].tolist())
        for b in range(B)
    ]
    expected = torch.stack([video for video, _ in plain])
    torch.testing.assert_close(pseudo, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(interval, torch.tensor([span for _, span in plain], dtype=torch.float64))
    weights = torch.randn(pseudo.shape, dtype=torch.float64, generator=generator)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), clips)[0] for x in (pseudo, expected))
    torch.testing.assert_close(ours, theirs)


def test_insertion_of_projected_clips_is_the_projection_of_inserted_clips() -> None:
    """Why the features are projected once for both branches: re-sampling is linear over clips."""
    video = torch.randn(3, T, FEATURE_DIM, dtype=torch.float64)
    layer = torch.nn.Linear(FEATURE_DIM, D).double()
    drawn = draw_insertions(random_batch(), small())
    torch.testing.assert_close(insert_videos(layer(video), drawn)[0], layer(insert_videos(video, drawn)[0]))


def test_draws() -> None:
    """Another video always, strides and shifts in their ranges, every place, and as many at the ends as asked for."""
    torch.manual_seed(0)
    batch = random_batch((1,) * 40, videos=[f"v{b // 2}" for b in range(40)])
    config = small(strides=[0.75, 3.0], boundary_shift=0.1)
    many = [draw_insertions(batch, config) for _ in range(50)]
    drawn = Insertions(*(torch.cat(x) for x in zip(*many, strict=True)))
    own = torch.arange(40).repeat(50)
    assert (drawn.background // 2 != own // 2).all()
    assert set((drawn.background // 2).tolist()) == set(range(20))
    assert drawn.there.all()
    assert 0.75 <= drawn.stride.min() < 0.8
    assert 2.95 < drawn.stride.max() <= 3.0
    assert set(drawn.place.tolist()) == set(range(T + 1))
    assert drawn.shift.shape == (2000, 2)
    assert 0 <= drawn.shift.min() < 0.001
    assert 0.099 < drawn.shift.max() <= 0.1
    ends = draw_insertions(batch, replace(config, insert_at_ends=1.0)).place
    assert set(ends.tolist()) == {0, T}
    half = torch.cat([draw_insertions(batch, replace(config, insert_at_ends=0.5)).place for _ in range(50)])
    assert abs(((half == 0) | (half == T)).double().mean().item() - (0.5 + 0.5 * 2 / (T + 1))) < 0.05
    still = draw_insertions(batch, replace(config, strides=[1.0, 1.0], boundary_shift=0.0))
    assert (still.stride == 1).all()
    assert (still.shift == 0).all()


@pytest.mark.parametrize("sentences", [(2,), (2, 3)])
def test_a_batch_of_one_video_has_no_augmentation_branch(sentences: tuple[int, ...]) -> None:
    model = make_model(sentence_pseudo_attention=True)
    batch = random_batch(sentences, videos=["v"] * len(sentences))
    assert not draw_insertions(batch, model.config).there.any()
    losses = model.loss(batch)
    assert losses["regression"] == losses["pseudo_attention"] == losses["cross_branch"] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in backward(model, losses["loss"]))


def backward(model: SiamGTR, loss: Tensor) -> list[torch.nn.Parameter]:
    model.zero_grad()
    loss.backward()
    return list(model.parameters())


# --- losses


def test_order_loss_by_hand() -> None:
    places = torch.tensor([[0.1, 0.5, 0.4], [0.7, 0.2, 0.9]])
    gap = torch.tensor([[1 / 6], [1 / 4]])
    pairs = torch.tensor([[True, True], [True, False]])
    # 1/6 - 0.4 < 0; 1/6 + 0.1; 1/4 + 0.5; the last pair is not there
    expected = (0 + (1 / 6 + 0.1) + 0.75) / 3
    assert order_loss(places, gap, pairs).item() == pytest.approx(expected)
    assert order_loss(places[:, :1], gap, pairs[:, :0]) == 0


def test_boundary_error_by_hand() -> None:
    spans = torch.tensor([[0.2, 0.6], [0.1, 0.2], [0.3, 0.5]])
    target = torch.tensor([[0.4, 0.8], [0.6, 0.9], [0.3, 0.5]])
    # L1 0.2 + 0.2, IoU 0.2 / 0.6, no gap in the hull; L1 0.5 + 0.7, IoU 0, 0.4 of the hull's 0.8 empty; equal
    expected = torch.tensor([0.4 + 1 - 1 / 3, 1.2 + 1 + 0.5, 0.0])
    torch.testing.assert_close(boundary_error(spans, target), expected)


def test_attention_loss_by_hand() -> None:
    mass = torch.tensor([[[0.5, 0.9]], [[0.25, 0.0]]])
    assert attention_loss(mass, torch.tensor([[True, False]])).item() == pytest.approx(-math.log(0.5 * 0.25) / 2)
    assert attention_loss(mass, torch.tensor([[False, False]])) == 0


def test_mean_where_ignores_what_is_left_out() -> None:
    x = torch.tensor([1.0, float("nan"), 3.0], requires_grad=True)
    mean = mean_where(x, torch.tensor([True, False, True]))
    assert mean == 2
    mean.backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.5, 0.0, 0.5]))


def test_cross_branch_loss_by_loops_and_who_follows_whom() -> None:
    """Eq. A.1: the sentences of the augmentation branch learn, and the paragraph of the inference branch."""
    generator = torch.Generator().manual_seed(0)
    augmented, normal = (torch.randn(2, 3, 4, D, generator=generator, requires_grad=True) for _ in range(2))
    sentences = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    there = torch.tensor([[True], [False], [True]])
    loss = cross_branch_loss(augmented, normal, sentences, there)
    of_sentences, of_paragraphs = [], []
    for k in range(2):
        for b in (0, 2):
            a, n = augmented[k, b].detach().numpy(), normal[k, b].detach().numpy()
            cosine = (a * n).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(n, axis=1)
            of_paragraphs.append(1 - cosine[0])
            of_sentences += [1 - cosine[1 + m] for m in range(3) if sentences[b, m]]
    assert loss.item() == pytest.approx(np.mean(of_sentences) + np.mean(of_paragraphs), rel=1e-5)
    of_augmented, of_normal = torch.autograd.grad(loss, [augmented, normal])
    assert of_augmented[:, :, 0].eq(0).all()
    assert of_augmented[:, 0, 1].ne(0).any()
    assert of_normal[:, :, 1:].eq(0).all()
    assert of_normal[:, 0, 0].ne(0).any()


def test_clips_inside_by_loops() -> None:
    """The clips whose middle lies in the interval; where there is none, the one in which the interval's middle lies."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        start, end = np.sort(rng.random(2)) if rng.random() < 0.5 else rng.random() + np.array([0, 0.03])
        first, last = clips_inside(torch.tensor([start, min(end, 1.0)]), T).tolist()
        chosen = {t for t in range(T) if first <= t <= last}
        inside = {t for t in range(T) if start <= (t + 0.5) / T <= min(end, 1.0)}
        nearest = min(int((start + min(end, 1.0)) / 2 * T), T - 1)
        assert chosen == (inside or {nearest})
    assert clips_inside(torch.tensor([0.0, 0.0]), T).tolist() == [-0.5, 0.0]


def test_sinusoid_by_hand() -> None:
    table = sinusoid(3, 4, torch.zeros(0, dtype=torch.float64))
    for t in range(3):
        expected = [math.sin(t), math.cos(t), math.sin(t / 100), math.cos(t / 100)]
        np.testing.assert_allclose(table[t], expected)


def test_concepts() -> None:
    """The commonest nouns and verbs, ties by the vocabulary; labels by loops; padding concepts count nowhere."""
    model, batch = make_model(), random_batch()
    assert model.concepts is not None
    assert model.concepts.words.tolist() == [7, 3, 4, 12, 0, 0]
    queries = torch.randn(3, 5, D, dtype=torch.float64)
    dictionary = model.concepts.vectors @ model.concepts.project.weight.t() + model.concepts.project.bias
    of_paragraphs, of_sentences = [], []
    for b in range(3):
        held = [set(batch.words[b, m].tolist()) for m in range(4)]
        for c, word in enumerate([7, 3, 4, 12]):
            chances = (queries[b] @ dictionary[c]).sigmoid()
            labels = [word in set().union(*held), *(word in words for words in held)]
            nll = [-math.log(p if label else 1 - p) for p, label in zip(chances.tolist(), labels, strict=True)]
            of_paragraphs.append(nll[0])
            of_sentences += [nll[1 + m] for m in range(4) if batch.sentence_mask[b, m]]
    expected = np.mean(of_paragraphs) + np.mean(of_sentences)
    assert model.concepts.loss(queries, batch).item() == pytest.approx(expected)


def test_concepts_need_counted_words() -> None:
    model = SiamGTR(small(), FEATURE_DIM, word_vectors(VOCABULARY)).double()
    with pytest.raises(ValueError, match="content_counts"):
        model.loss(random_batch())


# --- the whole


@pytest.mark.parametrize(
    "changes", [{}, {"dim": 12, "heads": 3, "layers": 3}, {"self_consistent": False, "beta": 0.0}], ids=str
)
def test_the_fields_form_gives_the_same(changes: dict) -> None:
    """Loss and all gradients of one paragraph after another, concatenated heads and the attention matrix."""
    model, batch = make_model(0.3, **{"beta": 0.2, "strides": [0.75, 6.0], **changes}), random_batch()
    batch.video.requires_grad_()
    inputs = [batch.video, *model.parameters()]
    torch.manual_seed(3)
    ours = model.loss(batch)["loss"]
    torch.manual_seed(3)
    fields = FieldSiamGTR(model).loss(batch)
    torch.testing.assert_close(ours, fields, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(fields, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("changes", [{"supervision": "semi"}, {"sentence_pseudo_attention": True}], ids=str)
def test_the_losses_of_the_statistics_are_those_of_the_attention_matrix(changes: dict, monkeypatch) -> None:
    model, batch = make_model(0.3, **changes), random_batch(labelled=[True, False, True])
    inputs = list(model.parameters())
    results = []
    for attention in (None, plain_attention):
        if attention is not None:
            monkeypatch.setattr("vpgfast.models.siamgtr.anchor_cross_attention", attention)
        torch.manual_seed(3)
        losses = model.loss(batch)
        results.append((losses, torch.autograd.grad(losses["loss"], inputs)))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)
