"""The result files of the GPU pack from whatever pieces are there: `gpu_training.md` and .json."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_training import MEAN_AT, Recipe
from harness import write
from torch import Tensor

from lowland.calibration import summary

METHODS = {
    "sgd": ("SGD", "1"),
    "sgd long": ("SGD", "1.5"),
    **{f"swa {at:g}": ("SWA", f"{at:g}") for at in MEAN_AT},
    "swag": ("SWAG", "1.5"),
}
TOGETHER = {"sgd": "deep ensemble", "sgd long": "deep ensemble", "swag": "MultiSWAG"}


def merged(state: Path, out: Path, recipes: Mapping[str, Recipe]) -> None:
    """Write the table of every network of which a run of a seed is finished; nothing where there is none."""
    tables: dict[str, list[dict[str, object]]] = {}
    notes = []
    for name, recipe in recipes.items():
        folders = sorted(state.glob(f"{name}-*/"), key=lambda folder: int(folder.name.rsplit("-", 1)[1]))
        rows = rows_of([folder for folder in folders if folder.is_dir()])
        if rows:
            tables[name] = rows
            notes.append(f"{name}, the papers: {recipe.paper}.")
    if not tables:
        return
    notes += [
        "Mean ± standard deviation over seeds; budgets are of training, a member. All training images, no choice was "
        "made; rates are the papers'. Ensembles are of all finished seeds, one number each.",
        "ECE: 20 bins of equal width. Seconds: of training alone, the mean a seed.",
    ]
    tests = state / "tests.json"
    if tests.exists():
        notes.append(f"Tests marked gpu: {tests.read_text(encoding='utf-8').strip()}")
    write("gpu_training", "The papers' networks on CIFAR-10", tables, notes)


def rows_of(folders: list[Path]) -> list[dict[str, object]]:
    """A row a method over the seeds that have it, then the ensembles of at least two seeds."""
    found: dict[str, list[tuple[Tensor, Tensor, float, float]]] = {}
    for folder in folders:
        for key in METHODS:
            path = folder / f"{key.replace(' ', '-')}.npz"
            if path.exists():
                with np.load(path) as arrays:
                    probs, labels = torch.from_numpy(arrays["probs"]), torch.from_numpy(arrays["labels"])
                    told = float(arrays["train_accuracy"]), float(arrays["seconds"])
                found.setdefault(key, []).append((probs, labels, *told))
    rows: list[dict[str, object]] = []
    for key, (method, budget) in METHODS.items():
        if key in found:
            every = [scores(probs, labels) | {"train": 100 * fit} for probs, labels, fit, _ in found[key]]
            row: dict[str, object] = {"method": method, "budgets": budget, "seeds": len(every)}
            row |= {name: spread([one[name] for one in every]) for name in every[0]}
            rows.append(row | {"seconds": f"{statistics.mean(one[3] for one in found[key]):.0f}"})
    for key, method in TOGETHER.items():
        members = found.get(key, [])
        if len(members) > 1:
            probs = torch.stack([one[0] for one in members]).double().mean(0)
            told = {name: f"{value:.4g}" for name, value in scores(probs, members[0][1]).items()}
            budget = METHODS[key][1]
            rows.append({"method": f"{method} of {len(members)}", "budgets": f"{len(members)} x {budget}", **told})
    return rows


def scores(probs: Tensor, labels: Tensor) -> dict[str, float]:
    every: dict[str, Any] = summary(probs, labels, bins=20)
    return {"accuracy %": 100 * float(every["accuracy"]), "NLL": float(every["nll"]), "ECE": float(every["ece"])}


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4g}" + (f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else "")
