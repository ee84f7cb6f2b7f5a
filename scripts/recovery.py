#!/usr/bin/env python3
"""How often `similarity` reads a planted moment off a noisy curve: stores the tables `recovery` and `recovery_order`.

python scripts/recovery.py
"""

from __future__ import annotations

import numpy as np
import torch
from stored_tables import store

from vpgfast.data.types import Batch, Paragraph
from vpgfast.metrics.spans import interval_iou
from vpgfast.models.configs.similarity import SimilarityConfig
from vpgfast.models.similarity import Similarity, smoothed
from vpgfast.untrained import NO_WORDS

CURVES, SMOOTH, COMMAND = 1000, 1.0, "python scripts/recovery.py"  # SMOOTH in clips: a clip lasts a second here


def main() -> None:
    columns = {f"{span} IoU={limit}": "%" for span in ("sum", "contrast") for limit in ("0.5", "0.7")}
    rows = []
    for clips, length in ((60, 12), (600, 12), (7200, 12), (7200, 120)):
        for strength in (1.0, 2.0, 3.0):
            rng = np.random.default_rng((clips, length, int(strength)))
            curves, spans = planted(rng, CURVES, clips, length, strength)
            values = []
            for kind in ("sum", "contrast"):
                found = answers(curves[:, None], SimilarityConfig(order="none", span=kind))[:, 0]
                ious = interval_iou(found[:, None], spans[:, None])[:, 0, 0]
                values += [float((ious >= 0.5).mean()), float((ious >= 0.7).mean())]
            rows.append((f"T={clips}, moment of {length}, strength {strength:g}", values))
    store(
        "recovery",
        f"One moment a curve, {CURVES} curves a row: noise of standard deviation 1 on every clip, and the strength "
        "added on the moment's. Share found, in %.",
        COMMAND,
        columns,
        rows,
    )

    rows = []
    for strength in (1.0, 2.0, 3.0):
        rng = np.random.default_rng((4, int(strength)))
        curves, spans = repeated(rng, CURVES // 4, strength)
        values = []
        for order in ("none", "paragraph"):
            found = answers(curves, SimilarityConfig(order=order))
            ious = np.stack([interval_iou(f[:, None], s[:, None])[:, 0, 0] for f, s in zip(found, spans, strict=True)])
            values += [float((ious >= 0.5).mean()), float((ious >= 0.7).mean())]
        rows.append((f"T=240, strength {strength:g}", values))
    names = [f"{order} IoU={limit}" for order in ("each by itself,", "in order,") for limit in ("0.5", "0.7")]
    store(
        "recovery_order",
        f"Paragraphs of four sentences, {CURVES // 4} a row; the first and the third fit two moments each, their own "
        "and each other's. Share of sentences found, in %.",
        COMMAND,
        dict.fromkeys(names, "%"),
        rows,
    )


def planted(
    rng: np.random.Generator, count: int, clips: int, length: int, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Curves [count, clips] with a moment each, and where it is [count, 2]."""
    starts = rng.integers(0, clips - length + 1, count)
    clip = np.arange(clips)
    inside = (clip >= starts[:, None]) & (clip < starts[:, None] + length)
    return rng.standard_normal((count, clips)) + strength * inside, np.stack([starts, starts + length], 1)


def repeated(rng: np.random.Generator, count: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Paragraphs' curves [count, 4, 240], one moment in each quarter, and where they are [count, 4, 2]."""
    starts = 60 * np.arange(4) + rng.integers(0, 49, (count, 4))
    spans = np.stack([starts, starts + 12], -1)
    clip = np.arange(240)
    inside = (clip >= starts[..., None]) & (clip < starts[..., None] + 12)  # [count, 4, 240]
    fits = inside.copy()
    fits[:, 0] |= inside[:, 2]
    fits[:, 2] |= inside[:, 0]
    return rng.standard_normal(fits.shape) + strength * fits, spans


def answers(curves: np.ndarray, config: SimilarityConfig) -> np.ndarray:
    """The first span of each sentence, [B, M, 2] in clips, from curves [B, M, T]."""
    model = Similarity(config, 1, NO_WORDS).eval()
    found = []
    for part in np.array_split(curves, max(1, curves.size // 2_000_000)):
        B, M, T = part.shape
        mask = torch.ones(T, dtype=torch.bool)
        smooth = torch.stack([smoothed(torch.from_numpy(rows), mask, SMOOTH) for rows in part])
        batch = Batch(
            paragraphs=[Paragraph("planted", float(T), ("x",) * M)] * B,
            video=torch.zeros(B, T, 1),
            video_mask=mask.expand(B, T),
            words=torch.ones(B, M, 1, dtype=torch.int64),
            word_mask=torch.ones(B, M, 1, dtype=torch.bool),
            sentence_mask=torch.ones(B, M, dtype=torch.bool),
            durations=torch.full((B,), float(T), dtype=torch.float64),
        )
        found.append(model.rank(smooth, batch, 1).spans[:, :, 0].double().numpy())
    return np.concatenate(found)


if __name__ == "__main__":
    main()
