#!/usr/bin/env python3
"""How well a trained MARN tells a sentence, from where: is its attention a place in the video or a code for the words?

    python scripts/what_marn_tells.py RUN_FOLDER [...]

For each run, over its test split, the mean negative log-likelihood of a word (nats) when the decoder is given

- what the sentence attends to in its own video (what training makes small),
- the moment that the annotation names (the proposal of the highest IoU with it),
- what the sentence attends to in another video.

Attention that finds the moment leaves the second near the first and the third far above. Where attention is a code, the
decoder tells the sentence from any video that it is pointed at, and can't tell it from the moment itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from vpgfast.checkpoint import build_model, load_checkpoint
from vpgfast.command import command
from vpgfast.config import from_dict
from vpgfast.data.batches import make_loader
from vpgfast.data.corpus import load_corpus
from vpgfast.errors import UserError
from vpgfast.models.marn import MARN
from vpgfast.ops import temporal_iou


@torch.no_grad()
def likelihoods(run: Path) -> list[float]:
    """Of the three, in nats a word."""
    checkpoint = load_checkpoint(run)
    if checkpoint.method != MARN.name:
        raise UserError(f"checkpoint {run}: made by method {checkpoint.method!r}, a run of {MARN.name!r} is needed")
    config = from_dict(checkpoint.settings, str(run))
    model = build_model(checkpoint, config.model, run).eval()
    assert isinstance(model, MARN)
    corpus = load_corpus(config.data)
    loader = make_loader(
        corpus.splits["test"], corpus.features, checkpoint.word_vectors, model.needs(config.model), 64, training=False
    )
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    for batch in loader:
        words, mask = batch.words[:, 0], batch.word_mask[:, 0]
        embedded, query = model.words(words), model.read(batch)
        moments = model.moments(model.proposals, batch)
        true = torch.stack([torch.as_tensor(p.spans[0]) for p in batch.paragraphs])
        there, half = model.there(model.proposals, batch), len(batch) // 2
        iou = temporal_iou(model.spans_of(batch), true.unsqueeze(1)).squeeze(2)
        best = (iou if there is None else iou.masked_fill(~there, -1)).argmax(1)
        features = (
            model.proposals.attend(moments, query, there).feature,
            moments[torch.arange(len(best)), :, best],
            model.proposals.attend(
                moments.roll(half, 0), query, there if there is None else there.roll(half, 0)
            ).feature,
        )
        for i, feature in enumerate(features):
            sums[i] += model.decoder(feature, embedded, words, mask).sum()
        count += len(words)
    return (sums / count).tolist()


@command
def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    print(f"{'nats a word from':<40}{'attended':>12}{'the moment':>12}{'elsewhere':>12}")
    for run in map(Path, argv):
        print(f"{run.parent.name + '/' + run.name:<40}" + "".join(f"{value:12.2f}" for value in likelihoods(run)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
