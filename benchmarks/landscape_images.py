"""Is SWA wider, by which measure, by how much, and do train loss and test error have their minima apart?

Trained, for each network and seed: SGD for one budget and for 1.5, and SWA from .75 to 1.5 budgets, branched off one
run (the code of `lowland study images`), at rates chosen on validation images of another seed (`landscape_runs.py`).
Measured where networks fit every training image (the regime "plain"): the lines from SWA to SGD beyond both ends; rays
in the same random directions, relative to the norm and by filters; the loss under filter-scaled noise; the worst in a
ball; critical sharpness; the Hessian's spectrum; and, of the first seed, the plane through three iterates of SGD around
SWA. In the regime "augmented": accuracy, NLL and the line. Train loss is on training images without transforms, in eval
mode. Paired differences are over seeds; each seed's value is the mean over the same directions, draws and batches.

Run: python benchmarks/landscape_images.py --path cifar10_jpeg.npz [--regimes plain,augmented] [--networks
vgg7x16,preresnet8x8] [--seeds 0,1,2,3,4]. What is finished is kept under runs/landscape_images and not run again, nor
is any place of a cell that was killed; `--only-report` writes what there is.
Results: benchmarks/results/landscape_images.json and .md, docs/figures/landscape_*.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import torch
from landscape_runs import (
    CONTROLS,
    REGIMES,
    SOLUTIONS,
    Regime,
    Weights,
    at_swa_rate,
    chosen,
    home_of,
    study_of,
    trained,
    tuned,
)
from landscape_tables import DIRECTIONS, RISES, SIZES, report
from torch import Tensor

from lowland.batchnorm.statistics import layers_of
from lowland.landscape import (
    Plane,
    Walk,
    classification,
    critical_sharpness,
    differentiated,
    fast,
    frozen,
    line,
    measured,
    perturbed,
    plane,
    rays,
    save_result,
    spectrum,
    worst,
)
from lowland.landscape.vectors import dot, norm, sum_of
from lowland.landscape.working import Work
from lowland.studies.grid.cells import Cell
from lowland.studies.images.cell import images_of
from lowland.studies.images.sets import standardised
from lowland.studies.images.trajectory import network, statistics_batches
from lowland.studies.runs.randomness import one_thread

REACH = {"norm": 0.9, "filter": 1.2}


class Measuring:
    """One network and seed: its images as batches, and a network to hold weights."""

    def __init__(self, study: Any, cell: Cell, regime: Regime) -> None:
        self.study, self.cell = study, cell
        self.images = images_of(study, cell)
        self.folder = home_of(regime, cell.model, cell.seed)
        self.model = network(cell, self.images, 0)
        self.statistics = [_last(x) for x in statistics_batches(study, self.images, cell.seed)]
        self.numbers: dict[str, Any] = {}

    def sets(self, count: int, part: str = "") -> dict[str, list[tuple[Tensor, Tensor]]]:
        """The first so many images of each part as batches."""
        parts = {"train": self.images.train, "test": self.images.test}
        return {
            name: list(
                zip(map(_last, standardised(x[:count], self.images).split(250)), y[:count].split(250), strict=True)
            )
            for name, (x, y) in parts.items()
            if part in ("", name)
        }

    def refresh(self, weights: Weights) -> Any:
        return fast(self.model, weights, self.statistics, few=2) if layers_of(self.model) else frozen()

    def measure(self, count: int, weights: Weights) -> Any:
        return measured(self.model, self.sets(count), classification, refresh=self.refresh(weights))

    def put(self, key: str, name: str, value: Any) -> None:
        self.numbers.setdefault(key, {})[name] = value

    def kept(self, name: str) -> Work:
        return Work(keep=self.folder / f"{name.replace(' ', '-')}.jsonl")

    def solution(self, name: str, weights: Weights) -> None:
        self.put("norm", name, norm(weights))
        self.put("whole", name, self.measure(SIZES["whole"], weights)(weights))

    def along(self, other: str, found: dict[str, Weights]) -> None:
        """The line from SWA to another solution."""
        a, b = found["SWA 1.5"], found[other]
        some = self.measure(SIZES["line"], sum_of((0.5, a), (0.5, b)))
        walk = line(a, b, some, points=9, beyond=0.5, work=self.kept(f"line {other}"))
        decay = self.study.training.weight_decay / 2
        aa, ab, bb = dot(a, a), dot(a, b), dot(b, b)
        squares = [(1 - t) ** 2 * aa + 2 * t * (1 - t) * ab + t * t * bb for t in walk.t]
        aim = tuple(v + decay * s for v, s in zip(walk.values["train loss"], squares, strict=True))
        walk = Walk(walk.t, {**walk.values, "train loss with decay": aim}, walk.pieces)
        save_result(walk, self.folder / f"line-{other}.safetensors")
        lowest = {name: walk.lowest(name)[0] for name in walk.values}
        self.numbers[f"line {other}"] = {"length": norm(sum_of((1.0, a), (-1.0, b))), "lowest": lowest}

    def widths(self, name: str, w: Weights) -> None:
        """Every measure of width at one solution."""
        measure, seed = self.measure(SIZES["rays"], w), self.cell.seed

        def same() -> torch.Generator:
            return torch.Generator().manual_seed(seed)

        for how, reach in REACH.items():
            places = [reach * (k / 8) ** 1.5 for k in range(1, 9)]
            ray = rays(
                w, measure, directions=DIRECTIONS, places=places, normalise=how,  # type: ignore[arg-type]
                generator=same(), work=self.kept(f"rays {how} {name}"),
            )  # fmt: skip
            save_result(ray, self.folder / f"rays-{how}-{name}.safetensors")
            for value, rise in RISES.items():
                self.put(f"{how}: {value} + {rise}", name, list(ray.distances(rise, value)))
        at = measure(w)
        for scale in (0.1, 0.2):
            noisy = perturbed(w, measure, std=scale, draws=6, normalise="filter", generator=same())
            self.put(f"rise under filter noise {scale}", name, {k: e.mean - at[k] for k, e in noisy.items()})
        few = self.sets(SIZES["curvature"], "train")["train"]
        own = self.refresh(w)
        own(self.model)  # the statistics that products and gradients normalise by
        bent = spectrum(
            self.model, w, few, classification, steps=12, probes=2, refresh=own, generator=same()
        )  # fmt: skip
        save_result(bent, self.folder / f"spectrum-{name}.safetensors")
        self.put("top eigenvalue", name, float(bent.eigenvalues[0]))
        self.put("its error bound", name, float(bent.errors[0]))
        self.put("trace", name, bent.trace.mean)
        f = differentiated(self.model, few, classification)
        _, gradient = f(w)
        found = worst(w, f, radius=0.01 * norm(w), steps=6, generator=same())
        self.put("worst rise within .01 |w|", name, found.bound)
        still = measured(self.model, few, classification, refresh=frozen())
        try:
            sharp = critical_sharpness(w, still, gradient)
            self.put("critical sharpness", name, sharp.value)
        except ValueError as error:
            self.put("critical sharpness", name, math.nan)
            print(self.cell.name, name, error)

    def plane(self, found: dict[str, Weights]) -> None:
        """The plane through three iterates of SWA's run, with SWA on it."""
        p = Plane.through(*(found[f"iterate {k}"] for k in (1, 2, 3)), names=("SGD .75", "SGD 1.125", "SGD 1.5"))
        grid = plane(
            p, self.measure(SIZES["rays"], found["SWA 1.5"]), points=11, margin=0.35, work=self.kept("plane")
        )  # fmt: skip
        x, y, away = p.project(found["SWA 1.5"])
        grid.points["SWA"] = (x, y)
        save_result(grid, self.folder / "plane.safetensors", {"SWA off the plane": f"{away:.3g}"})


