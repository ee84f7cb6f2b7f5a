"""``similarity``: moments without training, from how alike each clip and each sentence are.

An encoder with a text tower puts clips and sentences into one space. Their cosine over time, less what neutral texts
get there, is a sentence's curve. Spans are read off curves exactly: those of highest mean inside less mean outside
(:func:`vpgfast.ops.temporal_contrast_spans`) for a sentence by itself, and for a paragraph the spans in its order that
together gain most (:func:`vpgfast.ops.ordered_spans`). Nothing is trained and no span is ever seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, BatchNeeds, FeatureReader, Prediction
from vpgfast.errors import ConfigError
from vpgfast.models.configs.similarity import SimilarityConfig
from vpgfast.models.layers import at_least_float32
from vpgfast.models.method import RetrievalMethod
from vpgfast.ops import ordered_spans, temporal_contrast_spans, temporal_nms

_LONGEST = 100_000
"""Clips: what the ops take; a longer video is pooled."""


@runtime_checkable
class TextTower(Protocol):
    """What reads a sentence into the space of the clips."""

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """float32 [M, d_v]."""


class Similarity(RetrievalMethod):
    """See the module."""

    name = "similarity"
    Config = SimilarityConfig
    config: SimilarityConfig

    @staticmethod
    def needs(config: SimilarityConfig) -> BatchNeeds:
        level = "paragraph" if config.order == "paragraph" else "sentence"
        return BatchNeeds(level=level, labelled_share=0.0, max_clips=_LONGEST, vocabulary=False)  # type: ignore[arg-type]

    def __init__(self, config: SimilarityConfig, feature_dim: int, word_vectors: WordVectors) -> None:
        super().__init__(config, feature_dim, word_vectors)
        self.config, self.feature_dim = config, feature_dim
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # where it is: it has no weights
        self.tower: TextTower | None = None
        self._known: dict[str, Tensor] = {}

    def read_with(self, features: FeatureReader) -> None:
        """Read sentences as the features' own encoder does, unless the config names one.

        Raises:
            ConfigError: nothing is known that could read a sentence into their space.
        """
        if self.config.encoder is None and isinstance(features, TextTower):
            self.tower = features  # simulated features have the simulation's own map
            return
        spec = self.config.encoder or (features.encoder.spec if features.encoder else None)
        if spec is None:
            raise ConfigError(
                f"method similarity: nothing tells what made the features ({features.source}); name their encoder by "
                "--model.encoder SPEC"
            )
        self.tower = self._tower_of(spec)

    def _tower_of(self, spec: str) -> TextTower:
        from vpgfast.encoders.base import load_encoder  # only here: trained methods do without

        encoder = load_encoder(spec, device=self.place.device)
        if not encoder.has_text:
            encoder.encode_text([])  # says which families read text
        if encoder.dim != self.feature_dim:
            raise ConfigError(
                f"method similarity: encoder {spec} makes vectors of width {encoder.dim}, the features have "
                f"{self.feature_dim}"
            )
        return encoder

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        raise ConfigError("method similarity has nothing to train; evaluate it, or ground and search with it")

    def texts(self, sentences: Sequence[str]) -> Tensor:
        """float32 [N, d_v] of length 1, each text read once."""
        new = [text for text in dict.fromkeys(sentences) if text not in self._known]
        if new:
            if self.tower is None:
                if self.config.encoder is None:
                    raise ConfigError(
                        "method similarity: nothing reads the sentences; name an encoder by --model.encoder"
                    )
                self.tower = self._tower_of(self.config.encoder)
            rows = F.normalize(self.tower.encode_text(new).float().cpu(), dim=-1)
            self._known.update(zip(new, rows, strict=True))
        return torch.stack([self._known[text] for text in sentences]).to(self.place.device)

    def curves(self, batch: Batch) -> Tensor:
        """How well each clip fits each sentence: float32 or wider [B, M, T], zero where padded."""
        clips = F.normalize(at_least_float32(batch.video), dim=-1)
        texts = clips.new_zeros(*batch.sentence_mask.shape, self.feature_dim)
        own = [self.config.template.format(text) for p in batch.paragraphs for text in p.sentences]
        texts[batch.sentence_mask] = self.texts(own).to(clips.dtype)
        curves = texts @ clips.transpose(1, 2)
        if self.config.neutral:
            neutral = self.texts([self.config.template.format(text) for text in self.config.neutral])
            curves = curves - (clips @ neutral.to(clips.dtype).T).mean(-1)[:, None]
        return torch.stack(
            [
                smoothed(curve, mask, self.config.smooth * int(mask.sum()) / float(seconds))
                for curve, mask, seconds in zip(curves, batch.video_mask, batch.durations, strict=True)
            ]
        )

    def predict(self, batch: Batch, top_n: int = 10) -> Prediction:
        return self.rank(self.curves(batch), batch, top_n)

    def rank(self, curves: Tensor, batch: Batch, top_n: int) -> Prediction:
        """The prediction from what :meth:`curves` gave for the batch."""
        spans, scores = self._contrasts(curves, batch, top_n)
        if self.config.span == "sum" or (self.config.order == "paragraph" and curves.shape[1] > 1):
            spans, scores = self._put_first(self._sums(curves, batch), spans, scores)
        clips = batch.video_mask.sum(-1)[:, None, None, None]
        seconds = spans.clamp(min=0) * batch.durations[:, None, None, None] / clips
        return Prediction(seconds, scores, curves)

    def _lengths(self, batch: Batch, b: int) -> tuple[int, int]:
        """Fewest and most clips of a span in video b."""
        clips, seconds = int(batch.video_mask[b].sum()), float(batch.durations[b])
        shortest = min(max(1, round(self.config.min_seconds * clips / seconds)), clips)
        return shortest, max(shortest, int(self.config.max_share * clips))

    def _contrasts(self, curves: Tensor, batch: Batch, top_n: int) -> tuple[Tensor, Tensor]:
        """Spans [B, M, K, 2] in clips of highest mean inside less mean outside, and that difference [B, M, K]."""
        spans = torch.full((*curves.shape[:2], top_n, 2), -1, dtype=torch.int64, device=curves.device)
        scores = curves.new_full((*curves.shape[:2], top_n), -torch.inf)
        for b in range(len(curves)):  # videos differ in how many clips make a second
            limits = self._lengths(batch, b)
            mask = batch.video_mask[b : b + 1]
            found = temporal_contrast_spans(curves[b : b + 1], mask, *limits, top_n, self.config.overlap_of_ranked)
            spans[b], scores[b] = found[0][0], found[1][0]
        return spans, scores

    def _sums(self, curves: Tensor, batch: Batch) -> Tensor:
        """One span a sentence [B, M, 2] in clips, of the largest sum above the level; of a paragraph in its order."""
        spans = torch.full((*curves.shape[:2], 2), -1, dtype=torch.int64, device=curves.device)
        together = self.config.order == "paragraph"
        for b in range(len(curves)):
            shortest, longest = self._lengths(batch, b)
            mask, present = batch.video_mask[b : b + 1], batch.sentence_mask[b]
            clips, count = int(mask.sum()), int(present.sum())
            real = curves[b, :, :clips]
            mean = real.mean(-1)
            gains = curves[b] - torch.lerp(mean, real.amax(-1), self.config.level)[:, None]
            if not together:  # each sentence is a paragraph of its own
                found, _ = ordered_spans(gains[:, None], shortest, longest, mask=mask.expand(len(gains), -1))
                spans[b] = torch.where(present[:, None], found[:, 0], -1)
                continue
            if self.config.overlap == "none":
                shortest = min(shortest, max(1, clips // count))  # or there is no room for all
            found, _ = ordered_spans(gains[None], shortest, longest, self.config.overlap, present[None], mask)
            spans[b] = found[0]
        return spans

    def _put_first(self, first: Tensor, spans: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """``first`` [B, M, 2] before the ranked spans; of these the ones that are much the same as it are dropped."""
        lead = torch.where(first[..., :1] >= 0, first, spans[:, :, 0])
        both = torch.cat((lead[:, :, None], spans), 2)
        ranks = torch.cat((torch.full_like(scores[:, :, :1], torch.inf), scores), 2)
        kept = temporal_nms(both.clamp(min=0).float(), ranks, self.config.overlap_of_ranked, spans.shape[2])
        index = kept.clamp(min=0)
        spans = both.gather(2, index[..., None].expand(*index.shape, 2))
        falling = torch.cat((scores[:, :, :1], scores), 2)  # the first place has the best score
        return spans, torch.where(kept >= 0, falling.gather(2, index), -torch.inf)

    def embed_videos(self, video: Tensor, video_mask: Tensor) -> Tensor:
        clips = F.normalize(at_least_float32(video), dim=-1) * video_mask[..., None]
        return F.normalize(clips.sum(1), dim=-1)

    def embed_paragraphs(self, batch: Batch) -> Tensor:
        own = [self.config.template.format(text) for p in batch.paragraphs for text in p.sentences]
        texts = batch.video.new_zeros(*batch.sentence_mask.shape, self.feature_dim, dtype=torch.float32)
        texts[batch.sentence_mask] = self.texts(own)
        return F.normalize(texts.sum(1), dim=-1)


def smoothed(curves: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """[M, T] curves under a Gaussian of ``sigma`` clips, over the clips of ``mask`` [T] alone; zero elsewhere."""
    real = curves * mask
    if sigma <= 0:
        return real
    radius = min(max(1, round(3 * sigma)), curves.shape[-1])
    offsets = torch.arange(-radius, radius + 1, device=curves.device, dtype=curves.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)[None, None]
    sums = F.conv1d(real[:, None], kernel, padding=radius)[:, 0]
    weights = F.conv1d(mask[None, None].to(curves.dtype), kernel, padding=radius)[0, 0]
    return sums / weights.clamp(min=1e-12) * mask
