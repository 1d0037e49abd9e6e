"""The study of decays over seeds: decays of a language model's rate against averages of the run that keeps it.

Measured: nats a byte of a two-layer byte-level transformer on held-out sources of Python's standard library and, as a
shift, on its reference manual. From one state, on the same batches: a constant rate, three decays, the merges of the
constant run's checkpoints that stand for these decays, an equal average, EMA tails, what validation text chooses among
windows, shapes and blends, and what the test text would have chosen. Seeds set the start and the order of the batches.
Claims: arXiv 2507.17634 (merging with a decay's coefficients matches the decay), 2505.12082.
Run: python benchmarks/decay_seeds.py [--jobs N] [--models small]; the run folder is runs/decay, finished cells are not
repeated. Results: benchmarks/results/decay_seeds.md and .json.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from grids import write

from lowland.studies import report
from lowland.studies.decay import KIND, cells, from_mapping, run_cell
from lowland.studies.grid import run_grid

FOLDER = Path("runs") / "decay"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    parser.add_argument("--models", default="small", help="such as small,medium")
    given = parser.parse_args()
    study = from_mapping({"model": {"names": given.models.split(",")}})
    metrics = run_grid(study, KIND, cells(study), run_cell, FOLDER, build=from_mapping, jobs=given.jobs, resume=True)
    report.write(FOLDER)
    notes = [
        "The same command for a user: `lowland study decay`. All rows but `before` have seen the same batches the same "
        "number of times; what is chosen is chosen on validation text, `oracle` on the test text. The paired intervals "
        "over seeds are what to read: with so few pairs of data set and model Wilcoxon's test can tell nothing apart.",
    ]
    write(KIND, FOLDER, "decay_seeds", "python benchmarks/decay_seeds.py", notes, ("scipy",))
    print(metrics["verdict"])


if __name__ == "__main__":
    main()
