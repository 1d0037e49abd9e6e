"""How an average of a trajectory goes wrong, and what ASWA does there: figures over five seeds.

    an overfitting tail   the running model passes its best epoch and gets worse; SWA, which takes every model, follows
    a too-early start     SWA takes the first models, which are far from good, and is slow to get rid of them

Both are named by Demir et al. 2024 (arXiv 2406.19092). Shown: the main metric on test data along training, of the
running model, SWA from its usual start, SWA from the first epoch, and ASWA, which sees validation data only.
The runs of the links have a constant rate, so their curves up to an epoch are those of a run of so many epochs: the
early start is shown up to the epoch at which the running model is best on validation data, where one would stop.
Run after links_seeds.py and images_seeds.py, whose run folders runs/links and runs/images hold the curves.
Results: benchmarks/results/failure_modes.md and .json, docs/figures/failure_*.svg.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from harness import ROOT, write

from lowland.studies.report.grids import curves_figure

EARLY = "SWA from epoch 1"
Row = dict[str, object]
Check = tuple[str, str, str, bool]


class Shown(NamedTuple):
    """One figure: a pair of a study, and whether it ends where validation data would stop."""

    study: str
    data: str
    model: str
    title: str
    stopped: bool


FIGURES = {
    "overfitting": Shown("links", "umls", "complex", "An overfitting tail", False),
    "early_start": Shown("links", "kinships", "complex", "A too-early start", True),
    "early_start_images": Shown("images", "cifar10", "vgg", "A too-early start, on images", False),
}


def metrics_of(study: str) -> dict[str, Any]:
    """The numbers of a finished study."""
    path = Path("runs") / study / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run benchmarks/{study}_seeds.py first")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def up_to(curves: dict[str, Any], epoch: int) -> dict[str, Any]:
    """The curves up to an epoch; those that begin later are left out."""
    cut = {}
    for name, curve in curves.items():
        n = sum(at <= epoch for at in curve["epoch"])
        if n:
            parts = {p: {k: v[:n] for k, v in curve[p].items()} for p in ("train", "validation", "test")}
            cut[name] = {"epoch": curve["epoch"][:n], **parts}
    return cut


def best_epoch(curve: dict[str, Any]) -> int:
    """The epoch with the best mean on validation data."""
    mean = curve["validation"]["mean"]
    epoch: int = curve["epoch"][max(range(len(mean)), key=mean.__getitem__)]
    return epoch


def rows_of(curves: dict[str, Any]) -> list[Row]:
    """For each curve its best point, its end, and the distance between: what going on cost."""
    rows: list[Row] = []
    for name, curve in curves.items():
        mean, sd, epochs = curve["test"]["mean"], curve["test"]["sd"], curve["epoch"]
        best = max(range(len(mean)), key=mean.__getitem__)
        rows.append(
            {
                "weights": name,
                "best epoch on test data": epochs[best],
                "test there": f"{mean[best]:.4f} ± {sd[best]:.4f}",
                f"test at epoch {epochs[-1]}": f"{mean[-1]:.4f} ± {sd[-1]:.4f}",
                "lost": f"{mean[best] - mean[-1]:.4f}",
            }
        )
    return rows


def checks_of(key: str, curves: dict[str, Any]) -> list[Check]:
    """What the figure is to show, as differences that must be above zero."""
    end = {name: curve["test"]["mean"][-1] for name, curve in curves.items()}
    if key == "overfitting":
        wanted = {
            "the last iterate falls from its best point": max(curves["last iterate"]["test"]["mean"])
            - end["last iterate"],
            "SWA falls as the run overfits": curves["SWA"]["test"]["mean"][0] - end["SWA"],
            "ASWA ends above SWA": end["ASWA"] - end["SWA"],
            "ASWA ends above the last iterate": end["ASWA"] - end["last iterate"],
        }
    else:
        adaptive = next(name for name in ("ASWA from epoch 1", "ASWA") if name in end)
        wanted = {
            f"{EARLY} ends below the last iterate": end["last iterate"] - end[EARLY],
            f"{adaptive} ends above {EARLY}": end[adaptive] - end[EARLY],
        }
        if "SWA" in end:
            wanted[f"{EARLY} ends below SWA"] = end["SWA"] - end[EARLY]
    title = FIGURES[key].title
    return [(f"{title}: {claim}", "above 0", f"{found:+.4f}", found > 0) for claim, found in wanted.items()]


def every_pair(study: str, stopped: bool) -> list[Row]:
    """The ends of the curves of every pair, so that the one in the figure is seen beside the others."""
    rows: list[Row] = []
    for data, models in metrics_of(study)["curves"].items():
        for model, curves in models.items():
            epoch = best_epoch(curves["last iterate"]) if stopped else max(curves["last iterate"]["epoch"])
            ends = {name: f"{curve['test']['mean'][-1]:.4f}" for name, curve in up_to(curves, epoch).items()}
            rows.append({"data, model": f"{data}, {model}", "epoch": epoch, **ends})
    return rows


def main() -> None:
    tables: dict[str, list[Row]] = {}
    checks: list[Check] = []
    figures = ROOT / "docs" / "figures"
    figures.mkdir(exist_ok=True)
    for key, (study, data, model, title, stopped) in FIGURES.items():
        metrics = metrics_of(study)
        if data not in metrics["curves"]:
            print(f"{title}: left out, runs/{study} has no {data}")
            continue
        curves, label = metrics["curves"][data][model], metrics["kind"]["metrics"][0]["label"]
        if stopped:
            curves = up_to(curves, best_epoch(curves["last iterate"]))
        svg = curves_figure(curves, "test", label, f"failure-{key}", f"{title}: {data}, {model}")
        alone = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" ', 1)
        (figures / f"failure_{key}.svg").write_text(alone, encoding="utf-8")
        tables[f"{title}: {data}, {model}, {label}, {len(metrics['seeds'])} seeds"] = rows_of(curves)
        checks += checks_of(key, curves)
    tables["Links to the end: MRR on test data, means over seeds"] = every_pair("links", False)
    tables["Links to the best epoch on validation data: MRR on test data"] = every_pair("links", True)
    tables["Images to the end of SWA's run: accuracy on test data"] = every_pair("images", False)
    notes = [
        "Test data are looked at here, never used: ASWA accepts by validation data.",
        "Mean and standard deviation over seeds. A best epoch of a curve is that of its mean.",
    ]
    write("failure_modes", "How an average goes wrong, and ASWA beside it", tables, notes, checks)


if __name__ == "__main__":
    main()
