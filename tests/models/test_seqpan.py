"""SeqPAN, equation by equation, against an independent numpy network that knows no padding and no batches."""

import inspect
import math
import re
from dataclasses import fields, replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from small import with_random_weights, word_vectors

from vpgfast.config import from_dict
from vpgfast.data.text import NUM_CHARS
from vpgfast.data.types import Batch, Paragraph
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
    best_clips,
    boundary_targets,
    clips_to_spans,
    region_labels,
    released_region_labels,
    spans_to_clips,
)

FEATURE_DIM = 7
ATTENTIONS = get_args(get_type_hints(SeqPANConfig)["attention"])


def small_config(**changes):
    return SeqPANConfig(
        **{"dim": 8, "heads": 2, "char_dim": 3, "max_clips": 12, "max_words": 6, "dropout": 0.0, **changes}
    )


def make_model(config=None, dtype=torch.float64, scale=0.4):
    return with_random_weights(SeqPAN(config or small_config(), FEATURE_DIM, word_vectors()), scale, dtype)


def make_batch(
    clips=(9, 5, 1, 12), words=(4, 6, 2, 1), spans=None, dtype=torch.float64, seed=0, feature_dim=FEATURE_DIM
):
    """A batch of single sentences with random content; word 1 is the unknown one."""
    generator = torch.Generator().manual_seed(seed)
    size = len(clips)
    video_mask = torch.arange(max(clips)) < torch.tensor(clips).unsqueeze(1)
    word_mask = (torch.arange(max(words)) < torch.tensor(words).unsqueeze(1)).unsqueeze(1)
    video = torch.randn(size, max(clips), feature_dim, generator=generator, dtype=torch.float64) * video_mask.unsqueeze(
        -1
    )
    ids = torch.randint(1, 20, word_mask.shape, generator=generator) * word_mask
    letters = torch.randint(1, 6, word_mask.shape, generator=generator)
    chars = torch.randint(1, NUM_CHARS, (*word_mask.shape, 5), generator=generator)
    chars = chars * (torch.arange(5) < letters.unsqueeze(-1)) * word_mask.unsqueeze(-1)
    if spans is None:
        spans = torch.rand(size, 2, generator=generator, dtype=torch.float64).sort(1).values.tolist()
    durations = [10.0 * (b + 1) for b in range(size)]
    paragraphs = [
        Paragraph(f"v{b}", durations[b], ("a sentence",), np.array([spans[b]]) * durations[b]) for b in range(size)
    ]
    return Batch(
        paragraphs=paragraphs,
        video=video.to(dtype),
        video_mask=video_mask,
        words=ids,
        word_mask=word_mask,
        sentence_mask=torch.ones(size, 1, dtype=torch.bool),
        durations=torch.tensor(durations, dtype=torch.float64),
        chars=chars,
        spans=torch.tensor(spans, dtype=torch.float32).reshape(size, 1, 2),
    )


def item(batch, b):
    """One sentence of a batch alone, without padding."""
    clips, words = int(batch.video_mask[b].sum()), int(batch.word_mask[b].sum())
    return replace(
        batch,
        paragraphs=[batch.paragraphs[b]],
        video=batch.video[b : b + 1, :clips],
        video_mask=batch.video_mask[b : b + 1, :clips],
        words=batch.words[b : b + 1, :, :words],
        word_mask=batch.word_mask[b : b + 1, :, :words],
        sentence_mask=batch.sentence_mask[b : b + 1],
        durations=batch.durations[b : b + 1],
        chars=batch.chars[b : b + 1, :, :words],
        spans=batch.spans[b : b + 1],
    )


