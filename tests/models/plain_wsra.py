"""WSRA a second time, as numpy, one video at a time; and what its tests start from."""

import math
from pathlib import Path

import numpy as np
import torch
from small import with_random_weights, word_vectors

from vpgfast.data.types import Batch, Paragraph
from vpgfast.models.wsra import (
    WSRA,
    WSRAConfig,
)

FEATURE_DIM = 7
CONFIGS = Path(__file__).parents[2] / "configs" / "wsra"
SWITCHES = [
    {},
    {"snippet_loss": 0.0, "batch_loss": 0.0},
    {"video_loss": 0.0, "batch_loss": 0.0},
    {"batch_loss": 0.0},
    {"snippet_loss": 0.0},
    {"margin": 0.5, "tau": 2.0},
    {"top_k": 2, "last_k": 1},
    {"referring_weights": False},
    {"false_negatives": True},
    {"query_negatives": True},
    {"attend": "moments"},
    {"global_feature": True},
    {"moments": "segments"},
    {"attend": "moments", "global_feature": True, "moments": "segments"},
    {"windows": [0.35, 1.0], "overlap": 0.5},
]


def small_config(**changes):
    return WSRAConfig(**{"hidden": 6, "top_k": 1, "last_k": 1, "max_clips": 12, "max_words": 6, **changes})


def make_model(config=None, dtype=torch.float64, scale=0.7):
    return with_random_weights(WSRA(config or small_config(), FEATURE_DIM, word_vectors()), scale, dtype)


VIDEOS = ("a", "b", "c", "a", "d", "e", "f", "g")
CLIPS = (9, 5, 1, 9, 12, 2, 7, 6)
WORDS = (4, 6, 2, 1, 3, 5, 4, 4)


def make_batch(clips=CLIPS, words=WORDS, videos=VIDEOS, dtype=torch.float64, seed=0):
    """A batch of single sentences with random content and no spans; two of the same video; two with the same words."""
    generator = torch.Generator().manual_seed(seed)
    size = len(clips)
    video_mask = torch.arange(max(clips)) < torch.tensor(clips).unsqueeze(1)
    word_mask = (torch.arange(max(words)) < torch.tensor(words).unsqueeze(1)).unsqueeze(1)
    video = torch.randn(size, max(clips), FEATURE_DIM, generator=generator, dtype=torch.float64)
    video = video * video_mask.unsqueeze(-1)
    ids = torch.randint(1, 20, word_mask.shape, generator=generator) * word_mask
    if size == len(VIDEOS):
        video[3], ids[7], word_mask[7] = video[0], ids[6], word_mask[6]
    durations = [10.0 * (b + 1) for b in range(size)]
    return Batch(
        paragraphs=[Paragraph(videos[b], durations[b], ("a sentence",)) for b in range(size)],
        video=video.to(dtype),
        video_mask=video_mask,
        words=ids,
        word_mask=word_mask,
        sentence_mask=torch.ones(size, 1, dtype=torch.bool),
        durations=torch.tensor(durations, dtype=torch.float64),
    )


# The method in numpy: one video at a time, no padding, a loop for every sum.


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


