"""The study of decays over seeds: decays of a language model's rate against averages of the run that keeps it.

Measured: nats a byte of a two-layer byte-level transformer on held-out sources of Python's standard library and, as a
shift, on its reference manual. From one state, on the same batches: a constant rate, three decays, the merges of the
constant run's checkpoints that stand for these decays, an equal average, EMA tails, what validation text chooses among
windows, shapes and blends, and what the test text would have chosen. Seeds set the start and the order of the batches.
Claims: arXiv 2507.17634 (merging with a decay's coefficients matches the decay), 2505.12082.
Run: python benchmarks/decay_seeds.py [--jobs N]; the run folder is runs/decay, finished cells are not repeated.
Results: benchmarks/results/decay_seeds.md and .json. A model, seeds or a length of one's own have a name of their own:
--name late --steps 4800 --seeds 0,1,2 runs in runs/decay-late and writes benchmarks/results/decay_late.md.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from grids import write

from lowland.studies import report
from lowland.studies.decay import KIND, cells, from_mapping, run_cell
from lowland.studies.grid import run_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    parser.add_argument("--models", default="small", help="such as small,medium")
    parser.add_argument("--seeds", help="such as 0,1 [default: eight]")
    parser.add_argument("--steps", type=int, help="at the constant rate, before the decays begin [default: 1200]")
    parser.add_argument("--name", default="", help="of a study that is not the default one, such as late")
    given = parser.parse_args()
    training: dict[str, object] = {} if given.steps is None else {"steps": given.steps}
    if given.seeds is not None:
        training["seeds"] = [int(seed) for seed in given.seeds.split(",")]
    if (training or given.models != "small") != bool(given.name):
        parser.error("a study that is not the default one needs a --name, and the default one has none")
    study = from_mapping({"model": {"names": given.models.split(",")}, "training": training})
    folder = Path("runs") / (f"decay-{given.name}" if given.name else "decay")
    metrics = run_grid(study, KIND, cells(study), run_cell, folder, build=from_mapping, jobs=given.jobs, resume=True)
    report.write(folder)
    notes = [
        "The same command for a user: `lowland study decay`. All rows but `before` have seen the same batches the same "
        "number of times; what is chosen is chosen on validation text, `oracle` on the test text. The paired intervals "
        "over seeds are what to read: with so few pairs of data set and model Wilcoxon's test can tell nothing apart.",
    ]
    asked = " ".join(f"--{key} {value}" for key, value in vars(given).items() if value and key != "jobs")
    command = f"python benchmarks/decay_seeds.py {asked if given.name else ''}".rstrip()
    write(KIND, folder, f"decay_{given.name or 'seeds'}", command, notes, ("scipy",))
    print(metrics["verdict"])


if __name__ == "__main__":
    main()
