"""SeqPAN a second time, as numpy that knows no padding and no batches; and what its tests start from."""

import math
from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import torch
from small import with_random_weights, word_vectors

from vpgfast.data.text import NUM_CHARS
from vpgfast.data.types import Batch, Paragraph
from vpgfast.models.seqpan import (
    SeqPAN,
    SeqPANConfig,
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


def all_pairs(clips):
    return [(i, j) for i in range(clips) for j in range(i, clips)]


def iou(a, b):
    inside = min(a[1], b[1]) - max(a[0], b[0])
    return max(0.0, inside) / (max(a[1], b[1]) - min(a[0], b[0]))
