"""MARN, equation by equation: against the field's dense form, and against loops that know no batches."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import with_random_weights, word_vectors
from torch import Tensor

from benchmarks.field_marn import FieldMARN
from vpgfast.config import parse_train
from vpgfast.data.batches import make_batch
from vpgfast.data.fixed_clips import clip_edges
from vpgfast.data.types import Batch, Paragraph
from vpgfast.errors import ConfigError
from vpgfast.models.layers import another_video
from vpgfast.models.marn import MARN, Attended, Decoder, MARNConfig
from vpgfast.ops import multi_scale_grid

T, FEATURE_DIM, VOCABULARY, WORD_DIM = 9, 6, 20, 5


def small(**changes) -> MARNConfig:
    return MARNConfig(**{"max_clips": T, "scales": [2, 3, 5, 8], "dim": 4, "reduction": 2, "max_words": 7, **changes})


def make_model(config: MARNConfig | None = None) -> MARN:
    return with_random_weights(MARN(config or small(), FEATURE_DIM, word_vectors()), 0.5)


def with_settings(model: MARN, **changes) -> MARN:
    """The same weights with other settings of the loss."""
    other = copy(model)
    other.config = replace(model.config, **changes)
    return other


def random_batch(words=(4, 7, 1), seed: int = 0, spans: Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    size = len(words)
    mask = (torch.arange(max(words)) < torch.tensor(words).unsqueeze(1)).unsqueeze(1)
    return Batch(
        paragraphs=[Paragraph(f"v{b}", 10.0 * (b + 1), ("a sentence",)) for b in range(size)],
        video=torch.randn(size, T, FEATURE_DIM, generator=generator, dtype=torch.float64),
        video_mask=torch.ones(size, T, dtype=torch.bool),
        words=torch.randint(1, VOCABULARY, mask.shape, generator=generator) * mask,
        word_mask=mask,
        sentence_mask=torch.ones(size, 1, dtype=torch.bool),
        durations=10.0 * torch.arange(1, size + 1, dtype=torch.float64),
        spans=spans,
    )


@pytest.mark.parametrize("kernels", [[1], [3], [3, 3]], ids=str)
@pytest.mark.parametrize("changes", [{}, {"clip_branch": False}, {"scale_stride": "quarter"}, {"samples": 1}], ids=str)
def test_the_dense_form_gives_the_same(kernels: list[int], changes: dict) -> None:
    """Loss and all gradients of the dense sampling matrix, Conv3d and tiled concatenation (Eq. 1-14)."""
    model, batch = make_model(small(attention_kernels=kernels, clip_weight=0.7, **changes)), random_batch()
    batch.video.requires_grad_()
    inputs = [batch.video, *model.parameters()]
    ours, fields = model.loss(batch)["loss"], FieldMARN(model).loss(batch)
    torch.testing.assert_close(ours, fields, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(fields, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)


def test_attention_by_loops() -> None:
    """Eq. 6-8 for one video, cell by cell: neighbours in the map of starts and lengths, nothing where no moment is."""
    model, batch = make_model(), random_batch((3,))
    grid, attention = model.proposals.grid, model.proposals.attention
    moments = torch.randn(1, 4, len(grid), dtype=torch.float64)
    query = torch.randn(1, 4, dtype=torch.float64)
    at = {tuple(cell): p for p, cell in enumerate(grid.cells.tolist())}
    fused = {}
    for cell, p in at.items():
        w_p, w_q = attention.of_moment.weight[..., 0], attention.of_query.weight
        fused[cell] = (w_p @ moments[0, :, p] + w_q @ query[0] + attention.of_moment.bias).clamp(min=0)
    scores = []
    for row, start in at:
        score = torch.zeros((), dtype=torch.float64)
        for i in range(3):
            for j in range(3):
                neighbour = (row + i - 1, start + j - 1)
                if neighbour in fused:
                    score = score + attention.last.weight[0, :, i, j] @ fused[neighbour]
        scores.append(score)
    expected = torch.stack(scores).softmax(0)
    torch.testing.assert_close(attention(moments, query)[0], expected)
    proposals, _ = model(batch)
    torch.testing.assert_close(proposals.weights.sum(1), torch.ones(1, dtype=torch.float64))


def test_decoder_by_loops() -> None:
    """Eq. 9-10: an LSTM over [feature; word before], cell by cell, and the mean over each sentence's own words."""
    torch.manual_seed(0)
    decoder = Decoder(4, WORD_DIM, VOCABULARY).double()
    batch = random_batch()
    feature, embedded = torch.randn(3, 4).double(), torch.randn(3, 7, WORD_DIM).double()
    words, mask = batch.words[:, 0], batch.word_mask[:, 0]
    w_in, w_state, b_in, b_state = (p for p in decoder.lstm.parameters())
    losses = []
    for b, length in enumerate((4, 7, 1)):
        h, c, before, nll = torch.zeros(4).double(), torch.zeros(4).double(), torch.zeros(WORD_DIM).double(), 0.0
        for m in range(length):
            gates = w_in @ torch.cat([feature[b], before]) + b_in + w_state @ h + b_state
            i, f, g, o = gates.chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            nll = nll - (decoder.out.weight @ h + decoder.out.bias).log_softmax(0)[words[b, m]]
            before = embedded[b, m]
        losses.append(nll / length)
    torch.testing.assert_close(decoder(feature, embedded, words, mask), torch.stack(losses))


