"""The moments of one video that sentences fit, and whether they fit better than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from vpgfast.data.types import Batch, Paragraph
from vpgfast.find.unrelated import UNRELATED
from vpgfast.models.configs.similarity import SimilarityConfig
from vpgfast.models.similarity import Similarity, TextTower
from vpgfast.untrained import NO_WORDS


class Seen(Protocol):
    """A video as the encoder saw it: features float32 [T, d_v], and its duration in seconds."""

    @property
    def features(self) -> np.ndarray: ...
    @property
    def duration(self) -> float: ...


@dataclass(frozen=True)
class Moment:
    """Where a sentence happens in a video.

    Attributes:
        video: its name.
        path: its file.
        sentence: number of the sentence.
        place: among the moments of this sentence in this video; 0 is the best.
        start: seconds.
        end: seconds.
        score: mean similarity of its clips with the sentence, less that with neutral texts; comparable between videos.
        contrast: ``score`` less the mean outside of the moment; 0 for the whole video.
        chance: share of unrelated sentences that score as much somewhere in this video.
        fits: whether that share is at most the false alarms that were allowed, and the score above 0.
        curve: float64 [T], how well each of the video's T clips fits the sentence.
    """

    video: str
    path: Path
    sentence: int
    place: int
    start: float
    end: float
    score: float
    contrast: float
    chance: float
    fits: bool
    curve: np.ndarray = field(compare=False, repr=False)

    def as_dict(self, sentences: Sequence[str]) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            "video": self.video,
            "path": str(self.path),
            "sentence": sentences[self.sentence],
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "score": round(self.score, 5),
            "contrast": round(self.contrast, 5),
            "chance": round(self.chance, 4),
            "fits": self.fits,
        }


class Reader(TextTower, Protocol):
    """What reads sentences into the space of the clips: an encoder with a text tower."""

    dim: int
    device: torch.device


class Asked:
    """What is asked of every video.

    Args:
        encoder: with a text tower.
        sentences: M of them.
        in_order: whether they happen one after the other.
        false_alarms: share of unrelated sentences that may be taken for fitting.
    """

    def __init__(self, encoder: Reader, sentences: Sequence[str], in_order: bool, false_alarms: float) -> None:
        self.sentences, self.in_order, self.false_alarms = tuple(sentences), in_order, false_alarms
        self.ordered = self._model(encoder, "paragraph")
        self.single = self._model(encoder, "none")

    @staticmethod
    def _model(encoder: Reader, order: Any) -> Similarity:
        model = Similarity(SimilarityConfig(order=order), encoder.dim, NO_WORDS).to(encoder.device).eval()
        model.tower = encoder
        return model


@torch.inference_mode()
def unrelated_scores(asked: Asked, name: str, video: Seen) -> np.ndarray:
    """What each unrelated sentence scores at its best moment in a video; it depends on the encoder and the video."""
    return _best_scores(asked.single, _batch(name, video, UNRELATED).to(asked.single.place.device))


@torch.inference_mode()
def ask(asked: Asked, name: str, path: Path, video: Seen, top: int, chance: np.ndarray | None = None) -> list[Moment]:
    """The best moments of each sentence in a video: ``top`` of one sentence, one each of a paragraph in order.

    Args:
        chance: of :func:`unrelated_scores`, where the video has been asked before.
    """
    device = asked.single.place.device
    batch = _batch(name, video, asked.sentences).to(device)
    model = asked.ordered if asked.in_order else asked.single
    curves = model.curves(batch)
    prediction = model.rank(curves, batch, 1 if asked.in_order else top)
    rows = curves[0].double().cpu().numpy()
    if chance is None:
        chance = unrelated_scores(asked, name, video)
    moments = []
    for m in range(len(asked.sentences)):
        ranked = zip(prediction.spans[0, m].tolist(), prediction.scores[0, m].tolist(), strict=True)
        for place, (span, score) in enumerate(ranked):
            if score == -np.inf:
                continue
            inside, outside = _means(rows[m], span, video.duration)
            share = float((chance >= inside).mean())
            fits = share <= asked.false_alarms and inside > 0
            numbers = (span[0], span[1], inside, inside - outside, share)
            moments.append(Moment(name, path, m, place, *numbers, fits, rows[m]))
    return moments


def best(moments: Sequence[Moment], top: int, in_order: bool) -> list[Moment]:
    """The ``top`` best of several videos, the best first; of a paragraph those of the ``top`` best videos, in order."""
    if not in_order:
        # The best moment of every video first: the second-best of one says less than the best of another.
        return sorted(moments, key=lambda m: (m.place, -m.score))[:top]
    by_video: dict[str, list[Moment]] = {}
    for moment in moments:
        by_video.setdefault(moment.video, []).append(moment)
    ranked = sorted(by_video.values(), key=lambda found: -sum(m.score for m in found))
    return [moment for found in ranked[:top] for moment in sorted(found, key=lambda m: m.sentence)]


def _best_scores(model: Similarity, batch: Batch) -> np.ndarray:
    """What each sentence of a batch of one video scores at its best moment."""
    curves = model.curves(batch)
    spans = model.rank(curves, batch, 1).spans[0, :, 0].tolist()
    rows, seconds = curves[0].double().cpu().numpy(), float(batch.durations[0])
    return np.array([_means(row, span, seconds)[0] for row, span in zip(rows, spans, strict=True)])


def _means(curve: np.ndarray, span: Sequence[float], duration: float) -> tuple[float, float]:
    """Means of a curve inside and outside of a span in seconds; both inside where nothing is outside."""
    first, last = (round(edge / duration * len(curve)) for edge in span)
    inside = curve[first : max(last, first + 1)]
    outside = np.concatenate((curve[:first], curve[max(last, first + 1) :]))
    return float(inside.mean()), float((outside if len(outside) else inside).mean())


def _batch(name: str, video: Seen, sentences: Sequence[str]) -> Batch:
    clips, count = len(video.features), len(sentences)
    return Batch(
        paragraphs=[Paragraph(name, video.duration, tuple(sentences))],
        video=torch.from_numpy(video.features)[None],
        video_mask=torch.ones(1, clips, dtype=torch.bool),
        words=torch.ones(1, count, 1, dtype=torch.int64),
        word_mask=torch.ones(1, count, 1, dtype=torch.bool),
        sentence_mask=torch.ones(1, count, dtype=torch.bool),
        durations=torch.tensor([video.duration], dtype=torch.float64),
    )
