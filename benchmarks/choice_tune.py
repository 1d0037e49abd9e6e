"""Which rates the choice study over seeds should use, judged on validation questions alone: one seed, one member.

Measured: NLL, ECE and accuracy on the validation questions of the base model, SWA and SWAG for each pair of rates (of
the first and the second phase). The seed is not one that choice_seeds.py reports.
Run: python benchmarks/choice_tune.py [PAIR ...], numbers of pairs; finished ones are not repeated (runs/choice-tune-*).
Results: benchmarks/results/choice_tune.json and .md.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

from choice_seeds import RESULTS, configured
from pages import machine, versions

from lowland.calibration import summary
from lowland.studies.choice import run_choice_study
from lowland.studies.runs.folder import read_arrays

SEED = 1000
PAIRS = ((1e-3, 5e-4), (3e-4, 3e-4))
METHODS = ("base", "early-stopped base", "temperature-scaled base", "SWA", "SWAG")


def run(first: float, second: float) -> None:
    study = configured("commonsenseqa", SEED, (first, second), members=1)
    data = dataclasses.replace(study.data, test_questions=2, shifted=())
    folder = Path("runs") / f"choice-tune-{first:g}-{second:g}"
    run_choice_study(dataclasses.replace(study, data=data), folder, resume=True)


def read(first: float, second: float) -> dict[str, Any] | None:
    path = Path("runs") / f"choice-tune-{first:g}-{second:g}" / "probabilities.npz"
    if not path.exists():
        return None
    arrays = read_arrays(path)
    labels = arrays["validation_labels"]
    keys = {method: "validation_" + method.lower().replace("-", "_").replace(" ", "_") for method in METHODS}
    found = {method: summary(arrays[key], labels, bins=20) for method, key in keys.items()}
    return {m: {key: float(own[key]) for key in ("nll", "ece", "accuracy")} for m, own in found.items()}


def main() -> None:
    for number in [int(one) for one in sys.argv[1:]] or range(len(PAIRS)):
        run(*PAIRS[number])
    rows = [{"first": a, "second": b, "validation": own} for a, b in PAIRS if (own := read(a, b)) is not None]
    content = {
        "date": date.today().isoformat(),
        "seed": SEED,
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "choice_tune.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# Rates of the choice study, on validation questions",
        "",
        f"CommonsenseQA, seed {SEED}, one member, 120 validation questions; {content['date']}. NLL / ECE / accuracy. "
        "Command: `python benchmarks/choice_tune.py`.",
        "",
        "| first phase | second phase | " + " | ".join(METHODS) + " |",
        "|---" * (2 + len(METHODS)) + "|",
    ]
    for row in rows:
        cells = [f"{o['nll']:.3f} / {o['ece']:.3f} / {o['accuracy']:.3f}" for o in row["validation"].values()]
        lines.append(f"| {row['first']:g} | {row['second']:g} | " + " | ".join(cells) + " |")
    (RESULTS / "choice_tune.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
