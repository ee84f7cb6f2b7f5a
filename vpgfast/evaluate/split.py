"""Everything that is said about a trained method on a split of a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed
from lightning_fabric import Fabric
from tqdm import tqdm

from vpgfast.config import TrainConfig
from vpgfast.data.batches import Loader, make_loader
from vpgfast.data.corpus import Corpus
from vpgfast.data.text import WordVectors
from vpgfast.data.types import Batch, BatchNeeds, Paragraph
from vpgfast.errors import ConfigError
from vpgfast.evaluate.retrieval import evaluate_retrieval
from vpgfast.fabric import gather
from vpgfast.metrics.baselines import EVALUATION_SEED, baselines, swap_sentences
from vpgfast.metrics.corpus import CorpusResult
from vpgfast.metrics.spans import RankedSpans, evaluate_spans, ranked_spans
from vpgfast.metrics.table import format_table
from vpgfast.models.embed import finds_videos
from vpgfast.models.registry import get_method
from vpgfast.models.windows import is_long, predict_long


@dataclass
class Evaluation:
    """A method's result on a split, and what it is compared with.

    Attributes:
        metrics: by name, fractions in [0, 1].
        baselines: random, uniform, prior, whole video, ... -> the same names, see :mod:`vpgfast.metrics.baselines`.
        control: the same names, with every video's sentences replaced by another video's; ``None`` for a single video.
        paragraphs: the items that were predicted.
        ranked: their ranked spans, see :mod:`vpgfast.metrics.spans`.
        retrieval: how well videos are found among all of the split; ``None`` for a method that can't.
    """

    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    control: dict[str, float] | None
    paragraphs: list[Paragraph]
    ranked: RankedSpans
    retrieval: CorpusResult | None = None

    def table(self, method: str, title: str) -> str:
        """The method's row beside the others; below it, how well it finds videos."""
        rows = {method: self.metrics, **self.baselines}
        if self.control is not None:
            rows[f"{method}, sentences swapped"] = self.control
        table = format_table(rows, title)
        return table if self.retrieval is None else f"{table}\n\n{self.retrieval.tables(method, title)}"


def split_loader(
    fabric: Fabric,
    config: TrainConfig,
    corpus: Corpus,
    paragraphs: Sequence[Paragraph],
    vectors: WordVectors,
    needs: BatchNeeds,
    training: bool,
) -> Loader:
    """This process's share of the batches of a split."""
    return make_loader(
        paragraphs,
        corpus.features,
        vectors,
        needs,
        config.batch_size,
        training=training,
        seed=config.seed,
        num_workers=config.num_workers,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )


@dataclass
class LongVideos:
    """Predicts through windows where a video is long, see :mod:`vpgfast.models.windows`.

    Attributes:
        fabric: whose precision is used.
        model: a method, as ``fabric.setup`` returns it. Its own module is asked: processes have different numbers of
            windows, and what Fabric wraps around it counts on equal ones.
        config: of the run.
        corpus: has the features.
        vectors: the model's vocabulary.
    """

    fabric: Fabric
    model: Any
    config: TrainConfig
    corpus: Corpus
    vectors: WordVectors

    def put_into(self, ranked: list[np.ndarray], batch: Batch, top_n: int) -> None:
        """Put the ranked spans of a batch's long videos in the place of others."""
        needs = get_method(self.config.method).needs(self.config.model)
        model = getattr(self.model, "module", self.model)
        assert batch.clips is not None
        for b, clips in enumerate(batch.clips.tolist()):
            if is_long(model, needs, clips):
                paragraph = batch.paragraphs[b]
                features = self.corpus.features[paragraph.video_id]
                with self.fabric.autocast():
                    prediction = predict_long(model, paragraph, features, self.vectors, needs, top_n)
                (ranked[b],) = ranked_spans(prediction, replace(batch, paragraphs=[paragraph]))


@torch.no_grad()
def predict(
    fabric: Fabric, model: Any, loader: Loader, top_n: int, label: str, long: LongVideos | None = None
) -> tuple[list[Paragraph], list[np.ndarray]]:
    """Ranked spans of every item of a split, in order, in every process.

    Args:
        model: a method, as ``fabric.setup`` returns it, in evaluation mode.
        loader: its batches, see :func:`split_loader`.
        top_n: spans a sentence.
        label: what the progress bar says.
        long: sees long videos through windows; without, they are brought down to what the method takes.
    """
    mine = []
    hidden = True if fabric.global_rank else None  # None: hidden where there is no terminal
    for number, batch in enumerate(tqdm(loader, desc=label, leave=False, disable=hidden, unit="batch")):
        prediction = model.predict(batch.to(fabric.device), top_n)
        spans = ranked_spans(prediction, batch)
        if long is not None:
            long.put_into(spans, batch, top_n)
        index = number * fabric.world_size + fabric.global_rank
        mine.append((index, batch.paragraphs, spans))
    shares = sorted((share for rank in gather(fabric, mine) for share in rank), key=lambda share: share[0])
    paragraphs, ranked = [], []
    for _, items, spans in shares:
        paragraphs += items
        ranked += spans
    total = len(loader.dataset)  # type: ignore[arg-type]  # where processes share unevenly, the first batches come twice
    return paragraphs[:total], ranked[:total]


def evaluate_split(
    fabric: Fabric, model: Any, config: TrainConfig, corpus: Corpus, vectors: WordVectors, split: str
) -> Evaluation:
    """Everything that is said about a trained method on a split.

    Args:
        model: as ``fabric.setup`` returns it.
        vectors: the model's vocabulary.
        split: "test", "val" or "train".
    """
    paragraphs = corpus.splits[split]
    if not paragraphs:
        raise ConfigError(f"split {split!r} of {corpus.name} holds no video")
    needs, rules = get_method(config.method).needs(config.model), config.metrics
    model.eval()
    loader = split_loader(fabric, config, corpus, paragraphs, vectors, needs, training=False)
    long = LongVideos(fabric, model, config, corpus, vectors)
    items, ranked = predict(fabric, model, loader, config.top_n, f"predicting {split}", long)
    control = None
    if len({paragraph.video_id for paragraph in paragraphs}) > 1:
        swapped = swap_sentences(paragraphs, rules.sentence_order, EVALUATION_SEED)
        loader = split_loader(fabric, config, corpus, swapped, vectors, needs, training=False)
        label = f"predicting {split}, swapped"
        swapped_items, swapped_ranked = predict(fabric, model, loader, config.top_n, label, long)
        control = evaluate_spans(swapped_ranked, swapped_items, rules)
    return Evaluation(
        metrics=evaluate_spans(ranked, items, rules),
        baselines=baselines(corpus.splits["train"], paragraphs, rules, EVALUATION_SEED),
        control=control,
        paragraphs=items,
        ranked=ranked,
        retrieval=evaluate_retrieval(fabric, model, config, corpus, vectors, split, items, ranked)
        if finds_videos(config.method)
        else None,
    )
