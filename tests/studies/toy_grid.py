"""A grid study that costs nothing: numbers from the name of the cell."""

import math
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowland.studies.grid import Cell, Kind, Metric, run_grid


@dataclass(frozen=True)
class Toy:
    fails: str = ""  # the cell that fails


@dataclass(frozen=True)
class ToyStudy:
    toy: Toy = field(default_factory=Toy)


KIND = Kind(
    "toys",
    "things",
    (Metric("accuracy", "accuracy", True), Metric("nll", "NLL", False)),
    "SGD",
    ("SGD", "SWA", "ASWA"),
    (("SWA", "SGD"), ("ASWA", "SWA")),
    {"test": "test", "noise-3": "noise, severity 3"},
    {"SGD": "The weights of the last step.", "SWA": "Their mean.", "ASWA": "A mean that a score lets them into."},
)
PIDS = "TOY_GRID_PIDS"  # a folder: cells are slow, and leave the numbers of their processes there
PARTS = ("train", "validation", "test", "noise-3")
DATA, MODELS, SEEDS = ("plain", "hard"), ("small", "large", "huge"), (0, 1, 2)


def cells() -> list[Cell]:
    return [Cell(data, model, seed) for seed in SEEDS for data in DATA for model in MODELS]


def build(given: dict[str, Any]) -> ToyStudy:
    return ToyStudy(Toy(**given["toy"]))


def line_of(r: random.Random) -> dict[str, Any]:
    t = [k / 4 for k in range(-2, 7)]
    loss, error = ([(a - low) ** 2 + r.gauss(0, 0.01) for a in t] for low in (0.2, 0.6))
    lowest = {"train loss": 0.2 + r.gauss(0, 0.01), "test error": 0.6}
    values = {"train loss": loss, "test error": error}
    return {"t": t, "values": values, "length": 5.0, "lowest": lowest, "ends": ["SWA", "SGD"]}


def run_cell(study: ToyStudy, cell: Cell) -> dict[str, Any]:
    if study.toy.fails == cell.name:
        raise RuntimeError("the loss is nan")
    if PIDS in os.environ:  # a slow cell, whose process can be found
        (Path(os.environ[PIDS]) / str(os.getpid())).touch()
        time.sleep(0.5)
    r = random.Random(cell.name)
    methods = {
        method: {
            part: {
                "accuracy": 0.8 + 0.03 * place + r.gauss(0, 0.005) - 0.2 * (part == "noise-3"),
                "nll": 0.5 + 0.04 * place + r.gauss(0, 0.01),  # worse
            }
            for part in PARTS
        }
        for place, method in enumerate(KIND.methods)
    }
    epochs = list(range(1, 21))
    curves = {
        name: {
            "epoch": epochs,
            **{part: [0.9 - math.exp(-epoch / rate) + r.gauss(0, 0.005) for epoch in epochs] for part in PARTS[:3]},
        }
        for name, rate in (("last iterate", 3), ("SWA", 4), ("ASWA", 3.5), ("SWA from epoch 1", 8))
    }
    sweep = [
        {"value": value, "method": "SWA", "validation": 0.8 + value / 10, "test": 0.79 + value / 10}
        for value in (0.25, 0.5, 0.75)
    ]
    actions = ("first", "hard", "soft", "soft", "reject")
    return {
        "methods": methods,
        "curves": curves,
        "trace": [{"action": action, "running": 0.8, "ahead": None, "averaged": 1} for action in actions],
        "sensitivity": {"start": sweep} if cell.data == "plain" else {},
        "landscape": line_of(r) if cell.model != "huge" else None,
        "chosen": {"epoch": 7},
        "seconds": {"training": 2.0, "averaging": 0.5},
    }


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes away from what it runs behind
    run_grid(ToyStudy(), KIND, cells(), run_cell, Path(sys.argv[1]), build=build, jobs=2, resume=True)
