"""What came out of the runs of a table, judged by our own seeds, and as text.

Metrics are fractions in [0, 1] everywhere but in text, where they are per cent, as in papers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from vpgfast.ablate.tables import Claim, Table
from vpgfast.evaluate.selection import LAST
from vpgfast.metrics.baselines import RANDOM_CANDIDATES
from vpgfast.metrics.corpus import BAG_OF_WORDS, for_tables
from vpgfast.metrics.table import align

HOLDS, REVERSED, UNDECIDED = "holds", "does not hold", "undecided"


def mark_shared_runs(tables: Sequence[dict[str, Any]]) -> None:
    """Rows whose settings come to the same thing are one run: each but the first says whose it is."""
    first: dict[str, tuple[str, str]] = {}
    for table in tables:
        for row in table["rows"]:
            row.pop("same_run_as", None)  # of an earlier judgement
            if not row["runs"]:
                continue
            title, name = first.setdefault(json.dumps(row["runs"], sort_keys=True), (table["title"], row["name"]))
            if (title, name) != (table["title"], row["name"]):
                row["same_run_as"] = name if title == table["title"] else f"{title}, {name}"


def summarize_table(table: Table, finished: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """A table with our results in it, as ``ablation.json`` holds it.

    Args:
        table: as the file says.
        finished: by row name and seed, what ``metrics.json`` of that run holds. A seed that didn't finish is absent.
    """
    rows = []
    for row in table.rows:
        runs = [
            {"seed": seed, "seconds": run["seconds"], "metrics": all_metrics(run), "control": run["control"]}
            | ({"uniform": for_tables(run["retrieval"]["baselines"]["uniform"])} if "retrieval" in run else {})
            for seed, run in sorted(finished[row.name].items())
        ]
        settings = {**table.settings, **row.settings}
        rows.append({"name": row.name, "label": row.label, "settings": settings, "paper": row.paper, "runs": runs})
    common = common_baselines([run for runs in finished.values() for run in runs.values()])
    return {
        "title": table.title,
        "about": table.about,
        "paper_corpus": table.corpus,
        "metrics": list(table.metrics),
        "judged_by": list(table.judged_by),
        "min_effect": table.min_effect,
        "line": table.line,
        "baselines": common,
        "rows": rows,
        "claims": [_judge(claim, table, finished, common) for claim in table.claims],
    }


def all_metrics(run: Mapping[str, Any]) -> dict[str, float]:
    """The metrics in ``metrics.json``, and where the method finds videos the corpus metrics with ``corpus`` before
    their names."""
    return {**run["metrics"], **(for_tables(run["retrieval"]["metrics"]) if "retrieval" in run else {})}


def all_baselines(run: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What watching nothing earns in ``metrics.json``; where the method finds videos chance and a bag of words, too."""
    among_all = run["retrieval"]["baselines"] if "retrieval" in run else {}
    found = {name: for_tables(among_all[name]) for name in ("chance", BAG_OF_WORDS) if name in among_all}
    return {**run["baselines"], **found}


