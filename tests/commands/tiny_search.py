"""A small method that also finds videos: tiny, with a vector of the mean clip and one of the mean word."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tiny import Tiny, TinyConfig
from torch import Tensor, nn

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch
from vpgfast.models.method import RetrievalMethod
from vpgfast.models.registry import Place

NAME = "tiny_search"
PLACE = Place("tiny_search:TinySearch", "tiny:TinyConfig")


class TinySearch(Tiny, RetrievalMethod):
    """Grounds as :class:`tiny.Tiny` does; videos and paragraphs are contrasted within a batch."""

    name = NAME
    Config = TinyConfig

    def __init__(self, config: TinyConfig, feature_dim: int, word_vectors: WordVectors) -> None:
        super().__init__(config, feature_dim, word_vectors)
        self.video_vector = nn.Linear(feature_dim, 32)
        self.text_vector = nn.Linear(word_vectors.dim, 32)

    def embed_videos(self, video: Tensor, video_mask: Tensor) -> Tensor:
        clips = video_mask.sum(-1, keepdim=True)
        return F.normalize(self.video_vector((video * video_mask[..., None]).sum(1) / clips), dim=-1)

    def embed_paragraphs(self, batch: Batch) -> Tensor:
        words = batch.word_mask.sum((1, 2))[:, None]
        mean = (self.words(batch.words) * batch.word_mask[..., None]).sum((1, 2)) / words
        return F.normalize(self.text_vector(mean), dim=-1)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().loss(batch)
        products = 10 * self.embed_paragraphs(batch) @ self.embed_videos(batch.video, batch.video_mask).T
        contrast = F.cross_entropy(products, torch.arange(len(batch)))
        return {"loss": losses["loss"] + contrast, "contrast": contrast}