# The network in numpy: one video, one sentence, no padding, loops where loops are clearest.


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class PlainSeqPAN:
    def __init__(self, model):
        self.p = {name: value.detach().numpy() for name, value in model.state_dict().items()}
        self.config = model.config

    def linear(self, name, x):
        return x @ self.p[f"{name}.weight"].T + self.p.get(f"{name}.bias", 0.0)

    def norm(self, name, x):
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return scaled * self.p[f"{name}.weight"] + self.p.get(f"{name}.bias", 0.0)

    def words(self, ids):
        return np.stack([self.p["words.unknown"] if i == 1 else self.p["words.vectors"][i] for i in ids])

    def chars(self, words):
        table = np.concatenate([np.zeros((1, self.config.char_dim)), self.p["chars.embedding.weight"]])
        result = []
        for word in words:
            letters = [i for i in word if i]
            features = []
            for k in range(1, 5):
                padded = np.concatenate([table[letters], np.zeros((k, self.config.char_dim))])
                windows = np.stack([padded[j : j + k].T.reshape(-1) for j in range(len(letters))])
                weight = self.p[f"chars.weights.{k - 1}"]
                features.append((windows @ weight.reshape(len(weight), -1).T).max(0))
            result.append(np.maximum(np.concatenate(features) + self.p["chars.bias"], 0))
        return np.stack(result)

    def encoder(self, x, encoder="encoder"):
        """Eq. 1."""
        x = x + self.p[f"{encoder}.positions"][: len(x)]
        half = self.config.conv_kernel // 2
        for n in range(self.config.conv_layers):
            name = f"{encoder}.layers.{n}"
            y = np.pad(self.norm(f"{name}.norm", x), ((half, half), (0, 0)))
            weight = self.p[f"{name}.depthwise.weight"][:, 0, 0]
            y = np.stack([(y[t : t + self.config.conv_kernel] * weight.T).sum(0) for t in range(len(x))])
            x = x + np.maximum(self.linear(f"{name}.pointwise", y), 0)
        return x

    def heads(self, q, k, v):
        """Eq. 2, head by head."""
        size = q.shape[1] // self.config.heads
        parts = [slice(h * size, (h + 1) * size) for h in range(self.config.heads)]
        return np.concatenate([softmax(q[:, s] @ k[:, s].T / math.sqrt(size)) @ v[:, s] for s in parts], 1)

    def released_norm(self, name, x):
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return scaled * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def released_parallel(self, name, x, y):
        """dual_attn_block of the released code, line by line."""
        nx, ny = self.released_norm(f"{name}.norm_attention", x), self.released_norm(f"{name}.norm_other", y)
        q, f_key, f_value = np.split(self.linear(f"{name}.query_key_value", nx), 3, axis=1)
        t_key, t_value = np.split(self.linear(f"{name}.cross_key_value", ny), 2, axis=1)
        s_value = self.linear(f"{name}.out_self", self.heads(q, f_key, f_value))
        x_value = self.linear(f"{name}.out_cross", self.heads(q, t_key, t_value))
        s_score = sigmoid(self.linear(f"{name}.gate_self", s_value))
        x_score = sigmoid(self.linear(f"{name}.gate_cross", x_value))
        outputs = self.linear(f"{name}.guided", s_score * x_value + x_score * s_value)
        values = self.linear(f"{name}.value", np.concatenate([nx, outputs], 1))
        if self.config.attention == "sgpa":
            values = sigmoid(self.linear(f"{name}.confidence", np.concatenate([nx, outputs], 1))) * values
        residual = self.linear(f"{name}.out", values) + x
        return self.linear(f"{name}.feed_forward", self.released_norm(f"{name}.norm_feed_forward", residual)) + residual

    def feature_encoder(self, name, x):
        """feature_encoder of the released code."""
        x = self.encoder(x, f"{name}.encoder")
        q, k, v = np.split(
            self.linear(f"{name}.query_key_value", self.released_norm(f"{name}.norm_attention", x)), 3, 1
        )
        residual = self.heads(q, k, v) + x
        return self.linear(f"{name}.feed_forward", self.released_norm(f"{name}.norm_feed_forward", residual)) + residual

    def released_localize(self, h):
        """conditioned_predictor of the released code."""
        end_encoder = "localizer.end_encoder" if self.config.localizer == "two" else "localizer.encoder"
        h_s = self.feature_encoder("localizer.encoder", h)
        h_e = self.feature_encoder(end_encoder, h_s)
        scores = []
        for side, features in (("start", h_s), ("end", h_e)):
            both = np.concatenate([self.released_norm(f"localizer.norm_{side}", features), h], 1)
            hidden = np.maximum(self.linear(f"localizer.{side}.0", both), 0)
            scores.append(softmax(self.linear(f"localizer.{side}.2", hidden)[:, 0]))
        return tuple(scores)

    def parallel(self, name, x, y):
        """Eq. 2-4."""
        if self.config.layers_as_released:
            return self.released_parallel(name, x, y)
        nx, ny = self.norm(f"{name}.norm_attention", x), self.norm(f"{name}.norm_attention", y)
        q, k, v = np.split(self.linear(f"{name}.query_key_value", nx), 3, axis=1)
        k_other, v_other = np.split(self.linear(f"{name}.cross_key_value", ny), 2, axis=1)
        v_s = self.linear(f"{name}.out_self", self.heads(q, k, v))
        v_c = self.linear(f"{name}.out_cross", self.heads(q, k_other, v_other))
        x = (
            x
            + sigmoid(self.linear(f"{name}.gate_cross", v_c)) * v_s
            + sigmoid(self.linear(f"{name}.gate_self", v_s)) * v_c
        )
        h = self.norm(f"{name}.norm_head", x)
        value = self.linear(f"{name}.value", h)
        if self.config.attention == "sgpa":
            value = sigmoid(self.linear(f"{name}.confidence", h)) * value
        return x + value

    def transformer(self, name, x, y):
        nx, ny = self.norm(f"{name}.norm_attention", x), self.norm(f"{name}.norm_attention", y)
        k, v = np.split(self.linear(f"{name}.attention.key_value", ny), 2, axis=1)
        x = x + self.linear(f"{name}.attention.out", self.heads(self.linear(f"{name}.attention.query", nx), k, v))
        return x + self.linear(f"{name}.feed_forward", self.norm(f"{name}.norm_feed_forward", x))

    def block(self, n, v, q):
        name = f"attention.{n}.layers"

        def self_attention(v, q):
            return self.transformer(f"{name}.self", v, v), self.transformer(f"{name}.self", q, q)

        def cross_attention(v, q):
            return self.transformer(f"{name}.cross", v, q), self.transformer(f"{name}.cross", q, v)

        match self.config.attention:
            case "sgpa" | "pa":
                return self.parallel(f"{name}.parallel", v, q), self.parallel(f"{name}.parallel", q, v)
            case "se_trm":
                return self_attention(v, q)
            case "co_trm":
                return cross_attention(v, q)
            case "seco_trm":
                return cross_attention(*self_attention(v, q))
            case "cose_trm":
                return self_attention(*cross_attention(v, q))

    def context_query(self, name, x, y):
        """Eq. 16-18."""
        w = self.p[f"{name}.weight"]
        if self.config.similarity == "trilinear":
            flat = w.reshape(-1)
            s = np.array([[flat @ np.concatenate([xi, yj, xi * yj]) for yj in y] for xi in x])
        else:
            s = np.array([[xi @ w @ yj for yj in y] for xi in x])
        s_r, s_c = softmax(s, 1), softmax(s, 0)
        a_xy, a_yx = s_r @ y, s_r @ s_c.T @ x
        return self.linear(f"{name}.out", np.concatenate([x, a_xy, x * a_xy, x * a_yx], 1))

    def fused(self, video, ids, chars):
        """Everything before the sequence matching: H with a bar."""
        words = self.words(ids)
        if self.config.char_cnn:
            words = np.concatenate([words, self.chars(chars)], 1)
        v = self.encoder(self.norm("video_input.1", self.linear("video_input.0", video)))
        q = self.encoder(self.norm("query_input.1", self.linear("query_input.0", words)))
        for n in range(self.config.attention_blocks):
            v, q = self.block(n, v, q)
        v_q, q_v = self.context_query("query_to_video", v, q), self.context_query("video_to_query", q, v)
        alpha = softmax(q_v @ self.p["pool_query.score.weight"][0])  # Eq. 19
        sentence = sum(a * row for a, row in zip(alpha, q_v, strict=True))
        return self.linear("fuse", np.concatenate([v_q, np.tile(sentence, (len(v_q), 1))], 1))  # Eq. 20

    def match(self, h, noise):
        """Eq. 6-10: what goes on to the localizer, and the probabilities of the labels."""
        if self.config.matching == "none":
            return h, None
        logits = self.linear("matching.classify", h)
        if self.config.matching == "fb":
            return h, softmax(logits)
        if self.config.gumbel:
            soft = softmax((logits + noise) / self.config.tau)
            labels = soft if self.config.as_released else np.eye(4)[(logits + noise).argmax(1)]
        else:
            soft = labels = softmax(logits)
        if self.config.label_embeddings:
            h = labels @ self.p["matching.embeddings"] + h
        return h, soft

    def localize(self, h):
        """Eq. 12."""
        if self.config.layers_as_released:
            return self.released_localize(h)
        h_s = self.transformer("localizer.transformer", h, h)
        own = "localizer.end_transformer" if self.config.localizer == "two" else "localizer.transformer"
        h_e = self.transformer(own, h_s, h_s)
        s = self.linear("localizer.start", np.concatenate([self.norm("localizer.norm_start", h_s), h], 1))
        e = self.linear("localizer.end", np.concatenate([self.norm("localizer.norm_end", h_e), h], 1))
        return softmax(s[:, 0]), softmax(e[:, 0])

    def __call__(self, batch, b, noise=0.0):
        """P_s, P_e and the label probabilities of sentence ``b``."""
        one = item(batch, b)
        h = self.fused(one.video[0].numpy(), one.words[0, 0].tolist(), one.chars[0, 0].tolist())
        h, labels = self.match(h, noise)
        return *self.localize(h), labels


