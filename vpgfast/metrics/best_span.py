"""The one span that fits a set of spans best: what can be known of moments without the video and without the sentence.

The mean IoU with N spans, as a function of a start s and an end e, has no local maximum but where s is one of their
starts and e is one of their ends. For a span (a, b), its IoU with (s, e) is convex in s on either side of a, and convex
in e on either side of b; so is a sum of them wherever s passes no start and e no end, and a convex function is largest
at a border. The search is over pairs of a start and an end, and exact: branch and bound over boxes of them. In a box,
the spans that it holds no start and no end of add up to something that is largest at one of the box's corners; each
other span is bounded by its own best IoU with anything in the box. There are few of those in a small box, so bounds
get tight quickly.
"""

from __future__ import annotations

import numpy as np


def best_single_span(spans: np.ndarray) -> np.ndarray:
    """The span (start, end), float64 [2], of the largest mean IoU with ``spans`` [N, 2] (start < end), N >= 1.

    Of several, the one that starts first, then the one that ends first, up to differences of 1e-12.
    """
    unique, counts = np.unique(np.asarray(spans, np.float64), axis=0, return_counts=True)
    a, b = unique.T
    starts, ends = np.unique(a), np.unique(b)
    boxes = [(0, len(starts) - 1, 0, len(ends) - 1)]  # first and last start, first and last end
    best, where = -1.0, (0.0, 1.0)
    while boxes:
        open_boxes = []
        for box in boxes:
            corners = [(starts[i], ends[j]) for i in sorted({*box[:2]}) for j in sorted({*box[2:]})]
            ious = np.stack([_iou(s, e, a, b) for s, e in corners])  # [corners, N]
            values = ious @ counts / counts.sum()
            for value, corner in zip(values, corners, strict=True):
                if value > best + 1e-12 or (value > best - 1e-12 and corner < where):
                    best, where = max(best, value), corner
            passed = ((a > starts[box[0]]) & (a < starts[box[1]])) | ((b > ends[box[2]]) & (b < ends[box[3]]))
            most = _largest_iou(starts[[*box[:2]]], ends[[*box[2:]]], a[passed], b[passed])
            bound = (ious[:, ~passed] @ counts[~passed]).max() + most @ counts[passed]
            open_boxes.append((bound / counts.sum(), box))
        boxes = [half for bound, box in open_boxes if bound >= best - 1e-12 for half in _halves(box)]
    return np.array(where)


def _halves(box: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    """A box cut in the middle of its longer side; nothing of one that has no more than its corners."""
    s0, s1, e0, e1 = box
    if max(s1 - s0, e1 - e0) <= 1:
        return []
    if s1 - s0 >= e1 - e0:
        middle = (s0 + s1) // 2
        return [(s0, middle, e0, e1), (middle, s1, e0, e1)]
    middle = (e0 + e1) // 2
    return [(s0, s1, e0, middle), (s0, s1, middle, e1)]


def _iou(s: float, e: float, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of (s, e) with each of (a, b) [N]; 0 if s >= e."""
    shared = np.maximum(np.minimum(e, b) - np.maximum(s, a), 0)
    return shared / (np.maximum(e, b) - np.minimum(s, a))


def _largest_iou(starts: np.ndarray, ends: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of anything that starts and ends between two ``starts`` [2] and two ``ends`` [2], with each of (a, b) [N]."""
    return _iou(a.clip(*starts), b.clip(*ends), a, b)  # what is nearest to each end is the best
