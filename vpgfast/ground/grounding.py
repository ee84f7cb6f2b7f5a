"""Asking a trained method when sentences happen in a video."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vpgfast.config import TrainConfig
from vpgfast.data.batches import make_batch, prepare
from vpgfast.data.text import UNKNOWN, WordVectors, tokenize
from vpgfast.data.types import BatchNeeds, Paragraph
from vpgfast.metrics.spans import ranked_spans
from vpgfast.models.method import Method
from vpgfast.models.registry import get_method
from vpgfast.models.windows import is_long, predict_long

log = logging.getLogger(__name__)


@dataclass
class Grounding:
    """Where a paragraph's sentences happen.

    Attributes:
        sentences: M of them.
        duration: of the video, in seconds.
        spans: float64 [M, K, 2], seconds, best first; NaN where there are fewer.
        scores: float64 [M, K], on the method's own scale.
        curves: float64 [M, T], how well each of T clips of equal length fits each sentence, of a method that has that.
    """

    sentences: list[str]
    duration: float
    spans: np.ndarray
    scores: np.ndarray
    curves: np.ndarray | None = None

    def as_text(self) -> str:
        """The sentences with their spans, one a line; several sentences are numbered."""
        lines = []
        for number, (sentence, spans, scores) in enumerate(
            zip(self.sentences, self.spans, self.scores, strict=True), start=1
        ):
            lines.append(f"{number}. {sentence}" if len(self.sentences) > 1 else sentence)
            for rank, ((start, end), score) in enumerate(zip(spans, scores, strict=True), start=1):
                if np.isfinite(start):
                    lines.append(f"{rank:4d}.  {start:8.2f} - {end:8.2f} s   score {score:.4g}")
        return "\n".join(lines)

    def as_dict(self, curves: bool = False) -> dict[str, Any]:
        """As ``grounding.json`` holds it, with ``curves`` where the method has any."""
        sentences: list[dict[str, Any]] = []
        for sentence, spans, scores in zip(self.sentences, self.spans, self.scores, strict=True):
            found = [
                {"start": round(float(start), 3), "end": round(float(end), 3), "score": float(score)}
                for (start, end), score in zip(spans, scores, strict=True)
                if np.isfinite(start)
            ]
            sentences.append({"sentence": sentence, "spans": found})
        if curves and self.curves is not None:
            for entry, curve in zip(sentences, self.curves, strict=True):
                entry["curve"] = [round(float(value), 5) for value in curve]
        return {"duration": self.duration, "sentences": sentences}


def ground(
    model: Method,
    config: TrainConfig,
    vectors: WordVectors,
    features: np.ndarray,
    duration: float,
    sentences: Sequence[str],
    top: int = 5,
) -> Grounding:
    """Ask a trained method about one video.

    Args:
        model: in evaluation mode, on the CPU or a GPU.
        config: the run's settings.
        vectors: the model's vocabulary.
        features: float32 [T, d_v], any T >= 1; a longer video than the method takes is brought down to that, or seen
            through windows, as its setting ``windowed`` says.
        duration: seconds.
        sentences: at least one, in the order of the paragraph they make (it matters to methods that take paragraphs).
        top: spans a sentence.
    """
    needs = get_method(config.method).needs(config.model)
    paragraph = Paragraph("query", duration, tuple(sentences))
    device = next(model.parameters()).device
    spans, scores, curves = [], [], []
    for item in prepare([paragraph], needs, training=False):
        batch = make_batch([item], [features], vectors, needs, training=False).to(device)
        if is_long(model, needs, len(features)):
            prediction = predict_long(model, item, features, vectors, needs, top)
        else:
            with torch.no_grad():
                prediction = model.predict(batch, top)
        spans.append(ranked_spans(prediction, batch)[0])
        scores.append(prediction.scores[0, : len(item.sentences)].double().cpu().numpy())
        if prediction.curves is not None:
            curves.append(prediction.curves[0, : len(item.sentences)].double().cpu().numpy())
    joined = np.concatenate(curves) if curves else None
    return Grounding(list(sentences), duration, _join(spans, top), _join(scores, top), joined)


def _join(parts: Sequence[np.ndarray], top: int) -> np.ndarray:
    """[m_i, k_i, ...] -> [M, top, ...], filled up with NaN."""
    joined = np.full((sum(map(len, parts)), top, *parts[0].shape[2:]), np.nan)
    row = 0
    for part in parts:
        joined[row : row + len(part), : part.shape[1]] = part[:, :top]
        row += len(part)
    return joined


def unknown_words(sentences: Sequence[str], vectors: WordVectors) -> list[str]:
    """The words that a model has no vector for, in order, each once."""
    words = dict.fromkeys(word for sentence in sentences for word in tokenize(sentence))
    return [word for word in words if vectors.index(word) == UNKNOWN]


def warn_of_unknown_words(sentences: Sequence[str], vectors: WordVectors, needs: BatchNeeds) -> None:
    """Name the words that a method which reads by its vocabulary can't read."""
    unknown = unknown_words(sentences, vectors)
    if unknown and needs.vocabulary:
        log.warning("the model has not seen these words and ignores their meaning: %s", ", ".join(unknown))