SWITCHES = [
    {},
    *({"attention": kind, "attention_blocks": 1} for kind in ATTENTIONS),
    {"attention_blocks": 3},
    {"similarity": "bilinear"},
    {"matching": "none"},
    {"matching": "fb"},
    {"gumbel": False},
    {"label_embeddings": False},
    {"gumbel": False, "label_embeddings": False},
    {"tau": 0.05},
    {"char_cnn": False},
    {"conv_layers": 1, "conv_kernel": 3},
    {"as_released": True, "gumbel": False},
    {"released_layers": True, "attention": "pa"},
    {"released_layers": True, "localizer": "two"},
    {"localizer": "two"},
]


def ids_of(changes):
    return "-".join(f"{key}={value}" for key, value in changes.items()) or "default"


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


# targets: seconds to clips and back, boundary targets, regions


def mask_of(*counts):
    return torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)


def test_points_by_hand():
    # Five clips at 0, 1/4, 1/2, 3/4 and 1 of the duration; then a video of three, a video of one.
    spans = torch.tensor([[0.0, 1.0], [0.3, 0.6], [0.125, 0.37], [0.49, 0.51], [0.9, 1.0], [0.2, 0.3]])
    start, end = spans_to_clips(spans, mask_of(5, 5, 5, 5, 3, 1), "points")
    assert start.tolist() == [0, 1, 1, 2, 2, 0]
    assert end.tolist() == [4, 2, 1, 2, 2, 0]


