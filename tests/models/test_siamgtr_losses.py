"""SiamGTR's pseudo videos and losses, and what of them is not in the paper, against loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import VOCABULARY, word_vectors
from small_siamgtr import FEATURE_DIM, D, T, backward, make_model, random_batch, small, with_settings
from torch import Tensor

from vpgfast.models.alignment import alignment_loss, own_video, similar_spans
from vpgfast.models.layers import sinusoid
from vpgfast.models.siamgtr import SiamGTR
from vpgfast.models.siamgtr_training import (
    Insertions,
    boundary_error,
    clips_inside,
    cross_branch_loss,
    draw_insertions,
    insert_videos,
    log_mass,
    mean_where,
    order_loss,
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
