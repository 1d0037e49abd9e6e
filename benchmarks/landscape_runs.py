"""What `landscape_images.py` trains: its regimes, the rates that suit each, and the solutions of a network and seed.

Two regimes. "plain": 2,000 images without transforms, 60 epochs; a network fits every one, so its solutions are minima.
"augmented": 5,000 images with crops and flips, 40 epochs; the question of accuracy. Rates are chosen in each on the
validation images of a seed that is not measured: the base rate by SGD, then the SWA rate by SWA of 1.5 budgets.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from harness import ROOT
from torch import Tensor

from lowland import SWA, load, save
from lowland.studies.grid.cells import Cell
from lowland.studies.images.cell import images_of
from lowland.studies.images.config import from_mapping
from lowland.studies.images.evaluation import Candidate, Judge
from lowland.studies.images.methods import sgd_schedule, swa_schedule
from lowland.studies.images.trajectory import Trajectory, shared_epochs
from lowland.weights import parameters

Weights = dict[str, Tensor]
Row = dict[str, Any]
KEPT = ROOT / "runs" / "landscape_images"
TUNING_SEED = 1000
BASES, SWAS = (0.02, 0.05, 0.1), (0.01, 0.02, 0.05)


@dataclass(frozen=True)
class Regime:
    """How many images and epochs, whether images are cropped and flipped, and whether widths are measured."""

    name: str
    train: int
    epochs: int
    augmentation: str
    measured: bool
    seeds: int


REGIMES = {
    regime.name: regime
    for regime in (
        Regime("plain", 2000, 60, "none", measured=True, seeds=5),
        Regime("augmented", 5000, 40, "usual", measured=False, seeds=3),
    )
}
# and their budgets; the last two tell what is due to the rate of SWA and what to averaging
SOLUTIONS = {"SGD": 1.0, "SGD 1.5": 1.5, "SWA 1.5": 1.5}
CONTROLS = {"last of SWA's run": 1.5, "SGD 1.5 at SWA's rate": 1.5}


def study_of(regime: Regime, path: str, model: str, base: float, swa: float) -> Any:
    asked = {
        "data": {
            "sets": ("cifar10",),
            "counts": (f"cifar10={regime.train}/1000/5000",),
            "paths": (f"cifar10={path}",),
        },
        "networks": {"names": (model,)},
        "training": {
            "epochs": regime.epochs,
            "batch_size": 100,
            "learning_rate": base,
            "augmentation": regime.augmentation,
            "members": 1,
        },
        "evaluation": {"corruptions": ()},
    }
    study = from_mapping(asked)
    return replace(study, averages=replace(study.averages, learning_rate=swa, start=0.75))


def home_of(regime: Regime, model: str, seed: int) -> Path:
    return KEPT / f"{model}-{regime.name}-{regime.train}-{regime.epochs}" / str(seed)


def started(study: Any, cell: Cell, images: Any) -> Trajectory:
    """A run whose network lies in memory as convolutions are fastest on: channels last."""
    run = Trajectory(study, cell, images, 0)
    run.model.to(memory_format=torch.channels_last)
    return run


def moving(run: Trajectory) -> Weights:
    """The parameters of a run: statistics of BatchNorm are computed anew wherever they are wanted."""
    return {n: p.detach().clone().contiguous() for n, p in run.model.named_parameters() if parameters(n, p)}


def along_swa(study: Any, run: Trajectory, more: Callable[[int], None] | None = None) -> Weights:
    """The average of SWA from .75 to 1.5 budgets along a run, which may have begun."""
    average, start = SWA(), study.budgets(0.75)

    def collect(epoch: int) -> None:
        if epoch >= start:
            average.update(moving(run))
        if more is not None:
            more(epoch)

    schedule = swa_schedule(study, run.cell.model, run.steps_per_epoch)
    run.walk(study.budgets(1.5), schedule, after_epoch=collect)
    return dict(average.mean())


def trained(study: Any, cell: Cell, images: Any, folder: Path) -> dict[str, Weights]:
    """The solutions and three iterates of SWA's run, read where they were kept."""
    names = ("SGD", "SGD 1.5", "SWA 1.5", "iterate 1", "iterate 2", "iterate 3")
    if all((folder / f"{name}.safetensors").exists() for name in names):
        found: dict[str, Weights] = {name: load(folder / f"{name}.safetensors") for name in names}
        return found | {"last of SWA's run": found["iterate 3"]}
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.process_time()
    run = started(study, cell, images)
    steps, budget = run.steps_per_epoch, study.budgets(1)
    plain, long = sgd_schedule(study, steps), sgd_schedule(study, steps, 1.5)
    averaged = swa_schedule(study, cell.model, steps)
    leave = {name: shared_epochs(plain, other, steps, budget) for name, other in (("long", long), ("swa", averaged))}
    found = {}
    states: dict[int, Any] = {}

    def keep(epoch: int) -> None:
        if epoch in leave.values():
            states[epoch] = run.state()

    def iterates(epoch: int) -> None:
        for number, share in ((1, 0.75), (2, 1.125), (3, 1.5)):
            if epoch == study.budgets(share):
                found[f"iterate {number}"] = moving(run)

    run.walk(budget, plain, after_epoch=keep)
    found["SGD"] = moving(run)
    run.back_to(states[leave["long"]])
    run.walk(study.budgets(1.5), long)
    found["SGD 1.5"] = moving(run)
    run.back_to(states[leave["swa"]])
    found["SWA 1.5"] = along_swa(study, run, iterates)
    for name, weights in found.items():
        save(weights, folder / f"{name}.safetensors")
    (folder / "training.json").write_text(json.dumps({"seconds": time.process_time() - begun}))
    return found | {"last of SWA's run": found["iterate 3"]}


