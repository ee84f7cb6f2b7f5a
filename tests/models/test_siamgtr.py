"""SiamGTR, equation by equation: against plain re-statements that know no batches, and hand-worked values."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import with_random_weights, word_vectors
from torch import Tensor

from benchmarks.field_siamgtr import FieldSiamGTR, plain
from vpgfast.config import parse_train
from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, Paragraph
from vpgfast.errors import ConfigError
from vpgfast.models.alignment import alignment_loss, own_video, similar_spans
from vpgfast.models.layers import sinusoid
from vpgfast.models.siamgtr import SiamGTR, SiamGTRConfig
from vpgfast.models.siamgtr_training import (
    Insertions,
    boundary_error,
    clips_inside,
    cross_branch_loss,
    draw_insertions,
    guidance_loss,
    insert_videos,
    log_mass,
    mean_where,
    order_loss,
)

CONFIGS = Path(__file__).parents[2] / "configs" / "siamgtr"
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


def test_order_loss_in_clips_is_the_printed_one() -> None:
    """Eq. 9 counts clips: T times what it is in fractions of the video. The anchors' order stays as it is."""
    batch, model = random_batch(), make_model(0.3)
    losses = []
    for unit in ("fractions", "clips"):
        torch.manual_seed(0)
        losses.append(with_settings(model, order_in=unit).loss(batch))
    assert losses[0]["order"] > 0
    torch.testing.assert_close(losses[1].pop("order"), T * losses[0]["order"])
    torch.testing.assert_close(losses[1].pop("loss"), losses[0].pop("loss") + (T - 1) * losses[0].pop("order"))
    torch.testing.assert_close(losses[1], losses[0])


def test_spans_are_predicted_from_the_attention_too() -> None:
    """The mean over heads of the last layer's attention stands behind the features."""
    model, batch = make_model(predict_from="features and attention"), random_batch()
    clips, queries = model.project(batch), model.text(batch)
    found, spans = model(clips, queries)
    assert found.weights is not None
    assert found.weights.shape == (3, 5, T)
    torch.testing.assert_close(
        found.weights.sum(-1)[queries.mask], torch.ones_like(found.weights[..., 0])[queries.mask]
    )
    seen = torch.cat([found.features[-1], found.weights], -1)
    torch.testing.assert_close(spans, model.span_of(seen, None))
    with torch.no_grad():
        model.span[0].weight[:, D:] = 0
    of_features = make_model()
    of_features.load_state_dict({**model.state_dict(), "span.0.weight": model.span[0].weight[:, :D]})
    torch.testing.assert_close(model(clips, queries)[1], of_features(clips, queries)[1])


def test_boundary_error_by_hand() -> None:
    spans = torch.tensor([[0.2, 0.6], [0.1, 0.2], [0.3, 0.5]])
    target = torch.tensor([[0.4, 0.8], [0.6, 0.9], [0.3, 0.5]])
    # L1 0.2 + 0.2, IoU 0.2 / 0.6, no gap in the hull; L1 0.5 + 0.7, IoU 0, 0.4 of the hull's 0.8 empty; equal
    expected = torch.tensor([0.4 + 1 - 1 / 3, 1.2 + 1 + 0.5, 0.0])
    torch.testing.assert_close(boundary_error(spans, target), expected)


def test_log_mass_is_finite() -> None:
    torch.testing.assert_close(log_mass(torch.tensor([0.5, 0.0])), torch.tensor([math.log(0.5), math.log(1e-6)]))


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


def test_concepts_of_a_batch_without_the_last_words() -> None:
    """Concepts keep their places where a batch holds none of the words from some row on."""
    model = make_model()
    assert model.concepts is not None  # words 7, 3, 4, 12
    labels = model.concepts.labels(torch.tensor([[[3, 4, 0], [2, 4, 4]]]))
    assert labels.int().tolist() == [[[0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0]]]


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


