"""Which rates the study of images should use, judged on validation images alone: one seed that the study has not.

Measured, for each default network on each default set: NLL and accuracy on the validation images of SGD for each base
rate, and then, at the base rate with the lowest NLL (the mean over the sets), of SWA within one budget for each SWA
rate. So the baseline gets the base rate that suits it, and SWA takes that rate over. The test images of the study are
set aside before anything is split, and no prediction is made for them here.
Run: python benchmarks/images_tune.py [NETWORK ...]; default cnn vgg preresnet. About 5 CPU-minutes on one thread.
Finished runs are not repeated (runs/images-tune.json). Results: benchmarks/results/images_tune.json and .md.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from harness import ROOT, write

from lowland import SWA
from lowland.studies.grid.cells import Cell
from lowland.studies.images import ImagesStudy
from lowland.studies.images.cell import images_of
from lowland.studies.images.evaluation import Candidate, Judge
from lowland.studies.images.methods import AlongSWA, Clock, sgd_schedule, swa_schedule
from lowland.studies.images.trajectory import Trajectory
from lowland.studies.runs.randomness import one_thread

SEED = 1000  # not one of the study's
SETS = ("mnist", "digits")
NETWORKS = tuple(sys.argv[1:]) or ("cnn", "vgg", "preresnet")
BASES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
SHARES = (0.1, 0.25, 0.5, 1.0, 2.0)  # SWA rates, of the base rate
KEPT = ROOT / "runs" / "images-tune.json"

Row = dict[str, Any]


def configured(base: float, swa: float) -> ImagesStudy:
    """The default study with these rates."""
    study = ImagesStudy()
    return replace(
        study,
        training=replace(study.training, learning_rate=base, seeds=(SEED,)),
        averages=replace(study.averages, learning_rate=swa),
    )


def validated(judge: Judge, candidate: Candidate) -> Row:
    return {"NLL": judge.validation(candidate, "nll"), "accuracy": judge.validation(candidate, "accuracy")}


def sgd(name: str, network: str, base: float) -> Row:
    """The end of the study's SGD run at this base rate."""
    study, cell = configured(base, base), Cell(name, network, SEED)
    images = images_of(study, cell)
    run = Trajectory(study, cell, images, 0)
    run.walk(study.training.epochs, sgd_schedule(study, run.steps_per_epoch))
    return validated(Judge(study, cell, images), Candidate(run.weights(), refresh=False))


def swa(name: str, network: str, base: float, share: float) -> Row:
    """SWA within one budget at this SWA rate."""
    study, cell = configured(base, base * share), Cell(name, network, SEED)
    images, budget = images_of(study, cell), study.training.epochs
    run = Trajectory(study, cell, images, 0)
    along = AlongSWA(study, run, Clock(), (budget,))
    along.add("SWA", SWA())
    schedule = swa_schedule(study, network, run.steps_per_epoch)
    run.walk(budget, schedule, after_step=along.after_step, after_epoch=along.after_epoch)
    return validated(Judge(study, cell, images), along.at("SWA", budget))


def known(key: str, make: Callable[[], Row]) -> Row:
    """What a run gave, from the file where it was kept if it is there; a run that diverges is worth nothing."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if key not in kept:
        try:
            found = make()
        except RuntimeError as error:
            found = {"NLL": float("inf"), "accuracy": 0.0}
            print(error)
        KEPT.parent.mkdir(exist_ok=True)
        kept = {**(json.loads(KEPT.read_text()) if KEPT.exists() else {}), key: found}
        KEPT.write_text(json.dumps(kept, indent=1))
    row: Row = kept[key]
    return row


def best(rates: dict[float, list[Row]]) -> float:
    """The rate with the lowest NLL, the mean over the sets."""
    return min(rates, key=lambda rate: statistics.fmean(row["NLL"] for row in rates[rate]))


def shown(network: str, rates: dict[float, list[Row]]) -> list[Row]:
    found, chosen = [], best(rates)
    for rate, rows in rates.items():
        line: Row = {"network": network, "rate": rate}
        for name, row in zip(SETS, rows, strict=True):
            ran = math.isfinite(row["NLL"])
            line[f"{name}: NLL / accuracy"] = f"{row['NLL']:.4f} / {row['accuracy']:.4f}" if ran else "diverged"
        mean = statistics.fmean(row["NLL"] for row in rows)
        found.append({**line, "mean NLL": mean if math.isfinite(mean) else "", "chosen": rate == chosen})
    return found


def main() -> None:
    tables: dict[str, list[Row]] = {"Base rate, by SGD": [], "SWA rate, by SWA within one budget": []}
    for network in NETWORKS:
        bases = {b: [known(f"{n} {network} {b}", partial(sgd, n, network, b)) for n in SETS] for b in BASES}
        base, swas = best(bases), {}
        for share in SHARES:
            rows = [known(f"{n} {network} {base} {share}", partial(swa, n, network, base, share)) for n in SETS]
            swas[round(base * share, 6)] = rows
        for table, rates in zip(tables.values(), (bases, swas), strict=True):
            table += shown(network, rates)
    notes = [
        f"One member, seed {SEED}, the default study otherwise (n = 1 run a cell of the table).",
        "No test image was looked at. Chosen is the lowest mean of the two validation NLLs.",
    ]
    write("images_tune", "Rates of the study of images, on validation images", tables, notes)


if __name__ == "__main__":
    with one_thread():
        main()
