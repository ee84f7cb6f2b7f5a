"""A small method and how to run the commands with it, also as a program: ``python tiny.py train --method tiny ...``."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, BatchNeeds, Prediction
from vpgfast.models.configs.base import MethodConfig
from vpgfast.models.method import Method
from vpgfast.models.registry import METHODS, Place

PLACE = Place("tiny:Tiny", "tiny:TinyConfig")
"""In the registry of methods."""
PAUSE = "TINY_PAUSE"
"""Environment: ``CALL:FILE`` makes the CALL-th loss touch FILE and wait to be killed."""


@dataclass
class TinyConfig(MethodConfig):
    """Settings of the test method.

    Attributes:
        width: of its one hidden layer.
        level: sentence or paragraph.
        labelled_share: of the training paragraphs; without any label it learns nothing.
        content_words: whether it keeps the counts of nouns and verbs.
        dropout: of the clips, so that random numbers matter.
    """

    width: int = 16
    level: Literal["sentence", "paragraph"] = "sentence"
    labelled_share: float = 1.0
    content_words: bool = False
    dropout: float = 0.1


class Tiny(Method):
    """Start and end of a span by the product of each clip with the mean word."""

    name = "tiny"
    Config = TinyConfig
    config: TinyConfig

    @staticmethod
    def needs(config: TinyConfig) -> BatchNeeds:
        return BatchNeeds(
            level=config.level,
            labelled_share=config.labelled_share,
            max_clips=32,
            max_sentences=4,
            content_words=config.content_words,
        )

    def __init__(self, config: TinyConfig, feature_dim: int, word_vectors: WordVectors) -> None:
        super().__init__(config, feature_dim, word_vectors)
        self.config = config
        self.words = nn.Embedding.from_pretrained(torch.from_numpy(word_vectors.vectors), freeze=True)
        self.query = nn.Linear(word_vectors.dim, 2 * config.width)
        self.clips = nn.Linear(feature_dim, config.width)
        self.calls = 0
        if config.content_words:  # none in a checkpoint's vocabulary: they come with the weights
            counts = word_vectors.content_counts
            self.register_buffer("counts", torch.zeros(len(word_vectors.words), dtype=torch.int64))
            if counts is not None:
                self.counts.copy_(torch.from_numpy(counts))

    def logits(self, batch: Batch) -> Tensor:
        """[B, M, 2, T]: of the start and of the end."""
        video = F.dropout(torch.tanh(self.clips(batch.video)), self.config.dropout, self.training)
        count = batch.word_mask.sum(-1, keepdim=True).clamp(min=1)
        words = (self.words(batch.words) * batch.word_mask[..., None]).sum(-2) / count
        query = self.query(words).unflatten(-1, (2, self.config.width))
        logits = torch.einsum("bmsd,btd->bmst", query, video)
        return logits.masked_fill(~batch.video_mask[:, None, None], -1e4)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        self.pause()
        if batch.spans is None:
            assert self.config.labelled_share < 1, "a batch with labels holds no spans"
            return {"loss": self.logits(batch).square().mean()}
        assert self.config.labelled_share > 0, "a batch without labels holds spans"
        assert batch.labelled is not None
        clips = batch.video_mask.sum(-1)[:, None, None]
        target = torch.minimum((batch.spans * clips).long(), clips - 1)
        scores = self.logits(batch).log_softmax(-1)
        loss = -scores.gather(-1, target[..., None]).squeeze(-1)[batch.sentence_mask & batch.labelled[:, None]].mean()
        return {"loss": loss, "double": 2 * loss}

    def predict(self, batch: Batch, top_n: int = 10) -> Prediction:
        start, end = self.logits(batch).log_softmax(-1).unbind(2)
        clips = start.shape[-1]
        joint = (start[..., :, None] + end[..., None, :]).masked_fill(
            torch.ones(clips, clips, dtype=torch.bool).tril(-1), -torch.inf
        )
        scores, index = joint.flatten(-2).topk(min(top_n, clips * clips), dim=-1)
        cells = torch.stack((index // clips, index % clips + 1), dim=-1)
        seconds = cells / batch.video_mask.sum(-1)[:, None, None, None] * batch.durations[:, None, None, None]
        return Prediction(seconds.clamp(max=batch.durations.max().item()), scores)

    def pause(self) -> None:
        self.calls += 1
        call, _, file = os.environ.get(PAUSE, "0:").partition(":")
        if self.calls == int(call):
            Path(file).touch()
            time.sleep(600)


def register() -> None:
    METHODS["tiny"] = PLACE


if __name__ == "__main__":
    register()
    torch.set_num_threads(1)
    sys.exit(import_module(f"vpgfast.{sys.argv[1]}").main(sys.argv[2:]))