@pytest.mark.parametrize(
    "changes",
    [
        {"supervision": "semi"},
        {"sentence_pseudo_attention": True},
        {"dynamic_anchors": False},
        {"predict_from": "features and attention"},
    ],
    ids=str,
)
def test_the_losses_of_the_statistics_are_those_of_the_attention_matrix(changes: dict) -> None:
    """And keys and values that are never built are those that are; loss by loss, and the gradients."""
    model, batch = make_model(0.3, **changes), random_batch(labelled=[True, False, True])
    results = []
    for way in (model, plain(model)):
        torch.manual_seed(3)
        losses = way.loss(batch)
        results.append((losses, torch.autograd.grad(losses["loss"], list(way.parameters()))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


# --- what is not in the paper


def test_alignment_loss_by_loops() -> None:
    """Softmax over videos for each sentence and over sentences for its video, without those of the same video."""
    generator = torch.Generator().manual_seed(0)
    sentences = torch.tensor([[True, True], [True, False], [True, True], [True, False]])
    names = ["a", "b", "a", "c"]
    same = torch.tensor([[one == other for other in names] for one in names])
    similarity = torch.randn(6, 4, T, dtype=torch.float64, generator=generator)
    own = [0, 0, 1, 2, 2, 3]
    videos = similarity.exp().sum(2).numpy()
    of_video, of_sentence = [], []
    for n in range(6):
        others = [b for b in range(4) if b == own[n] or names[b] != names[own[n]]]
        of_video.append(-math.log(videos[n, own[n]] / videos[n, others].sum()))
        others = [m for m in range(6) if m == n or names[own[m]] != names[own[n]]]
        of_sentence.append(-math.log(videos[n, own[n]] / videos[others, own[n]].sum()))
    expected = np.mean(of_video) + np.mean(of_sentence)
    assert alignment_loss(similarity, sentences, same).item() == pytest.approx(expected)
    assert own_video(similarity, sentences).equal(torch.stack([similarity[n, own[n]] for n in range(6)]))


def test_similar_spans_by_loops() -> None:
    rng = np.random.default_rng(0)
    for clips, rank in ((T, 2), (10, 1), (1, 1), (40, 4)):
        similarity = np.concatenate([rng.normal(size=(20, clips)), np.zeros((1, clips)), np.eye(clips)])
        found = similar_spans(torch.from_numpy(similarity), 0.4)
        for scores, span in zip(similarity, found.tolist(), strict=True):
            padded = [scores[0], *scores, scores[-1]]
            smooth = [(padded[t] + 2 * padded[t + 1] + padded[t + 2]) / 4 for t in range(clips)]
            low, best = sorted(smooth)[rank - 1], max(smooth)
            place = int(np.argmax(smooth))
            ends = []
            for ahead in (range(place, -1, -1), range(place, clips)):
                total, most, end = 0.0, -math.inf, place
                for t in ahead:
                    total += scores[t] - (0.6 * low + 0.4 * best)
                    if total > most:
                        most, end = total, t
                    if most - total > best - low:
                        break
                ends.append(end)
            assert span == pytest.approx([ends[0] / clips, (ends[1] + 1) / clips])


def test_similar_spans_of_long_events() -> None:
    """An event that takes most of its video is found whole."""
    similarity = torch.tensor([[0.0, *[1.0] * 8, 0.0], [1.0, 1.0, *[0.0] * 8]])
    torch.testing.assert_close(similar_spans(similarity, 0.5), torch.tensor([[0.1, 0.9], [0.0, 0.2]]))


def test_similar_spans_bridge_a_dip_but_do_not_reach_the_next_event() -> None:
    similarity = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.2, 1.0, 1.0, 0.0, 0.0, 0.0, 0.9, 0.9, 0.0]])
    torch.testing.assert_close(similar_spans(similarity, 0.6), torch.tensor([[2 / 13, 7 / 13]]))