@pytest.mark.parametrize("kind", ["avg", "max", "lstm"])
def test_other_representations_by_loops(kind: str) -> None:
    model = make_model(small(representation=kind))
    represent, grid = model.representation, multi_scale_grid(T, [1, 2, 5, 8])
    x = torch.randn(2, 3, T, dtype=torch.float64)
    result = represent(x, grid)
    for p, (first, last) in enumerate(grid.proposals.long().tolist()):
        inside = x[:, :, first : last + 1]
        if kind == "lstm":
            expected = represent.lstm(inside.transpose(1, 2))[0][:, -1]
        else:
            pooled = inside.mean(2) if kind == "avg" else inside.amax(2)
            expected = (pooled @ represent.weight[..., 0].t() + represent.bias).relu()
        torch.testing.assert_close(result[:, :, p], expected)
    model.loss(random_batch())["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("clip_branch", [True, False])
def test_negatives_one_by_one(clip_branch: bool) -> None:
    """The hinge of each sentence in the video it is rolled onto; a sentence never meets its own video."""
    model = make_model(small(negative_weight=0.3, negative_margin=0.2, clip_weight=0.7, clip_branch=clip_branch))
    batch = random_batch((4, 7, 1, 3))
    batch.paragraphs[2] = replace(batch.paragraphs[2], video_id="v0")  # items 0 and 2 are of one video
    torch.manual_seed(5)
    losses = model.loss(batch)
    torch.manual_seed(5)
    shift, different = another_video(batch)
    names = [p.video_id for p in batch.paragraphs]
    paper = MARN.loss(with_settings(model, negative_weight=0.0), batch)
    words, mask = batch.words[:, 0], batch.word_mask[:, 0]
    expected = torch.zeros((), dtype=torch.float64)
    pairs = [(b, (b - shift) % 4) for b in range(4) if names[b] != names[(b - shift) % 4]]
    assert different.tolist() == [b in dict(pairs) for b in range(4)]
    for branch, weight in zip(model.branches(), (1.0, 0.7), strict=False):
        hinges = []
        for b, other in pairs:
            likelihoods = []
            for v in (b, other):
                moments = model.moments(branch, batch)[v : v + 1]
                feature = branch.attend(moments, model.read(batch)[b : b + 1]).feature
                embedded = model.words(words)[b : b + 1]
                likelihoods.append(model.decoder(feature, embedded, words[b : b + 1], mask[b : b + 1]))
            hinges.append((0.2 + likelihoods[0] - likelihoods[1]).relu())
        expected = expected + weight * torch.cat(hinges).mean()
    torch.testing.assert_close(losses["negatives"], expected)
    torch.testing.assert_close(losses["loss"], paper["loss"] + 0.3 * expected)


def test_no_other_video_no_negatives() -> None:
    """A batch of one sentence, or of one video's sentences, has the paper's loss."""
    model = make_model(small(negative_weight=1.0))
    one, two = random_batch((3,)), random_batch((3, 4))
    two.paragraphs[1] = two.paragraphs[0]
    for batch in (one, two):
        losses = model.loss(batch)
        assert losses["negatives"] == 0
        torch.testing.assert_close(losses["loss"], FieldMARN(model).loss(batch))


def test_every_other_item_is_met() -> None:
    batch = random_batch((1, 1, 1, 1))
    assert {another_video(batch)[0] for _ in range(60)} == {1, 2, 3}


@pytest.mark.parametrize("negative_weight", [0.0, 1.0])
def test_sees_no_timestamp(negative_weight: float) -> None:
    """Spans of NaN in a batch change nothing, and training batches hold none."""
    model = make_model(small(negative_weight=negative_weight))
    poison, losses = torch.full((3, 1, 2), torch.nan), []
    for spans in (None, poison):
        torch.manual_seed(0)
        losses.append(model.loss(random_batch(spans=spans))["loss"])
    assert torch.equal(*losses)
    assert losses[0].isfinite()
    needs = MARN.needs(small())
    paragraph = Paragraph("v", 10.0, ("word1 word2",), np.array([[np.nan, np.nan]]))
    batch = make_batch([paragraph], [np.zeros((4, FEATURE_DIM), np.float32)], word_vectors(), needs, training=True)
    assert batch.spans is None
    assert batch.paragraphs[0].spans is None
    assert batch.video.shape[1] == T


def fixed_batch(config: MARNConfig, durations: tuple[float, ...]) -> Batch:
    """Of videos of their own lengths, through the package's own batches."""
    rng = np.random.default_rng(0)
    paragraphs = [Paragraph(f"v{b}", d, (f"word{b} word{b + 3} word1",)) for b, d in enumerate(durations)]
    features = [rng.normal(size=(int(3 * d) + 1, FEATURE_DIM)).astype(np.float32) for d in durations]
    batch = make_batch(paragraphs, features, word_vectors(), MARN.needs(config), training=True)
    return replace(batch, video=batch.video.double())


DURATIONS = (4.0, 7.3, 9.0, 1.2, 30.0)  # in clips of a second: 4, 7, 9 (all of T), 2 (stretched up), 9 (brought down)


@pytest.mark.parametrize("negative_weight", [0.0, 0.5])
@pytest.mark.parametrize("kernels", [[3], [3, 3]], ids=str)
@pytest.mark.parametrize("kind", ["conv3d", "avg", "max", "lstm"])
def test_clips_of_a_fixed_length(kind: str, kernels: list[int], negative_weight: float) -> None:
    """Each video as by a model of as many clips as it has: the same attention, loss and spans."""
    config = small(clip_seconds=1.0, representation=kind, attention_kernels=kernels, nms=None)
    model, batch = make_model(config), fixed_batch(config, DURATIONS)
    counts = [4, 7, 9, 2, 9]
    assert batch.video_mask.sum(1).tolist() == counts
    torch.manual_seed(0)
    losses = with_settings(model, negative_weight=negative_weight).loss(batch)
    found, alone = model.predict(batch, 30), []
    for b, count in enumerate(counts):
        scales = [s for s in config.scales if s <= count]
        own = MARN(replace(config, clip_seconds=None, max_clips=count, scales=scales), FEATURE_DIM, word_vectors())
        own.double().load_state_dict(model.state_dict())
        one = replace(
            batch,
            **{name: getattr(batch, name)[b : b + 1] for name in ("words", "word_mask", "sentence_mask", "durations")},
            paragraphs=batch.paragraphs[b : b + 1],
            video=batch.video[b : b + 1, :count],
            video_mask=batch.video_mask[b : b + 1, :count],
        )
        alone.append(own.loss(one)["loss"])
        expected = own.predict(one, 30)
        torch.testing.assert_close(found.scores[b], expected.scores[0])
        # In clips, and then by where clips begin and the last one ends.
        edges = torch.from_numpy(clip_edges(DURATIONS[b], 1.0, 2, T))
        there = expected.scores[0, 0] > -torch.inf
        clips = (expected.spans[0, 0] / DURATIONS[b] * count).round().long()
        torch.testing.assert_close(found.spans[b, 0][there], edges[clips][there])
    if not negative_weight:
        torch.testing.assert_close(losses["loss"], torch.stack(alone).mean())
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("seconds", [None, 1.0])
def test_attention_in_predictions_is_the_map(seconds: float | None) -> None:
    """Of lengths and first clips; each proposal in its cell, nothing in the others."""
    config = small(clip_seconds=seconds)
    model, batch = make_model(config), fixed_batch(config, DURATIONS)
    attention, weights = model.predict(batch, 3).attention, model(batch)[0].weights
    assert attention is not None
    assert attention.shape == (5, 1, 4, T)
    grid, lengths = model.proposals.grid, batch.video_mask.sum(1)
    for b in range(5):
        there = grid.spans[:, 1] <= lengths[b]
        rows, columns = grid.cells[there].unbind(1)
        torch.testing.assert_close(attention[b, 0, rows, columns], weights[b, there])
        assert attention[b].isfinite().sum() == there.sum()
        torch.testing.assert_close(attention[b].nansum(), torch.ones((), dtype=torch.float64))


def test_negatives_of_videos_of_their_own_length() -> None:
    """The other video brings its own proposals along."""
    config = small(clip_seconds=1.0, negative_weight=1.0)
    model, batch = make_model(config), fixed_batch(config, (3.0, 9.0))
    losses = model.loss(batch)  # of two videos each meets the other
    query, words, mask = model.read(batch), batch.words[:, 0], batch.word_mask[:, 0]
    hinges = torch.zeros((), dtype=torch.float64)
    for branch in model.branches():
        moments, there = model.moments(branch, batch), branch.grid.within(torch.tensor([3, 9]))
        told = [
            model.decoder(branch.attend(moments[i], query, there[i]).feature, model.words(words), words, mask)
            for i in ([0, 1], [1, 0])
        ]
        hinges = hinges + (config.negative_margin + told[0] - told[1]).relu().mean()
    torch.testing.assert_close(losses["negatives"], hinges)


def test_proposals_end_with_the_video() -> None:
    config = small(clip_seconds=1.0, nms=0.5)
    model, batch = make_model(config), fixed_batch(config, DURATIONS)
    generator = torch.Generator().manual_seed(0)
    for found in (model.predict(batch, 40), model.at_random(batch, 40, generator)):
        for b, duration in enumerate(DURATIONS):
            there = found.scores[b, 0] > -torch.inf
            assert there.any()
            spans = found.spans[b, 0][there]
            assert (spans[:, 0] >= 0).all()
            assert (spans[:, 0] < spans[:, 1]).all()
            assert spans.max() <= duration
    candidates = model.answer(batch, 5)[1]
    assert ((candidates.scores > -torch.inf) == model.there(model.proposals, batch)).all()


def test_padding_of_words_changes_nothing() -> None:
    model, batch = make_model(), random_batch()
    alone = [
        replace(
            batch,
            paragraphs=[batch.paragraphs[b]],
            video=batch.video[b : b + 1],
            video_mask=batch.video_mask[b : b + 1],
            words=batch.words[b : b + 1, :, :length],
            word_mask=batch.word_mask[b : b + 1, :, :length],
            sentence_mask=batch.sentence_mask[b : b + 1],
            durations=batch.durations[b : b + 1],
        )
        for b, length in enumerate((4, 7, 1))
    ]
    expected = torch.stack([model.loss(item)["loss"] for item in alone]).mean()
    torch.testing.assert_close(model.loss(batch)["loss"], expected)
    together = model.predict(batch, 4)
    for b, item in enumerate(alone):
        torch.testing.assert_close(model.predict(item, 4).spans[0], together.spans[b])


def test_scores_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq. 15: a proposal's attention plus epsilon times that of the clip in its middle, start + length / 2."""
    model = make_model(small(scales=[2, 5], epsilon=0.5, nms=None))
    grid = model.proposals.grid  # 8 of two clips, 5 of five
    proposals, clips = torch.zeros(1, 13).double(), torch.zeros(1, 9).double()
    proposals[0, [0, 8]] = torch.tensor([0.3, 0.2]).double()  # clips 0-1 and 0-4
    clips[0, 2] = 1.0  # the middle of clips 0-4 and 1-2
    fixed = (Attended(proposals, torch.empty(0)), Attended(clips, torch.empty(0)))
    monkeypatch.setattr(model, "forward", lambda batch: fixed)
    found = model.predict(random_batch((2,)), 3)
    assert grid.spans[8].tolist() == [0, 5]
    torch.testing.assert_close(found.scores[0, 0].float(), torch.tensor([0.7, 0.5, 0.3]))
    clip = 10.0 / T
    expected = torch.tensor([[0, 5], [1, 3], [0, 2]]).double() * clip
    torch.testing.assert_close(found.spans[0, 0], expected)
    model.config.clip_scores = False
    torch.testing.assert_close(model.predict(random_batch((2,)), 2).scores[0, 0].float(), torch.tensor([0.3, 0.2]))


def test_predictions_are_ranked_and_do_not_overlap_much() -> None:
    model, batch = make_model(small(nms=0.5)), random_batch()
    found = model.predict(batch, 40)
    for b in range(3):
        there = found.scores[b, 0] > -torch.inf
        spans, scores = found.spans[b, 0][there], found.scores[b, 0][there]
        assert 1 <= len(spans) < len(model.proposals.grid)
        assert (scores[:-1] >= scores[1:]).all()
        assert (spans[:, 0] >= 0).all()
        assert (spans[:, 0] < spans[:, 1]).all()
        assert (spans[:, 1] <= batch.durations[b] + 1e-9).all()
        low, high = torch.maximum(spans[:, None, 0], spans[None, :, 0]), torch.minimum(spans[:, None, 1], spans[:, 1])
        inside = (high - low).clamp(min=0)
        length = spans[:, 1] - spans[:, 0]
        iou = inside / (length[:, None] + length - inside)
        assert (iou.fill_diagonal_(0) <= 0.5 + 1e-9).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim must be at least 1"),
        ({"clip_seconds": 0.0}, "clip_seconds must be above 0, or null"),
        ({"clip_seconds": float("nan")}, "clip_seconds must be above 0, or null"),
        ({"scales": [3, 2]}, "scales must be rising"),
        ({"scales": [12]}, "the first at most max_clips = 9"),
        ({"scales": []}, "scales must be"),
        ({"attention_kernels": [2]}, "must be odd"),
        ({"attention_kernels": []}, "one or more"),
        ({"nms": 1.5}, "nms must be from 0 to 1"),
        ({"epsilon": -1.0}, "must be 0 or more"),
    ],
)
def test_wrong_settings(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_wrong_batches() -> None:
    model, batch = make_model(), random_batch()
    with pytest.raises(ValueError, match="takes 9 clips a video, this batch has 8"):
        model.loss(replace(batch, video=batch.video[:, :8]))
    with pytest.raises(ValueError, match="one sentence a video"):
        model.loss(replace(batch, words=batch.words.expand(-1, 2, -1)))


@pytest.mark.parametrize(
    ("name", "clips", "seconds", "proposals", "reduction", "epsilon"),
    [("charades_sta", 32, 1, 146, 8, 0.1), ("activitynet", 128, 2, 942, 32, 0.3)],
)
def test_the_papers_settings(
    name: str, clips: int, seconds: float, proposals: int, reduction: int, epsilon: float
) -> None:
    file = Path(__file__).parents[2] / "configs" / "marn" / f"{name}.yaml"
    config = parse_train(["--config", str(file)]).model
    assert (config.max_clips, config.clip_seconds) == (clips, seconds)
    assert (config.reduction, config.epsilon) == (reduction, epsilon)
    assert (config.samples, config.conv_kernel, config.attention_kernels) == (4, 3, [3])
    assert (config.representation, config.clip_branch, config.clip_scores) == ("conv3d", True, True)
    assert len(MARN(replace(config, dim=4), 4096, word_vectors()).proposals.grid) == proposals


@pytest.mark.gpu
@pytest.mark.parametrize("negative_weight", [0.0, 1.0])
def test_cuda_agrees_with_the_cpu(negative_weight: float) -> None:
    """Loss, gradients and spans, in float64."""
    model, batch = make_model(small(negative_weight=negative_weight)), random_batch()
    gradients, losses, spans = [], [], []
    for device in ("cpu", "cuda"):
        model, moved = model.to(device), batch.to(device)
        torch.manual_seed(0)
        losses.append(model.loss(moved)["loss"])
        gradients.append([g.cpu() for g in torch.autograd.grad(losses[-1], list(model.parameters()))])
        spans.append(model.predict(moved, 4).spans.cpu())
    torch.testing.assert_close(losses[1].cpu(), losses[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(spans[1], spans[0])
