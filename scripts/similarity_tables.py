#!/usr/bin/env python3
"""`similarity` on real sentences and timestamps with features SIMULATED from the sentences: stores the table
`similarity_corpora`, or with another --noise `similarity_corpora_noise_N` (see stored_tables.py).

    python scripts/similarity_tables.py --root ../shared/data --work runs/similarity
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from stored_tables import store

CORPORA = {
    "ActivityNet Captions val_2": ("activitynet", "activitynet_captions", ["--data.test_split=val_2"]),
    "Charades-STA test": ("charades_sta", "charades_sta", ["--data.charades_repair=true"]),
    "Charades-CD test_ood": ("charades_cd", "charades_cd", []),
    "TACoS test (2D-TAN)": ("tacos", "tacos", []),
}
ORDERS = {"none": "similarity", "paragraph": "similarity, in order"}
BASELINES = ("whole video", "best single span", "uniform", "prior")
METRICS = ("R@1 IoU=0.3", "R@1 IoU=0.5", "R@1 IoU=0.7", "mIoU")
COMMAND = "python scripts/similarity_tables.py --root ../shared/data --work runs/similarity"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the data sets' annotations")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--noise", type=float, default=2.0, help="of every simulated clip")
    arguments = parser.parse_args()
    rows: list[tuple[str, list[Any]]] = []
    for label, (corpus, folder, extra) in CORPORA.items():
        found: dict[str, Any] = {}
        for order in ORDERS:
            output = arguments.work / f"{corpus}-{order}-{arguments.noise:g}"
            if not (output / "metrics.json").is_file():
                settings = [
                    *(f"--data.corpus={corpus}", f"--data.root={arguments.root / folder}", "--data.features=simulated"),
                    *("--data.check_features=names", f"--data.simulated.clip_noise={arguments.noise}", *extra),
                    *("--model.neutral=[]", f"--model.order={order}", "--pictures=0", "--batch_size=8"),
                ]
                command = [
                    sys.executable,
                    "-m",
                    "vpgfast",
                    "evaluate",
                    "similarity",
                    "--output",
                    str(output),
                    *settings,
                ]
                print(" ".join(command), file=sys.stderr, flush=True)
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found[order] = json.loads((output / "metrics.json").read_text())
        rows.append((label, [None] * len(METRICS)))
        for order, name in ORDERS.items():
            rows.append((f"  {name}", [found[order]["metrics"][metric] for metric in METRICS]))
        for order, name in ORDERS.items():
            rows.append((f"  {name}, sentences swapped", [found[order]["control"][metric] for metric in METRICS]))
        for name in BASELINES:
            rows.append((f"  {name}", [found["none"]["baselines"][name][metric] for metric in METRICS]))
    name = "similarity_corpora" + ("" if arguments.noise == 2 else f"_noise_{arguments.noise:g}")
    store(
        name,
        f"Real sentences and timestamps, simulated features (noise {arguments.noise:g}, hashed word vectors), in %.",
        COMMAND + ("" if arguments.noise == 2 else f" --noise {arguments.noise:g}"),
        dict.fromkeys(METRICS, "%"),
        rows,
    )


if __name__ == "__main__":
    main()
