"""SeqPAN, equation by equation, against an independent numpy network that knows no padding and no batches."""

import inspect
import math
import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from plain_seqpan import ATTENTIONS, FEATURE_DIM, SWITCHES, PlainSeqPAN, iou, item, make_batch, make_model, small_config
from small import ids_of, mask_of, word_vectors

from vpgfast.config import from_dict
from vpgfast.errors import ConfigError
from vpgfast.models import seqpan
from vpgfast.models.layers import masked_log_softmax, weight_decay_groups
from vpgfast.models.registry import get_method
from vpgfast.models.seqpan import (
    ConditionedLocalizer,
    ContextQueryAttention,
    ParallelAttention,
    SeqPAN,
    SeqPANConfig,
    SequenceMatching,
    gumbel_noise,
    orthogonality,
    straight_through,
)
from vpgfast.models.seqpan_clips import (
    BEGIN,
    END,
    INSIDE,
    OUTSIDE,
    clips_to_spans,
    spans_to_clips,
)


@pytest.mark.parametrize("changes", SWITCHES, ids=ids_of)
def test_whole_network_equals_the_plain_one(changes):
    model, batch = make_model(small_config(**changes)).eval(), make_batch()
    scores = model(batch)
    plain = PlainSeqPAN(model)
    for b, clips in enumerate(batch.video_mask.sum(1).tolist()):
        p_start, p_end, labels = plain(batch, b)
        np.testing.assert_allclose(scores.start[b, :clips].exp().detach(), p_start, atol=1e-10)
        np.testing.assert_allclose(scores.end[b, :clips].exp().detach(), p_end, atol=1e-10)
        if labels is None:
            assert scores.labels is None
        else:
            np.testing.assert_allclose(scores.labels[b, :clips].exp().detach(), labels, atol=1e-10)
    assert (scores.start[~batch.video_mask] < -1e30).all()
    assert (scores.end[~batch.video_mask] < -1e30).all()


@pytest.mark.parametrize("changes", SWITCHES[1:], ids=ids_of)
def test_every_switch_changes_something(changes):
    """With the weights that both have in common equal: a switch that is not wired up would go unseen above."""
    batch = make_batch()
    torch.manual_seed(0)
    default = SeqPAN(small_config(), FEATURE_DIM, word_vectors()).double().eval()
    if changes == {"attention": "sgpa", "attention_blocks": 1}:
        default = SeqPAN(small_config(attention_blocks=2), FEATURE_DIM, word_vectors()).double().eval()
    model = SeqPAN(small_config(**changes), FEATURE_DIM, word_vectors()).double().eval()
    common = {
        name: value
        for name, value in default.state_dict().items()
        if name in model.state_dict() and model.state_dict()[name].shape == value.shape
    }
    model.load_state_dict(common, strict=False)
    first, second = default(batch), model(batch)
    same = [
        a is not None and b is not None and a.shape == b.shape and torch.allclose(a, b)
        for a, b in zip(first[:3], second[:3], strict=True)
    ]
    if changes == {"tau": 0.05}:  # in the label loss alone: the arg max of Eq. 7 does not depend on it
        assert same == [True, True, False]
    elif changes == {"localizer": "two"}:
        assert same == [True, False, True]
    elif changes == {"label_embeddings": False}:  # the labels are predicted before their embeddings come in
        assert same == [False, False, True]
    else:
        assert same == [False, False, False]


@pytest.mark.parametrize("as_released", [False, True])
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_noise_in_training(monkeypatch, as_released, tau):
    """Eq. 8 and 9 with the same noise given to both networks."""
    noise = gumbel_noise(torch.empty(4, 12, 4, dtype=torch.float64))
    monkeypatch.setattr(seqpan, "gumbel_noise", lambda like: noise)
    model, batch = make_model(small_config(tau=tau, as_released=as_released)).train(), make_batch()
    scores, plain = model(batch), PlainSeqPAN(model)
    for b, clips in enumerate(batch.video_mask.sum(1).tolist()):
        p_start, p_end, labels = plain(batch, b, noise[b, :clips].numpy())
        np.testing.assert_allclose(scores.start[b, :clips].exp().detach(), p_start, atol=1e-10)
        np.testing.assert_allclose(scores.end[b, :clips].exp().detach(), p_end, atol=1e-10)
        np.testing.assert_allclose(scores.labels[b, :clips].exp().detach(), labels, atol=1e-10)


