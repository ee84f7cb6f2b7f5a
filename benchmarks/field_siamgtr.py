"""SiamGTR's training loss in the form of the field's code, and in plain PyTorch.

Both take a :class:`vpgfast.models.siamgtr.SiamGTR` for its weights, so that all compute the same thing.

:class:`FieldSiamGTR` does as the released paragraph-grounding code of PRVG: one paragraph after another through the
whole network, every branch by itself, pseudo videos built clip by clip, attention over concatenated heads that returns
its matrix, and losses by loops over sentences and clips. :func:`plain` is batched as ours is, of PyTorch's own layers:
our ``Linear``, though PyTorch's operators are all that it is made of, counts as ours.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from vpgfast.data.types import Batch
from vpgfast.models.layers import FeedForward, Linear, Residual, sinusoid
from vpgfast.models.siamgtr import SiamGTR
from vpgfast.models.siamgtr_network import CrossAttention, EncoderLayer
from vpgfast.models.siamgtr_training import Insertions, draw_insertions
from vpgfast.ops import AttentionStats


class PlainCrossAttention(CrossAttention):
    """Our cross-attention over concatenated heads, with keys and values built and statistics read off the matrix."""

    def forward(
        self,
        x: Tensor,
        anchors: Tensor | None,
        memory: Tensor,
        positions: Tensor,
        inside: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, AttentionStats]:
        query, key = self.split(self.query(x)), self.split(self.key(memory))
        position = self.split(self.key_position(positions).expand_as(memory))
        if anchors is None:
            key = key + position
        else:
            query, key = (
                torch.cat([query, self.split(self.query_position(anchors))], -1),
                torch.cat([key, position], -1),
            )
        weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(-1)
        attended = weights @ self.split(self.value(memory) + self.value_position(positions))
        mean, t = weights.mean(1), torch.arange(memory.shape[1], device=memory.device)
        mass = None
        if inside is not None:
            mass = (mean * ((inside[..., :1] <= t) & (t <= inside[..., 1:]))).sum(-1)
        return self.out(attended.transpose(1, 2).flatten(2)), AttentionStats((mean * t).sum(-1), mass, weights)


class PlainFeedForward(FeedForward):
    """Our feed-forward network with PyTorch's ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.dropout(self.hidden(x).relu()))


def plain(model: SiamGTR) -> SiamGTR:
    """A copy of a model in plain PyTorch, batched as ours is; the same names of parameters."""
    other = copy.deepcopy(model)
    plain_of = {CrossAttention: PlainCrossAttention, FeedForward: PlainFeedForward, Linear: nn.Linear}
    for part in other.modules():
        part.__class__ = plain_of.get(type(part), type(part))
    return other