def _last(x: Tensor) -> Tensor:
    """Channels last: what convolutions of a CPU are fastest on."""
    return x.contiguous(memory_format=torch.channels_last)


def cell_of(study: Any, cell: Cell, regime: Regime, first: bool, names: list[str]) -> None:
    """Measure what is missing of one network and one seed, of the solutions named."""
    folder = home_of(regime, cell.model, cell.seed)
    file = folder / "numbers.json"
    numbers = json.loads(file.read_text()) if file.exists() else {}
    missing = [name for name in names if name not in numbers.get("norm", {})]
    if not missing:
        return

    def told(what: str) -> None:
        print(f"{regime.name} {cell.name}: {what}, {time.process_time() - begun:.0f} CPU seconds", flush=True)

    begun = time.process_time()
    m = Measuring(study, cell, regime)
    m.numbers = numbers
    found = trained(study, cell, m.images, folder)
    if "SGD 1.5 at SWA's rate" in missing:
        found["SGD 1.5 at SWA's rate"] = at_swa_rate(study, cell, m.images, folder)
    told("trained")
    begun = time.process_time()
    for name in missing:
        m.solution(name, found[name])
    print({n: [round(v["train error"], 4), round(v["test error"], 4)] for n, v in m.numbers["whole"].items()})
    for other in ("SGD", "SGD 1.5"):
        if f"line {other}" not in numbers:
            m.along(other, found)
            told(f"line to {other}")
    if regime.measured:
        for name in missing:
            m.widths(name, found[name])
            told(name)
        if first and not (folder / "plane.safetensors").exists():
            m.plane(found)
            told("plane")
    training = json.loads((folder / "training.json").read_text())["seconds"]
    before = numbers.get("seconds", {}).get("measuring", 0.0)
    m.numbers["seconds"] = {"training": training, "measuring": before + time.process_time() - begun}
    settings = study.training.learning_rate, study.averages.learning_rate
    m.numbers["rates"] = dict(zip(("base", "SWA"), settings, strict=True))
    m.numbers["parameters"] = sum(p.numel() for p in m.model.parameters())
    file.write_text(json.dumps(m.numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="CIFAR-10 as .npz")
    parser.add_argument("--regimes", default="plain,augmented", type=lambda text: text.split(","))
    parser.add_argument("--networks", default="vgg7x16,preresnet8x8", type=lambda text: text.split(","))
    parser.add_argument("--seeds", default="0,1,2,3,4", type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument(
        "--rates", type=lambda text: [float(rate) for rate in text.split(",")], help="BASE,SWA, in place of tuning"
    )
    parser.add_argument("--only-report", action="store_true")
    options = parser.parse_args()
    if not options.only_report:
        for name in options.regimes:
            regime = REGIMES[name]
            for model in options.networks:
                if options.rates:
                    base, swa = options.rates
                else:
                    rates = tuned(regime, options.path, model)
                    base, swa = chosen(rates, "base, by SGD"), chosen(rates, "SWA 1.5")
                study = study_of(regime, options.path, model, base, swa)
                for names in ([*SOLUTIONS], *([name] for name in CONTROLS if regime.measured)):
                    for seed in options.seeds[: regime.seeds]:
                        cell_of(study, Cell("cifar10", model, seed), regime, seed == options.seeds[0], names)
    report([REGIMES[name] for name in options.regimes], options.networks, options.seeds, options.path)


if __name__ == "__main__":
    with one_thread():
        main()
