"""Conversions between the forms a span takes: seconds, fractions of the duration, clips; start-end, centre-width.

A span is the last axis of a tensor, of size 2. Every function is differentiable and keeps dtype, device and leading
shape, unless it says otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_fractions(spans: Tensor, durations: Tensor) -> Tensor:
    """Seconds -> fractions of the duration.

    Args:
        spans: float [B, ..., 2], seconds.
        durations: [B], seconds, > 0.

    Returns:
        float [B, ..., 2] in [0, 1] where the spans lie inside the video.
    """
    return spans / _per_video(durations, spans)


def to_seconds(spans: Tensor, durations: Tensor) -> Tensor:
    """Fractions of the duration [B, ..., 2] -> seconds, with ``durations`` [B] in seconds."""
    return spans * _per_video(durations, spans)


def clips_to_fractions(first: Tensor, last: Tensor, clips: Tensor) -> Tensor:
    """Inclusive clip indices -> fractions: a span reaches from where its first clip begins to where its last one ends.

    Args:
        first, last: int [...], 0 <= first <= last < clips.
        clips: int, broadcastable to them: the number of clips T of the video.

    Returns:
        float32 [..., 2].
    """
    return torch.stack((first / clips, (last + 1) / clips), dim=-1)


def fractions_to_clips(spans: Tensor, clips: Tensor) -> Tensor:
    """Fractions -> inclusive indices of the clips in which a span starts and ends; the inverse of the above.

    A border between two clips belongs to the later one as a start and to the earlier one as an end. Borders are exact
    to 1e-4 of a clip, so that rounding in float32 doesn't move a span by a clip.

    Args:
        spans: float [..., 2], fractions of the duration.
        clips: int, broadcastable to ``spans[..., 0]``: the number of clips T of the video.

    Returns:
        int64 [..., 2], 0 <= first <= last < clips.
    """
    first = torch.floor(spans[..., 0] * clips + 1e-4).long()
    last = torch.ceil(spans[..., 1] * clips - 1e-4).long() - 1
    first = torch.minimum(first.clamp(min=0), torch.as_tensor(clips, device=spans.device) - 1)
    last = torch.minimum(torch.maximum(last, first), torch.as_tensor(clips, device=spans.device) - 1)
    return torch.stack((first, last), dim=-1)


def to_centre_width(spans: Tensor) -> Tensor:
    """(start, end) [..., 2] -> (centre, width) [..., 2], in the same unit."""
    start, end = spans.unbind(-1)
    return torch.stack(((start + end) / 2, end - start), dim=-1)


def to_start_end(spans: Tensor) -> Tensor:
    """(centre, width) [..., 2] -> (start, end) [..., 2], in the same unit; not clamped."""
    centre, width = spans.unbind(-1)
    return torch.stack((centre - width / 2, centre + width / 2), dim=-1)


def clamp(spans: Tensor, durations: Tensor | float = 1.0) -> Tensor:
    """Cut spans at the ends of the video.

    Args:
        spans: float [B, ..., 2], start and end.
        durations: the video's length in the same unit: [B], or one number (1.0 for fractions).

    Returns:
        float [B, ..., 2] within [0, duration]; a span wholly outside becomes an empty one at the end it left by.
    """
    if isinstance(durations, Tensor):
        return torch.minimum(spans.clamp(min=0), _per_video(durations, spans))
    return spans.clamp(min=0, max=durations)


def _per_video(durations: Tensor, spans: Tensor) -> Tensor:
    """[B] -> [B, 1, ..., 1] with the dimensions and dtype of ``spans``."""
    return durations.to(spans.dtype).view(-1, *(1,) * (spans.dim() - 1))
