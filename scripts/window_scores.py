#!/usr/bin/env python3
"""Do a method's scores tell the video that holds a sentence's moment from others? Stores the table `window_scores`.

The scores that rank spans within a video, and those by which windows of a long video are compared, for the first seed
of each method's runs of decode_in_order.py:

    python scripts/window_scores.py --runs runs       # holds decode-METHOD-moving_shapes/seed-0
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from stored_tables import store

from vpgfast.checkpoint import build_model, load_checkpoint, settings_of
from vpgfast.data.batches import make_batch
from vpgfast.data.corpus import load_corpus

METHODS = ("seqpan", "marn", "wsra", "siamgtr", "dmr_jrg")
SENTENCES, OTHERS = 200, 40


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    runs = parser.parse_args().runs
    rows = []
    for method in METHODS:
        path = runs / f"decode-{method}-moving_shapes" / "seed-0"
        checkpoint = load_checkpoint(path)
        config = settings_of(checkpoint, path, [])
        model, corpus = build_model(checkpoint, config.model, path), load_corpus(config.data)
        needs, rng = model.needs(config.model), np.random.default_rng(0)
        videos = [p.video_id for p in corpus.splits["test"]]
        told = [(p, m) for p in corpus.splits["test"] for m in range(len(p.sentences))][:SENTENCES]
        own, compared = [], []
        for paragraph, m in told:
            others = rng.choice([v for v in videos if v != paragraph.video_id], OTHERS, replace=False)
            item = replace(paragraph.select([m]), spans=None)
            features = [corpus.features[name] for name in (paragraph.video_id, *others)]
            batch = make_batch([item] * len(features), features, checkpoint.word_vectors, needs, training=False)
            candidates = model.candidates(batch, 1)
            assert candidates is not None
            for scores, values in (
                *((model.predict(batch, 1).scores[:, 0, 0], own), (candidates.scores[:, 0], compared)),
            ):
                values.append(float((scores[1:] < scores[0]).float().mean()))
        rows.append((method, [float(np.mean(own)), float(np.mean(compared))]))
    store(
        "window_scores",
        f"Ordinary moving_shapes, {SENTENCES} sentences of the test split: of {OTHERS} other videos, the share "
        "that score below the sentence's own; in %. Chance is 50. Some of the others show the same event.",
        "python scripts/window_scores.py --runs runs",
        {"within a video": "%", "compared": "%"},
        rows,
    )


if __name__ == "__main__":
    main()
