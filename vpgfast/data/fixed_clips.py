"""Clips of a fixed length in seconds, from features of any rate.

A clip is the mean of the features that lie in it, each weighted by how much of it does. With s seconds a clip, clip i
is what happens from i * s to (i + 1) * s; the last one ends with the video, so it lasts from s / 2 to 1.5 s. A video
that would have more clips than there may be has that many of equal length, and so has one that would have too few.
"""

from __future__ import annotations

import numpy as np


def clip_seconds_of(duration: float, seconds: float, least: int, most: int) -> float:
    """How long the clips of a video are: ``seconds``, or what makes ``least`` or ``most`` equal ones of it."""
    return min(max(seconds, duration / most), duration / least)


def clip_edges(duration: float, seconds: float, least: int, most: int) -> np.ndarray:
    """float64 [n + 1]: where the n clips of a video begin, and where the last one ends, in seconds.

    Args:
        duration: of the video, > 0.
        seconds: of a clip, > 0.
        least, most: numbers of clips, 1 <= least <= most.
    """
    unit = clip_seconds_of(duration, seconds, least, most)
    edges = np.arange(int(duration / unit + 0.5) + 1) * unit
    edges[-1] = duration
    return edges


def fixed_clips(features: np.ndarray, duration: float, seconds: float, least: int, most: int) -> np.ndarray:
    """[T, d] features that cover a video evenly -> [n, d], one a clip; arguments as of :func:`clip_edges`."""
    frames = clip_edges(duration, seconds, least, most) / duration * len(features)
    sums = np.concatenate([np.zeros((1, features.shape[1])), features.cumsum(0, dtype=np.float64)])
    whole = np.minimum(frames.astype(np.int64), len(features) - 1)
    up_to = sums[whole] + (frames - whole)[:, None] * features[whole]  # the integral of the features up to each edge
    return (np.diff(up_to, axis=0) / np.diff(frames)[:, None]).astype(features.dtype)
