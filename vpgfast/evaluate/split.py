"""Everything that is said about a trained method on a split of a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
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
from vpgfast.data.types import Batch, BatchNeeds, Paragraph, Prediction
from vpgfast.errors import ConfigError
from vpgfast.evaluate.inside import Inside, look_inside
from vpgfast.evaluate.retrieval import evaluate_retrieval
from vpgfast.fabric import gather
from vpgfast.metrics.baselines import EVALUATION_SEED, RANDOM_CANDIDATES, baselines, swap_sentences
from vpgfast.metrics.corpus import CorpusResult
from vpgfast.metrics.spans import RankedSpans, evaluate_spans, ranked_spans
from vpgfast.metrics.table import format_table
from vpgfast.models.embed import finds_videos
from vpgfast.models.registry import get_method
from vpgfast.models.windows import is_long, predict_long

ORDERS = 5
"""Random orders of a method's own candidates that are drawn."""


@dataclass
class Answers:
    """What a method says of the items of a split.

    Attributes:
        paragraphs: the items.
        ranked: their ranked spans, see :mod:`vpgfast.metrics.spans`.
        scores: of each of these, float64 [M, K] an item; -inf where there is no span.
        curves: [M, T] an item, how well each clip fits, of a method that says so and was not asked through windows.
    """

    paragraphs: list[Paragraph] = field(default_factory=list)
    ranked: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    curves: list[np.ndarray | None] = field(default_factory=list)

    @classmethod
    def of(cls, prediction: Prediction, batch: Batch) -> Answers:
        """Without what pads the batch."""
        counts = [len(paragraph.sentences) for paragraph in batch.paragraphs]
        scores = prediction.scores.detach().to("cpu", torch.float64).numpy()
        curves: list[np.ndarray | None] = [None] * len(counts)
        if prediction.curves is not None:
            lengths = batch.video_mask.sum(1).tolist()
            rows = prediction.curves.detach().to("cpu", torch.float64).numpy()
            curves = [row[:count, :T] for row, count, T in zip(rows, counts, lengths, strict=True)]
        kept = [row[:count] for row, count in zip(scores, counts, strict=True)]
        return cls(list(batch.paragraphs), ranked_spans(prediction, batch), kept, curves)

    def add(self, other: Answers, limit: int) -> None:
        """Append those of another one, up to ``limit`` items."""
        for f in fields(self):
            mine: list[Any] = getattr(self, f.name)
            mine += getattr(other, f.name)[: limit - len(mine)]


@dataclass
class Evaluation:
    """A method's result on a split, and what it is compared with.

    Attributes:
        metrics: by name, fractions in [0, 1].
        baselines: random, uniform, prior, whole video, ... -> the same names, see :mod:`vpgfast.metrics.baselines`; and
            "random candidates" of a method that chooses among a list, see :func:`random_candidates`.
        control: the same names, with every video's sentences replaced by another video's; ``None`` for a single video.
        answers: what was predicted for each item.
        insides: what the method shows of a few videos (:mod:`vpgfast.evaluate.inside`); empty where it shows nothing.
        retrieval: how well videos are found among all of the split; ``None`` for a method that can't.
    """

    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    control: dict[str, float] | None
    answers: Answers
    retrieval: CorpusResult | None = None
    insides: list[Inside] = field(default_factory=list)

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

    def put_into(self, answers: Answers, batch: Batch, top_n: int) -> None:
        """Put what is said of a batch's long videos in the place of what was said without windows."""
        needs = get_method(self.config.method).needs(self.config.model)
        model = getattr(self.model, "module", self.model)
        assert batch.clips is not None
        for b, clips in enumerate(batch.clips.tolist()):
            if is_long(model, needs, clips):
                paragraph = batch.paragraphs[b]
                features = self.corpus.features[paragraph.video_id]
                with self.fabric.autocast():
                    prediction = predict_long(model, paragraph, features, self.vectors, needs, top_n)
                alone = Answers.of(prediction, replace(batch, paragraphs=[paragraph]))
                (answers.ranked[b],), (answers.scores[b],), answers.curves[b] = alone.ranked, alone.scores, None


