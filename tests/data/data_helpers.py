"""What several data tests make their inputs with."""

from __future__ import annotations

import numpy as np

from vpgfast.data.types import Paragraph


def paragraph(video_id: str = "v", sentences: int = 2, duration: float = 10.0, words: int = 3) -> Paragraph:
    """A paragraph whose sentence m is at [m, m + 1] seconds, the last one first (so not in temporal order)."""
    spans = np.array([[float(m), m + 1.0] for m in reversed(range(sentences))])
    texts = tuple(" ".join([f"w{m}"] * words) for m in reversed(range(sentences)))
    return Paragraph(video_id, duration, texts, spans)
