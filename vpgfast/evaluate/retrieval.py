"""The corpus metrics of a method that finds videos, beside the bag of words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, TypeVar

import numpy as np
from lightning_fabric import Fabric
from tqdm import tqdm

from vpgfast.config import TrainConfig
from vpgfast.data.batches import prepare
from vpgfast.data.corpus import Corpus
from vpgfast.data.text import WordVectors
from vpgfast.data.types import Paragraph
from vpgfast.fabric import gather, in_shares
from vpgfast.metrics.bag_of_words import add, fit, mean_words, sums_of
from vpgfast.metrics.baselines import EVALUATION_SEED
from vpgfast.metrics.corpus import CorpusResult, corpus_result, true_ranks
from vpgfast.metrics.spans import RankedSpans
from vpgfast.models.embed import embed_clips, embed_texts
from vpgfast.models.registry import get_method

T = TypeVar("T")


def evaluate_retrieval(
    fabric: Fabric,
    model: Any,
    config: TrainConfig,
    corpus: Corpus,
    vectors: WordVectors,
    split: str,
    items: Sequence[Paragraph],
    ranked: RankedSpans,
) -> CorpusResult:
    """The corpus metrics: every paragraph of a split against all of its videos.

    Args:
        model: as ``fabric.setup`` returns it, in evaluation mode, of a method that finds videos.
        vectors: the model's vocabulary.
        split: "test", "val" or "train".
        items: what :func:`predict` returned for the split.
        ranked: their ranked spans in their own video.
    """
    paragraphs, size = corpus.splits[split], config.batch_size
    needs = get_method(config.method).needs(config.model)
    videos = list(dict.fromkeys(paragraph.video_id for paragraph in paragraphs))
    number = {video: i for i, video in enumerate(videos)}

    def embed_some_videos(names: Sequence[str]) -> np.ndarray:
        return embed_clips(model, [corpus.features[name] for name in names], needs, fabric.device)

    def embed_some_texts(texts: Sequence[Paragraph]) -> np.ndarray:
        return embed_texts(model, texts, vectors, needs, corpus.features.dim, fabric.device)

    video_vectors = in_shares(fabric, _batches(videos, size), embed_some_videos, f"embedding videos of {split}")
    text_vectors = in_shares(fabric, _batches(paragraphs, size), embed_some_texts, f"embedding paragraphs of {split}")
    truth = np.array([number[paragraph.video_id] for paragraph in paragraphs])
    parts = [len(prepare([paragraph], needs, training=False)) for paragraph in paragraphs]
    return corpus_result(
        true_ranks(np.concatenate(text_vectors), np.concatenate(video_vectors), truth),
        ranks_by_words(fabric, config, corpus, vectors, split),
        *(len(videos), ranked, items, np.repeat(np.arange(len(paragraphs)), parts)),
        *(paragraphs, config.metrics, EVALUATION_SEED),
    )


def ranks_by_words(fabric: Fabric, config: TrainConfig, corpus: Corpus, vectors: WordVectors, split: str) -> np.ndarray:
    """The place of each paragraph's video by :mod:`vpgfast.metrics.bag_of_words`, int64 [P]; the arguments as above."""
    needs = get_method(config.method).needs(config.model)

    def mean_features(names: Sequence[str]) -> np.ndarray:
        return np.stack([corpus.features[name].mean(axis=0, dtype=np.float64) for name in names])

    def mean_vectors(paragraphs: Sequence[Paragraph]) -> np.ndarray:
        return mean_words(paragraphs, vectors, needs.max_words)

    hidden = True if fabric.global_rank else None  # None: hidden where there is no terminal
    batches = _batches(corpus.splits["train"], config.batch_size)[fabric.global_rank :: fabric.world_size]
    mine = sums_of(np.zeros((0, corpus.features.dim)), np.zeros((0, vectors.dim)))
    for batch in tqdm(batches, desc="bag of words, train", leave=False, disable=hidden, unit="batch"):
        mine = add(mine, sums_of(mean_features([p.video_id for p in batch]), mean_vectors(batch)))
    fitted = fit(reduce(add, gather(fabric, mine)))

    paragraphs, size = corpus.splits[split], config.batch_size
    videos = list(dict.fromkeys(paragraph.video_id for paragraph in paragraphs))
    number = {video: i for i, video in enumerate(videos)}
    features = in_shares(fabric, _batches(videos, size), mean_features, f"bag of words, videos of {split}")
    return true_ranks(
        fitted.of_paragraphs(mean_vectors(paragraphs)),
        fitted.of_videos(np.concatenate(features)),
        np.array([number[paragraph.video_id] for paragraph in paragraphs]),
    )


def _batches(values: Sequence[T], size: int) -> list[Sequence[T]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
