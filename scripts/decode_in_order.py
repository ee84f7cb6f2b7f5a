#!/usr/bin/env python3
"""What ``decode: ordered`` changes: trains a run over seeds and evaluates each model both ways, the weights being the
same. Writes ablation.{json,md,png} as `vpgfast ablate` does; `scripts/results_page.py FOLDER` puts them into
docs/results.md.

    python scripts/decode_in_order.py configs/seqpan/moving_shapes.yaml --output runs/decode-seqpan-moving_shapes

The epoch is chosen by the usual decoding. What is finished is kept: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from vpgfast.ablate.results import summarize_table
from vpgfast.ablate.run import print_results, selections, versions, write_results
from vpgfast.ablate.tables import MIN_EFFECT, Claim, Row, Table
from vpgfast.config import parse_train
from vpgfast.files import METRICS_FILE
from vpgfast.metrics.rules import metric_names

log = logging.getLogger(__name__)
ROWS = {"independent": "each sentence by itself", "ordered": "the paragraph in its order"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs and the results")
    parser.add_argument("--seeds", type=int, default=3)
    arguments, settings = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    base = parse_train(["--config", str(arguments.config), *settings])
    seeds = [base.seed + i for i in range(arguments.seeds)]
    finished: dict[str, dict[int, dict[str, Any]]] = {row: {} for row in ROWS}
    for seed in seeds:
        folder = arguments.output / f"seed-{seed}"
        trained = [f"--seed={seed}", f"--output={folder}", "--pictures=0", *settings]
        if not (folder / METRICS_FILE).is_file():
            command("train", "--config", str(arguments.config), *trained)
        for row in ROWS:
            place = folder / row
            if not (place / METRICS_FILE).is_file():
                command("evaluate", str(folder), f"--model.decode={row}", f"--output={place}", "--pictures=0")
            finished[row][seed] = json.loads((place / METRICS_FILE).read_text())
        seconds = json.loads((folder / METRICS_FILE).read_text())["seconds"]
        finished["independent"][seed]["seconds"] += seconds  # of the training that both share
    any_run = finished["ordered"][seeds[0]]
    content = {
        "method": base.method,
        "corpus": any_run["corpus"],
        "split": "test",
        "seeds": seeds,
        "settings": ["--config", str(arguments.config), *settings],
        "seconds": sum(run["seconds"] for runs in finished.values() for run in runs.values()),
        "selection": selections([run for runs in finished.values() for run in runs.values()]),
        "versions": versions(),
        "tables": [summarize_table(table_of(base), finished)],
    }
    write_results(content, arguments.output)
    print_results(content, arguments.output)


def table_of(base: Any) -> Table:
    """The two rows, and the claim that order helps."""
    rows = tuple(Row(name, about, {"model.decode": name}, {}) for name, about in ROWS.items())
    names = tuple(metric_names(base.metrics))
    judged_by = base.select_by if base.select_by in names else "mIoU"
    claim = Claim("ordered", "independent", "a paragraph is grounded better in its order", (judged_by,))
    return Table(
        *("Decoding", "the same models, asked two ways", base.data.corpus, names),
        *((judged_by,), MIN_EFFECT, {}, rows, (claim,), False),
    )


def command(name: str, *arguments: str) -> None:
    log.info("%s %s", name, " ".join(arguments))
    done = subprocess.run([sys.executable, "-m", "vpgfast", name, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr.splitlines()[-1] if done.stderr else 'no message'}")


if __name__ == "__main__":
    main()
