"""The result page of a grid study: what its metrics.json holds, as Markdown tables beside machine and command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the list of peers lies among the tests
from pages import machine, table, versions

from lowland.studies.grid import Cell, run_grid
from lowland.studies.grid.kinds import Kind
from lowland.studies.grid.statistics import holm

RESULTS = Path(__file__).parent / "results"


def seed_by_seed(
    study: Any,
    kind: Kind,
    cells: Sequence[Cell],
    run_cell: Callable[[Any, Cell], dict[str, Any]],
    folder: Path,
    build: Callable[[dict[str, Any]], Any],
    jobs: int,
) -> Iterator[dict[str, Any]]:
    """Run one seed of all pairs after the other; yield the metrics of those that are done, from the second seed on."""
    seeds = sorted({cell.seed for cell in cells})
    for count in range(min(2, len(seeds)), len(seeds) + 1):
        some = [cell for cell in cells if cell.seed in seeds[:count]]
        (folder / "metrics.json").unlink(missing_ok=True)
        yield run_grid(study, kind, sorted(some, key=_seed), run_cell, folder, build=build, jobs=jobs, resume=True)


def over_seeds(kind: Kind, metrics: dict[str, Any]) -> list[str]:
    """The claims in each pair of data set and model: Student's t of paired differences, Holm over all of them."""
    from scipy import stats

    found, tests = {}, {}
    for claim, own in metrics["claims"].items():
        for one in own[kind.main.key]["pairs"]:
            values = one["values"]
            same = len(values) < 2 or len(set(values)) == 1
            p = float(values[0] == 0) if same else float(stats.ttest_1samp(values, 0).pvalue)
            key = f"{one['data']}, {one['model']}: {claim}"
            tests[key], found[key] = p, one
    adjusted = holm(tests)
    rows = [
        {
            "pair and claim": key,
            "difference": f"{one['mean']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]",
            "p, Holm": f"{adjusted[key]:.2g}",
            "p": f"{tests[key]:.2g}",
        }
        for key, one in found.items()
        if one["low"] is not None
    ]
    told = (
        f"{kind.main.label}: differences on test data paired over {len(metrics['seeds'])} seeds, 95 % intervals, "
        f"Student's t; p after Holm's correction for all {len(rows)} rows, and without."
    )
    return [told, "\n".join(table(rows))]


def _seed(cell: Cell) -> int:
    return cell.seed


