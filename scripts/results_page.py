#!/usr/bin/env python3
"""Writes docs/results.md from the stored runs: docs/results/<run>/{metrics.json,config.yaml,spans.png}, and from the
stored results of `vpgfast ablate`: docs/results/ablations/<name>/ablation.{json,md,png}.

No number of that page is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path

from vpgfast.ablate.results import markdown
from vpgfast.ablate.run import PAGE, PICTURE, RESULT
from vpgfast.metrics.corpus import CorpusResult
from vpgfast.metrics.table import format_table

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "docs" / "results"
ABLATIONS = STORE / "ablations"
KEPT = ("metrics.json", "config.yaml", "spans.png")
KEPT_OF_ABLATIONS = (RESULT, PAGE, PICTURE)
HEAD = """# Results of our own runs

Written by `scripts/results_page.py` from the stored files of each run (`docs/results/<run>/`); in %. Beside each method
stand the rows that watch nothing, and the method asked with another video's sentences
([what the numbers mean](metrics.md)). Published numbers need published features: the configs of the real data sets are
the papers' settings, for those who have them.

**Simulated features** are made from the words of the sentences. Such a run shows that the whole path works at real
scale on real text and real timing, and says nothing about real video.

**Runs on moving_shapes of commits before 854cc85** were told what changes between two frames one frame, an eighth of a
second, late, and found moments late by as much. That is so for all rows of a table;
`seeds-wsra-moving_shapes-since_854cc85` shows what it cost WSRA. **Commit 779aff3** is part of 0fd4d42.
"""
ABLATIONS_HEAD = """# Over seeds, and the papers' ablations

From `vpgfast ablate` ([what its verdicts mean](commands.md#ablate)).
"""


def store(run: Path, commit: str) -> None:
    ablation = (run / RESULT).is_file()
    names = KEPT_OF_ABLATIONS if ablation else KEPT
    missing = [name for name in names if not (run / name).is_file()]
    if missing:
        raise SystemExit(
            f"{run}: not a finished run or ablation, it has no {', '.join(missing)}; nothing was copied of it"
        )
    target = (ABLATIONS if ablation else STORE) / run.name
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(run / name, target / name)
    if ablation:
        return  # it says itself which commit it is of
    git = ["git", "rev-parse", "--short", "--verify", f"{commit}^{{commit}}"]
    (target / "commit.txt").write_text(subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def section(run: Path) -> str:
    result = json.loads((run / "metrics.json").read_text())
    rows = {result["method"]: result["metrics"], **result["baselines"], "sentences swapped": result["control"]}
    commit = (run / "commit.txt").read_text().strip()
    links = ", ".join(f"[{name}](results/{run.name}/{name})" for name in KEPT)
    about = (
        f"{result['corpus']}, {result['split']} split, seed {result['seed']}, {result['seconds']:.0f} s in all, "
        f"commit {commit}: {links}"
    )
    text = format_table(rows)
    if "retrieval" in result:
        text += "\n\n" + CorpusResult(**result["retrieval"]).tables(result["method"], f"{result['split']} split, in %")
    return f"## {run.name}\n\n{about}\n\n```\n{text}\n```\n"


def ablation_section(folder: Path) -> str:
    content = json.loads((folder / RESULT).read_text())
    place = f"results/ablations/{folder.name}"
    links = ", ".join(f"[{name}]({place}/{name})" for name in KEPT_OF_ABLATIONS)
    versions = content["versions"]
    about = f"{content['seconds']:.0f} s in all, commit {versions.get('commit', 'unknown')}: {links}"
    return f"## {folder.name}\n\n{about}\n\n{markdown(content, '###', f'{place}/{PICTURE}')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", nargs="*", type=Path, help="folder of a finished run or ablation, first copied into docs/results"
    )
    parser.add_argument("--commit", default="HEAD", help="that the runs ran at (default HEAD)")
    arguments = parser.parse_args()
    for run in arguments.run:
        store(run, arguments.commit)
    runs = sorted(path.parent for path in STORE.glob("*/metrics.json"))
    sections = [section(run) for run in runs]
    if ablations := sorted(path.parent for path in ABLATIONS.glob(f"*/{RESULT}")):
        sections += [ABLATIONS_HEAD, *map(ablation_section, ablations)]
    (ROOT / "docs" / "results.md").write_text("\n".join([HEAD, *sections]))


if __name__ == "__main__":
    main()
