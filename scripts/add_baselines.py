#!/usr/bin/env python3
"""Puts baselines that a stored run lacks into its docs/results/<run>/metrics.json: they depend on the corpus alone.

Those that it has are computed again, too, and must be the same. Then `python scripts/results_page.py` writes the page.

    python scripts/add_baselines.py --shared ../shared
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import yaml

from vpgfast.config import from_dict
from vpgfast.data.corpus import load_corpus
from vpgfast.metrics.baselines import EVALUATION_SEED, baselines

STORE = Path(__file__).resolve().parent.parent / "docs" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="where ../shared of the configs is")
    shared = parser.parse_args().shared
    for path in sorted(STORE.glob("*/metrics.json")):
        content = json.loads(path.read_text())
        settings = yaml.safe_load((path.parent / "config.yaml").read_text())
        settings["model"] = {}
        data = settings["data"] | {"check_features": "names"}
        for key in ("root", "word_vectors"):
            if data[key] is not None:
                data[key] = str(shared / Path(data[key]).relative_to("../shared"))
        config = from_dict(settings | {"data": data}, str(path))
        corpus = load_corpus(config.data)
        found = baselines(corpus.splits["train"], corpus.splits[content["split"]], config.metrics, EVALUATION_SEED)
        for name, row in content["baselines"].items():
            for metric, value in row.items():
                if not math.isclose(found[name][metric], value, abs_tol=1e-12):
                    raise SystemExit(f"{path}: {name} {metric} is {value}, here {found[name][metric]}")
        if list(found) != list(content["baselines"]):
            content["baselines"] = found
            path.write_text(json.dumps(content, indent=2) + "\n")
            print(f"{path.parent.name}: {', '.join(found)}", flush=True)


if __name__ == "__main__":
    main()
