"""The forms that data takes from a file to an answer: paragraphs, features, batches, predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from vpgfast.encoders.identity import Identity
from vpgfast.errors import ConfigError
from vpgfast.files import readable


@dataclass(frozen=True, eq=False)
class Paragraph:
    """One video and the sentences that describe it: the only form that annotations have in memory.

    A data set read at sentence level is a list of paragraphs of one sentence each.

    Attributes:
        video_id: the video's name, as its feature file spells it.
        duration: length of the video in seconds, > 0.
        sentences: the M sentences, as written in the annotation file.
        spans: float64 [M, 2], start and end of each sentence's moment in seconds, 0 <= start < end <= duration;
            ``None`` where nothing is known (a user's own query).
        annotator_spans: one float64 [A, 2] array a sentence (seconds) where several annotators marked it (DiDeMo),
            else ``None``; ``spans`` then holds the interval that most of them chose.
        all_spans: one float64 [A, 2] array a sentence (seconds, A >= 1) where a sentence may be true of several moments
            (QVHighlights), else ``None``; ``spans`` then holds the longest of them, the first of equals.
        query_ids: what the annotation file calls each sentence, where it does.
    """

    video_id: str
    duration: float
    sentences: tuple[str, ...]
    spans: np.ndarray | None = None
    annotator_spans: tuple[np.ndarray, ...] | None = None
    all_spans: tuple[np.ndarray, ...] | None = None
    query_ids: tuple[int | str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sentences", tuple(map(readable, self.sentences)))
        if self.spans is not None and self.spans.shape != (len(self.sentences), 2):
            raise ValueError(
                f"spans of video {self.video_id!r} have shape {self.spans.shape}, "
                f"but its {len(self.sentences)} sentences need ({len(self.sentences)}, 2)"
            )

    @property
    def true_spans(self) -> tuple[np.ndarray, ...] | None:
        """All moments of each sentence, float64 [A, 2]; ``None`` where nothing is known."""
        if self.all_spans is not None or self.spans is None:
            return self.all_spans
        return tuple(self.spans[:, None])

    def without_spans(self) -> Paragraph:
        """The paragraph as one sees it who is told no timestamp."""
        return replace(self, spans=None, annotator_spans=None, all_spans=None)

    def select(self, rows: Sequence[int]) -> Paragraph:
        """The paragraph made of some of its sentences, in the order given."""
        marks, every, ids = self.annotator_spans, self.all_spans, self.query_ids
        return replace(
            self,
            sentences=tuple(self.sentences[m] for m in rows),
            spans=None if self.spans is None else self.spans[list(rows)],
            annotator_spans=None if marks is None else tuple(marks[m] for m in rows),
            all_spans=None if every is None else tuple(every[m] for m in rows),
            query_ids=None if ids is None else tuple(ids[m] for m in rows),
        )

    def by_time(self) -> Paragraph:
        """The paragraph with its sentences sorted by annotated start, then end; as it is where no span is known."""
        if self.spans is None:
            return self
        return self.select(np.lexsort((self.spans[:, 1], self.spans[:, 0])).tolist())


class FeatureReader(Protocol):
    """Clip features by video name. Implementations may be sent to loader workers (they open their files there)."""

    dim: int
    """Width d_v of a clip feature."""
    source: str
    """What the features are and where they come from, for logs and tables, e.g. ``"simulated (seed 0)"``."""
    encoder: Identity | None
    """What made them, where the package did."""

    def __getitem__(self, video_id: str) -> np.ndarray:
        """float32 [T, dim], T >= 1, finite. Raises :class:`vpgfast.errors.FeatureError`."""

    def __contains__(self, video_id: str) -> bool: ...

    def video_ids(self) -> Iterable[str]: ...

    def duration(self, video_id: str) -> float | None:
        """Seconds that a video lasts, where the features tell it."""


@dataclass(frozen=True)
class BatchNeeds:
    """What a method asks of its batches; the loader knows methods by nothing else.

    Attributes:
        level: ``"sentence"`` (every paragraph split, M = 1) or ``"paragraph"``.
        labelled_share: share of the training paragraphs whose spans training batches carry, in [0, 1]: 1 all of them
            (fully supervised), 0 none (weakly supervised), between: that share, chosen by the seed, see
            :func:`vpgfast.data.batches.prepare`.
        max_clips: longest clip sequence T handed to the method.
        resample: how a video of more clips is brought down: ``"pool"`` (mean over equal pieces),
            ``"pick"`` (evenly spaced clips), ``"interpolate"`` (linear).
        fixed_length: bring *every* video to exactly ``max_clips`` (shorter ones by linear interpolation),
            instead of padding.
        clip_seconds: bring every video to clips of this many seconds, at least ``min_clips`` and at most ``max_clips``
            of them (see :mod:`vpgfast.data.fixed_clips`), padded to ``max_clips``; ``resample`` and ``fixed_length``
            say nothing then.
        min_clips: see ``clip_seconds``.
        chars: whether to fill ``Batch.chars``.
        max_words: longer sentences are cut to this.
        punctuation: whether punctuation marks are words, see :func:`vpgfast.data.text.tokenize`.
        vocabulary: whether the method reads sentences by the words of the vocabulary; if not, as they were written.
        max_sentences: longer paragraphs are cut to this in training (``None``: never); evaluation cuts them into
            pieces.
        sentence_order: ``"time"`` sorts a paragraph's sentences by annotated start, ``"file"`` leaves them.
        whole_paragraphs: in evaluation, do not split paragraphs for a method of single sentences: it answers them
            together.
        content_words: whether the method is made from word vectors with
            :attr:`~vpgfast.data.text.WordVectors.content_counts`, the nouns and verbs of the training text.

    Raises:
        ConfigError: ``labelled_share`` is outside [0, 1].
    """

    level: Literal["sentence", "paragraph"] = "sentence"
    labelled_share: float = 1.0
    max_clips: int = 64
    resample: Literal["pool", "pick", "interpolate"] = "pool"
    fixed_length: bool = False
    clip_seconds: float | None = None
    min_clips: int = 1
    chars: bool = False
    max_words: int = 50
    punctuation: bool = False
    vocabulary: bool = True
    max_sentences: int | None = None
    sentence_order: Literal["time", "file"] = "time"
    whole_paragraphs: bool = False
    content_words: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.labelled_share <= 1:
            raise ConfigError(
                f"labelled_share is {self.labelled_share}; give the share of training paragraphs with labels, from 0 "
                "(none) to 1 (all)"
            )


@dataclass
class Batch:
    """B videos with up to M sentences of up to W words each, padded and masked.

    Attributes:
        paragraphs: the B items the batch was made from (sentences in the order used here).
        video: float32 [B, T, d_v], zero where padded.
        video_mask: bool [B, T], true on real clips.
        words: int64 [B, M, W], indices into the word vectors; 0 is padding, 1 an unknown word.
        word_mask: bool [B, M, W].
        sentence_mask: bool [B, M].
        durations: float64 [B], seconds.
        chars: int64 [B, M, W, K] character indices (0 padding), or ``None``.
        spans: float32 [B, M, 2], start and end as fractions of the duration, zero where padded and for items without
            spans; ``None`` where no item has any. With a ``labelled_share`` between 0 and 1 a training batch
            may happen to hold no labelled item: then it is ``None`` too.
        all_spans: float32 [B, M, A, 2], likewise, all the moments that each sentence is true of; ``None`` where no
            sentence has more than one.
        span_mask: bool [B, M, A], where ``all_spans`` holds one; ``None`` where that is.
        labelled: bool [B], whose sentences have spans; ``None`` exactly where ``spans`` is.
        clips: int64 [B], how many clips the features of each video have, before they were brought to T.
    """

    paragraphs: list[Paragraph]
    video: Tensor
    video_mask: Tensor
    words: Tensor
    word_mask: Tensor
    sentence_mask: Tensor
    durations: Tensor
    chars: Tensor | None = None
    spans: Tensor | None = None
    labelled: Tensor | None = None
    clips: Tensor | None = None
    all_spans: Tensor | None = None
    span_mask: Tensor | None = None

    @property
    def true_spans(self) -> tuple[Tensor, Tensor]:
        """Every moment of each sentence, [B, M, A, 2], and which of them are there, bool [B, M, A]; A may be 1.

        Raises:
            ValueError: the batch holds no span.
        """
        if self.all_spans is not None and self.span_mask is not None:
            return self.all_spans, self.span_mask
        if self.spans is None:
            raise ValueError("the batch holds no spans")
        return self.spans.unsqueeze(2), self.sentence_mask.unsqueeze(2)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on ``device``."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by a ``DataLoader`` with ``pin_memory=True``)."""
        pinned: dict[str, Any] = {
            f.name: value.pin_memory() for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **pinned)

    def __len__(self) -> int:
        return len(self.paragraphs)


@dataclass
class Prediction:
    """Ranked spans of each sentence of a batch.

    Attributes:
        spans: float [B, M, K, 2], start and end in seconds, best first.
        scores: float [B, M, K], falling along K; ``-inf`` marks a place that holds no span
            (its ``spans`` mean nothing).
        curves: float [B, M, T], how well each clip fits each sentence, of a method that reads spans off that;
            zero where padded.
        attention: float [B, M, S, T], how much each proposal is attended to for each sentence, by its length (S of
            them, rising) and its first clip, of MARN; NaN where there is no proposal.
        maps: float [B, M, S, S], of a method that scores moments: of the one from segment i to segment j of S equal
            ones of the video at (i, j); NaN where there is none.
        labels: int64 [B, M, T], of a method that labels clips: outside a moment (0), its begin (1), inside (2), end
            (3); 0 where padded.
    """

    spans: Tensor
    scores: Tensor
    curves: Tensor | None = None
    attention: Tensor | None = None
    maps: Tensor | None = None
    labels: Tensor | None = None
