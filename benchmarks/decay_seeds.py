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
import json
import os
import statistics
from pathlib import Path
from typing import Any

from grids import write
from pages import table
from scipy.stats import t

from lowland.studies import report
from lowland.studies.decay import KIND, cells, from_mapping, run_cell
from lowland.studies.grid import run_grid

BESIDE = ("constant", "decayed linear")
PARTS = {"test": "test", "shift": "other text"}


def more(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Every row beside the constant run and beside its linear decay, paired over seeds, and what each seed chose."""
    cells_of: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((folder / "cells").glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        cells_of.setdefault(cell["cell"].rsplit("-", 1)[0], []).append(cell)
    lines, entries = [], {}
    for pair, found in cells_of.items():
        rows, chosen, entries[pair] = [], [], {}
        for method in KIND.methods:
            row, entry = {"method": method}, {}
            for part, told in PARTS.items():
                for other in BESIDE:
                    gap = paired([_loss(cell, method, part) - _loss(cell, other, part) for cell in found])
                    row[f"less {other}, {told}"] = f"{gap['mean']:+.4f} ± {gap['half']:.4f}"
                    entry[f"{other}, {part}"] = gap
                gains = [
                    (_loss(cell, "constant", part) - _loss(cell, method, part))
                    / (_loss(cell, "constant", part) - _loss(cell, "decayed linear", part))
                    for cell in found
                ]
                entry[f"share, {part}"] = paired(gains)
                row[f"share of the decay's gain, {told}"] = f"{statistics.mean(gains):.1%}"
            rows.append(row)
            entries[pair][method] = entry
        for cell in found:
            own = cell["chosen"]
            chosen.append({"cell": cell["cell"], **{key: _told(value) for key, value in own.items()}})
        lines += [f"## {pair}: every row beside the constant run and its linear decay, paired over seeds", ""]
        lines += ["Mean difference and half of its 95 % interval (Student's t), nats a byte, lower is better.", ""]
        lines += [*table(rows), "", f"## {pair}: what validation text chose", "", *table(chosen), ""]
    return lines, {"paired": entries, "chosen": {pair: [c["chosen"] for c in own] for pair, own in cells_of.items()}}


def paired(gaps: list[float]) -> dict[str, float]:
    """Mean, half of the 95 % interval and n; the half is 0 for a single seed."""
    half = 0.0
    if len(gaps) > 1:
        half = float(t.ppf(0.975, len(gaps) - 1)) * statistics.stdev(gaps) / len(gaps) ** 0.5
    return {"mean": statistics.mean(gaps), "half": half, "n": len(gaps)}


def _loss(cell: dict[str, Any], method: str, part: str) -> float:
    return float(cell["methods"][method][part]["nll"])


def _told(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


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
        "number of times; what is chosen is chosen on validation text, `oracle` on the test text. Differences are "
        "paired over seeds. Alone on a core, a cell of the small model takes four minutes.",
    ]
    asked = " ".join(f"--{key} {value}" for key, value in vars(given).items() if value and key != "jobs")
    command = f"python benchmarks/decay_seeds.py {asked if given.name else ''}".rstrip()
    write(KIND, folder, f"decay_{given.name or 'seeds'}", command, notes, ("scipy",), more=more)
    print(metrics["verdict"])


if __name__ == "__main__":
    main()
