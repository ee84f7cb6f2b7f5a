"""The loader against the training it feeds: batches of 16 sentences from an HDF5 file, and SeqPAN's step on them.

The ratio of a loader's row says how many times faster it makes batches than SeqPAN uses them up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from vpgfast.data.batches import Loader, make_loader
from vpgfast.data.features import open_features
from vpgfast.data.text import load_word_vectors
from vpgfast.data.types import Batch, Paragraph
from vpgfast.models.seqpan import SeqPAN, SeqPANConfig

from .measure import Row, commit, device_name, synchronize

BATCH, VIDEOS, SENTENCES, WIDTH = 16, 300, 3, 1024
SECONDS = 3.0


def corpus(folder: Path) -> tuple[list[Paragraph], Path]:
    """Videos of 10 to 60 s at three clips a second, features as wide as I3D's."""
    rng = np.random.default_rng(0)
    paragraphs = []
    with h5py.File(folder / "features.h5", "w") as file:
        for i in range(VIDEOS):
            duration = rng.uniform(10, 60)
            file[f"v_{i}"] = rng.standard_normal((round(3 * duration), WIDTH), dtype=np.float32)
            spans = np.sort(rng.uniform(0, duration, size=(SENTENCES, 2)), axis=1)
            texts = tuple(" ".join(f"word{w}" for w in rng.integers(500, size=12)) for _ in range(SENTENCES))
            paragraphs.append(Paragraph(f"v_{i}", duration, texts, spans))
    return paragraphs, folder / "features.h5"


def epochs(loader: Loader) -> Iterator[Batch]:
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


def milliseconds(work: Callable[[], object], device: torch.device) -> list[float]:
    """20th, 50th and 80th percentile of the time of a call, after ten that do not count."""
    times = []
    for _ in range(10):
        work()
    synchronize(device)
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return np.percentile(times, [20, 50, 80]).tolist()


@pytest.mark.parametrize("max_clips", [64, 256])
def test_loader(max_clips: int, device: torch.device, record: Callable[[list[Row]], None], tmp_path: Path) -> None:
    paragraphs, path = corpus(tmp_path)
    features = open_features(path)
    words = load_word_vectors(None, [f"word{i}" for i in range(500)])
    config = SeqPANConfig(max_clips=max_clips)
    loaders = {
        workers: make_loader(
            paragraphs, features, words, SeqPAN.needs(config), BATCH, training=True, num_workers=workers
        )
        for workers in (0, 2)
    }
    batches = list(loaders[0])
    assert sum(map(len, batches)) == VIDEOS * SENTENCES

    torch.manual_seed(0)
    model = SeqPAN(config, features.dim, words).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    prepared = cycle([batch.to(device) for batch in batches])

    def step() -> None:
        loss = model.loss(next(prepared))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    marks = {"SeqPAN training step": milliseconds(step, device)}
    for workers, loader in loaders.items():
        source = epochs(loader)
        marks[f"loader, {workers} workers"] = milliseconds(lambda source=source: next(source), torch.device("cpu"))
    training = marks["SeqPAN training step"][1]
    for name, (_, p50, _) in marks.items():
        print(f"{name:22} T <= {max_clips:3}: {1e3 * BATCH / p50:8.0f} sentences/s, {training / p50:6.1f} x SeqPAN")
    shape = f"B={BATCH} T<={max_clips} d={WIDTH}"
    about = (shape, "float32", device_name(device), device.type, torch.get_num_threads(), torch.__version__, commit())
    no_floor = (0.0, 0.0, None)
    record([Row("loader", k, "ours", "training", *about, *ms, training / ms[1], *no_floor) for k, ms in marks.items()])
