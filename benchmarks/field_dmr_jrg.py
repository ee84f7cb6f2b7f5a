"""DMR-JRG's training loss in the form of the field's code.

It takes a :class:`vpgfast.models.dmr_jrg.DMRJRG` for its weights and its draws, so that both compute the same thing,
and does as the released code of DMR-JRG and of 2D-TAN: sentences padded to those of the longest paragraph, and padded
ones go through everything; a map of stacked max-poolings; fusion repeated over the sentences; full convolutions
multiplied by a mask; the suppression of Eq. 18-19 sentence by sentence on the whole features; overlaps with
pseudo-labels by NumPy, candidates picked one number at a time; words and clips repeated for every candidate, and every
word held against the vocabulary. (Two mistakes of that code are not repeated: layers made anew in every step, and a
``view`` that mixes up the videos of a batch.)
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vpgfast.data.types import Batch
from vpgfast.models.dmr_jrg import DMRJRG
from vpgfast.models.dmr_jrg_parts import ClassEncoder
from vpgfast.models.layers import FeedForward, MultiHeadAttention, Residual, sinusoid


class FieldDMRJRG:
    """The loss with the paper's settings, in either ``reduction`` and with any number and weights of candidates."""

    def __init__(self, model: DMRJRG) -> None:
        self.model = model

    def loss(self, batch: Batch) -> Tensor:
        """Eq. 23 and, with ``train_sync_heads``, Eq. 12 of the two branches' maps."""
        model, config = self.model, self.model.config
        K, Q, D = config.segments, config.candidates, config.dim
        drawn, there = model.draw(batch), batch.sentence_mask
        B, M, W = batch.words.shape

        segments = F.avg_pool1d(model.clips(batch.video).relu().transpose(1, 2), config.max_clips // K)  # [B, D, K]
        masked = torch.zeros(B, M, W, dtype=torch.bool, device=there.device)
        masked[there] = drawn.masked
        words = model.text.words(batch.words)
        sentences, _ = self.read(words, batch)
        _, states = self.read(torch.where(masked.unsqueeze(3), model.text.mask, words), batch)

        video = self.class_token(model.video_encoder.token, segments.transpose(1, 2), None, model.video_encoder)
        paragraph = self.class_token(model.text_encoder.token, sentences, there, model.text_encoder)
        similarity = self.cosines(paragraph, video)
        total = self.contrast(similarity, drawn.negatives[0], config.retrieval_nce)

        fused = self.fuse(sentences, self.stacked_pooling(segments))
        upper = torch.ones(K, K, device=fused.device).triu().to(fused)
        features = self.tan(fused.flatten(0, 1), upper)  # [B M, D, K, K]
        valid = upper * there.flatten()[:, None, None]
        P = self.predict(model.score, features) * valid
        chosen = self.best(P, Q, there)  # [B][M][Q] of (i, j)
        forward = self.scan(model.forward_score, features, there, reverse=False)
        reverse = self.scan(model.reverse_score, features, there, reverse=True)
        for synced in (forward, reverse):
            total = total + self.time_loss(P, valid, synced, there)

        nll = self.reconstruct(batch, states, chosen)  # [B, M, Q]
        if config.reduction == "mean":
            nll = nll / batch.word_mask.sum(2, keepdim=True).clamp_min(1)
        P = P.unflatten(0, (B, M))
        maps = [P, forward, reverse] if config.train_sync_heads else [P]
        for b in range(B):
            for m in range(int(there[b].sum())):
                share = int(there[b].sum()) * B
                total = total + nll[b, m].mean() / share
                rewards = 1 - nll[b, m].argsort().argsort() / max(Q - 1, 1)
                for scores in maps:
                    at = torch.stack([scores[b, m, i, j] for i, j in chosen[b][m]])
                    total = total - (rewards * (at.exp() / at.exp().sum()).log()).mean() / share

        picked = torch.zeros(B, M, D, dtype=features.dtype, device=features.device)
        weights = list(model.candidate_weights)
        for b in range(B):
            for m in range(int(there[b].sum())):
                for q, (i, j) in enumerate(chosen[b][m]):
                    picked[b, m] = picked[b, m] + weights[q].to(features) * features[b * M + m, :, i, j]
        found = self.class_token(model.moment_token, picked, there, model.video_encoder)
        fine = self.cosines(paragraph, model.fuse_tokens(torch.cat([video, found], 1)))
        total = total + self.contrast(fine, drawn.negatives[1], config.global_nce)
        return total + ((similarity - fine.detach()) ** 2).mean()

    def read(self, words: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Bi-LSTM, one paragraph after another: last states of its sentences [B, M, D], all states [B, M, W, D]."""
        B, M, W = batch.words.shape
        dim = self.model.config.dim
        sentences, states = words.new_zeros(B, M, dim), words.new_zeros(B, M, W, dim)
        for b in range(B):
            count = int(batch.sentence_mask[b].sum())
            lengths = batch.word_mask[b, :count].sum(1).cpu()
            packed = pack_padded_sequence(words[b, :count], lengths, batch_first=True, enforce_sorted=False)
            out, _ = self.model.text.lstm(packed)
            out, _ = pad_packed_sequence(out, batch_first=True, total_length=W)
            states[b, :count] = out
            for m in range(count):
                last = int(lengths[m]) - 1
                sentences[b, m] = torch.cat([out[m, last, : dim // 2], out[m, 0, dim // 2 :]])
        return sentences, states

    def class_token(self, token: Tensor, x: Tensor, mask: Tensor | None, encoder: ClassEncoder) -> Tensor:
        """Eq. 1 and 15."""
        x = torch.cat([token.repeat(len(x), 1, 1), encoder.norm(x)], 1)
        x = x + sinusoid(x.shape[1], x.shape[2], x)
        mask = torch.ones(x.shape[:2]) > 0 if mask is None else F.pad(mask, (1, 0), value=True)
        for layer in encoder.layers:
            x = self.attend(layer.itself, x, x, mask.to(x.device))
            x = self.feed_forward(layer.feed_forward, x)
        return x[:, 0]

    @staticmethod
    def attend(layer: Residual, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """As nn.MultiheadAttention, with its matrix."""
        inner = layer.layer
        assert isinstance(inner, MultiHeadAttention)
        key, value = inner.key_value(context).chunk(2, -1)
        q, k, v = (y.unflatten(2, (inner.heads, -1)).transpose(1, 2) for y in (inner.query(x), key, value))
        logits = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None], torch.finfo(logits.dtype).min)
        attended = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return layer.norm(x + layer.dropout(inner.out(attended)))

    @staticmethod
    def feed_forward(layer: Residual, x: Tensor) -> Tensor:
        inner = layer.layer
        assert isinstance(inner, FeedForward)
        return layer.norm(x + layer.dropout(inner.out(inner.dropout(inner.hidden(x).relu()))))

    @staticmethod
    def cosines(one: Tensor, other: Tensor) -> Tensor:
        return (one / one.norm(dim=1, keepdim=True)) @ (other / other.norm(dim=1, keepdim=True)).t()

    def contrast(self, similarity: Tensor, draws: Tensor, nce: float) -> Tensor:
        """Triplets by a sorted copy (Eq. 5-7), and InfoNCE off the diagonals of two log-softmaxes (Eq. 2-4)."""
        config, B = self.model.config, len(similarity)
        scale = self.model.log_scale.exp() if config.scale is None else config.scale
        logits = similarity * scale
        loss = -nce * (logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean())
        row = torch.arange(B, device=similarity.device)
        for scores, draw in ((similarity, draws[0]), (similarity.t(), draws[1])):
            masked = scores.clone().detach().fill_diagonal_(999)  # the positive comes first
            order = masked.sort(descending=True, dim=1).indices
            negative = scores[row, order[row, 1 + (draw * min(config.hardest, B - 1)).long()]]
            loss = loss + (config.margin + negative - scores[row, row]).clamp(min=0).sum() / B
        return loss

    def stacked_pooling(self, segments: Tensor) -> Tensor:
        """F [B, D, K, K]: one MaxPool1d on top of the other, each assigned to a diagonal."""
        B, D, K = segments.shape
        moments = segments.new_zeros(B, D, K, K)
        x = segments
        for length in range(K):
            x = x if length == 0 else F.max_pool1d(x, 2, stride=1)
            starts = list(range(K - length))
            moments[:, :, starts, [start + length for start in starts]] = x
        return moments

    def fuse(self, sentences: Tensor, moments: Tensor) -> Tensor:
        """Eq. 8: [B, M, D] and [B, D, K, K] -> [B, M, D, K, K]."""
        text = self.model.fuse_sentence(sentences)[..., None, None]
        video = F.conv2d(moments, self.model.fuse_moment.weight[:, :, None, None])
        return text * video.unsqueeze(1).repeat(1, text.shape[1], 1, 1, 1)

    def tan(self, x: Tensor, mask: Tensor) -> Tensor:
        """2D-TAN's layers: every cell is convolved, then masked, in 2D-TAN by one over the number of valid taps.

        All of the padding is at the first layer.
        """
        context = self.model.context
        mask, paddings = mask[None, None], [sum(context.paddings), *(0 for _ in context.paddings[1:])]
        for conv, padding in zip(context.convs, paddings, strict=True):
            taps = F.conv2d(mask, torch.ones_like(conv.weight[:1, :1]), padding=padding).round()
            weight = (1 / taps.clamp(min=1) if context.normalize else 1) * (taps > 0)
            x = F.conv2d(x, conv.weight, conv.bias, padding=padding).relu() * weight
            mask = (taps > 0).to(x)
        return x

    @staticmethod
    def predict(layer: nn.Linear, features: Tensor) -> Tensor:
        """A prediction layer: [L, D, K, K] -> [L, K, K]."""
        return F.conv2d(features, layer.weight[:, :, None, None], layer.bias).squeeze(1).sigmoid()

    @staticmethod
    def best(P: Tensor, count: int, there: Tensor) -> list[list[list[tuple[int, int]]]]:
        """The moments of the highest scores, number by number."""
        B, M = there.shape
        chosen = []
        for b in range(B):
            row = []
            for m in range(M):
                values = P[b * M + m].flatten()
                indices = values.topk(count).indices
                row.append([tuple(map(int, np.unravel_index(index.item(), P.shape[1:]))) for index in indices])
            chosen.append(row)
        return chosen

    def scan(self, layer: nn.Linear, features: Tensor, there: Tensor, reverse: bool) -> Tensor:
        """Eq. 18 and 19 on the features themselves: [B M, D, K, K] -> [B, M, K, K]."""
        B, M = there.shape
        features = features.unflatten(0, (B, M))
        batches = []
        for b in range(B):
            maps: dict[int, Tensor] = {}
            for m in reversed(range(M)) if reverse else range(M):
                if there[b, m].item():
                    left = 1 - sum(maps.values(), torch.zeros_like(features[b, m, 0]))
                    suppressed = features[b, m] * left.expand_as(features[b, m])
                    maps[m] = self.predict(layer, suppressed[None])[0]
            nothing = torch.zeros_like(features[b, 0, 0])
            batches.append(torch.stack([maps.get(m, nothing) for m in range(M)]))
        return torch.stack(batches)

    def time_loss(self, P: Tensor, valid: Tensor, synced: Tensor, there: Tensor) -> Tensor:
        """Eq. 20 or 21, the overlaps by NumPy."""
        config = self.model.config
        B, M = there.shape
        K = config.segments
        first, last = np.meshgrid(np.arange(K), np.arange(1, K + 1), indexing="ij")
        targets = torch.zeros(B * M, K, K, dtype=torch.float64)
        for b in range(B):
            for m in range(M):
                if not there[b, m].item():
                    continue
                index = (synced[b, m].detach() + torch.ones_like(synced[b, m]).triu()).argmax()  # on the triangle
                start, end = np.unravel_index(index.item(), (K, K))
                shared = np.maximum(0, np.minimum(last, end + 1) - np.maximum(first, start))
                union = np.maximum(last, end + 1) - np.minimum(first, start)
                targets[b * M + m] = torch.from_numpy(shared / union)
        targets = ((targets - config.min_iou) / (config.max_iou - config.min_iou)).clamp(0, 1)
        each = F.binary_cross_entropy(P, targets.to(P), reduction="none") * valid
        return each.sum() / (B if config.reduction == "sum" else valid.sum())

    def reconstruct(self, batch: Batch, states: Tensor, chosen: list[list[list[tuple[int, int]]]]) -> Tensor:
        """Eq. 9-11: sums over the words of a sentence, [B, M, Q]; every candidate reads the words by itself."""
        reconstructor, config = self.model.reconstructor, self.model.config
        B, M, W = batch.words.shape
        Q, length = config.candidates, config.max_clips // config.segments
        frames = []
        for b in range(B):
            for m in range(M):
                for i, j in chosen[b][m]:
                    index = np.linspace(i * length, (j + 1) * length, reconstructor.samples, endpoint=False)
                    frames.append(batch.video[b, np.floor(index + 1e-9).astype(np.int64)])
        clips = reconstructor.clips(torch.stack(frames))
        clips = clips + sinusoid(clips.shape[1], clips.shape[2], clips)
        for layer in reconstructor.encoder:
            clips = self.feed_forward(layer.feed_forward, self.attend(layer.itself, clips, clips, None))
        x = reconstructor.words(states) + sinusoid(W, states.shape[3], states)
        x = x.unsqueeze(2).repeat(1, 1, Q, 1, 1).view(B * M * Q, W, -1)
        mask = batch.word_mask.unsqueeze(2).repeat(1, 1, Q, 1).view(B * M * Q, W)
        for layer in reconstructor.decoder:
            x = self.attend(layer.itself, x, x, mask)
            x = self.feed_forward(layer.feed_forward, self.attend(layer.clips, x, clips, None))
        logs = reconstructor.out(x).log_softmax(-1)
        labels = batch.words.unsqueeze(2).repeat(1, 1, Q, 1).view(B * M * Q, W, 1)
        nll = -logs.gather(2, labels).squeeze(2).masked_fill(~mask, 0)
        return nll.sum(1).view(B, M, Q)
