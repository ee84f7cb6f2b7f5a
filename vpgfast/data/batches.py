"""From paragraphs and features to padded, masked batches; the shuffling depends on the seed and the epoch alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vpgfast.data.features import resample
from vpgfast.data.fixed_clips import fixed_clips
from vpgfast.data.text import WordVectors, char_ids, tokenize
from vpgfast.data.types import Batch, BatchNeeds, FeatureReader, Paragraph
from vpgfast.errors import AnnotationError

log = logging.getLogger(__name__)

_LABELS = 1 << 31
"""Sets the choice of labelled paragraphs apart from the shuffling, which draws from (seed, epoch)."""


def prepare(paragraphs: Sequence[Paragraph], needs: BatchNeeds, training: bool, seed: int = 0) -> list[Paragraph]:
    """The items that batches are made of: paragraphs ordered, cut and split as a method asks.

    At sentence level every sentence becomes an item (in evaluation not with ``needs.whole_paragraphs``). At paragraph
    level sentences are sorted by start, then end (where spans are known and ``needs.sentence_order == "time"``);
    paragraphs of more than ``needs.max_sentences`` lose the rest in training and are cut into pieces of that many in
    evaluation, so that no sentence goes unmeasured.

    In training only ``needs.labelled_share`` of the paragraphs keep their spans and annotator spans, with all of their
    sentences (see :func:`choose_labelled`); the others lose them after they were sorted. Evaluation keeps all.

    Args:
        paragraphs: paragraph level.
        needs: what the method asks for.
        training: whether the items are trained on.
        seed: of the choice of labelled paragraphs.

    Raises:
        AnnotationError: a paragraph that training needs the spans of has none.
    """
    labelled = choose_labelled(len(paragraphs), needs.labelled_share, seed)
    whole = needs.level == "paragraph" or (needs.whole_paragraphs and not training)
    items = []
    for paragraph, has_labels in zip(paragraphs, labelled, strict=True):
        count = len(paragraph.sentences)
        if whole and needs.sentence_order == "time":
            paragraph = paragraph.by_time()
        if training and not has_labels:
            paragraph = paragraph.without_spans()
        elif training and paragraph.spans is None:
            raise AnnotationError(
                f"video {paragraph.video_id!r} has no spans, but the method trains on those of a share of "
                f"{needs.labelled_share:g} of the paragraphs; leave it out, or train without labels"
            )
        if not whole:
            items += [paragraph.select([i]) for i in range(count)]
            continue
        size = needs.max_sentences or count
        starts = [0] if training else range(0, count, size)
        items += [paragraph.select(range(start, min(start + size, count))) for start in starts]
    return items


def choose_labelled(count: int, share: float, seed: int) -> np.ndarray:
    """Which of ``count`` paragraphs keep their labels: bool [count], true for ``share`` of them, at least one if
    share > 0.

    With the same seed the choice at a smaller share is part of that at a larger one.
    """
    chosen = np.zeros(count, bool)
    number = max(1, round(share * count)) if share > 0 else 0
    chosen[np.random.default_rng((seed, _LABELS)).permutation(count)[:number]] = True
    return chosen


def make_batch(
    paragraphs: Sequence[Paragraph],
    features: Sequence[np.ndarray],
    word_vectors: WordVectors,
    needs: BatchNeeds,
    training: bool,
) -> Batch:
    """Pad B items (see :func:`prepare`) and their [T_b, d_v] features into one :class:`Batch`.

    Words and characters are padded to the longest of the batch; features are resampled by ``needs`` first. Spans become
    fractions of the duration, of the items that have any; a weakly supervised method's training batch
    (``needs.labelled_share == 0``) carries none.
    """
    if training and needs.labelled_share == 0:  # whoever prepared the items: nothing in the batch may tell
        paragraphs = [paragraph.without_spans() for paragraph in paragraphs]
    video, video_mask = stack_clips(features, needs, [p.duration for p in paragraphs])
    most_words, marks = needs.max_words, needs.punctuation
    texts = [[tokenize(sentence, marks)[:most_words] for sentence in p.sentences] for p in paragraphs]
    ids = [[word_vectors.encode(sentence, most_words, marks) for sentence in p.sentences] for p in paragraphs]
    size, most = len(paragraphs), max(len(p.sentences) for p in paragraphs)
    longest = max(len(sentence) for item in ids for sentence in item)

    words = np.zeros((size, most, longest), np.int64)
    sentence_mask = np.zeros((size, most), bool)
    for b, item in enumerate(ids):
        sentence_mask[b, : len(item)] = True
        for m, sentence in enumerate(item):
            words[b, m, : len(sentence)] = sentence
    spans, labelled = _spans(paragraphs, most)
    all_spans, span_mask = _all_spans(paragraphs, most)
    return Batch(
        paragraphs=list(paragraphs),
        video=video,
        video_mask=video_mask,
        words=torch.from_numpy(words),
        word_mask=torch.from_numpy(words != 0),
        sentence_mask=torch.from_numpy(sentence_mask),
        durations=torch.tensor([p.duration for p in paragraphs], dtype=torch.float64),
        chars=_chars(texts, words.shape) if needs.chars else None,
        spans=spans,
        labelled=labelled,
        all_spans=all_spans,
        span_mask=span_mask,
        clips=torch.tensor([len(x) for x in features]),
    )


def stack_clips(
    features: Sequence[np.ndarray], needs: BatchNeeds, durations: Sequence[float] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """B videos' [T_b, d_v] features, resampled by ``needs`` and padded: float32 [B, T, d_v], mask bool [B, T].

    Args:
        features: of the videos.
        needs: the method's.
        durations: in seconds; needed for clips of a fixed length (``needs.clip_seconds``) alone.

    Raises:
        ValueError: they are needed and not given.
    """
    if needs.clip_seconds is None:
        clips = [resample(x, needs.max_clips, needs.resample, needs.fixed_length) for x in features]
        length = max(len(x) for x in clips)
    elif durations is None:
        raise ValueError("clips of a fixed length in seconds need the videos' durations")
    else:
        seconds, least, length = needs.clip_seconds, needs.min_clips, needs.max_clips
        clips = [fixed_clips(x, d, seconds, least, length) for x, d in zip(features, durations, strict=True)]
    video = np.zeros((len(clips), length, clips[0].shape[1]), np.float32)
    video_mask = np.zeros((len(clips), length), bool)
    for b, x in enumerate(clips):
        video[b, : len(x)] = x
        video_mask[b, : len(x)] = True
    return torch.from_numpy(video), torch.from_numpy(video_mask)


def _chars(texts: list[list[list[str]]], shape: tuple[int, ...]) -> torch.Tensor:
    """int64 [B, M, W, K] character indices, K the longest word of the batch (as far as :func:`char_ids` goes)."""
    encoded = [[[char_ids(word) for word in sentence] for sentence in item] for item in texts]
    longest = max((len(word) for item in encoded for sentence in item for word in sentence), default=1)
    chars = np.zeros((*shape, longest), np.int64)
    for b, item in enumerate(encoded):
        for m, sentence in enumerate(item):
            for w, word in enumerate(sentence):
                chars[b, m, w, : len(word)] = word
            if not sentence:
                chars[b, m, 0, 0] = 1  # the one unknown word that stands for no word at all
    return torch.from_numpy(chars)


def _spans(paragraphs: Sequence[Paragraph], most: int) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """float32 [B, M, 2] fractions of the duration and bool [B], who has any; ``None`` twice where nobody has."""
    spans = np.zeros((len(paragraphs), most, 2), np.float32)
    labelled = np.array([paragraph.spans is not None for paragraph in paragraphs])
    if not labelled.any():
        return None, None
    for b, paragraph in enumerate(paragraphs):
        if paragraph.spans is not None:
            spans[b, : len(paragraph.sentences)] = np.clip(paragraph.spans / paragraph.duration, 0, 1)
    return torch.from_numpy(spans), torch.from_numpy(labelled)


def _all_spans(paragraphs: Sequence[Paragraph], most: int) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """float32 [B, M, A, 2] fractions of the duration and bool [B, M, A]; ``None`` twice where A is 1."""
    moments = [paragraph.true_spans or () for paragraph in paragraphs]
    largest = max((len(spans) for item in moments for spans in item), default=0)
    if largest < 2:
        return None, None
    spans = np.zeros((len(paragraphs), most, largest, 2), np.float32)
    mask = np.zeros(spans.shape[:3], bool)
    for b, (paragraph, item) in enumerate(zip(paragraphs, moments, strict=True)):
        for m, of_sentence in enumerate(item):
            spans[b, m, : len(of_sentence)] = np.clip(of_sentence / paragraph.duration, 0, 1)
            mask[b, m, : len(of_sentence)] = True
    return torch.from_numpy(spans), torch.from_numpy(mask)


def warn_of_long_sentences(paragraphs: Sequence[Paragraph], needs: BatchNeeds) -> None:
    """Say how many sentences are cut to ``needs.max_words`` words, and name the first."""
    cut = [s for p in paragraphs for s in p.sentences if len(tokenize(s, needs.punctuation)) > needs.max_words]
    if cut and needs.vocabulary:
        total = sum(len(p.sentences) for p in paragraphs)
        log.warning(
            "%d of %d sentences have more than %d words, and are read no further (first: %r, %d words)",
            *(len(cut), total, needs.max_words, cut[0][:80], len(tokenize(cut[0], needs.punctuation))),
        )


class _Items(Dataset[tuple[Paragraph, np.ndarray]]):
    def __init__(self, items: list[Paragraph], features: FeatureReader) -> None:
        self.items, self.features = items, features

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Paragraph, np.ndarray]:
        item = self.items[index]
        return item, self.features[item.video_id]


def _collate(
    samples: list[tuple[Paragraph, np.ndarray]], word_vectors: WordVectors, needs: BatchNeeds, training: bool
) -> Batch:
    paragraphs, features = zip(*samples, strict=True)
    return make_batch(paragraphs, features, word_vectors, needs, training)


class BucketSampler(Sampler[list[int]]):
    """Batches of items of similar length, every item once an epoch, in an order that (seed, epoch) decides.

    Items are shuffled, cut into pools of ``pool`` batches, sorted by length within a pool, cut into batches, and the
    batches are shuffled. With several processes each takes every ``world_size``-th batch; the first ones are repeated
    where the number does not divide.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        batch_size: int,
        seed: int,
        *,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        pool: int = 32,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size, self.seed, self.shuffle, self.pool = batch_size, seed, shuffle, pool
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def __len__(self) -> int:
        batches = -(-len(self.lengths) // self.batch_size)
        return -(-batches // self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(len(self.lengths))
        size = self.batch_size
        if self.shuffle:
            rng = np.random.default_rng((self.seed, self.epoch))
            order = rng.permutation(order)
            pools = [order[i : i + size * self.pool] for i in range(0, len(order), size * self.pool)]
            order = np.concatenate([p[np.argsort(self.lengths[p], kind="stable")] for p in pools] or [order])
        batches = [order[i : i + size].tolist() for i in range(0, len(order), size)]
        if self.shuffle:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        share = len(self) * self.world_size
        batches += [batches[i % len(batches)] for i in range(share - len(batches))]
        return iter(batches[self.rank :: self.world_size])


class Loader(DataLoader[Batch]):
    """A ``DataLoader`` of :class:`Batch`; ``set_epoch`` chooses the shuffling of the next pass."""

    def set_epoch(self, epoch: int) -> None:
        assert isinstance(self.batch_sampler, BucketSampler)
        self.batch_sampler.epoch = epoch


def make_loader(
    paragraphs: Sequence[Paragraph],
    features: FeatureReader,
    word_vectors: WordVectors,
    needs: BatchNeeds,
    batch_size: int,
    *,
    training: bool,
    seed: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Batches of a split, as a method asks for them.

    Training batches are shuffled by ``(seed, epoch)`` and hold items of similar length, so an epoch that is resumed
    sees the same batches; evaluation batches come in order. ``num_workers`` changes nothing but the speed.

    Args:
        paragraphs: paragraph level; splitting into sentences happens here (:func:`prepare`).
        features: must have every video of ``paragraphs``.
        word_vectors: the vocabulary.
        needs: what the method asks for.
        batch_size: items (sentences or paragraphs) a batch; the last one may be smaller.
        training: see :func:`make_batch` for what it changes in a batch.
        seed: of the shuffling, and of which paragraphs keep their labels.
        num_workers: processes that read and pad; 0 does it in this one.
        rank: which of ``world_size`` processes this is, when several train together.
        world_size: their number.
    """
    items = prepare(paragraphs, needs, training, seed)
    # Reading all features just to learn their lengths would be slow; clips follow the duration.
    # Where all videos are padded alike, sentences make the difference.
    same = needs.fixed_length or needs.clip_seconds is not None
    lengths = [sum(map(len, p.sentences)) if same else p.duration for p in items]
    return Loader(
        cast(Dataset[Batch], _Items(items, features)),  # what the loader yields is what _collate makes of them
        batch_sampler=BucketSampler(lengths, batch_size, seed, shuffle=training, rank=rank, world_size=world_size),
        collate_fn=partial(_collate, word_vectors=word_vectors, needs=needs, training=training),
        num_workers=num_workers,
        # A loader draws a number whenever it starts its workers: from a generator of its own, so that a resumed run,
        # which starts them once more, leaves the global one where an uninterrupted run does.
        generator=torch.Generator(),
        persistent_workers=num_workers > 0,
    )
