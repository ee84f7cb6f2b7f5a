#!/usr/bin/env python3
"""From which length on windows are better than squeezing: stores the table `window_factor` (see stored_tables.py).

Pieces of the hour of long_video.py, each around the moment of one sentence, at a random place in it.

    python scripts/window_factor.py --runs runs --work runs/long-video      # after long_video.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from long_video import LABELS, TRAINED, read_paragraphs, trained
from stored_tables import store

from vpgfast.data.types import Paragraph
from vpgfast.ground.grounding import ground
from vpgfast.metrics.rules import MetricRules
from vpgfast.metrics.spans import evaluate_spans

FACTORS = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 8.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.minutes = 60.0
    paragraphs, duration = read_paragraphs(arguments)
    asked = [pair for p in paragraphs for pair in zip(p.sentences, p.spans, strict=True)]
    rows = []
    for method in TRAINED:
        model, config, vectors, features = trained(arguments, method)
        size, clip = model.needs(config.model).max_clips, duration / len(features)
        for windowed in (False, True):
            config.model.windowed = windowed
            values = []
            for factor in FACTORS:
                rng, pieces, ranked = np.random.default_rng(0), [], []
                for sentence, span in asked:
                    count = round(size * factor)
                    first, last = int(span[0] / clip), int(np.ceil(span[1] / clip))
                    start = int(rng.integers(max(0, last - count), min(first, len(features) - count) + 1))
                    own = (span - start * clip)[None]
                    pieces.append(Paragraph("piece", count * clip, (sentence,), own))
                    part = features[start : start + count]
                    ranked.append(ground(model, config, vectors, part, count * clip, [sentence], 1).spans)
                values.append(evaluate_spans(ranked, pieces, MetricRules(top_n=(1,)))["mIoU"])
            rows.append((f"{LABELS.get(method, method)}, {'windows' if windowed else 'squeezed'}", values))
    store(
        "window_factor",
        f"mIoU by length, in multiples of max_clips: pieces of the hour around {len(asked)} moments; in %.",
        "python scripts/window_factor.py --runs runs --work runs/long-video",
        {f"{factor:g}x": "%" for factor in FACTORS},
        rows,
    )


if __name__ == "__main__":
    main()