def test_alignment_by_loops() -> None:
    """Every query gets the memory weighted by the softmax of its similarities and the span read off them, a paragraph
    by its sentences' mean, and the span that holds all of theirs."""
    model, batch = make_model(alignment_weight=1.0), random_batch()
    alignment = model.alignment
    assert alignment is not None
    clips, queries = model.project(batch), model.text(batch)
    memory = torch.randn(3, T, D, dtype=torch.float64)
    found, spans = alignment(clips, queries.sentences, batch.sentence_mask, queries.features, memory)
    similarity = alignment.similarity(queries.sentences[batch.sentence_mask], clips)
    own = own_video(similarity, batch.sentence_mask)
    unit = F.normalize(alignment.clips(clips), dim=-1)
    scaled = F.normalize(queries.sentences, dim=-1) * alignment.scale.exp()
    n = 0
    for b, count in enumerate((3, 1, 4)):
        values = alignment.value(memory[b]) + alignment.value_position(sinusoid(T, D, memory))
        rows = [unit[b] @ scaled[b, :count].mean(0)]
        for m in range(count):
            torch.testing.assert_close(own[n], unit[b] @ scaled[b, m])
            rows.append(own[n])
            n += 1
        for q, row in enumerate(rows):
            expected = alignment.norm(queries.features[b, q] + row.softmax(0) @ values)
            torch.testing.assert_close(found[b, q], expected)
        each = similar_spans(torch.stack(rows[1:]), model.config.pseudo_span_share)
        torch.testing.assert_close(spans[b, 1 : 1 + count], each)
        torch.testing.assert_close(spans[b, 0], torch.stack([each[:, 0].min(), each[:, 1].max()]))


def test_predictions_start_from_the_alignments_spans() -> None:
    """Where the features add nothing, they are these; the features add to the logits of centre and width."""
    model, batch = make_model(alignment_weight=1.0), random_batch()
    for parameter in model.span[-1].parameters():
        torch.nn.init.zeros_(parameter)
    clips, queries = model.project(batch), model.text(batch)
    _, spans = model(clips, queries)
    assert model.alignment is not None
    _, start = model.alignment(clips, queries.sentences, queries.mask[:, 1:], queries.features, clips)
    torch.testing.assert_close(spans, start, atol=0.01, rtol=0)  # but for the widest, which keep a gradient
    with torch.no_grad():
        model.span[-1].bias.copy_(torch.tensor([0.5, -1.0]))
    _, moved = model(clips, queries)
    centre, width = (start[0, 1, 0] + start[0, 1, 1]) / 2, start[0, 1, 1] - start[0, 1, 0]
    centre, width = (centre.logit() + 0.5).sigmoid(), (width.logit(0.005) - 1).sigmoid()
    torch.testing.assert_close(moved[0, 1], torch.stack([centre - width / 2, centre + width / 2]))


# --- labels


@pytest.mark.parametrize("changes", [{}, {"alignment_weight": 1.0, "pseudo_span_weight": 1.0}], ids=str)
def test_weakly_supervised_training_never_reads_a_span(changes: dict) -> None:
    model, batch = make_model(**changes), random_batch()
    torch.manual_seed(0)
    expected = model.loss(batch)
    batch.spans = torch.full((3, 4, 2), float("nan"), dtype=torch.float64)
    batch.labelled = torch.ones(3, dtype=torch.bool)
    torch.manual_seed(0)
    torch.testing.assert_close(model.loss(batch), expected)
    assert SiamGTR.needs(model.config).labelled_share == 0


def test_semi_supervised_training_reads_the_labelled_part() -> None:
    model = make_model(supervision="semi", labelled_share=0.3, alignment_weight=1.0, pseudo_span_weight=1.0)
    assert SiamGTR.needs(model.config).labelled_share == 0.3
    batch = random_batch(labelled=[True, False, True])

    def losses(batch: Batch) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return model.loss(batch)

    before = losses(batch)
    assert before["label"] > 0
    batch.spans[1] = torch.tensor([0.2, 0.9])
    torch.testing.assert_close(losses(batch), before)
    batch.spans[2, 3] = torch.tensor([0.2, 0.9])
    after = losses(batch)
    assert after["label"] != before["label"]
    assert all(after[name] == before[name] for name in before if name not in ("label", "loss"))
    batch.spans = batch.labelled = None  # a batch that happens to hold no labelled paragraph
    assert losses(batch)["label"] == 0
    assert losses(batch)["regression"] == before["regression"]


