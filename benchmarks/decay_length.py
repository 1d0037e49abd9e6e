"""Does a merge come closer to a decay, the longer the run has gone on at the constant rate before?

Measured: the share of a linear decay's gain on the constant rate that averages of the constant run give, on test text,
after 300, 1,200 and 4,800 steps, and by how much the constant run still falls over the decay's 300 steps. The code is
that of `decay_seeds.py`; the model is a toy (one layer of 16, a context of 32 bytes) so that long runs can be had: what
it says is how the share moves, not how large it is elsewhere. Four seeds, paired.
Run: python benchmarks/decay_length.py; the run folders are runs/decay-length-*, finished cells are not repeated.
Results: benchmarks/results/decay_length.md and .json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from decay_seeds import paired
from harness import write

from lowland.studies.decay import KIND, cells, from_mapping, run_cell
from lowland.studies.grid import run_grid

LENGTHS, SEEDS = (300, 1200, 4800), (0, 1, 2, 3)
AVERAGES = ("merged window", "merged linear", "merged cosine", "merged minus-sqrt", "EMA tail", "merged, chosen")


def settings(steps: int) -> dict[str, Any]:
    return {
        "model": {"names": ["tiny"], "layers": 1, "context": 32},
        "training": {"seeds": list(SEEDS), "steps": steps, "batch_size": 16},
        "merging": {"windows": [50, 100], "blends": [1.0]},
        "evaluation": {"rows": 512, "batch_size": 256},
    }


def main() -> None:
    rows, raw = [], {}
    for steps in LENGTHS:
        folder = Path("runs") / f"decay-length-{steps}"
        study = from_mapping(settings(steps))
        run_grid(study, KIND, cells(study), run_cell, folder, build=from_mapping, resume=True)
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "cells").glob("*.json"))]
        loss = [{method: parts["test"]["nll"] for method, parts in cell["methods"].items()} for cell in found]
        falls = paired([one["before"] - one["constant"] for one in loss])
        gain = paired([one["constant"] - one["decayed linear"] for one in loss])
        own = {
            method: paired([(o["constant"] - o[method]) / (o["constant"] - o["decayed linear"]) for o in loss])
            for method in AVERAGES
        }
        raw[str(steps)] = {"falls": falls, "gain": gain, "shares": own}
        row: dict[str, object] = {"steps before": steps, "n": len(loss)}
        row["the constant run falls by"] = f"{falls['mean']:.4f} ± {falls['half']:.4f}"
        row["the decay gains"] = f"{gain['mean']:.4f} ± {gain['half']:.4f}"
        gains = gain["mean"] - gain["half"] > 0
        row |= {
            f"share, {m}": f"{100 * s['mean']:.0f} ± {100 * s['half']:.0f} %" if gains else "no gain"
            for m, s in own.items()
        }
        rows.append(row)
        print(row, flush=True)
    notes = [
        "Means over seeds and half of the 95 % interval (Student's t), nats a byte on test text; shares of what the "
        "linear decay gains on the constant rate, where its interval lies above zero. Seeds set the start and the "
        "order of the batches.",
        "Exploratory: the lengths were chosen after the study of decays had run, and after a trial with one seed.",
    ]
    title = "Averages beside a decay, after longer runs"
    path = write("decay_length", title, {"Shares": rows}, notes, packages=["scipy"])
    told = path.with_suffix(".json")
    told.write_text(json.dumps({**json.loads(told.read_text()), "lengths": raw}, indent=1) + "\n")


if __name__ == "__main__":
    main()