def test_noise_only_where_it_belongs(monkeypatch):
    calls = []

    def counted(like):
        calls.append(like.shape)
        return gumbel_noise(like)

    monkeypatch.setattr(seqpan, "gumbel_noise", counted)
    batch = make_batch()

    def drawn(training, **changes):
        calls.clear()
        make_model(small_config(**changes)).train(training)(batch)
        return len(calls)

    assert drawn(True) == 1
    assert drawn(False) == 0
    assert drawn(True, as_released=True) == 1
    assert drawn(False, as_released=True) == 1
    assert drawn(False, inference_labels="sampled") == 1
    for changes in ({"gumbel": False}, {"matching": "fb"}, {"matching": "none"}):
        for released in (False, True):
            assert drawn(True, as_released=released, **changes) == 0
            assert drawn(False, inference_labels="sampled", as_released=released, **changes) == 0


def test_hard_samples_at_inference(monkeypatch):
    """Appendix A.3: the Gumbel-max trick with the same noise given to both networks, and the labels that it gives."""
    noise = gumbel_noise(torch.empty(4, 12, 4, dtype=torch.float64))
    monkeypatch.setattr(seqpan, "gumbel_noise", lambda like: noise)
    model, batch = make_model(small_config(inference_labels="sampled")).eval(), make_batch()
    scores, labels, plain = model(batch), model.predict(batch).labels, PlainSeqPAN(model)
    for b, clips in enumerate(batch.video_mask.sum(1).tolist()):
        p_start, p_end, soft = plain(batch, b, noise[b, :clips].numpy())
        np.testing.assert_allclose(scores.start[b, :clips].exp().detach(), p_start, atol=1e-10)
        np.testing.assert_allclose(scores.end[b, :clips].exp().detach(), p_end, atol=1e-10)
        assert labels[b, 0, :clips].tolist() == soft.argmax(1).tolist()
        assert not labels[b, 0, clips:].any()


@pytest.mark.parametrize("matching", ["sq", "fb", "none"])
def test_predicted_labels(matching):
    model, batch = make_model(small_config(matching=matching)).eval(), make_batch()
    labels, plain = model.predict(batch).labels, PlainSeqPAN(model)
    if matching == "none":
        assert labels is None
        return
    for b, clips in enumerate(batch.video_mask.sum(1).tolist()):
        expected = plain(batch, b)[2].argmax(1) * (INSIDE if matching == "fb" else 1)
        assert labels[b, 0].tolist() == [*expected.tolist(), *[0] * (12 - clips)]
    true = model.true_labels(batch)
    assert true.shape == labels.shape
    assert set(true.unique().tolist()) == ({OUTSIDE, INSIDE} if matching == "fb" else {OUTSIDE, BEGIN, INSIDE, END})
    assert model.true_labels(replace(batch, spans=None)) is None
    several = replace(batch, spans=torch.cat([batch.spans, batch.spans / 2], 1))
    assert torch.equal(
        model.true_labels(several), torch.cat([true, model.true_labels(replace(batch, spans=batch.spans / 2))], 1)
    )


def test_older_checkpoints_as_released_keep_the_layers_they_have():
    older = {name: getattr(small_config(), name) for name in ("dim", "heads")} | {"as_released": True}
    config = from_dict({"method": "seqpan", "model": older}, "checkpoint x").model
    assert config.as_released
    assert not config.layers_as_released
    now = from_dict({"method": "seqpan", "model": {**older, "released_layers": None}}, "checkpoint y").model
    assert now.layers_as_released


@pytest.mark.parametrize("changes", [{"as_released": True}, {"inference_labels": "sampled"}], ids=ids_of)
def test_predictions_with_noise_follow_the_generator(changes):
    model, batch = make_model(small_config(**changes)).eval(), make_batch()
    torch.manual_seed(5)
    first, *others = (model.predict(batch) for _ in range(20))
    torch.manual_seed(5)
    assert torch.equal(model.predict(batch).scores, first.scores)
    assert any(not torch.equal(other.scores, first.scores) for other in others)


# Gumbel, straight-through, orthogonality