def common_baselines(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What watching nothing earns in all runs alike.

    Runs may be judged on other data, by other rules or from other lists, and then have no baseline in common. A run
    without any of a baseline's metrics, such as chance's where no video is looked for, has no say in it, nor in random
    candidates one of a method that chooses among none.
    """
    named: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        for name, row in all_baselines(run).items():
            named.setdefault(name, []).append(row)
    return {
        name: rows[0]
        for name, rows in named.items()
        if all(row == rows[0] for row in rows) and not any(_lacks(run, name, rows[0]) for run in runs)
    }


def _lacks(run: Mapping[str, Any], name: str, row: Mapping[str, float]) -> bool:
    """Whether a run has no such baseline though it could."""
    return name != RANDOM_CANDIDATES and name not in all_baselines(run) and bool(all_metrics(run).keys() & row.keys())


def verdict(differences: Sequence[float], least: float) -> tuple[str, float | None, float | None]:
    """Whether a claim holds, from the differences "better" minus "worse" of the seeds that both rows have.

    It holds if the mean difference is above 0 by more than twice its standard error (standard deviation over the seeds
    / sqrt(seeds)) and by ``least``, it doesn't if it is below 0 by as much, and is undecided otherwise, and with one
    seed, which has no spread.

    Returns:
        (verdict, mean difference, standard error); ``None`` for what can't be told.
    """
    if not differences:
        return UNDECIDED, None, None
    mean = fmean(differences)
    if len(differences) == 1:
        return UNDECIDED, mean, None
    error = stdev(differences) / math.sqrt(len(differences))
    if abs(mean) <= 2 * error or abs(mean) < least:
        return UNDECIDED, mean, error
    return (HOLDS if mean > 0 else REVERSED), mean, error


def _judge(
    claim: Claim,
    table: Table,
    finished: Mapping[str, Mapping[int, Mapping[str, Any]]],
    baselines: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    better, worse = finished[claim.better], finished[claim.worse]
    return judged(
        claim,
        table.min_effect,
        {seed: all_metrics(run) for seed, run in better.items()},
        {seed: all_metrics(run) for seed, run in worse.items()},
        baselines,
        {row.name: row.paper for row in table.rows},
    )


def judged(
    claim: Claim,
    least: float,
    better: Mapping[int, Mapping[str, float]],
    worse: Mapping[int, Mapping[str, float]],
    baselines: Mapping[str, Mapping[str, float]],
    paper: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """A claim with its verdict, as ``ablation.json`` holds it.

    Args:
        claim: what the paper says.
        least: as of :func:`verdict`.
        better: by seed, the metrics of that row's runs.
        worse: of the other one's.
        baselines: what watching nothing earns.
        paper: by row, the paper's figures.
    """
    seeds = sorted(better.keys() & worse.keys())

    def of(values: Mapping[str, float]) -> float:
        return fmean(values[name] for name in claim.metrics)

    def known(values: Mapping[str, float]) -> bool:
        return all(name in values for name in claim.metrics)

    decision, mean, error = verdict([of(better[seed]) - of(worse[seed]) for seed in seeds], least)
    # A comparison of two rows that both know less than a baseline says little, whatever its verdict.
    best = max((of(values) for values in baselines.values() if known(values)), default=None)
    means = [fmean(map(of, runs.values())) for runs in (better, worse) if runs]
    figures = paper[claim.better], paper[claim.worse]
    first, second = (of(row) if known(row) else None for row in figures)
    return {
        "claim": claim.claim,
        "better": claim.better,
        "worse": claim.worse,
        "metrics": list(claim.metrics),
        "verdict": decision,
        "difference": mean,
        "standard_error": error,
        "seeds": seeds,
        "below_baselines": best is not None and bool(means) and max(means) < best,
        "paper_difference": None if first is None or second is None else first - second,
    }


def mean_and_spread(values: Sequence[float]) -> str:
    """Fractions as ``mean ± standard deviation`` in per cent; one value stands alone, none is a dash."""
    if not values:
        return "-"
    mean = f"{100 * fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * stdev(values):.1f}"


def table_text(table: Mapping[str, Any], seeds: int) -> str:
    """A table of ``ablation.json``: each row's mean ± standard deviation over its seeds, the paper's figures below it.

    A column says what a row earns when its sentences are swapped for another video's; a table of a single row, which
    is a run repeated, says that for every metric. Below joint metrics stands what the uniform split earns in the videos
    that the row found. A row that lacks seeds says how many it has.
    """
    # What the paper gives, and what claims are judged by; a run without any of these has a dash there, and a column
    # that neither a run nor the paper has is left out.
    names = list(dict.fromkeys([*table["metrics"], *table["judged_by"]]))
    there = [run["metrics"] for row in table["rows"] for run in row["runs"]] + [row["paper"] for row in table["rows"]]
    names = [name for name in names if any(name in values for values in there)] or names
    controls = [run["control"] for row in table["rows"] for run in row["runs"] if run["control"]]
    judge = next((name for name in (*table["judged_by"], "mIoU") if any(name in c for c in controls)), "mIoU")
    lines: list[tuple[str, list[str]]] = []
    for row in table["rows"]:
        runs = row["runs"]
        cells = [mean_and_spread([run["metrics"][name] for run in runs if name in run["metrics"]]) for name in names]
        swapped = mean_and_spread([run["control"][judge] for run in runs if run["control"] and judge in run["control"]])
        missing = "" if len(runs) == seeds else f" [{len(runs)} of {seeds} seeds]"
        same = f" (the run of {row['same_run_as']})" if row.get("same_run_as") else ""
        lines.append((row["label"] + same + missing, [*cells, swapped]))
        splits = [run.get("uniform", {}) for run in runs]
        split = [mean_and_spread([values[name] for values in splits if name in values]) for name in names]
        if any(cell != "-" for cell in split):
            lines.append(("    videos found, uniform split", [*split, ""]))
        if row["paper"]:
            figures = [f"{100 * row['paper'][name]:.2f}" if name in row["paper"] else "-" for name in names]
            lines.append(("    paper", [*figures, ""]))
    for name, values in table["baselines"].items():
        if any(metric in values for metric in names):
            cells = [f"{100 * values[metric]:.1f}" if metric in values else "-" for metric in names]
            lines.append((name, [*cells, ""]))
    header = [*names, f"{judge}, swapped"]
    if len(table["rows"]) == 1:
        header = names
        lines = [(label, cells[:-1]) for label, cells in lines]
        swapped_cells = [mean_and_spread([control[name] for control in controls if name in control]) for name in names]
        lines.append((f"{table['rows'][0]['label']}, sentences swapped", swapped_cells))
    return align(header, lines)


def heading(table: Mapping[str, Any]) -> str:
    """Title and subject of a table."""
    return ": ".join(filter(None, (table["title"], table["about"])))


def judged_text(table: Mapping[str, Any]) -> str:
    """By what the claims of a table are judged, where that is more than one column; otherwise each claim says it."""
    several = len(table["judged_by"]) > 1 and table["claims"]
    return f"Judged by the mean of {', '.join(table['judged_by'])}." if several else ""


def claim_text(claim: Mapping[str, Any]) -> str:
    """One claim: verdict, what the paper says, and the numbers; of one that does not hold, what is true instead."""
    better, worse, seeds = claim["better"], claim["worse"], len(claim["seeds"])
    metric = claim["metrics"][0] if len(claim["metrics"]) == 1 else f"mean of {len(claim['metrics'])} columns"
    if claim["difference"] is None:
        return f"{claim['verdict']}: {claim['claim']} (no seed of both {better} and {worse} has finished)."
    points = 100 * claim["difference"]
    spread = "one seed" if seeds == 1 else f"standard error {100 * claim['standard_error']:.1f}, {seeds} seeds"
    paper = claim["paper_difference"]
    published = "" if paper is None else f"; paper {100 * paper:+.2f}"
    text = (
        f"{claim['verdict']}: {claim['claim']} ({better} minus {worse}, {metric}: {points:+.1f}, {spread}{published})."
    )
    if claim["verdict"] == REVERSED:
        text += f" Here {better} is {-points:.1f} points below {worse} in {metric}."
    if claim["below_baselines"]:
        text += " Neither earns what watching nothing does."
    return text


def selection_text(by: str, sees_spans: bool) -> str:
    """Which epoch counts, and whether validation timestamps had a say in it."""
    if by == LAST:
        return "the last epoch counts"
    return f"the epoch is chosen by validation {by}, which sees {'timestamps' if sees_spans else 'no timestamp'}"


def describe(content: Mapping[str, Any]) -> str:
    """One paragraph: what was run, and how to read it."""
    seeds = content["seeds"]
    numbers = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    spread = (
        "one seed, so no spread and no verdict" if len(seeds) == 1 else "mean ± standard deviation over the seeds, in %"
    )
    text = f"{content['method']} on {content['corpus']}, {content['split']} split, {numbers}: {spread}."
    ways = [selection_text(way["by"], way["sees_spans"]) for way in content.get("selection", [])]
    if ways:
        text += f" In each run {' or, depending on the row, '.join(ways)}."
    for added in content.get("added", []):  # rows that were run later
        names = list(dict.fromkeys(name for rows in added["rows"].values() for name in rows))
        text += f" {'; '.join(names)}: run at commit {added['versions'].get('commit', 'unknown')}."
    return text


def markdown(content: Mapping[str, Any], level: str, picture: str) -> str:
    """``ablation.json`` as Markdown.

    Args:
        content: of that file.
        level: marks of the tables' headings, such as ``##``.
        picture: where the picture is, seen from the page.
    """
    parts = [describe(content)]
    for table in content["tables"]:
        about = (
            f"The paper's figures are of {table['paper_corpus']}." if any(row["paper"] for row in table["rows"]) else ""
        )
        text = f"```\n{table_text(table, len(content['seeds']))}\n```"
        claims = "\n".join(f"- {claim_text(claim)}" for claim in table["claims"])
        parts += filter(None, (f"{level} {heading(table)}", about, text, judged_text(table), claims))
    return "\n\n".join([*parts, f"![{content['method']} on {content['corpus']}]({picture})"]) + "\n"