def at_swa_rate(study: Any, cell: Cell, images: Any, folder: Path) -> Weights:
    """SGD of 1.5 budgets whose base rate is that of SWA, read where it was kept."""
    file = folder / "SGD 1.5 at SWA's rate.safetensors"
    if not file.exists():
        rate = study.averages.learning_rate
        other = replace(study, training=replace(study.training, learning_rate=rate))
        run = started(other, cell, images)
        run.walk(other.budgets(1.5), sgd_schedule(other, run.steps_per_epoch, 1.5))
        save(moving(run), file)
    found: Weights = load(file)
    return found


def tuned(regime: Regime, path: str, model: str) -> list[Row]:
    """Accuracy and NLL on validation images for each rate, from the file where they were kept, and which was chosen."""
    cell = Cell("cifar10", model, TUNING_SEED)
    bases = {base: _known(regime, path, cell, base, None) for base in BASES}
    base = _best(bases)
    swas = {swa: _known(regime, path, cell, base, swa) for swa in SWAS}
    rows: list[Row] = []
    for title, rates in (("base, by SGD", bases), ("SWA 1.5", swas)):
        chosen = _best(rates)
        for rate, row in rates.items():
            first = {"network": model, "regime": regime.name, "rate of": title, "rate": rate}
            rows.append({**first, **row, "chosen": rate == chosen})
    return rows


def chosen(rows: list[Row], title: str) -> float:
    found: float = next(row["rate"] for row in rows if row["rate of"] == title and row["chosen"])
    return found


def _best(rates: dict[float, Row]) -> float:
    return max(rates, key=lambda rate: (rates[rate]["validation accuracy"], -rates[rate]["validation NLL"]))


def is_tuned(regime: Regime, model: str) -> bool:
    """Whether rates were tried for a network in a regime."""
    return home_of(regime, model, TUNING_SEED).is_dir()


def _known(regime: Regime, path: str, cell: Cell, base: float, swa: float | None) -> Row:
    file = home_of(regime, cell.model, TUNING_SEED) / f"{base}-{swa}.json"
    if not file.exists():
        study = study_of(regime, path, cell.model, base, swa or base)
        images, begun = images_of(study, cell), time.process_time()
        run, judge = started(study, cell, images), Judge(study, cell, images)
        try:
            if swa is None:
                run.walk(study.budgets(1), sgd_schedule(study, run.steps_per_epoch))
                candidate = Candidate(run.weights(), refresh=False)
            else:
                candidate = Candidate(along_swa(study, run), refresh=True)
        except RuntimeError as error:  # it diverged
            print(error, flush=True)
            row: Row = {"train accuracy": 0.0, "validation accuracy": 0.0, "validation NLL": math.inf}
        else:
            row = {
                "train accuracy": judge.shown(candidate)["train"],
                "validation accuracy": judge.validation(candidate, "accuracy"),
                "validation NLL": judge.validation(candidate, "nll"),
            }
        print(cell.name, regime.name, base, swa, row, f"{time.process_time() - begun:.0f} CPU seconds", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(row))
    found: Row = json.loads(file.read_text())
    return found
