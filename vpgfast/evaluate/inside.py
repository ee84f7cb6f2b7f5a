"""What a method shows of how it found its answers, for a few videos: labels of clips (SeqPAN), attention (MARN),
scores of moments (DMR-JRG)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vpgfast.config import TrainConfig
from vpgfast.data.batches import make_batch
from vpgfast.data.corpus import Corpus
from vpgfast.data.text import WordVectors
from vpgfast.data.types import Paragraph
from vpgfast.models.method import Method
from vpgfast.models.registry import get_method
from vpgfast.models.windows import is_long


@dataclass
class Inside:
    """Of one item of M sentences, whose video has T clips.

    Attributes:
        paragraph: the item.
        spans: float64 [M, 2], the best span of each sentence, seconds.
        labels: [M, T], see :class:`vpgfast.data.types.Prediction`, or ``None``.
        true_labels: [M, T], what these should be, or ``None``.
        attention: [M, S, T], see there, or ``None``.
        lengths: of the S rows, in clips.
        maps: [M, S, S], see there, or ``None``.
    """

    paragraph: Paragraph
    spans: np.ndarray
    labels: np.ndarray | None = None
    true_labels: np.ndarray | None = None
    attention: np.ndarray | None = None
    lengths: list[int] | None = None
    maps: np.ndarray | None = None


def _array(values: torch.Tensor | None, count: int | None = None) -> Any:
    """The first item's, of its first ``count`` clips where it is said; NumPy knows no bfloat16."""
    if values is None:
        return None
    values = values[0, ..., :count]
    return (values.float() if values.is_floating_point() else values).cpu().numpy()


@torch.no_grad()
def look_inside(
    model: Method, config: TrainConfig, corpus: Corpus, vectors: WordVectors, items: list[Paragraph]
) -> list[Inside]:
    """Ask a method once more about some items; empty for a method that shows nothing. Long videos are left out.

    Args:
        model: in evaluation mode; not as Fabric wraps it.
        config: of the run.
        corpus: has the features.
        vectors: the model's vocabulary.
        items: see :func:`vpgfast.data.batches.prepare`.
    """
    needs, device = get_method(config.method).needs(config.model), next(model.parameters()).device
    found = []
    for item in items:
        features = corpus.features[item.video_id]
        if is_long(model, needs, len(features)):
            continue
        batch = make_batch([item], [features], vectors, needs, training=False).to(device)
        prediction = model.predict(batch, 1)
        if prediction.labels is None and prediction.attention is None and prediction.maps is None:
            return []
        count = int(batch.video_mask.sum())
        found.append(
            Inside(
                item,
                prediction.spans[0, :, 0].double().cpu().numpy(),
                _array(prediction.labels, count),
                _array(model.true_labels(batch), count),
                _array(prediction.attention, count),
                getattr(config.model, "scales", None),
                _array(prediction.maps),
            )
        )
    return found