@pytest.mark.parametrize("aligned", [False, True])
def test_label_loss_by_loops(aligned: bool) -> None:
    """L1 and GIoU of every labelled sentence's span, and its attention inside it in every layer (section 3.5).

    Where there is an alignment, also the cross-entropy of its softmax against one that is even over the span's clips.
    """
    model = make_model(0.3, supervision="semi", labelled_share=0.5, alignment_weight=float(aligned))
    batch = random_batch(labelled=[True, False, True])
    clips, queries = model.project(batch), model.text(batch)
    found, spans = model(clips, queries, F.pad(batch.spans, (0, 0, 1, 0)))
    total = 0.0
    for b, count in ((0, 3), (2, 4)):
        for m in range(count):
            logs = [found.mass[k, b, 1 + m].log() for k in range(2)]
            total = total + boundary_error(spans[b, 1 + m], batch.spans[b, m]) - sum(logs) / 2
            if aligned:
                similar = model.alignment.similarity(queries.sentences[b, m : m + 1], clips[b : b + 1])[0, 0]
                start, end = (batch.spans[b, m] * T).tolist()
                inside = [t for t in range(T) if start <= t + 0.5 <= end] or [min(int((start + end) / 2), T - 1)]
                total = total - similar.log_softmax(0)[inside].mean()
    torch.testing.assert_close(model.loss(batch)["label"], total / (0.5 * 8))  # half of eight sentences are expected


def test_full_supervision_has_no_augmentation_branch() -> None:
    model, batch = make_model(supervision="fully"), random_batch(labelled=[True, True, True])
    state = torch.random.get_rng_state()
    losses = model.loss(batch)
    assert set(losses) == {"loss", "order", "anchor_ranking", "concept", "label"}
    assert torch.random.get_rng_state().equal(state)  # nothing was drawn


def test_guidance_loss_by_hand() -> None:
    """Even over the span and nothing outside costs the entropy of the span's clips; an even attention that of all."""
    similarity = torch.tensor([[-50.0, 3.0, 3.0, -50.0], [1.0, 1.0, 1.0, 1.0]])
    spans = torch.tensor([[0.25, 0.75], [0.6, 0.61]])  # clips 1 and 2; clip 2, whose middle is the nearest
    torch.testing.assert_close(guidance_loss(similarity, spans), torch.tensor([math.log(2), math.log(4)]))


def test_pseudo_spans_teach_as_labels_do() -> None:
    """With the spans that the alignment finds given as labels, the two losses are the same, but for the guidance."""
    settings = {"supervision": "semi", "labelled_share": 1.0, "alignment_weight": 1.0, "pseudo_span_weight": 1.0}
    model, batch = make_model(0.3, **settings), random_batch()
    torch.manual_seed(0)
    taught = model.loss(batch)
    similarity = model.alignment.similarity(model.text(batch).sentences[batch.sentence_mask], model.project(batch))
    spans = similar_spans(own_video(similarity, batch.sentence_mask), model.config.pseudo_span_share)
    batch.spans = torch.zeros(3, 4, 2, dtype=torch.float64).masked_scatter(batch.sentence_mask.unsqueeze(2), spans)
    batch.labelled = torch.ones(3, dtype=torch.bool)
    torch.manual_seed(0)
    labelled = model.loss(batch)
    guidance = guidance_loss(own_video(similarity, batch.sentence_mask), spans).mean()
    torch.testing.assert_close(labelled["label"], taught["pseudo_span"] + guidance)
    assert labelled["pseudo_span"] == taught["label"] == 0
    torch.testing.assert_close(labelled["loss"], taught["loss"] + guidance)


# --- predictions and switches


