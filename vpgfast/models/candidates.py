"""What a sentence's span may be, by a method's own account."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Candidates(NamedTuple):
    """Spans with scores.

    Attributes:
        spans: floating [..., P, 2], start and end in one unit for all sentences of a video.
        scores: floating [..., P], logarithms of how likely each is; -inf for none.
    """

    spans: Tensor
    scores: Tensor
