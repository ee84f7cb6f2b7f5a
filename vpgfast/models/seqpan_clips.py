"""SeqPAN between spans and clips: what its network is to give for true spans, and which spans its scores mean."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vpgfast.data.types import Batch
from vpgfast.models.configs.seqpan import ClipTimes, SeqPANConfig

OUTSIDE, BEGIN, INSIDE, END = range(4)
"""The region labels O, B-M, I-M and E-M of section 3.1.4."""


class Targets(NamedTuple):
    """What each sentence of a batch is to give.

    Attributes:
        start, end: Y_s and Y_e of Eq. 13, [B, T], each sums to 1.
        labels: Y_lab of Eq. 11, int64 [B, T].
    """

    start: Tensor
    end: Tensor
    labels: Tensor


def make_targets(batch: Batch, config: SeqPANConfig) -> Targets:
    """The targets of a batch of single sentences.

    A sentence that is true of several moments shares Y_s and Y_e among them; a clip takes the label of the moment that
    it belongs to, and of two moments the later one of BEGIN, INSIDE and END.
    """
    spans, there = (x[:, 0] for x in batch.true_spans)  # [B, A, 2], [B, A]
    A = spans.shape[1]
    mask = batch.video_mask.repeat_interleave(A, 0)
    start, end = spans_to_clips(spans.flatten(0, 1), mask, config.clip_times)
    spread = 0.25 if config.as_released else 0.0
    share = (there / there.sum(1, keepdim=True)).unsqueeze(2)
    starts, ends = (boundary_targets(index, mask, spread).unflatten(0, (-1, A)) for index in (start, end))
    if config.as_released and config.matching == "sq":
        labels = released_region_labels(start, end, mask)
    else:
        labels = region_labels(start, end, mask, config.matching)
    labels = labels.unflatten(0, (-1, A))
    labels = labels.masked_fill(~there.unsqueeze(2), OUTSIDE).amax(1)
    return Targets((share * starts).sum(1), (share * ends).sum(1), labels)


def spans_to_clips(spans: Tensor, mask: Tensor, clip_times: ClipTimes) -> tuple[Tensor, Tensor]:
    """First and last clip of each span (section 3.1: "mapped to the corresponding indices"), 0 <= start <= end < T.

    "points": the nearest clip to each boundary, halves up. "extents": the pair whose stretch has the largest IoU
    with the span.

    Args:
        spans: [B, 2], fractions of the duration.
        mask: bool [B, T'] of clips; T is each video's own number of real ones.

    Returns:
        Two int64 [B].
    """
    count = mask.sum(1).clamp_min(1)
    spans = spans.double().clamp(0, 1)
    if clip_times == "points":
        clips = (spans * (count - 1).unsqueeze(1) + 0.5).floor().long()
        return clips[:, 0], clips[:, 1]
    # The best start is the clip edge on either side of the true start, the best end likewise: four pairs to compare.
    edges = spans * count.unsqueeze(1)
    start, end = edges[:, :1], edges[:, 1:]
    first = torch.cat([start.floor(), start.floor(), start.floor() + 1, start.floor() + 1], 1)
    last = torch.cat([end.ceil(), end.ceil() - 1, end.ceil(), end.ceil() - 1], 1)
    first, last = torch.minimum(first, count.unsqueeze(1) - 1), torch.maximum(last, torch.ones_like(last))
    inside = (torch.minimum(last, end) - torch.maximum(first, start)).clamp_min(0)
    union = torch.maximum(last, end) - torch.minimum(first, start)
    iou = torch.where(last > first, inside / union, -1.0)
    best = iou.argmax(1, keepdim=True)
    return first.gather(1, best).squeeze(1).long(), last.gather(1, best).squeeze(1).long() - 1


def clips_to_spans(start: Tensor, end: Tensor, mask: Tensor, clip_times: ClipTimes) -> Tensor:
    """Span of the clips ``start`` to ``end``, as fractions of the duration.

    "points": i / (T - 1) (text under Eq. 14). By that rule start = end is an instant, whose IoU with anything is 0, so
    such a span alone is widened by half a clip distance on each side, within the video. "extents": start / T to
    (end + 1) / T.

    Args:
        start, end: int64 [B, K], start <= end < T.
        mask: bool [B, T'] of clips; T is each video's own number of real ones.

    Returns:
        float64 [B, K, 2], of positive length.
    """
    count = mask.sum(1, keepdim=True).clamp_min(1).double()
    if clip_times == "extents":
        return torch.stack([start / count, (end + 1) / count], -1)
    half = 0.5 * (start == end)
    last = (count - 1).clamp_min(0.5)  # a single clip is the whole video
    return torch.stack([(start - half) / last, (end + half) / last], -1).clamp(0, 1)


def boundary_targets(index: Tensor, mask: Tensor, spread: float = 0.0) -> Tensor:
    """Y_s or Y_e of Eq. 13: one-hot [B, T] of clip ``index`` [B].

    With ``spread``, that much goes to each neighbour (released code: 0.25); a neighbour outside the video leaves its
    part on the clip itself.
    """
    target = F.one_hot(index, mask.shape[1]).float()
    if not spread:
        return target
    before = F.pad(target[:, 1:], (0, 1))
    after = F.pad(target[:, :-1], (1, 0))
    neighbours = (before + after) * mask
    return target * (1 - spread * neighbours.sum(1, keepdim=True)) + spread * neighbours


def region_labels(start: Tensor, end: Tensor, mask: Tensor, matching: Literal["sq", "fb", "none"] = "sq") -> Tensor:
    """Y_lab of Eq. 11: the region of each clip, int64 [B, T].

    "sq": BEGIN on the first clip of the moment and its two neighbours, END on the last and its two neighbours, INSIDE
    between them, OUTSIDE elsewhere. A clip that both regions claim (in moments of one to three clips) is BEGIN before
    the moment's middle, END behind it, and INSIDE in the middle itself. "fb": 1 within the moment, 0 elsewhere.
    Padding is 0.
    """
    start, end = start.unsqueeze(1), end.unsqueeze(1)
    clip = torch.arange(mask.shape[1], device=mask.device)
    within = (clip >= start) & (clip <= end)
    if matching == "fb":
        return (within & mask).long()
    near_start, near_end = (clip - start).abs() <= 1, (clip - end).abs() <= 1
    side = (2 * clip - start - end).sign()  # -1 before the middle of the moment, 1 behind it
    begin = near_start & (~near_end | (side < 0))
    finish = near_end & (~near_start | (side > 0))
    labels = torch.full(within.shape, OUTSIDE, device=mask.device)
    labels = labels.masked_fill(within, INSIDE).masked_fill(begin, BEGIN).masked_fill(finish, END)
    return labels.masked_fill(~mask, OUTSIDE)


def released_region_labels(start: Tensor, end: Tensor, mask: Tensor) -> Tensor:
    """As :func:`region_labels` ("sq"), by the rule of the released code: of a clip that both regions claim, END."""
    start, end = start.unsqueeze(1), end.unsqueeze(1)
    clip = torch.arange(mask.shape[1], device=mask.device)
    first_end = (end - 1).clamp_min(0)
    last_begin = torch.where(start + 1 >= first_end, torch.maximum(start, first_end - 1), start + 1)
    labels = torch.full(mask.shape, OUTSIDE, device=mask.device)
    labels = labels.masked_fill((clip > last_begin) & (clip < first_end), INSIDE)
    labels = labels.masked_fill((clip >= start - 1) & (clip <= last_begin), BEGIN)
    labels = labels.masked_fill((clip >= first_end) & (clip <= end + 1), END)
    return labels.masked_fill(~mask, OUTSIDE)


def best_clips(start: Tensor, end: Tensor, mask: Tensor, top_n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``top_n`` pairs i <= j of real clips with the largest P_s(i) P_e(j) (Eq. 14).

    Equal pairs come in the order of i, then j, on every device.

    Args:
        start, end: float32 [B, T] log-probabilities.
        mask: bool [B, T].

    Returns:
        int64 [B, top_n] starts and ends, float32 [B, top_n] log-probabilities falling along the row; ``-inf`` (with
        clips 0, 0) where there are fewer pairs than ``top_n``.
    """
    clips = start.shape[1]
    allowed = (
        torch.ones(clips, clips, dtype=torch.bool, device=start.device).triu() & mask.unsqueeze(1) & mask.unsqueeze(2)
    )
    log_probability = (
        (start.float().unsqueeze(2) + end.float().unsqueeze(1)).masked_fill(~allowed, -torch.inf).flatten(1)
    )
    # topk leaves the order of equals open. A float >= 0 compares as its bits do, so (bits of -log p, place) is one
    # integer that no two pairs share.
    keys = (log_probability.abs().view(torch.int32).long() << 32) + torch.arange(clips * clips, device=start.device)
    places = keys.topk(min(top_n, clips * clips), dim=1, largest=False).indices
    best = log_probability.gather(1, places)
    places = places.masked_fill(best == -torch.inf, 0)
    missing = (0, top_n - places.shape[1])
    return F.pad(places // clips, missing), F.pad(places % clips, missing), F.pad(best, missing, value=-torch.inf)
