"""Long videos: a method that takes so many clips sees a much longer video through windows, with half overlap.

A window holds as many clips as the method takes, or where training videos had more, as many as those; then it is
brought down to what the method takes, as they were. Each window is asked each sentence by itself, for the method was
trained on videos that are as long as a window, not on paragraphs that are spread over hours. Its answers carry scores
that can be compared between windows (:meth:`vpgfast.models.method.Method.candidates`): what is a probability within a
window says nothing of whether the moment is in it. All windows' answers are merged by suppression; with
``decode: ordered`` a paragraph is decoded in order over all of them. Windows are asked a fixed number at a time, so
memory does not grow with the video.
"""

from __future__ import annotations

import numpy as np
import torch

from vpgfast.data.batches import make_batch
from vpgfast.data.text import WordVectors
from vpgfast.data.types import BatchNeeds, Paragraph, Prediction
from vpgfast.models.method import Method
from vpgfast.models.ordered import Candidates, put_in_order
from vpgfast.ops import temporal_nms

BEYOND = 2.0
"""``windowed: auto``: a video is long if it has more than this many times the clips of a window."""
NMS = 0.5
"""Largest IoU between answers of different windows, of a method that has none of its own."""
_AT_ONCE = 64
"""Pairs of a window and a sentence in a batch."""
_ANSWERS = 5
"""Spans that a window gives to a sentence."""


def window_size(model: Method, needs: BatchNeeds) -> int:
    """Clips of a window: what the method takes, or what a training video has, if that is more."""
    return max(needs.max_clips, model.usual_clips)


def is_long(model: Method, needs: BatchNeeds, clips: int) -> bool:
    """Whether a video of so many clips is seen through windows.

    Args:
        model: a method without the setting ``windowed`` sees all videos as a whole.
        needs: its.
        clips: of the features.
    """
    setting = getattr(model.config, "windowed", False)
    return bool(setting) and clips > window_size(model, needs) * (BEYOND if setting == "auto" else 1)


def window_starts(clips: int, size: int) -> list[int]:
    """First clips of windows of ``size`` < ``clips`` clips that overlap by half; the last one ends with the video."""
    return [*range(0, clips - size, max(1, size // 2)), clips - size]


@torch.no_grad()
def predict_long(
    model: Method, paragraph: Paragraph, features: np.ndarray, vectors: WordVectors, needs: BatchNeeds, top_n: int
) -> Prediction:
    """Ranked spans [1, M, top_n] of an item (see :func:`vpgfast.data.batches.prepare`) in a long video.

    Args:
        model: in evaluation mode; not as Fabric wraps it.
        paragraph: M sentences.
        features: float32 [T, d_v], T > :func:`window_size`.
        vectors: the model's vocabulary.
        needs: the method's.
        top_n: spans a sentence. Scores are those of the candidates.
    """
    device, size, M = next(model.parameters()).device, window_size(model, needs), len(paragraph.sentences)
    clip = paragraph.duration / len(features)
    starts = window_starts(len(features), size)
    pairs = [(start, m) for start in starts for m in range(M)]
    spans, scores = [], []
    for some in (pairs[i : i + _AT_ONCE] for i in range(0, len(pairs), _AT_ONCE)):
        items = [Paragraph(paragraph.video_id, size * clip, (paragraph.sentences[m],)) for _, m in some]
        windows = [features[start : start + size] for start, _ in some]
        batch = make_batch(items, windows, vectors, needs, training=False).to(device)
        found = model.candidates(batch, _ANSWERS)
        if found is None:
            raise NotImplementedError(f"{model.name} has no scores to compare windows by")
        begin = torch.tensor([start * clip for start, _ in some], dtype=torch.float64, device=device)
        spans.append(found.spans.double() + begin[:, None, None])
        scores.append(found.scores)

    def of_sentences(values: list[torch.Tensor]) -> torch.Tensor:
        """Of pairs -> [1, M, windows * answers, ...]."""
        return torch.cat(values).unflatten(0, (len(starts), M)).transpose(0, 1).flatten(1, 2).unsqueeze(0)

    candidates = Candidates(of_sentences(spans), of_sentences(scores))
    nms = getattr(model.config, "nms", None)
    threshold = NMS if nms is None else nms
    kept = temporal_nms(candidates.spans, candidates.scores, threshold, top_n)
    index = kept.clamp_min(0)
    prediction = Prediction(
        candidates.spans.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, 2)),
        candidates.scores.gather(2, index).masked_fill(kept < 0, -torch.inf),
    )
    if getattr(model.config, "decode", "independent") == "independent" or M == 1:
        return prediction
    there = torch.ones(1, M, dtype=torch.bool, device=device)
    return put_in_order(prediction, candidates, there, threshold)
