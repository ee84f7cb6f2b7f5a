"""``decode: ordered``: the first-ranked spans of a paragraph's sentences, chosen together in the paragraph's order.

A method offers candidates of each sentence, each with how likely it is. One a sentence is taken, so that starts do not
fall and the likelihoods' product is the largest there is (:func:`vpgfast.ops.ordered_candidates`, exact). What is
chosen comes first; behind it stands what the method ranks by itself.

Letters: B paragraphs with their videos; M sentences of a paragraph, N of a batch; P candidates; K ranked spans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vpgfast.data.types import Batch, Prediction
from vpgfast.models.candidates import Candidates
from vpgfast.models.layers import to_paragraphs
from vpgfast.ops import ordered_candidates, temporal_iou

_AT_ONCE = 16
"""Sentences that a method for single ones takes at a time, where a batch has fewer paragraphs."""
_NOTHING = {
    "spans": 0.0,
    "scores": -torch.inf,
    "curves": 0.0,
    "attention": torch.nan,
    "maps": torch.nan,
    "labels": 0,
}
"""What a prediction may hold, and what stands there for no sentence."""


def single_sentences(batch: Batch) -> Iterator[Batch]:
    """The sentences of a batch of paragraphs as batches of single ones (M = 1), paragraph by paragraph."""
    rows = batch.sentence_mask.nonzero()
    for part in rows.split(max(len(batch), _AT_ONCE)):
        b, m = part.unbind(1)
        yield replace(
            batch,
            paragraphs=[batch.paragraphs[i].select([j]) for i, j in part.tolist()],
            video=batch.video[b],
            video_mask=batch.video_mask[b],
            words=batch.words[b, m].unsqueeze(1),
            word_mask=batch.word_mask[b, m].unsqueeze(1),
            sentence_mask=batch.sentence_mask[b, m].unsqueeze(1),
            durations=batch.durations[b],
            chars=None if batch.chars is None else batch.chars[b, m].unsqueeze(1),
            spans=None,
            labelled=None,
            clips=None,
        )


def predict_in_order(
    batch: Batch, answer: Callable[[Batch], tuple[Prediction, Candidates]], nms: float | None = None
) -> Prediction:
    """Ranked spans of whole paragraphs from a method that answers single sentences.

    Args:
        batch: of paragraphs.
        answer: single sentences (M = 1) -> what the method ranks [n, 1, K], and candidates [n, P] in seconds.
        nms: the method's own largest IoU between ranked spans, if it has one.
    """
    predictions, candidates = zip(*map(answer, single_sentences(batch)), strict=True)
    there = batch.sentence_mask
    offered = Candidates(
        to_paragraphs(torch.cat([c.spans for c in candidates]), there),
        to_paragraphs(torch.cat([c.scores for c in candidates]), there, -torch.inf),
    )
    return put_in_order(_in_their_places(predictions, there), offered, there, nms)


def predict_one_by_one(batch: Batch, answer: Callable[[Batch], Prediction]) -> Prediction:
    """Ranked spans of whole paragraphs from a method that answers single sentences, in no order.

    Args:
        batch: of paragraphs, or of single sentences.
        answer: single sentences (M = 1) -> what the method ranks [n, 1, K].
    """
    return _in_their_places([answer(part) for part in single_sentences(batch)], batch.sentence_mask)


def _in_their_places(predictions: Sequence[Prediction], there: Tensor) -> Prediction:
    """Predictions of single sentences [n, 1, ...], one after the other, as one of paragraphs [B, M, ...]."""
    parts = {
        name: to_paragraphs(torch.cat([getattr(p, name)[:, 0] for p in predictions]), there, nothing)
        for name, nothing in _NOTHING.items()
        if getattr(predictions[0], name) is not None
    }
    return Prediction(**parts)


def put_in_order(
    prediction: Prediction, candidates: Candidates, sentence_mask: Tensor, nms: float | None = None
) -> Prediction:
    """The prediction with the candidates first that together are the likeliest in the order of the sentences.

    Ranked spans that are the same as the first one (with ``nms``: whose IoU with it is above that) are left out. The
    first place has the score of the method's own best span, so that scores fall. A paragraph whose candidates have no
    order stays as it is.

    Args:
        prediction: [B, M, K].
        candidates: [B, M, P], in seconds.
        sentence_mask: bool [B, M].
        nms: see above.
    """
    chosen, _ = ordered_candidates(*candidates, "starts", sentence_mask)
    found = chosen >= 0
    first = candidates.spans.gather(2, chosen.clamp_min(0)[..., None, None].expand(-1, -1, 1, 2))
    first = torch.where(found[..., None, None], first.to(prediction.spans.dtype), prediction.spans[:, :, :1])
    spans = torch.cat([first, prediction.spans], 2)
    scores = torch.cat([prediction.scores[:, :, :1], prediction.scores], 2)
    limit = 1 - 1e-9 if nms is None else nms + 1e-9
    left = (temporal_iou(first.double(), prediction.spans.double())[:, :, 0] <= limit) & prediction.scores.isfinite()
    keep = torch.cat([torch.ones_like(left[:, :, :1]), left], 2)
    places = (~keep).to(torch.int8).argsort(dim=2, stable=True)[:, :, : prediction.spans.shape[2]]
    scores = scores.masked_fill(~keep, -torch.inf).gather(2, places)
    return replace(prediction, spans=spans.gather(2, places.unsqueeze(-1).expand(-1, -1, -1, 2)), scores=scores)