def test_predictions() -> None:
    """One span a sentence inside the video, in seconds, with the share of the attention inside; nothing else."""
    model, batch = make_model(0.3).eval(), random_batch()
    prediction = model.predict(batch, top_n=3)
    assert prediction.spans.shape == (3, 4, 3, 2)
    found, spans = model(model.project(batch), model.text(batch), need_weights=True)
    for b, count in enumerate((3, 1, 4)):
        for m in range(4):
            scores = prediction.scores[b, m].tolist()
            if m >= count:
                assert scores == [-math.inf] * 3
                continue
            start, end = spans[b, 1 + m].clamp(0, 1).tolist()
            assert prediction.spans[b, m, 0].tolist() == pytest.approx([start * 10 * (b + 1), end * 10 * (b + 1)])
            inside = 0.0
            for t in range(T):
                shared = max(0.0, min(end, (t + 1) / T) - max(start, t / T)) * T
                inside += shared * found.weights[b, 1 + m, t].item()
            assert scores == pytest.approx([inside, -math.inf, -math.inf])


@pytest.mark.parametrize("paragraph", ["learned", "mean", "max", "words"])
def test_a_paragraph_does_not_depend_on_what_else_is_in_the_batch(paragraph: str) -> None:
    """Padding of sentences and of words never reaches a real one."""
    model = make_model(0.3, paragraph=paragraph, alignment_weight=1.0).eval()
    batch = random_batch((3, 1, 4))
    together = model.predict(batch)
    for b, count in enumerate((3, 1, 4)):
        words = int(batch.word_mask[b].sum(-1).max())
        alone = replace(
            batch,
            paragraphs=[batch.paragraphs[b]],
            video=batch.video[b : b + 1],
            words=batch.words[b : b + 1, :count, :words],
            word_mask=batch.word_mask[b : b + 1, :count, :words],
            sentence_mask=batch.sentence_mask[b : b + 1, :count],
            durations=batch.durations[b : b + 1],
        )
        found = model.predict(alone)
        torch.testing.assert_close(found.spans[0], together.spans[b, :count])
        torch.testing.assert_close(found.scores[0], together.scores[b, :count])