class FieldSiamGTR:
    """The weakly supervised loss with the paper's settings; needs a batch of two videos or more."""

    def __init__(self, model: SiamGTR) -> None:
        self.model = model

    def loss(self, batch: Batch) -> Tensor:
        """The weighted sum of section 3.5."""
        config = self.model.config
        drawn = draw_insertions(batch, config)
        sums: dict[str, list[Tensor]] = {}
        for b in range(len(batch)):
            sentences = int(batch.sentence_mask[b].sum())
            words = [batch.words[b, m, : int(batch.word_mask[b, m].sum())] for m in range(sentences)]
            pseudo, (start, end) = self.pseudo_video(batch.video, drawn, b)
            text, normal, order = self.branch(batch.video[b], words)
            _, augmented, order_augmented = self.branch(pseudo, words)
            self.add(sums, self.concept_losses(text, words))
            for m in range(sentences - 1):
                sums.setdefault("order", []).append((0.5 / sentences + order[m] - order[m + 1]).relu())
                gap = 0.25 / sentences
                sums.setdefault("order_augmented", []).append(
                    (gap + order_augmented[m] - order_augmented[m + 1]).relu()
                )
                centres = normal["anchors"][-1][1:, 0].sigmoid()
                sums.setdefault("anchor_ranking", []).append((0.5 / sentences + centres[m] - centres[m + 1]).relu())
            inside = self.inside(start, end)
            for weights in augmented["weights"]:
                sums.setdefault("pseudo_attention", []).append(-(weights[0] * inside).sum().log())
            consistent = (augmented["weights"][-1][0] * inside).sum() > config.beta
            sums.setdefault("regression", []).append(
                self.regression(augmented["features"][-1][0], start, end) * consistent
            )
            for one, other in zip(augmented["features"], normal["features"], strict=True):
                for m in range(sentences):
                    cosine = F.cosine_similarity(one[1 + m], other[1 + m].detach(), dim=0)
                    sums.setdefault("cross_branch", []).append(1 - cosine)
                cosine = F.cosine_similarity(one[0].detach(), other[0], dim=0)
                sums.setdefault("cross_branch_paragraph", []).append(1 - cosine)
        means = {name: torch.stack(values).mean() for name, values in sums.items()}
        weights = {
            "concept": config.concept_weight,
            "concept_paragraph": config.concept_weight,
            "order": config.order_weight,
            "order_augmented": config.order_weight,
            "anchor_ranking": config.anchor_ranking_weight,
            "pseudo_attention": config.pseudo_attention_weight,
            "regression": config.regression_weight,
            "cross_branch": config.cross_branch_weight,
            "cross_branch_paragraph": config.cross_branch_weight,
        }
        return torch.stack([weights[name] * value for name, value in means.items()]).sum()

    def pseudo_video(self, video: Tensor, drawn: Insertions, b: int) -> tuple[Tensor, tuple[float, float]]:
        """Eq. 1-2 on the features as they are read, clip by clip."""
        stride, place = drawn.stride[b].item(), int(drawn.place[b])
        own, background = video[b], video[drawn.background[b]]
        inserted = [own[int(i * stride)] for i in range(math.ceil(len(own) / stride))]
        whole = torch.stack([*background[:place], *inserted, *background[place:]])
        pseudo = F.interpolate(whole.t().unsqueeze(0), len(own), mode="linear", align_corners=False)[0].t()
        first, last = (drawn.shift[b] * len(inserted)).tolist()
        return pseudo, ((place + first) / len(whole), (place + len(inserted) - last) / len(whole))

    def branch(self, video: Tensor, words: list[Tensor]) -> tuple[Tensor, dict[str, list[Tensor]], Tensor]:
        """One paragraph in one video: Z_q [Q, D], what every decoder layer finds, and the sentences' centroids [M]."""
        model = self.model
        queries = self.queries(words)
        memory = model.clips(video)
        positions = sinusoid(len(memory), memory.shape[1], memory)
        for layer in model.video.layers:
            memory = self.encoder_layer(layer, memory, positions)

        decoder = model.decoder
        x, logits = queries, None
        found: dict[str, list[Tensor]] = {"features": [], "anchors": [], "weights": []}
        for layer in decoder.layers:
            anchors = torch.zeros(len(x), 2) if logits is None else logits.sigmoid()
            anchors = anchors.to(x) * len(memory)
            rate = 10000.0 ** (-torch.arange(0, decoder.dim // 2, 2).to(x) / (decoder.dim // 2))
            angles = anchors.unsqueeze(2) * rate
            embedded = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
            both = layer.query_key(x) + layer.query_key_position(decoder.position(embedded))
            query, key = both.chunk(2, -1)
            attended, _ = self.attention(layer.heads, query, key, layer.value(x))
            x = layer.norm(x + layer.out(attended))
            cross = layer.cross
            # Each head gets its part of the content beside its part of the position.
            query = torch.cat([self.split(layer, cross.query(x)), self.split(layer, cross.query_position(embedded))], 2)
            key = torch.cat([self.split(layer, cross.key(memory)), self.split(layer, cross.key_position(positions))], 2)
            value = cross.value(memory) + cross.value_position(positions)
            attended, weights = self.attention(layer.heads, query.flatten(1), key.flatten(1), value)
            x = self.feed_forward(layer.feed_forward, layer.cross_norm(x + cross.out(attended)))
            logits = decoder.seed(x) if logits is None else logits + decoder.offset(x)
            found["features"].append(x)
            found["anchors"].append(logits)
            found["weights"].append(weights)
        clips = torch.arange(len(memory)).to(x) / len(memory)
        return queries, found, (found["weights"][-1][1:] * clips).sum(1)

    def queries(self, words: list[Tensor]) -> Tensor:
        """Z_q [1 + M, D] of a paragraph, whose sentences' last states are picked one after another."""
        text = self.model.text
        lengths = torch.tensor([len(sentence) for sentence in words])
        padded = torch.nn.utils.rnn.pad_sequence([text.words(sentence) for sentence in words], batch_first=True)
        _, states = text.gru(pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False))
        sentences = [text.sentence(torch.cat([states[0, m], states[1, m]])) for m in range(len(words))]
        x = text.norm(torch.stack([text.token, *sentences]))
        x = x + sinusoid(len(x), x.shape[1], x)
        for layer in text.layers:
            x = self.encoder_layer(layer, x)
        return x

    def encoder_layer(self, layer: EncoderLayer, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """A DETR layer on one sequence [N, D]."""
        where = x if positions is None else x + layer.modulate(x) * positions
        query, key = layer.query_key(where).chunk(2, -1)
        attended, _ = self.attention(layer.heads, query, key, layer.value(x))
        return self.feed_forward(layer.feed_forward, layer.norm(x + layer.out(attended)))

    @staticmethod
    def feed_forward(layer: Residual, x: Tensor) -> Tensor:
        return layer.norm(x + layer.layer.out(layer.layer.hidden(x).relu()))

    @staticmethod
    def split(layer: torch.nn.Module, x: Tensor) -> Tensor:
        """[N, D] -> [N, H, D / H]."""
        return x.unflatten(1, (layer.heads, -1))

    @staticmethod
    def attention(heads: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """[Q, D], [N, D], [N, D'] -> [Q, D'] and the mean of the heads' weights [Q, N], as nn.MultiheadAttention."""
        q, k, v = (x.unflatten(1, (heads, -1)).transpose(0, 1) for x in (query, key, value))
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(-1)
        return (weights @ v).transpose(0, 1).flatten(1), weights.mean(0)

    def inside(self, start: float, end: float) -> Tensor:
        """Which clips have their middle in an interval, clip by clip, [T]; the nearest one if none has."""
        T = self.model.config.max_clips
        mask = torch.zeros(T, device=next(self.model.parameters()).device)
        for k in range(T):
            if start <= (k + 0.5) / T <= end:
                mask[k] = 1
        if mask.sum() == 0:
            mask[min(int((start + end) / 2 * T), T - 1)] = 1
        return mask

    def regression(self, features: Tensor, start: float, end: float) -> Tensor:
        """L1 and generalised IoU of one predicted span, by scalars."""
        centre, width = self.model.span(features).sigmoid()
        low, high = centre - width / 2, centre + width / 2
        distance = (low - start).abs() + (high - end).abs()
        shared = (high.clamp(max=end) - low.clamp(min=start)).clamp(min=0)
        union = (high - low) + (end - start) - shared
        hull = high.clamp(min=end) - low.clamp(max=start)
        return distance + 1 - (shared / union - (hull - union) / hull)

    def concept_losses(self, text: Tensor, words: list[Tensor]) -> dict[str, list[Tensor]]:
        """Eq. 5, sentence by sentence."""
        concepts = self.model.concepts
        known = concepts.words[concepts.words > 0]
        dictionary = concepts.project(concepts.vectors[: len(known)])
        held = [torch.stack([(sentence == word).any() for word in known]) for sentence in words]
        labels = [torch.stack(held).any(0), *held]
        losses = [
            F.binary_cross_entropy_with_logits(dictionary @ z, label.to(z))
            for z, label in zip(text, labels, strict=True)
        ]
        return {"concept_paragraph": losses[:1], "concept": losses[1:]}

    @staticmethod
    def add(sums: dict[str, list[Tensor]], losses: dict[str, list[Tensor]]) -> None:
        for name, values in losses.items():
            sums.setdefault(name, []).extend(values)