@torch.no_grad()
def predict(
    fabric: Fabric, model: Any, loader: Loader, top_n: int, label: str, long: LongVideos | None = None
) -> Answers:
    """What a method says of every item of a split, in order, in every process.

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
        answers = Answers.of(model.predict(batch.to(fabric.device), top_n), batch)
        if long is not None:
            long.put_into(answers, batch, top_n)
        mine.append((number * fabric.world_size + fabric.global_rank, answers))
    return _together(fabric, mine, loader)


def _together(fabric: Fabric, mine: Sequence[tuple[int, Answers]], loader: Loader) -> Answers:
    """Every process's answers, each with the number of its batch, in order."""
    shares = sorted((share for rank in gather(fabric, mine) for share in rank), key=lambda share: share[0])
    total = len(loader.dataset)  # type: ignore[arg-type]  # where processes share unevenly, the first batches come twice
    everything = Answers()
    for _, answers in shares:
        everything.add(answers, total)
    return everything


@torch.no_grad()
def random_candidates(fabric: Fabric, model: Any, loader: Loader, config: TrainConfig) -> dict[str, float] | None:
    """What a method's own list of spans earns in a random order, suppressed as it does: the mean of a few orders.

    ``None`` of a method that has no such list.

    Args:
        model: as ``fabric.setup`` returns it.
    """
    method = getattr(model, "module", model)
    drawn: list[list[tuple[int, Answers]]] = [[] for _ in range(ORDERS)]
    hidden = True if fabric.global_rank else None  # None: hidden where there is no terminal
    for number, batch in enumerate(tqdm(loader, desc="random candidates", leave=False, disable=hidden, unit="batch")):
        place = number * fabric.world_size + fabric.global_rank
        generator = torch.Generator().manual_seed(EVALUATION_SEED + place)
        batch = batch.to(fabric.device)
        for mine in drawn:
            prediction = method.at_random(batch, config.top_n, generator)
            if prediction is None:
                return None
            mine.append((place, Answers.of(prediction, batch)))
    scores = []
    for mine in drawn:
        answers = _together(fabric, mine, loader)
        scores.append(evaluate_spans(answers.ranked, answers.paragraphs, config.metrics))
    return {name: float(np.mean([row[name] for row in scores])) for name in scores[0]}


def split_baselines(
    fabric: Fabric, model: Any, config: TrainConfig, corpus: Corpus, vectors: WordVectors, split: str
) -> dict[str, dict[str, float]]:
    """What watching nothing earns on a split, and the method's own list in a random order; no network is asked.

    Args:
        model: as ``fabric.setup`` returns it.
        vectors: the model's vocabulary.
    """
    paragraphs, needs = corpus.splits[split], get_method(config.method).needs(config.model)
    rows = baselines(corpus.splits["train"], paragraphs, config.metrics, EVALUATION_SEED)
    loader = split_loader(fabric, config, corpus, paragraphs, vectors, needs, training=False)
    by_chance = random_candidates(fabric, model, loader, config)
    return rows if by_chance is None else {**rows, RANDOM_CANDIDATES: by_chance}


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
    answers = predict(fabric, model, loader, config.top_n, f"predicting {split}", long)
    control = None
    if len({paragraph.video_id for paragraph in paragraphs}) > 1:
        swapped = swap_sentences(paragraphs, rules.sentence_order, EVALUATION_SEED)
        loader = split_loader(fabric, config, corpus, swapped, vectors, needs, training=False)
        label = f"predicting {split}, swapped"
        other = predict(fabric, model, loader, config.top_n, label, long)
        control = evaluate_spans(other.ranked, other.paragraphs, rules)
    insides: list[Inside] = []
    if config.pictures and fabric.global_rank == 0:
        shown, _ = sample_evenly(answers.paragraphs, answers.ranked, config.pictures)
        with fabric.autocast():
            insides = look_inside(getattr(model, "module", model), config, corpus, vectors, shown)
    return Evaluation(
        metrics=evaluate_spans(answers.ranked, answers.paragraphs, rules),
        baselines=split_baselines(fabric, model, config, corpus, vectors, split),
        control=control,
        answers=answers,
        retrieval=evaluate_retrieval(fabric, model, config, corpus, vectors, split, answers.paragraphs, answers.ranked)
        if finds_videos(config.method)
        else None,
        insides=insides,
    )


def sample_evenly(
    paragraphs: Sequence[Paragraph], ranked: RankedSpans, videos: int
) -> tuple[list[Paragraph], list[np.ndarray]]:
    """The items of a few videos from all over a split, with what was predicted for them."""
    names = list(dict.fromkeys(paragraph.video_id for paragraph in paragraphs))
    chosen = set(names[:: max(1, len(names) // videos)][:videos])
    pairs = [(p, r) for p, r in zip(paragraphs, ranked, strict=True) if p.video_id in chosen]
    return [p for p, _ in pairs], [r for _, r in pairs]