class PlainWSRA:
    def __init__(self, model, batch):
        self.p = {name: value.detach().numpy() for name, value in model.state_dict().items()}
        self.config, self.batch = model.config, batch
        self.size = len(batch)
        self.queries = [self.query(b) for b in range(self.size)]
        self.videos = [self.snippets(b) for b in range(self.size)]

    def phi(self, name, v, t):
        p = {key: self.p[f"{name}.{key}"] for key in ("video.weight", "video.bias", "query.weight", "out.weight")}
        hidden = np.maximum(p["video.weight"] @ v + p["video.bias"] + p["query.weight"] @ t, 0)
        return sigmoid(float(p["out.weight"][0] @ hidden + self.p[f"{name}.out.bias"][0]))

    def query(self, b):
        ids = self.batch.words[b, 0][self.batch.word_mask[b, 0]].tolist()
        return np.mean([self.p["sentence.words.unknown" if i == 1 else "sentence.words.vectors"][... if i == 1 else i]
                        for i in ids], axis=0)  # fmt: skip

    def moments(self, b):
        """Start and end of each candidate, in clips."""
        count = int(self.batch.video_mask[b].sum())
        if self.config.moments == "segments":
            return [(i, j) for size in range(1, count + 1) for i in range(count) if (j := i + size) <= count]
        spans = []
        for share in self.config.windows:
            k = 0
            while k * share * (1 - self.config.overlap) + share <= 1 + 1e-9:
                start = k * share * (1 - self.config.overlap)
                spans.append((start * count, min(start + share, 1.0) * count))
                k += 1
        return spans

    def pool(self, values, span):
        """Mean of the clips' values over a stretch of time, by exact overlap."""
        total, length = 0.0, 0.0
        for t, value in enumerate(values):
            part = max(0.0, min(span[1], t + 1) - max(span[0], t))
            total, length = total + part * value, length + part
        return total / length

    def snippets(self, b):
        clips = list(self.batch.video[b][self.batch.video_mask[b]].numpy())
        if self.config.attend == "moments":
            clips = [self.pool(clips, span) for span in self.moments(b)]
        if self.config.global_feature:
            mean = np.mean(clips, axis=0)
            clips = [np.concatenate([x, mean]) for x in clips]
        return clips

    def chosen(self, i):
        """Pseudo-positives and negatives of video i."""
        ids = [p.video_id for p in self.batch.paragraphs]
        loose = self.config.false_negatives
        others = [j for j in range(self.size) if j != i and (loose or ids[j] != ids[i])]
        others.sort(key=lambda j: -round(cosine(self.queries[i], self.queries[j]), 12))
        top, rest = others[: self.config.top_k], others[self.config.top_k :]
        rest = rest[: max(len(rest) - self.config.last_k, 0)]
        if not loose:
            rest = [j for j in rest if cosine(self.queries[i], self.queries[j]) < 1 - 1e-5]
        return top, rest

    def split(self, i):
        v, t = self.videos[i], self.queries[i]
        e = [math.exp(self.phi("phi_video", x, t)) for x in v]
        alpha = [x / sum(e) for x in e]  # Eq. 2
        foreground = sum(a * x for a, x in zip(alpha, v, strict=True))
        background = sum((1 - a) * x for a, x in zip(alpha, v, strict=True)) / (len(v) - 1) if len(v) > 1 else None
        return foreground, background  # Eq. 1

    def losses(self):
        c, result, total = self.config, {}, 0.0
        if c.video_loss:
            inside = 1.0
            for i in range(self.size):
                foreground, background = self.split(i)
                s_p = self.phi("phi_video", foreground, self.queries[i])
                if c.query_negatives:
                    for j in self.chosen(i)[1]:
                        inside += math.exp(
                            c.tau * (self.phi("phi_video", foreground, self.queries[j]) - s_p + c.margin)
                        )
                if background is not None:
                    s_n = self.phi("phi_video", background, self.queries[i])
                    inside += math.exp(c.tau * (s_n - s_p + c.margin))
            result["video"] = math.log(inside)
            total += c.video_loss * result["video"]
        if c.snippet_loss:
            per_video = []
            for j in range(self.size):
                inside = 1.0
                for v in self.videos[j]:
                    scores = [self.phi("phi_snippet", v, t) for t in self.queries]
                    beta = [math.exp(s) / sum(map(math.exp, scores)) for s in scores]  # Eq. 4
                    for i in self.chosen(j)[1]:
                        plus, minus = (beta[j], beta[i]) if c.referring_weights else (1.0, 1.0)
                        inside += math.exp(c.tau * (plus * scores[i] - minus * scores[j] + c.margin))
                per_video.append(math.log(inside))  # Eq. 5
            result["snippet"] = sum(per_video) / self.size
            total += c.snippet_loss * result["snippet"]
        if c.batch_loss:
            inside = 1.0
            for i in range(self.size):
                foreground, background = self.split(i)
                cosines = [cosine(self.queries[i], t) for t in self.queries]
                for j in self.chosen(i)[0]:
                    gamma = math.exp(cosines[j]) / sum(map(math.exp, cosines))  # Eq. 6
                    if background is not None:
                        s_p, s_n = (cosine(x, self.split(j)[0]) for x in (foreground, background))
                        inside += math.exp(c.tau * gamma * (s_n - s_p + c.margin))
            result["batch"] = math.log(inside)  # Eq. 7
            total += c.batch_loss * result["batch"]
        return {"loss": total, **result}  # Eq. 8

    def ranking(self, b):
        """Every candidate with its score, best first: [(score, start, end in seconds)]."""
        names = [n for n in ("phi_video", "phi_snippet") if getattr(self.config, n.replace("phi_", "") + "_loss")]
        scores = [np.mean([self.phi(n, v, self.queries[b]) for n in names]) for v in self.videos[b]]
        spans, duration = self.moments(b), float(self.batch.durations[b])
        if self.config.attend == "clips":
            scores = [self.pool(scores, span) for span in spans]
        count = int(self.batch.video_mask[b].sum())
        rows = [(s, x / count * duration, y / count * duration) for s, (x, y) in zip(scores, spans, strict=True)]
        return sorted(rows, key=lambda row: -round(row[0], 12))
