"""The figure of accuracy against bytes: what the average of a population gains by what its members send.

Drawn from benchmarks/results/population_seeds.json and, where it is there, population_cifar.json; nothing is run.
Run: python benchmarks/population_figure.py. Result: docs/figures/population_bytes.svg.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lowland.figures.svg import MUTED, series, text_of

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ("population_seeds", "population_cifar")
STARTS = {True: "one start", False: "own starts"}


def panels() -> list[tuple[str, dict[str, Any]]]:
    """A title and the test numbers by rule, for each pair of every study that has been run."""
    found = []
    for name in STUDIES:
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        if path.exists():
            metrics = json.loads(path.read_text(encoding="utf-8"))
            for data, model in metrics["pairs"]:
                members = model.split(".n")[1][0]
                title = f"{data}, {members} members, {STARTS['.one' in model]}, n = {len(metrics['seeds'])}"
                found.append((title, {rule: own["test"] for rule, own in metrics["table"][data][model].items()}))
    return found


def drawn(shown: list[tuple[str, dict[str, Any]]]) -> str:
    def draw(figure: Figure) -> None:
        every = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, (title, rules) in zip(every, shown, strict=True):
            for place, (rule, own) in enumerate(rules.items()):
                colour, mark, _ = series(place)
                axes.errorbar(
                    own["payload"]["mean"], own["average"]["mean"], own["average"]["sd"],
                    fmt=mark, color=colour, markersize=6, capsize=2, label=rule,
                )  # fmt: skip
            axes.axhline(rules["independent"]["ensemble"]["mean"], color=MUTED, linestyle="--", linewidth=1)
            axes.set_xscale("symlog", linthresh=0.3)
            axes.set_xlim(left=-0.05)
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("payload, kB a step and member")
        every[0].set_ylabel("test accuracy of the average")
        handles, names = every[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=5)

    title = "Accuracy of a population's average against what its members send"
    alt = f"{title}: from own starts the rules that average now and then reach the ensemble (dashed), the others do not"
    text = text_of(draw, (3.6 * len(shown) + 0.6, 3.9), "population-bytes", title, alt)
    return text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" ', 1) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "figures" / "population_bytes.svg").write_text(drawn(panels()), encoding="utf-8")