def test_points_back_to_seconds_by_hand():
    start, end = torch.tensor([[0, 1, 2, 0, 4]]), torch.tensor([[4, 3, 2, 0, 4]])
    spans = clips_to_spans(start, end, mask_of(5), "points")
    # start = end is an instant; it alone is widened by half of the distance 1/4 of two clips.
    expected = [[0, 1], [0.25, 0.75], [0.375, 0.625], [0, 0.125], [0.875, 1]]
    assert spans[0].tolist() == expected
    one = torch.zeros(1, 1, dtype=torch.long)
    assert clips_to_spans(one, one, mask_of(1), "points").tolist() == [[[0, 1]]]


def test_extents_by_hand():
    start, end = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[3, 1, 3, 3]])
    assert clips_to_spans(start, end, mask_of(4), "extents")[0].tolist() == [[0, 1], [0.25, 0.5], [0.5, 1], [0.75, 1]]
    one = torch.zeros(1, 1, dtype=torch.long)
    assert clips_to_spans(one, one, mask_of(1), "extents").tolist() == [[[0, 1]]]


def all_pairs(clips):
    return [(i, j) for i in range(clips) for j in range(i, clips)]


def iou(a, b):
    inside = min(a[1], b[1]) - max(a[0], b[0])
    return max(0.0, inside) / (max(a[1], b[1]) - min(a[0], b[0]))