def test_gumbel_noise_has_the_gumbel_distribution():
    torch.manual_seed(0)
    noise = gumbel_noise(torch.empty(200_000))
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.02)  # Euler's constant
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)
    assert (noise < 0).float().mean().item() == pytest.approx(math.exp(-1), abs=0.01)  # P(g < x) = exp(-exp(-x))


def test_gumbel_max_samples_the_categorical_distribution():
    torch.manual_seed(0)
    probabilities = torch.tensor([0.1, 0.2, 0.7])
    logits = probabilities.log().expand(100_000, 3)
    counts = straight_through((logits + gumbel_noise(logits)).softmax(-1)).mean(0)
    torch.testing.assert_close(counts, probabilities, atol=0.01, rtol=0)


def test_straight_through_is_one_hot_forward_and_soft_backward():
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, dtype=torch.float64)
    hard = straight_through(logits.softmax(-1))
    assert torch.equal(hard, torch.eye(4, dtype=torch.float64)[logits.argmax(-1)])
    (gradient,) = torch.autograd.grad((hard * weight).sum(), logits)
    (expected,) = torch.autograd.grad((logits.softmax(-1) * weight).sum(), logits)
    torch.testing.assert_close(gradient, expected)
    assert torch.equal(straight_through(torch.tensor([0.4, 0.2, 0.4])), torch.tensor([1.0, 0.0, 0.0]))


def test_orthogonality_by_hand():
    # Products of different rows: 2, 0 and 3, each twice: 2 * (4 + 0 + 9). The rows' own lengths do not count.
    assert orthogonality(torch.tensor([[1.0, 2.0], [2.0, 0.0], [-1.5, 0.0]])[:2]).item() == 2 * 2.0**2
    embeddings = torch.tensor([[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [0.0, 3.0, 5.0]])
    assert orthogonality(embeddings).item() == 2 * (2.0**2 + 0.0 + 3.0**2)
    assert orthogonality(torch.diag(torch.tensor([1.0, 7.0]))).item() == 0


def test_label_embeddings_start_orthogonal():
    embeddings = SeqPAN(SeqPANConfig(), FEATURE_DIM, word_vectors()).matching.embeddings
    torch.testing.assert_close(embeddings @ embeddings.T, torch.eye(4), atol=1e-5, rtol=0)


# padding, edges, precision


def test_padding_changes_nothing():
    """Neither how much there is of it, nor what stands in it, nor what else is in the batch."""
    model = make_model(dtype=torch.float32).eval()
    batch = make_batch((9, 5, 1, 7), (4, 5, 2, 1), dtype=torch.float32)
    together = model.predict(batch, 3)
    pad = torch.nn.functional.pad
    junk = replace(
        batch,
        video=pad(torch.where(batch.video_mask.unsqueeze(-1), batch.video, 1e3), (0, 0, 0, 3), value=-1e3),
        video_mask=pad(batch.video_mask, (0, 3)),
        words=pad(torch.where(batch.word_mask, batch.words, 7), (0, 1), value=3),
        word_mask=pad(batch.word_mask, (0, 1)),
        chars=pad(torch.where(batch.word_mask.unsqueeze(-1), batch.chars, 5), (0, 0, 0, 1), value=4),
    )
    with_junk = model.predict(junk, 3)
    torch.testing.assert_close(with_junk.scores, together.scores)
    torch.testing.assert_close(with_junk.spans, together.spans)
    assert model.loss(junk)["loss"].item() == pytest.approx(model.loss(batch)["loss"].item(), rel=1e-5)
    losses = model.loss(batch)
    alone_losses = []
    for b in range(len(batch)):
        alone = model.predict(item(batch, b), 3)
        torch.testing.assert_close(alone.scores[0], together.scores[b])
        torch.testing.assert_close(alone.spans[0], together.spans[b])
        alone_losses.append(model.loss(item(batch, b))["localization"].item())
    assert losses["localization"].item() == pytest.approx(np.mean(alone_losses), rel=1e-5)


def test_padding_is_never_selected():
    model, batch = make_model().eval(), make_batch(clips=(2, 12), words=(3, 3))
    prediction = model.predict(batch, top_n=50)
    found = prediction.scores[0, 0] > -torch.inf
    assert found.sum() == 3  # the pairs of two clips
    assert prediction.spans[0, 0, found, 1].max() <= 10.0
    assert (prediction.scores[1, 0] > -torch.inf).sum() == 50


def assert_learns_without_nan(model, batch):
    losses = model.loss(batch)
    assert all(torch.isfinite(value) for value in losses.values())
    model.zero_grad()
    losses["loss"].backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    prediction = model.predict(batch)
    assert torch.isfinite(prediction.spans).all()
    assert not prediction.scores.isnan().any()


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    ("clips", "words"),
    [((1,), (1,)), ((5,), (3,)), ((1, 12), (6, 1)), ((4, 4), (0, 2)), ((4,), (0,))],
    ids=["one of each", "batch of one", "mixed", "a sentence without words", "only such a sentence"],
)
def test_edges_give_finite_numbers(attention, clips, words):
    model = SeqPAN(small_config(attention=attention, dropout=0.2), FEATURE_DIM, word_vectors())
    assert_learns_without_nan(model, make_batch(clips, words, dtype=torch.float32))


