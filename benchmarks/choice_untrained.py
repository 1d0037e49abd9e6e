"""How sure the scorer of the choice study is before any training: its constant times a cosine, on the test questions.

Measured: accuracy, NLL and ECE (20 bins of equal width) of the untrained scorer on the test questions of
choice_seeds.py, the temperature that those want, and the same at the temperature that its training questions want.
Run: python benchmarks/choice_untrained.py. Results: benchmarks/results/choice_untrained.json and .md.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import torch
from choice_seeds import SETS, configured
from pages import machine, versions

from lowland.calibration import fit_temperature, summary, temper
from lowland.studies.adapters.training import class_probabilities
from lowland.studies.choice.questions import as_questions, load_splits
from lowland.studies.choice.scorers import load_scorer

RESULTS = Path(__file__).parent / "results"


def asked(name: str) -> dict[str, Any]:
    study = configured(name, 0)
    splits = load_splits(study.data)
    width = max(len(question.options) for part in (splits.train, splits.test) for question in part)
    scorer, tokenizer, _ = load_scorer(study.model, width)
    scorer.eval()
    found = {}
    for part, questions in (("train", splits.train), ("test", splits.test)):
        given = as_questions(questions, tokenizer, study.model.kind, study.model.max_length, width)
        found[part] = class_probabilities(scorer, given, 32), torch.tensor([one.answer for one in questions])
    wanted = fit_temperature(*found["train"])
    probs, labels = found["test"]
    kept = ("accuracy", "nll", "ece")
    return {
        "n": len(labels),
        "scale": study.model.scale,
        "untrained": {key: float(value) for key, value in summary(probs, labels).items() if key in kept},
        "temperature": {"train": wanted, "test": fit_temperature(probs, labels)},
        "at the training questions' temperature": {
            key: float(value) for key, value in summary(temper(probs, wanted), labels).items() if key in kept
        },
    }


def main() -> None:
    sets = {name: asked(name) for name in SETS}
    content = {"sets": sets, "date": date.today().isoformat(), "machine": machine(), "versions": versions()}
    (RESULTS / "choice_untrained.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# The choice study's scorer before training",
        "",
        f"Test questions, n = 1 pretrained model; {content['date']}; `python benchmarks/choice_untrained.py`.",
        "",
        "| set | questions | scale | accuracy | NLL | ECE | temperature wanted: training, test questions | "
        "NLL, ECE at the former |",
        "|" + "---|" * 8,
    ]
    for name, one in sets.items():
        own, other, heat = one["untrained"], one["at the training questions' temperature"], one["temperature"]
        lines.append(
            f"| {name} | {one['n']} | {one['scale']:g} | {own['accuracy']:.3f} | {own['nll']:.3f} | {own['ece']:.3f} | "
            f"{heat['train']:.2f}, {heat['test']:.2f} | {other['nll']:.3f}, {other['ece']:.3f} |"
        )
    (RESULTS / "choice_untrained.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