@pytest.mark.parametrize("clips", [1, 2, 3, 7, 64])
def test_extents_choose_the_best_of_all_pairs(clips):
    rng = np.random.default_rng(clips)
    spans = np.sort(rng.random((200, 2)), 1)
    spans[::5, 1] = np.minimum(1, spans[::5, 0] + 0.2 / clips)  # short ones, far below a clip
    spans[1::5] = np.sort(np.round(spans[1::5] * clips), 1) / clips  # whole clips
    spans = spans[spans[:, 0] < spans[:, 1]]
    start, end = spans_to_clips(torch.tensor(spans), mask_of(*[clips] * len(spans)), "extents")
    for span, i, j in zip(spans, start.tolist(), end.tolist(), strict=True):
        assert 0 <= i <= j < clips
        best = max(iou(span, (a / clips, (b + 1) / clips)) for a, b in all_pairs(clips))
        assert iou(span, (i / clips, (j + 1) / clips)) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("clip_times", ["points", "extents"])
@pytest.mark.parametrize("clips", [1, 2, 5])
def test_every_pair_is_a_span_that_maps_back_to_it(clip_times, clips):
    pairs = torch.tensor(all_pairs(clips)).t()
    mask = mask_of(clips)
    spans = clips_to_spans(pairs[:1], pairs[1:], mask, clip_times)[0]
    assert (spans[:, 1] > spans[:, 0]).all()
    assert spans.min() >= 0
    assert spans.max() <= 1
    whole = (pairs[0] != pairs[1]) | (clip_times == "extents")  # a widened instant ends where rounding turns, see below
    start, end = spans_to_clips(spans, mask.expand(len(spans), -1), clip_times)
    assert torch.equal(torch.stack([start, end])[:, whole], pairs[:, whole])
    shrunk = spans + torch.tensor([1e-6, -1e-6])
    start, end = spans_to_clips(shrunk, mask.expand(len(spans), -1), "points")
    if clip_times == "points":
        assert torch.equal(torch.stack([start, end]), pairs)


def test_a_short_moment_keeps_its_overlap():
    """However short the moment and wherever it is, the clips it is mapped to overlap it."""
    starts = torch.linspace(0, 0.999, 200)
    spans = torch.stack([starts, starts + 0.001], 1)
    mask = mask_of(*[9] * 200)
    for clip_times in ("points", "extents"):
        start, end = spans_to_clips(spans, mask, clip_times)
        found = clips_to_spans(start.unsqueeze(1), end.unsqueeze(1), mask, clip_times)[:, 0]
        assert all(iou(a, b) > 0 for a, b in zip(spans.tolist(), found.tolist(), strict=True))


