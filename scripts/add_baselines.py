#!/usr/bin/env python3
"""Puts baselines that stored runs and ablations lack into their files: what watching nothing earns, and the method's
own list of spans in a random order. Neither asks a network, so nothing is trained, and features are blank.

Baselines that are there are computed again, too, and must be the same. Then `python scripts/results_page.py` and
`python scripts/stored_tables.py` write the pages.

    python scripts/add_baselines.py          # from the project's folder, with ../shared beside it
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from lightning_fabric import Fabric

from vpgfast.ablate.plan import run_arguments
from vpgfast.ablate.results import common_baselines
from vpgfast.ablate.run import RESULT, write_results
from vpgfast.config import TrainConfig, for_method, from_dict, parse_train
from vpgfast.data.corpus import Corpus, read_splits, vocabulary
from vpgfast.data.moving_shapes import script_video
from vpgfast.data.options import DataConfig
from vpgfast.data.text import load_word_vectors
from vpgfast.data.types import Paragraph
from vpgfast.encoders.identity import Identity
from vpgfast.evaluate.split import split_baselines
from vpgfast.files import METRICS_FILE
from vpgfast.models.registry import get_method

STORE = Path(__file__).resolve().parent.parent / "docs" / "results"
Baselines = dict[str, dict[str, float]]


class Blank:
    """Features that show nothing, of the usual two clips a second."""

    dim = 64
    source = "blank"
    encoder: Identity | None = None

    def __init__(self, paragraphs: Iterable[Paragraph]) -> None:
        self.durations = {paragraph.video_id: paragraph.duration for paragraph in paragraphs}

    def __getitem__(self, video_id: str) -> np.ndarray:
        return np.zeros((max(8, round(2 * self.durations[video_id])), self.dim), np.float32)

    def __contains__(self, video_id: str) -> bool:
        return video_id in self.durations

    def video_ids(self) -> Iterable[str]:
        return self.durations

    def duration(self, video_id: str) -> float | None:
        return self.durations.get(video_id)


class Finder:
    """Computes baselines; corpora, and rows of equal settings, once."""

    def __init__(self) -> None:
        self.fabric = Fabric(accelerator="cpu", devices=1)
        self.corpora: dict[str, Corpus] = {}
        self.known: dict[str, Baselines] = {}

    def corpus(self, data: DataConfig) -> Corpus:
        """Its videos are not made."""
        if (name := repr(data)) not in self.corpora:
            splits = read_shapes(data) if data.corpus == "moving_shapes" else read_splits(data)
            everything = [paragraph for split in splits.values() for paragraph in split]
            vectors = load_word_vectors(None, vocabulary([everything]), 8)
            self.corpora[name] = Corpus(data.corpus, splits, Blank(everything), vectors)
        return self.corpora[name]

    def __call__(self, config: TrainConfig, split: str) -> Baselines:
        """Of a run's settings."""
        name = repr((config.method, config.model, config.data, config.metrics, config.top_n, split))
        if name not in self.known:
            corpus = self.corpus(config.data)
            model = get_method(config.method)(config.model, corpus.features.dim, corpus.word_vectors).eval()
            self.known[name] = split_baselines(self.fabric, model, config, corpus, corpus.word_vectors, split)
        return self.known[name]


def read_shapes(data: DataConfig) -> dict[str, list[Paragraph]]:
    """The splits of moving_shapes, by their scripts alone."""
    options = data.moving_shapes
    counts = {"train": options.train_videos, "val": options.val_videos, "test": options.test_videos}
    return {
        split: [script_video(options, data.seed, split, number).paragraph for number in range(count)]
        for split, count in counts.items()
    }


def differs(stored: Baselines, found: Baselines) -> str | None:
    """What of the baselines that both have is another one, if any."""
    for name in stored.keys() & found.keys():
        for metric, value in stored[name].items():
            if not math.isclose(found[name][metric], value, abs_tol=1e-12):
                return f"{name} {metric} is {value}, here {found[name][metric]}"
    return None


def merged(stored: Baselines, found: Baselines, where: str) -> Baselines:
    """Those found, and behind them those that are only stored: of finding videos.

    Raises:
        SystemExit: one that both have is another one here.
    """
    if difference := differs(stored, found):
        raise SystemExit(f"{where}: {difference}")
    return {**found, **{name: row for name, row in stored.items() if name not in found}}


def of_run(path: Path, finder: Finder) -> None:
    content = json.loads(path.read_text())
    config = from_dict(yaml.safe_load((path.parent / "config.yaml").read_text()), str(path))
    rows = merged(content["baselines"], finder(config, content["split"]), path.parent.name)
    if list(rows) != list(content["baselines"]):
        print(f"{path.parent.name}: {', '.join(rows.keys() - content['baselines'].keys())}", flush=True)
        content["baselines"] = rows
        path.write_text(json.dumps(content, indent=2) + "\n")


def of_ablation(path: Path, finder: Finder) -> None:
    content = json.loads(path.read_text())
    changed = False
    for table in content["tables"]:
        where = f"{path.parent.name}, {table['title']}"
        runs = []
        for row in table["rows"]:
            base = content["method"]
            changes = for_method(row["settings"], base, row["settings"].get("method", base))
            config = parse_train(run_arguments(content["settings"], changes, base))
            found = finder(config, content["split"])
            if differs(table["baselines"], found):  # stored before the config said that an IoU must exceed m
                config = replace(config, metrics=replace(config.metrics, comparison=">="))
                found = finder(config, content["split"])
            runs += [{"baselines": found, "metrics": run["metrics"]} for run in row["runs"]]
        rows = merged(table["baselines"], common_baselines(runs), where)
        if list(rows) != list(table["baselines"]):
            print(f"{where}: {', '.join(rows.keys() - table['baselines'].keys())}", flush=True)
            table["baselines"], changed = rows, True
    if changed:
        write_results(content, path.parent)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    finder = Finder()
    for path in sorted(STORE.glob(f"*/{METRICS_FILE}")):
        of_run(path, finder)
    for path in sorted(STORE.glob(f"ablations/*/{RESULT}")):
        of_ablation(path, finder)


if __name__ == "__main__":
    main()