def test_paragraph_representations_by_loops() -> None:
    """What the paragraph's query starts from (Table 7)."""
    batch = random_batch()
    for kind in ("learned", "mean", "max", "words"):
        text = make_model(paragraph=kind).text
        sentences = torch.zeros(3, 4, D, dtype=torch.float64)
        there = batch.sentence_mask
        sentences[there] = text.read(batch.words[there], batch.word_mask[there])
        found = text.whole(batch, sentences)
        for b, count in enumerate((3, 1, 4)):
            if kind == "words":
                words = torch.cat([batch.words[b, m][batch.word_mask[b, m]] for m in range(count)])
                states, _ = text.gru(text.words(words)[None])
                width = states.shape[2] // 2
                expected = text.sentence(torch.cat([states[0, -1, :width], states[0, 0, width:]]))
            else:
                rows = sentences[b, :count]
                expected = {"learned": getattr(text, "token", None), "mean": rows.mean(0), "max": rows.amax(0)}[kind]
            torch.testing.assert_close(found[b], expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"modulated_positions": False},
        {"dynamic_anchors": False},
        {"concepts": 0},
        {"paragraph": "mean"},
        {"paragraph": "words"},
        {"self_consistent": False},
        {"sentence_pseudo_attention": True},
        {"alignment_weight": 0.5},
        {"alignment_weight": 0.5, "pseudo_span_weight": 2.0},
        {"predict_from": "features and attention"},
        {"supervision": "fully"},
    ],
    ids=str,
)
def test_every_switch_trains_all_that_is_there(changes: dict) -> None:
    """Each changes the loss, and leaves no parameter without a gradient."""
    batch = random_batch(labelled=[True, True, True])
    plain, changed = make_model(), make_model(**changes)
    torch.manual_seed(0)
    losses = changed.loss(batch)
    torch.manual_seed(0)
    assert losses["loss"] != plain.loss(batch)["loss"]
    changed.zero_grad()
    losses["loss"].backward()
    assert not [name for name, p in changed.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    "name", ["regression", "order", "concept", "cross_branch", "anchor_ranking", "pseudo_attention", "alignment"]
)
def test_weights(name: str) -> None:
    model, batch = make_model(alignment_weight=1.0), random_batch()
    torch.manual_seed(0)
    losses = model.loss(batch)
    torch.manual_seed(0)
    heavier = with_settings(model, **{f"{name}_weight": getattr(model.config, f"{name}_weight") + 1.5}).loss(batch)
    torch.testing.assert_close(heavier["loss"] - losses["loss"], 1.5 * losses[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 10, "heads": 2}, "dim must be a multiple of 4 and of heads"),
        ({"dim": 12, "heads": 5}, "dim must be a multiple of 4 and of heads"),
        ({"strides": [3.0, 1.0]}, "strides must be two rising numbers"),
        ({"strides": [0.0, 1.0]}, "strides must be two rising numbers"),
        ({"labelled_share": 1.5}, "labelled_share must lie in"),
        ({"labelled_share": 0.0}, "labelled_share must lie in"),
        ({"boundary_shift": 0.5}, "boundary_shift must lie in"),
        ({"order_weight": -1.0}, "order_weight must be 0 or more"),
        ({"concepts": -1}, "concepts must be 0 or more"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"max_sentences": 0}, "max_sentences must be at least 1"),
        ({"pseudo_span_weight": 1.0}, "pseudo_span_weight needs alignment_weight"),
    ],
    ids=str,
)
def test_bad_settings(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_a_batch_of_another_length_is_refused() -> None:
    batch = random_batch()
    with pytest.raises(ValueError, match="takes 12 clips a video, this batch has 11"):
        make_model(max_clips=12).predict(batch)


def test_shipped_configs_hold_the_papers_settings() -> None:
    for name, clips, size, strides, shift in (
        ("activitynet", 256, 32, [0.75, 3.0], 0.1),
        ("charades_cd", 128, 32, [1.0, 3.0], 0.175),
        ("tacos", 512, 16, [1.0, 15.0], 0.1),
    ):
        config = parse_train(["--config", str(CONFIGS / f"{name}.yaml")])
        model = config.model
        assert (model.max_clips, config.batch_size, model.strides, model.boundary_shift) == (
            clips,
            size,
            strides,
            shift,
        )
        assert (model.dim, model.layers, model.heads, model.concepts, model.beta) == (256, 3, 8, 100, 0.5)
        assert (model.regression_weight, model.order_weight, model.concept_weight) == (2, 1, 10)
        assert (model.order_in, model.predict_from) == ("clips", "features and attention")
        assert (model.cross_branch_weight, model.anchor_ranking_weight, model.pseudo_attention_weight) == (1, 1, 1)
        assert (config.optim.name, config.optim.lr, config.optim.schedule) == ("adam", 1e-4, "constant")
        assert model.insert_at_ends == model.alignment_weight == model.pseudo_span_weight == 0
        assert model.supervision == "weakly"


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """The same losses and predictions as on the CPU, with the same draws."""
    settings = {"alignment_weight": 1.0, "pseudo_span_weight": 1.0, "supervision": "semi"}
    model, batch = make_model(0.3, **settings), random_batch(labelled=[True, False, True])
    drawn = draw_insertions(batch, model.config)
    with pytest.MonkeyPatch.context() as patch:

        def same(batch: Batch, config: SiamGTRConfig) -> Insertions:
            return Insertions(*(x.to(batch.video.device) for x in drawn))

        patch.setattr("vpgfast.models.siamgtr.draw_insertions", same)
        cpu = model.loss(batch), model.predict(batch)
        model, batch = model.cuda(), batch.to("cuda")
        gpu = model.loss(batch), model.predict(batch)
    for name, value in cpu[0].items():
        torch.testing.assert_close(gpu[0][name].cpu(), value)
    torch.testing.assert_close(gpu[1].spans.cpu(), cpu[1].spans)
    model.loss(batch)["loss"].backward()  # with draws of its own
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