def write(
    kind: Kind,
    folder: Path,
    name: str,
    command: str,
    notes: list[str],
    packages: tuple[str, ...],
    *,
    out: Path | None = None,
    more: Callable[[Path], tuple[list[str], dict[str, Any]]] | None = None,
) -> None:
    """Write results/NAME.md and .json from a finished run folder; curves stay in the run folder.

    Args:
        out: another folder than results. more: of the run folder, further lines and entries of a study's own.
    """
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    timings = json.loads((folder / "timings.json").read_text(encoding="utf-8"))
    about = machine()
    work = sum(cell["mean"] * cell["n"] for models in metrics["seconds"].values() for cell in models.values())
    known = {
        "date": date.today().isoformat(),
        "command": command,
        "machine": about,
        "versions": versions(packages),
        "cells_minutes_by_the_clock": timings["cells_seconds"] / 60,
        "cells_minutes_of_work": work / 60,
        "config": (folder / "config.toml").read_text(encoding="utf-8"),
        **{key: value for key, value in metrics.items() if key not in ("curves", "kind")},
    }
    lines = [
        f"# The study of {kind.name} over seeds",
        "",
        f"{known['date']}, {about['cpu']}, {about['cores']} cores. "
        f"Versions: {', '.join(f'{k} {v}' for k, v in known['versions'].items())}. Command: `{command}`.",
        f"{len(metrics['pairs'])} pairs of data set and model, seeds {', '.join(map(str, metrics['seeds']))}; "
        f"{work / 60:.0f} minutes of training, averaging and evaluation on one thread each; the cells' times by the "
        f"clock, with other work beside them, add up to {timings['cells_seconds'] / 60:.0f} minutes.",
        "",
        metrics["verdict"],
        "",
        *(f"{note}\n" for note in notes),
        *_claims(kind, metrics),
        *_tables(kind, metrics),
        *_shifted(kind, metrics),
        *_gaps(kind, metrics),
        *_sensitivity(kind, metrics),
        *_decisions(metrics),
    ]
    if more is not None:
        further, entries = more(folder)
        lines += further
        known |= entries
    home = out or RESULTS
    home.mkdir(exist_ok=True)
    (home / f"{name}.json").write_text(json.dumps(_short(known)) + "\n", encoding="utf-8")
    (home / f"{name}.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _short(value: Any) -> Any:
    """Numbers to seven digits: what seeds differ by stands far above them."""
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_short(inner) for inner in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _cell(one: dict[str, Any], digits: int = 4) -> str:
    return f"{one['mean']:.{digits}f}" + (f" ± {one['sd']:.{digits}f}" if one["n"] > 1 else "")


def _claims(kind: Kind, metrics: dict[str, Any]) -> list[str]:
    floor = min(1.0, len(metrics["claims"]) * 2 / 2 ** len(metrics["pairs"]))
    over_pairs = [
        "## Claims over all pairs",
        "",
        "Mean difference on test data over pairs; in how many pairs the first method is better; Wilcoxon's p with "
        "Holm's correction for the claims of the column, and without. Pairs share data sets and models, so p is a "
        f"guide; with {len(metrics['pairs'])} pairs and {len(metrics['claims'])} claims it is at least {floor:.2g}.",
        "",
    ]
    rows = []
    for claim, found in metrics["claims"].items():
        row = {"difference": claim}
        for metric in kind.metrics:
            own = found[metric.key]
            row[f"{metric.label} ({'higher' if metric.higher else 'lower'} is better)"] = (
                f"{own['mean']:+.4f}, {own['better']} of {own['n']}, p {own['p_holm']:.2g} ({own['p']:.2g})"
            )
        rows.append(row)
    over_pairs += [*table(rows), ""]
    lines = over_pairs if len(metrics["pairs"]) > 1 else ["## Claims", ""]
    lines += [f"{kind.main.label}, paired differences of each pair, 95 % intervals over seeds:", ""]
    rows = []
    for place, (data, model) in enumerate(metrics["pairs"]):
        row = {"pair": f"{data}, {model}"}
        for claim, found in metrics["claims"].items():
            own = found[kind.main.key]["pairs"][place]
            within = "" if own["low"] is None else f" [{own['low']:+.4f}, {own['high']:+.4f}]"
            row[claim] = f"{own['mean']:+.4f}{within}"
        rows.append(row)
    return [*lines, *table(rows), ""]


def _tables(kind: Kind, metrics: dict[str, Any]) -> list[str]:
    lines = ["## Test data, mean ± standard deviation over seeds", ""]
    for metric in kind.metrics:
        lines += [f"### {metric.label}, {'higher' if metric.higher else 'lower'} is better", ""]
        lines += [*table(_by_pair(kind, metrics, "test", metric.key)), ""]
    return lines


def _by_pair(kind: Kind, metrics: dict[str, Any], part: str, key: str) -> list[dict[str, object]]:
    return [
        {"method": method}
        | {f"{d}, {m}": _cell(metrics["table"][d][m][method][part][key]) for d, m in metrics["pairs"]}
        for method in kind.methods
    ]


def _shifted(kind: Kind, metrics: dict[str, Any]) -> list[str]:
    """Means over pairs of every other part: single pairs stand in the .json."""
    data, model = metrics["pairs"][0]
    parts = [p for p in metrics["table"][data][model][kind.methods[0]] if p not in ("train", "validation")]
    if len(parts) < 2:
        return []
    rows = []
    for method in kind.methods:
        row: dict[str, object] = {"method": method}
        for part in parts:
            means = [metrics["table"][d][m][method][part][kind.main.key]["mean"] for d, m in metrics["pairs"]]
            row[kind.parts.get(part, part)] = f"{sum(means) / len(means):.4f}"
        rows.append(row)
    return [f"## Beyond the test data: {kind.main.label}, mean over seeds and pairs", "", *table(rows), ""]


def _gaps(kind: Kind, metrics: dict[str, Any]) -> list[str]:
    what = "training less test" if kind.main.higher else "test less training"
    rows = [
        {"method": method} | {f"{d}, {m}": _cell(metrics["generalisation"][d][m][method]) for d, m in metrics["pairs"]}
        for method in kind.methods
    ]
    return [f"## Generalisation gap: {kind.main.label}, {what}", "", *table(rows), ""]


def _sensitivity(kind: Kind, metrics: dict[str, Any]) -> list[str]:
    axes: dict[str, list[dict[str, object]]] = {}
    for data, models in metrics["sensitivity"].items():
        for model, found in models.items():
            for axis, rows in found.items():
                for row in rows:
                    told = {part: _cell(row[part]) for part in ("validation", "test")}
                    told["n"] = row["test"]["n"]
                    axes.setdefault(axis, []).append(
                        {"pair": f"{data}, {model}", "method": row["method"], axis: f"{row['value']:g}"} | told
                    )
    lines = [f"## Sensitivity: {kind.main.label} against one setting at a time", ""] if axes else []
    for axis, rows in axes.items():
        lines += [f"### {axis}", "", *table(rows), ""]
    return lines


def _decisions(metrics: dict[str, Any]) -> list[str]:
    rows = [
        {"pair": f"{data}, {model}"} | {action: f"{found['mean']:.1f}" for action, found in own.items()}
        for data, models in metrics["decisions"].items()
        for model, own in models.items()
        if any(found["mean"] for found in own.values())
    ]
    if not rows:
        return []
    return ["## What ASWA did up to the end of its run, means over seeds", "", *table(rows), ""]