def test_boundary_targets():
    index, mask = torch.tensor([0, 2, 3, 0]), mask_of(4, 5, 4, 1)
    assert torch.equal(boundary_targets(index, mask), torch.eye(5)[index])
    expected = [
        [0.75, 0.25, 0, 0, 0],
        [0, 0.25, 0.5, 0.25, 0],
        [0, 0, 0.25, 0.75, 0],  # the neighbour behind is padding
        [1, 0, 0, 0, 0],
    ]
    torch.testing.assert_close(boundary_targets(index, mask, 0.25), torch.tensor(expected))


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (3, 8, "..BBBIIEEE"),
        (2, 7, ".BBBIIEEE."),
        (2, 5, ".BBBEEE..."),
        (2, 4, ".BBIEE...."),  # clip 3 is claimed by both and is the middle
        (2, 3, ".BBEE....."),
        (2, 2, ".BIE......"),  # a moment of one clip is its own middle
        (0, 0, "IE........"),
        (9, 9, "........BI"),
        (0, 1, "BE E......".replace(" ", "")),
        (0, 9, "BBIIIIIIEE"),
        (8, 9, ".......BBE"),
    ],
)
def test_regions_by_hand(start, end, expected):
    letters = {OUTSIDE: ".", BEGIN: "B", INSIDE: "I", END: "E"}
    expected = expected.ljust(10, ".")
    mask = mask_of(10, 12)[:1]  # two clips of padding behind
    labels = region_labels(torch.tensor([start]), torch.tensor([end]), mask)[0].tolist()
    assert "".join(letters[label] for label in labels) == expected + ".."
    foreground = region_labels(torch.tensor([start]), torch.tensor([end]), mask, "fb")[0].tolist()
    assert foreground == [int(start <= t <= end) for t in range(12)]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (3, 8, "..BBBIIEEE"),
        (2, 5, ".BBBEEE..."),
        (2, 4, ".BBEEE...."),  # both regions claim clip 3: the end has it
        (2, 3, ".BEEE....."),
        (2, 2, ".EEE......"),
        (0, 0, "EE........"),
        (9, 9, "........EE"),
        (0, 9, "BBIIIIIIEE"),
    ],
)
def test_released_regions_are_those_of_its_loader(start, end, expected):
    letters = {OUTSIDE: ".", BEGIN: "B", INSIDE: "I", END: "E"}
    count = 10
    # utils/data_loader.py
    labels = [OUTSIDE] * count
    st_l, st_r = max(0, start - 1), min(start + 1, count - 1)
    et_l, et_r = max(0, end - 1), min(end + 1, count - 1)
    if st_r >= et_l:
        st_r = max(start, et_l - 1)
    labels[st_l : st_r + 1] = [BEGIN] * (st_r + 1 - st_l)
    labels[st_r + 1 : et_l] = [INSIDE] * max(0, et_l - st_r - 1)
    labels[et_l : et_r + 1] = [END] * (et_r + 1 - et_l)
    mask = mask_of(10, 12)[:1]
    found = released_region_labels(torch.tensor([start]), torch.tensor([end]), mask)[0].tolist()
    assert found == labels[:count] + [OUTSIDE] * 2
    assert "".join(letters[label] for label in found[:count]) == expected


# losses


@pytest.mark.parametrize("as_released", [False, True])
@pytest.mark.parametrize("matching", ["sq", "fb", "none"])
@pytest.mark.parametrize("clip_times", ["points", "extents"])
def test_losses(as_released, matching, clip_times):
    spans = [[0.1, 0.6], [0.0, 1.0], [0.3, 0.4], [0.9, 0.95]]
    config = small_config(matching=matching, clip_times=clip_times, as_released=as_released, gumbel=not as_released)
    model, batch = make_model(config).eval(), make_batch(spans=spans)
    losses, plain = model.loss(batch), PlainSeqPAN(model)
    boundary, label_nll, count = [], 0.0, 0
    for b, clips in enumerate(batch.video_mask.sum(1).tolist()):
        p_start, p_end, labels = plain(batch, b)
        mask = torch.ones(1, clips, dtype=torch.bool)
        start, end = spans_to_clips(torch.tensor([spans[b]]), mask, clip_times)
        spread = 0.25 if as_released else 0.0
        y_start = boundary_targets(start, mask, spread)[0].numpy()
        y_end = boundary_targets(end, mask, spread)[0].numpy()
        entropies = -(y_start * np.log(p_start)).sum(), -(y_end * np.log(p_end)).sum()
        boundary.append(sum(entropies) if as_released else sum(entropies) / 2)  # Eq. 13
        if labels is not None:
            released = as_released and matching == "sq"
            regions = (
                released_region_labels(start, end, mask) if released else region_labels(start, end, mask, matching)
            )
            for t, label in enumerate(regions[0].tolist()):
                label_nll -= math.log(labels[t, label])
                count += 1
    parts = {"localization": np.mean(boundary)}
    if matching != "none":
        parts["matching"] = label_nll / count
    if matching == "sq":
        e = model.matching.embeddings.detach().numpy()
        squared = sum((e[i] @ e[j]) ** 2 for i in range(4) for j in range(4) if i != j)
        parts["orthogonality"] = math.sqrt(squared) if as_released else squared
    assert set(losses) == {"loss", *parts}
    for name, value in parts.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-6)
    assert losses["loss"].item() == pytest.approx(sum(parts.values()), rel=1e-6)


