"""Asking a trained method when sentences happen in a video."""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vpgfast.config import TrainConfig
from vpgfast.data.batches import make_batch, prepare, warn_of_long_sentences
from vpgfast.data.text import UNKNOWN, WordVectors, tokenize
from vpgfast.data.types import BatchNeeds, Paragraph
from vpgfast.files import output_folder, readable, write_file
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
        video: its name.
    """

    sentences: list[str]
    duration: float
    spans: np.ndarray
    scores: np.ndarray
    curves: np.ndarray | None = None
    video: str = "video"

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, m: int) -> Sentence:
        """What was found for sentence m."""
        there = np.isfinite(self.spans[m, :, 0])
        curve = None if self.curves is None else self.curves[m]
        return Sentence(self.sentences[m], self.spans[m][there], self.scores[m][there], curve)

    def __str__(self) -> str:
        return self.as_text()

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

    def to_dict(self, curves: bool = True) -> dict[str, Any]:
        """As ``grounding.json`` holds it, with ``curves`` where the method has any."""
        sentences = [self[m].to_dict() for m in range(len(self))]
        for sentence in sentences:
            if not curves:
                sentence.pop("curve", None)
        return {"video": readable(self.video), "duration": self.duration, "sentences": sentences}

    def save(self, folder: str | Path) -> Path:
        """Write ``grounding.txt``, ``grounding.json`` and ``grounding.png`` into a folder, which is made; returns it.

        Raises:
            UserError: it can't be written; says why.
        """
        from vpgfast.plots import draw_ranked  # and matplotlib with it, which takes longer than short answers

        output = output_folder(Path(folder), "folder")
        write_file(output / "grounding.txt", (readable(self.as_text()) + "\n").encode())
        write_file(output / "grounding.json", (json.dumps(self.to_dict(), indent=2) + "\n").encode())
        title = f"{self.video}, {self.duration:.1f} s"
        draw_ranked(self.sentences, self.spans, self.scores, self.duration, output / "grounding.png", title)
        return output

    def _repr_html_(self) -> str:
        """A table for notebooks: each sentence with its spans, as bars over the video and in seconds."""
        rows = [row for m in range(len(self)) for row in self[m].html_rows(self.duration)]
        return (
            f"<table><caption>{html.escape(readable(self.video))}, {self.duration:.1f} s</caption>"
            f"<tr><th>sentence</th><th>moment</th><th>seconds</th><th>score</th></tr>{''.join(rows)}</table>"
        )


@dataclass(frozen=True, eq=False)
class Sentence:
    """Where one sentence happens.

    Attributes:
        sentence: the text.
        spans: float64 [K, 2], seconds, best first.
        scores: float64 [K], on the method's own scale.
        curve: float64 [T], how well each of T clips of equal length fits, of a method that has that.
    """

    sentence: str
    spans: np.ndarray
    scores: np.ndarray
    curve: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """As a part of ``grounding.json``."""
        spans = [
            {"start": round(float(start), 3), "end": round(float(end), 3), "score": float(score)}
            for (start, end), score in zip(self.spans, self.scores, strict=True)
        ]
        found: dict[str, Any] = {"sentence": self.sentence, "spans": spans}
        if self.curve is not None:
            found["curve"] = [round(float(value), 5) for value in self.curve]
        return found

    def html_rows(self, duration: float) -> list[str]:
        """Rows of a table, one a span."""
        rows = []
        cell = f"<td rowspan={max(1, len(self.spans))}>{html.escape(self.sentence)}</td>"
        for (start, end), score in zip(self.spans, self.scores, strict=True):
            left, width = 100 * start / duration, max(0.5, 100 * (end - start) / duration)
            bar = (
                f'<div style="width:16em;background:#8884"><div style="height:.8em;background:#e07b39;'
                f'margin-left:{left:.2f}%;width:{width:.2f}%"></div></div>'
            )
            rows.append(f"<tr>{cell}<td>{bar}</td><td>{start:.1f} - {end:.1f}</td><td>{score:.3g}</td></tr>")
            cell = ""
        return rows or [f"<tr>{cell}<td colspan=3>no span</td></tr>"]


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
    """Name the words that a method which reads by its vocabulary can't read, and say which sentences it cuts."""
    warn_of_long_sentences([Paragraph("query", 1.0, tuple(sentences))], needs)
    unknown = unknown_words(sentences, vectors)
    if unknown and needs.vocabulary:
        log.warning("the model has not seen these words and ignores their meaning: %s", ", ".join(unknown))
