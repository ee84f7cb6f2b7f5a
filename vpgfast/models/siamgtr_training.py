"""What SiamGTR needs to be trained: inserted videos (section 3.3) and its losses, see :mod:`vpgfast.models.siamgtr`,
also for the letters."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vpgfast.data.types import Batch
from vpgfast.models.configs.siamgtr import SiamGTRConfig
from vpgfast.models.layers import at_least_float32, same_videos
from vpgfast.ops import temporal_giou


class Insertions(NamedTuple):
    """How each video of a batch is inserted into another one.

    Attributes:
        background: int64 [B], which of the batch it is inserted into.
        stride: float64 [B], s > 0 of the random re-sampling.
        place: int64 [B], I, how many of the background's clips come before it, 0 to T.
        shift: float64 [B, 2], shares of its length that are labelled as background at its start and its end (RBS).
        there: bool [B], whether the batch has another video at all; without, the rest means nothing.
    """

    background: Tensor
    stride: Tensor
    place: Tensor
    shift: Tensor
    there: Tensor


def draw_insertions(batch: Batch, config: SiamGTRConfig) -> Insertions:
    """At random (section 3.3, A.1); the background is a video of the same batch."""
    size, T, device = len(batch), config.max_clips, batch.video.device
    draws = torch.rand(size, size, device=device).masked_fill(same_videos(batch), -1)
    low, high = config.strides
    stride = low + (high - low) * torch.rand(size, device=device, dtype=torch.float64)
    place = torch.randint(0, T + 1, (size,), device=device)
    end = T * torch.randint(0, 2, (size,), device=device)
    place = torch.where(torch.rand(size, device=device) < config.insert_at_ends, end, place)
    shift = config.boundary_shift * torch.rand(size, 2, device=device, dtype=torch.float64)
    return Insertions(draws.argmax(1), stride, place, shift, draws.amax(1) >= 0)


def insert_videos(clips: Tensor, insertions: Insertions) -> tuple[Tensor, Tensor]:
    """F_aug = NRS(Concat(F_bg[:I], RRS(F_v), F_bg[I:])), and when RRS(F_v) is on (Eq. 1-2), for a whole batch at once.

    RRS takes the clips at 0, s, 2s, ... (rounded down); NRS interpolates linearly between the middles of clips.

    Args:
        clips: F_v [B, T, D].

    Returns:
        [B, T, D], and [B, 2] fractions of the whole.
    """
    B, T, _ = clips.shape
    background, stride, place, shift, _ = insertions
    count = (T / stride).ceil().long()  # clips that RRS leaves: those with i * s < T
    total = T + count
    position = (torch.arange(T, device=clips.device) + 0.5) * (total.double() / T).unsqueeze(1) - 0.5
    position = torch.minimum(position.clamp_min(0), (total - 1).unsqueeze(1))
    low = position.long()
    high = torch.minimum(low + 1, (total - 1).unsqueeze(1))
    flat = clips.flatten(0, 1)

    def at(index: Tensor) -> Tensor:
        """Clips of the concatenation, int64 [B, T] -> [B, T, D]."""
        inserted = index - place.unsqueeze(1)
        of_video = (inserted >= 0) & (inserted < count.unsqueeze(1))
        own = (inserted * stride.unsqueeze(1)).long().clamp(0, T - 1)
        other = torch.where(inserted < 0, index, index - count.unsqueeze(1)).clamp(0, T - 1)
        row = torch.where(of_video, torch.arange(B, device=clips.device).unsqueeze(1), background.unsqueeze(1))
        return F.embedding(row * T + torch.where(of_video, own, other), flat)

    pseudo = torch.lerp(at(low), at(high), (position - low).unsqueeze(2).to(clips.dtype))
    labelled = torch.stack([place + shift[:, 0] * count, place + (1 - shift[:, 1]) * count], 1)
    return pseudo, (labelled / total.unsqueeze(1)).to(at_least_float32(clips).dtype)


def mean_where(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the elements of ``x`` that ``mask`` (bool, broadcast to ``x``) keeps; 0 where it keeps none."""
    mask = mask.expand_as(x)
    return x.masked_fill(~mask, 0).sum() / mask.sum().clamp_min(1)


def order_loss(places: Tensor, gap: Tensor, pairs: Tensor) -> Tensor:
    """max(0, gap + place of sentence j - place of sentence j + 1), mean over pairs of neighbours (Eq. 9 and A.2).

    Args:
        places: [B, M], fractions of the duration.
        gap: [B, 1], how far apart neighbours have to be at least.
        pairs: bool [B, M - 1].
    """
    return mean_where((gap + places[:, :-1] - places[:, 1:]).relu(), pairs)


def boundary_error(spans: Tensor, target: Tensor) -> Tensor:
    """L1 distance of both ends + 1 - GIoU (Eq. 8), of two [..., 2] -> [...]."""
    return (spans - target).abs().sum(-1) + 1 - temporal_giou(spans, target, pairwise=False)


def log_mass(mass: Tensor) -> Tensor:
    """Logarithm of the attention inside an interval (Eq. A.3), finite also where there is none."""
    return mass.clamp_min(1e-6).log()


def guidance_loss(similarity: Tensor, spans: Tensor) -> Tensor:
    """Asks that every clip inside a sentence's span be as similar to it as the others, and no clip outside.

    The cross-entropy of attention by similarity against attention that is even over the span: LGI's temporal attention
    guidance (Mun et al., CVPR 2020).

    Args:
        similarity: of N sentences and the clips of their video, [N, T].
        spans: [N, 2], fractions of the duration.

    Returns:
        [N].
    """
    T = similarity.shape[1]
    start, end = clips_inside(spans, T).unsqueeze(-1).unbind(1)  # [N, 1]
    t = torch.arange(T, device=spans.device)
    inside = (start <= t) & (t <= end)
    return -(similarity.log_softmax(1) * inside).sum(1) / inside.sum(1)


def cross_branch_loss(augmented: Tensor, normal: Tensor, sentences: Tensor, there: Tensor) -> Tensor:
    """1 - cosine of the branches' features, for sentences and for paragraphs, mean over layers (Eq. A.1).

    Sentences follow the inference branch, the paragraph follows the augmentation branch.

    Args:
        augmented, normal: [K, B, Q, D].
        sentences: bool [B, M].
        there: bool [B, 1], whether the augmentation branch has a video.
    """
    of_sentences = 1 - F.cosine_similarity(augmented[:, :, 1:], normal[:, :, 1:].detach(), dim=-1)
    of_paragraph = 1 - F.cosine_similarity(augmented[:, :, :1].detach(), normal[:, :, :1], dim=-1)
    return mean_where(of_sentences, sentences & there) + mean_where(of_paragraph, there)


def clips_inside(intervals: Tensor, T: int) -> Tensor:
    """Fractions of the duration [..., 2] -> clip positions. A clip is inside if its middle is, the nearest always."""
    start, end = (intervals.double() * T - 0.5).unbind(-1)
    middle = ((start + end) / 2).round().clamp(0, T - 1)
    return torch.stack([torch.minimum(start, middle), torch.maximum(end, middle)], -1)
