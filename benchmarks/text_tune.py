"""Which learning rates the demo should use, judged on validation texts alone: one seed, one member.

Measured: NLL, accuracy and macro F1 on the validation texts of base, SWA and SWAG for each rate. The test texts are
held to one a class, so that nothing can be chosen by them. Run: python benchmarks/text_tune.py [SEED].
Finished settings are not repeated. Results: benchmarks/results/text_tune.json and .md.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from lowland.calibration import summary
from lowland.studies.config import demo
from lowland.studies.folder import read_arrays
from lowland.studies.text import run_text_study

SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 1000  # not a seed that the table is made of
SGD_RATES = (0.01, 0.02, 0.05)
ADAMW_RATES = (1e-3, 2e-3, 4e-3)
METHODS = ("base", "early-stopped base", "SWA", "SWAG")
RESULTS = Path(__file__).parent / "results"


def run(adamw: float, sgd: float) -> dict[str, Any]:
    study = demo(seed=SEED, members=1)
    study = dataclasses.replace(
        study,
        data=dataclasses.replace(study.data, test_texts=2, validation_texts=600),
        training=dataclasses.replace(study.training, learning_rate=adamw),
        swag=dataclasses.replace(study.swag, learning_rate=sgd),
    )
    folder = Path("runs") / f"tune-{SEED}-{adamw:g}-{sgd:g}"
    if not (folder / "metrics.json").exists():
        run_text_study(study, folder, resume=True)
    arrays = read_arrays(folder / "probabilities.npz")
    labels = arrays["validation_labels"]
    found = {
        method: summary(arrays["validation_" + method.lower().replace("-", "_").replace(" ", "_")], labels)
        for method in METHODS
    }
    kept = {m: {key: float(own[key]) for key in ("nll", "ece", "accuracy", "f1")} for m, own in found.items()}
    return {"adamw": adamw, "sgd": sgd, "validation": kept}


def main() -> None:
    standard = demo()
    pairs = [(standard.training.learning_rate, sgd) for sgd in SGD_RATES]
    pairs += [
        (adamw, standard.swag.learning_rate)
        for adamw in ADAMW_RATES
        if (adamw, standard.swag.learning_rate) not in pairs
    ]
    rows = []
    RESULTS.mkdir(exist_ok=True)
    for adamw, sgd in pairs:
        rows.append(run(adamw, sgd))
        content = {
            "rows": rows,
            "seed": SEED,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "torch": torch.__version__,
            "date": date.today().isoformat(),
            "command": "python benchmarks/text_tune.py " + " ".join(sys.argv[1:]),
        }
        (RESULTS / "text_tune.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# Learning rates of the demo, on validation texts",
        "",
        f"One member, seed {SEED}, 600 validation texts (n = 1 run a row); {content['machine']}, "
        f"torch {content['torch']}, {content['date']}; `{content['command']}`.",
        "",
        "| AdamW | SGD | " + " | ".join(f"{m}: NLL / ECE / F1" for m in METHODS) + " |",
        "|---|---|" + "---|" * len(METHODS),
    ]
    for row in rows:
        own = row["validation"]
        cells = " | ".join(f"{own[m]['nll']:.3f} / {own[m]['ece']:.3f} / {own[m]['f1']:.3f}" for m in METHODS)
        lines.append(f"| {row['adamw']:g} | {row['sgd']:g} | {cells} |")
    (RESULTS / "text_tune.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