def test_no_orthogonality_without_label_embeddings():
    losses = make_model(small_config(label_embeddings=False)).loss(make_batch())
    assert set(losses) == {"loss", "localization", "matching"}


# inference


def brute_force(p_start, p_end, top_n):
    pairs = [(-p_start[i] * p_end[j], i, j) for i, j in all_pairs(len(p_start))]
    return [(i, j) for _, i, j in sorted(pairs)][:top_n]


@pytest.mark.parametrize("ties", [False, True])
def test_best_clips_by_brute_force(ties):
    """Eq. 14. Ties: powers of two, so that equal products are equal to the last bit."""
    rng = np.random.default_rng(0)
    counts = [1, 2, 5, 12, 12]
    mask = mask_of(*counts)
    shape = (2, *mask.shape)
    logits = torch.tensor(-rng.integers(0, 3, shape) if ties else rng.normal(size=shape), dtype=torch.float32)
    if not ties:
        logits = masked_log_softmax(logits, mask)
    start, end, best = best_clips(logits[0], logits[1], mask, 7)
    for b, clips in enumerate(counts):
        exponents = (
            2.0 ** logits[:, b, :clips].double().numpy() if ties else np.exp(logits[:, b, :clips].double().numpy())
        )
        expected = brute_force(*exponents, 7)
        found = list(zip(start[b].tolist(), end[b].tolist(), strict=True))[: len(expected)]
        assert found == expected
        assert torch.isfinite(best[b, : len(expected)]).all()
        assert (best[b, len(expected) :] == -torch.inf).all()
        assert (best[b, 1:] <= best[b, :-1]).all()


def test_the_start_is_never_behind_the_end():
    start, end = torch.tensor([[-9.0, -9.0, 0.0]]), torch.tensor([[0.0, -9.0, -8.0]])
    i, j, best = best_clips(start, end, mask_of(3), 2)
    assert (i[0, 0].item(), j[0, 0].item(), best[0, 0].item()) == (2, 2, -8.0)
    assert (i[0, 1].item(), j[0, 1].item()) == (0, 0)


@pytest.mark.parametrize("clip_times", ["points", "extents"])
def test_predict(clip_times):
    model, batch = make_model(small_config(clip_times=clip_times)).eval(), make_batch()
    prediction, plain = model.predict(batch, top_n=4), PlainSeqPAN(model)
    assert prediction.spans.shape == (4, 1, 4, 2)
    assert prediction.scores.shape == (4, 1, 4)
    for b, clips in enumerate(batch.video_mask.sum(1).tolist()):
        p_start, p_end, _ = plain(batch, b)
        pairs = brute_force(p_start, p_end, 4)
        for k, (i, j) in enumerate(pairs):
            if clip_times == "extents":
                span = [i / clips, (j + 1) / clips]
            elif i < j:
                span = [i / (clips - 1), j / (clips - 1)]
            else:
                span = [max(0.0, i - 0.5) / max(clips - 1, 1), min(clips - 1.0, i + 0.5) / max(clips - 1, 1)]
                span = [0.0, 1.0] if clips == 1 else span
            expected = [edge * float(batch.durations[b]) for edge in span]
            np.testing.assert_allclose(prediction.spans[b, 0, k], expected, atol=1e-9)
            assert prediction.scores[b, 0, k].item() == pytest.approx(p_start[i] * p_end[j], rel=1e-5)
        missing = slice(len(pairs), None)
        assert (prediction.scores[b, 0, missing] == -torch.inf).all()
        assert not prediction.spans[b, 0, missing].any()
    assert not prediction.spans.requires_grad


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
