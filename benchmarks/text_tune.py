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
import re
import shutil
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from lowland.calibration import summary
from lowland.studies.runs.folder import read_arrays
from lowland.studies.text import demo, run_text_study

SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 1000  # not a seed that the table is made of
# (AdamW, SGD), in the order in which they were tried: first the phase of SGD, then that of AdamW.
PAIRS = ((2e-3, 0.005), (2e-3, 0.01), (2e-3, 0.02), (2e-3, 0.05), (1e-3, 0.02), (5e-4, 0.02))
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
        _share(folder, adamw)
        run_text_study(study, folder, resume=True)
    arrays = read_arrays(folder / "probabilities.npz")
    labels = arrays["validation_labels"]
    found = {
        method: summary(arrays["validation_" + method.lower().replace("-", "_").replace(" ", "_")], labels)
        for method in METHODS
    }
    kept = {m: {key: float(own[key]) for key in ("nll", "ece", "accuracy", "f1")} for m, own in found.items()}
    return {"adamw": adamw, "sgd": sgd, "validation": kept}


def _share(folder: Path, adamw: float) -> None:
    """Take over the AdamW phase of a finished setting with the same rate: every stage depends on its settings alone."""
    done = [other for other in folder.parent.glob(f"tune-{SEED}-{adamw:g}-*") if (other / "metrics.json").exists()]
    if not done or folder.exists():
        return
    phase = Path("stages") / "member-0"
    shutil.copytree(done[0] / phase, folder / phase, ignore=shutil.ignore_patterns("swag*", "predictions-swa*"))
    shutil.copy(done[0] / "config.toml", folder)
    text = (folder / "config.toml").read_text(encoding="utf-8")
    rate = folder.name.rsplit("-", 1)[1]
    head, tail = text.split("[swag]")
    tail = re.sub(r"learning_rate = .*", f"learning_rate = {float(rate)!r}", tail, count=1)
    (folder / "config.toml").write_text(f"{head}[swag]{tail}", encoding="utf-8")


def main() -> None:
    rows = []
    RESULTS.mkdir(exist_ok=True)
    for adamw, sgd in PAIRS:
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