def test_extreme_scores_give_finite_numbers():
    model, batch = make_model(dtype=torch.float32, scale=30.0), make_batch(dtype=torch.float32)
    assert_learns_without_nan(model, batch)


@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_autocast(training):
    torch.manual_seed(0)
    model = SeqPAN(small_config(dim=32, gumbel=training), FEATURE_DIM, word_vectors()).train(training)
    batch = make_batch(dtype=torch.float32)
    exact = model.loss(batch)["localization"]
    with torch.autocast("cpu", torch.bfloat16):
        assert_learns_without_nan(model, batch)
        losses, prediction = model.loss(batch), model.predict(batch)
    assert losses["loss"].dtype == torch.float32
    assert prediction.scores.dtype == torch.float32
    if not training:
        assert losses["localization"].item() == pytest.approx(exact.item(), rel=0.03)


def test_same_seed_same_step():
    results = []
    for _ in range(2):
        torch.manual_seed(11)
        model = SeqPAN(small_config(dropout=0.2), FEATURE_DIM, word_vectors())
        results.append(model.loss(make_batch(dtype=torch.float32))["loss"].item())
    assert results[0] == results[1]


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    model, batch = (
        SeqPAN(small_config(dropout=0.2, gumbel=False), FEATURE_DIM, word_vectors()),
        make_batch(dtype=torch.float32),
    )
    loss = torch.compile(model.loss, fullgraph=True, backend="eager")(batch)["loss"]
    assert torch.isfinite(loss)
    model.eval()
    compiled = torch.compile(model.predict, fullgraph=True, backend="eager")(batch, 3)
    torch.testing.assert_close(compiled.spans, model.predict(batch, 3).spans)


# gradients and learning


@pytest.mark.parametrize("changes", [*SWITCHES, {"as_released": True}], ids=ids_of)
def test_gradient_reaches_every_parameter(changes):
    model = make_model(small_config(**changes)).train()
    torch.manual_seed(0)
    model.loss(make_batch(clips=(12,) * 16, words=(6,) * 16))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A constant added to the score of every clip changes no probability. So do the biases before a hidden layer
        # whose ReLUs all clips pass alike, as in models as small as this.
        if not re.fullmatch(r"localizer\.(norm_)?(start|end)(\.[02])?\.bias", name):
            assert parameter.grad.abs().max() > 1e-12, name


def test_known_words_stay_and_the_unknown_one_moves():
    torch.manual_seed(0)
    model = SeqPAN(small_config(), FEATURE_DIM, word_vectors())
    vectors, unknown = model.words.vectors.clone(), model.words.unknown.detach().clone()
    batch = make_batch(dtype=torch.float32)
    batch.words[0, 0, 0] = 1
    optimiser = torch.optim.AdamW(weight_decay_groups(model, 0.01), lr=0.1)
    model.loss(batch)["loss"].backward()
    optimiser.step()
    assert torch.equal(model.words.vectors, vectors)
    assert (model.words.unknown != unknown).all()
    assert not model.words(torch.tensor([0])).any()


@pytest.mark.parametrize("kind", ["sgpa", "pa"])
def test_parallel_attention_gradient(kind):
    layer = ParallelAttention(SeqPANConfig(dim=4, heads=2, dropout=0.0, attention=kind)).double()
    x, y = (torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 2))
    masks = mask_of(3, 2), mask_of(1, 2)
    assert torch.autograd.gradcheck(lambda x, y: layer(x, y, *masks), (x, y))


@pytest.mark.parametrize("similarity", ["trilinear", "bilinear"])
def test_context_query_attention_gradient(similarity):
    layer = ContextQueryAttention(3, similarity).double()
    x, y = (torch.randn(2, n, 3, dtype=torch.float64, requires_grad=True) for n in (3, 2))
    masks = mask_of(3, 2), mask_of(1, 2)
    assert torch.autograd.gradcheck(lambda x, y: layer(x, y, *masks), (x, y))


def test_matching_and_localizer_gradient():
    config = small_config(gumbel=False)
    matching, localizer = SequenceMatching(config).double(), ConditionedLocalizer(config).double()
    mask = mask_of(3, 2)
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)

    def scores(x):
        x, labels = matching(x)
        start, end = localizer(x, mask)
        return labels, *(masked_log_softmax(s, mask)[mask] for s in (start, end))

    assert torch.autograd.gradcheck(scores, x)


@pytest.mark.parametrize("changes", [{}, {"attention": "co_trm", "matching": "fb"}, {"as_released": True}], ids=ids_of)
def test_overfits_eight_examples(changes):
    torch.manual_seed(0)
    config = SeqPANConfig(dim=32, heads=4, conv_layers=2, max_clips=16, max_words=8, dropout=0.0, **changes)
    model = SeqPAN(config, 16, word_vectors())
    batch = make_batch((16, 12, 16, 14, 9, 16, 16, 11), (5, 4, 6, 2, 3, 6, 5, 1), dtype=torch.float32, feature_dim=16)
    optimiser = torch.optim.AdamW(weight_decay_groups(model, 0.01), lr=3e-3)
    for _ in range(120):
        optimiser.zero_grad()
        model.loss(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    prediction = model.eval().predict(batch, 1).spans[:, 0, 0]
    start, end = spans_to_clips(batch.spans[:, 0], batch.video_mask, config.clip_times)
    true = clips_to_spans(start.unsqueeze(1), end.unsqueeze(1), batch.video_mask, config.clip_times)[:, 0]
    true = true * batch.durations.unsqueeze(1)
    assert np.mean([iou(a, b) for a, b in zip(prediction.tolist(), true.tolist(), strict=True)]) > 0.9


# the interface


def test_needs_and_registry():
    assert get_method("seqpan") is SeqPAN
    needs = SeqPAN.needs(SeqPANConfig(max_clips=100, max_words=30, char_cnn=False))
    assert (needs.level, needs.labelled_share, needs.max_clips, needs.max_words) == ("sentence", 1, 100, 30)
    assert (needs.resample, needs.fixed_length, needs.chars) == ("pool", False, False)
    assert SeqPAN.needs(SeqPANConfig()).chars


def test_every_setting_is_documented():
    for f in fields(SeqPANConfig):
        assert f"\n    {f.name}: " in inspect.getdoc(SeqPANConfig)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "dim must be a multiple of heads = 3, got 128"),
        ({"tau": 0.0}, "tau must be above 0, got 0.0"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"conv_kernel": 4}, "conv_kernel must be odd, got 4"),
        ({"max_clips": 0}, "max_clips must be at least 1, got 0"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        SeqPANConfig(**changes)


def test_wrong_batches_are_named():
    model, batch = make_model(), make_batch()
    with pytest.raises(ValueError, match="this batch has up to 2"):
        model(replace(batch, words=batch.words.expand(-1, 2, -1)))
    with pytest.raises(ValueError, match="this batch holds none"):
        model.loss(replace(batch, spans=None))
    with pytest.raises(ValueError, match="needs a batch with characters"):
        model(replace(batch, chars=None))
    with pytest.raises(ValueError, match="a sequence of 13 elements, but positions were learned for 12"):
        model(make_batch(clips=(13,), words=(1,)))


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu_and_trains_in_mixed_precision():
    model, batch = make_model(), make_batch()
    model.eval()
    expected, expected_spans = model.loss(batch)["loss"], model.predict(batch, 3).spans
    model, batch = model.cuda(), batch.to("cuda")
    torch.testing.assert_close(model.loss(batch)["loss"].cpu(), expected)
    torch.testing.assert_close(model.predict(batch, 3).spans.cpu(), expected_spans)

    model = model.float().train()
    batch = replace(batch, video=batch.video.float())
    with torch.autocast("cuda", torch.bfloat16):
        model.loss(batch)["loss"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
