"""Is SWA wider, by which measure, by how much, and do train loss and test error have their minima apart?

Trained, for each network and seed: SGD for one budget and for 1.5, and SWA from .75 to 1.5 budgets, branched off one
run (the regime and the code of `lowland study images`: crops and flips, momentum, weight decay). Measured: the line
from SWA to SGD beyond both ends; rays in the same random directions, relative to the norm and by filters; the loss
under filter-scaled noise; the worst in a ball; critical sharpness; the Hessian's spectrum; and, of the first seed, the
plane through three iterates of SGD around SWA. Train loss is on training images without transforms, in eval mode.
Paired differences are over seeds; each seed's value is the mean over the same directions, draws and batches.

Run: python benchmarks/landscape_images.py --path cifar10_jpeg.npz [--networks vgg7x16,preresnet8x8] [--seeds 0,1,2]
Every cell is kept under runs/landscape_images and not run again, nor is any place of a cell that was killed;
`--only-report` writes what there is. With 5,000 images and 40 epochs about 15 CPU-minutes a cell on one idle core.
Results: benchmarks/results/landscape_images.json and .md, docs/figures/landscape_*.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, write
from torch import Tensor

from lowland import SWA, load, save
from lowland.batchnorm.statistics import layers_of
from lowland.landscape import (
    Estimate,
    Plane,
    classification,
    critical_sharpness,
    differentiated,
    fast,
    frozen,
    line,
    load_result,
    measured,
    perturbed,
    plane,
    rays,
    save_result,
    spectrum,
    worst,
)
from lowland.landscape.vectors import norm, sum_of
from lowland.landscape.working import Work
from lowland.studies.grid.cells import Cell
from lowland.studies.images.cell import images_of
from lowland.studies.images.config import from_mapping
from lowland.studies.images.methods import sgd_schedule, swa_schedule
from lowland.studies.images.sets import standardised
from lowland.studies.images.trajectory import Trajectory, network, statistics_batches
from lowland.studies.runs.randomness import one_thread
from lowland.weights import parameters

Weights = dict[str, Tensor]
KEPT = ROOT / "runs" / "landscape_images"
RATES = {"vgg": (0.05, 0.02), "preresnet": (0.1, 0.05)}  # base and SWA: of the papers, not chosen on this set
SEEN, ON_THE_LINE, BENT = 0.2, 0.4, 0.1  # of the training images' number: for planes, rays, noise; lines; curvature
DIRECTIONS, REACH = 5, {"norm": 0.6, "filter": 0.8}
RISES = {"train loss": 0.2, "test error": 0.05}
SOLUTIONS = ("SGD", "SGD 1.5", "SWA 1.5")


def home_of(model: str, options: argparse.Namespace, seed: int) -> Path:
    return KEPT / f"{model}-{options.train}-{options.epochs}" / str(seed)


def study_of(options: argparse.Namespace, model: str) -> Any:
    base, swa = next(rates for name, rates in RATES.items() if model.startswith(name))
    asked = {
        "data": {
            "sets": ("cifar10",),
            "counts": (f"cifar10={options.train}/1000/5000",),
            "paths": (f"cifar10={options.path}",),
        },
        "networks": {"names": (model,)},
        "training": {"epochs": options.epochs, "batch_size": 100, "learning_rate": base, "members": 1},
    }
    study = from_mapping(asked)
    return replace(study, averages=replace(study.averages, learning_rate=swa, start=0.75))


def trained(study: Any, cell: Cell, images: Any, folder: Path) -> dict[str, Weights]:
    """The solutions and three iterates of SWA's run, read where they were kept."""
    names = (*SOLUTIONS, "iterate 1", "iterate 2", "iterate 3")
    if all((folder / f"{name}.safetensors").exists() for name in names):
        return {name: load(folder / f"{name}.safetensors") for name in names}
    folder.mkdir(parents=True, exist_ok=True)
    run = Trajectory(study, cell, images, 0)
    plain, averaged = (
        make(study, *more, run.steps_per_epoch) for make, more in ((sgd_schedule, ()), (swa_schedule, (cell.model,)))
    )
    long = sgd_schedule(study, run.steps_per_epoch, 1.5)
    budget, start, end = study.budgets(1), study.budgets(0.75), study.budgets(1.5)

    def same(other: Any) -> int:
        """For how many epochs a schedule is SGD's."""
        steps = run.steps_per_epoch
        return next((e for e in range(budget) if plain(e * steps) != other(e * steps)), budget)

    found: dict[str, Weights] = {}
    states: dict[int, Any] = {}

    def keep(epoch: int) -> None:
        if epoch in (same(averaged), same(long)):
            states[epoch] = run.state()

    run.walk(budget, plain, after_epoch=keep)
    found["SGD"] = moving(run)
    run.back_to(states[same(long)])
    run.walk(end, long)
    found["SGD 1.5"] = moving(run)
    run.back_to(states[same(averaged)])
    average = SWA()

    def collect(epoch: int) -> None:
        if epoch >= start:
            average.update(moving(run))
        for number, share in ((1, 0.75), (2, 1.125), (3, 1.5)):
            if epoch == study.budgets(share):
                found[f"iterate {number}"] = moving(run)

    run.walk(end, averaged, after_epoch=collect)
    found["SWA 1.5"] = average.mean()
    for name, weights in found.items():
        save(weights, folder / f"{name}.safetensors")
    return found


def moving(run: Trajectory) -> Weights:
    """The parameters of a run: statistics of BatchNorm are computed anew wherever they are wanted."""
    return {name: p.detach().clone() for name, p in run.model.named_parameters() if parameters(name, p)}


def cell_of(study: Any, cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured of one network and one seed, as plain numbers."""
    begun = time.process_time()
    folder = home_of(cell.model, options, cell.seed)
    if (folder / "numbers.json").exists():
        return json.loads((folder / "numbers.json").read_text())  # type: ignore[no-any-return]
    images = images_of(study, cell)
    found = trained(study, cell, images, folder)
    spent = time.process_time() - begun
    print(f"{cell.name}: trained, {spent:.0f} CPU seconds", flush=True)
    model = network(cell, images, 0)
    statistics = statistics_batches(study, images, cell.seed)

    def part(share: float) -> int:
        return round(share * options.train)

    def sets(count: int) -> dict[str, list[tuple[Tensor, Tensor]]]:
        parts = {"train": images.train, "test": images.test}
        return {
            n: list(zip(standardised(x[:count], images).split(250), y[:count].split(250), strict=True))
            for n, (x, y) in parts.items()
        }

    def refresh(weights: Weights) -> Any:
        return fast(model, weights, statistics, few=2) if layers_of(model) else frozen()

    numbers: dict[str, Any] = {"norm": {name: norm(found[name]) for name in SOLUTIONS}}
    between = refresh(found["SWA 1.5"])
    numbers["whole"] = {
        name: measured(model, sets(5000), classification, refresh=refresh(found[name]))(found[name])
        for name in SOLUTIONS
    }
    print(cell.name, {n: round(1 - v["test error"], 4) for n, v in numbers["whole"].items()}, flush=True)
    for other in ("SGD", "SGD 1.5"):
        middle = refresh(sum_of((0.5, found["SWA 1.5"]), (0.5, found[other])))
        some = measured(model, sets(part(ON_THE_LINE)), classification, refresh=middle)
        walk = line(found["SWA 1.5"], found[other], some, points=13, beyond=0.5, work=kept(folder, f"line {other}"))
        save_result(walk, folder / f"line-{other}.safetensors")
        numbers[f"line {other}"] = {
            "length": norm(sum_of((1.0, found["SWA 1.5"]), (-1.0, found[other]))),
            "lowest": {name: walk.lowest(name)[0] for name in walk.values},
        }
    print(f"{cell.name}: lines, {time.process_time() - begun:.0f} CPU seconds", flush=True)
    for name in SOLUTIONS:
        own = refresh(found[name])
        measure = measured(model, sets(part(SEEN)), classification, refresh=own)
        for how in ("norm", "filter"):
            places = [REACH[how] * (k / 8) ** 1.5 for k in range(1, 9)]
            generator = torch.Generator().manual_seed(cell.seed)
            ray = rays(
                found[name], measure, directions=DIRECTIONS, places=places, normalise=how,  # type: ignore[arg-type]
                generator=generator, work=kept(folder, f"rays {how} {name}"),
            )  # fmt: skip
            save_result(ray, folder / f"rays-{how}-{name}.safetensors")
            for value, rise in RISES.items():
                numbers.setdefault(f"{how}: {value} + {rise}", {})[name] = list(ray.distances(rise, value))
        generator = torch.Generator().manual_seed(cell.seed)
        noisy = perturbed(found[name], measure, std=0.1, draws=10, normalise="filter", generator=generator)
        at = measure(found[name])
        numbers.setdefault("rise under filter noise .1", {})[name] = {k: e.mean - at[k] for k, e in noisy.items()}
        few = sets(part(BENT))["train"]
        own(model)
        bent = spectrum(
            model, found[name], few, classification, steps=14, probes=2, refresh=own,
            generator=torch.Generator().manual_seed(cell.seed),
        )  # fmt: skip
        save_result(bent, folder / f"spectrum-{name}.safetensors")
        numbers.setdefault("top eigenvalue", {})[name] = float(bent.eigenvalues[0])
        numbers.setdefault("trace", {})[name] = bent.trace.mean
        f = differentiated(model, few, classification)
        value, gradient = f(found[name])
        numbers.setdefault("worst rise within .01 |w|", {})[name] = worst(
            found[name], f, radius=0.01 * norm(found[name]), steps=6, generator=torch.Generator().manual_seed(cell.seed)
        ).bound
        still = measured(model, few, classification, refresh=frozen())
        try:
            sharp = critical_sharpness(found[name], still, gradient, start=1.0)
            numbers.setdefault("critical sharpness", {})[name] = sharp.value
        except ValueError as error:
            numbers.setdefault("critical sharpness", {})[name] = math.nan
            print(cell.name, name, error)
        print(f"{cell.name}: {name}, {time.process_time() - begun:.0f} CPU seconds", flush=True)
    if cell.seed == options.seeds[0]:
        p = Plane.through(*(found[f"iterate {k}"] for k in (1, 2, 3)), names=("SGD .75", "SGD 1.125", "SGD 1.5"))
        measure = measured(model, sets(part(SEEN)), classification, refresh=between)
        grid = plane(p, measure, points=13, margin=0.35, work=kept(folder, "plane"))
        x, y, away = p.project(found["SWA 1.5"])
        grid.points["SWA"] = (x, y)
        save_result(
            grid, folder / "plane.safetensors", about(cell, study, images, 1) | {"SWA off the plane": f"{away:.3g}"}
        )
    numbers["seconds"] = {"training": spent, "all": time.process_time() - begun}
    numbers["parameters"] = sum(p.numel() for p in model.parameters())
    (folder / "numbers.json").write_text(json.dumps(numbers))
    return numbers


def kept(folder: Path, name: str) -> Work:
    return Work(keep=folder / f"{name.replace(' ', '-')}.jsonl")


def about(cell: Cell, study: Any, images: Any, seeds: int) -> dict[str, str]:
    count = len(images.train[1])
    norms = "BatchNorm refreshed at every place from 2 batches and a control variate"
    return {
        "data": f"CIFAR-10, {count:,} training images, values on {round(SEEN * count):,} of each part",
        "model": cell.model,
        "n": f"{seeds} seed{'s' * (seeds > 1)}",
        "refresh": norms if cell.model.startswith("preresnet") else "no BatchNorm",
    }


def differences(rows: list[dict[str, Any]], key: str, pick: Any, other: str) -> dict[str, Any]:
    """SWA less another solution, paired over seeds."""
    ours, theirs = ([pick(row[key][name]) for row in rows] for name in ("SWA 1.5", other))
    shown = {"SWA 1.5": Estimate.of(ours).mean, other: Estimate.of(theirs).mean}
    if not all(map(math.isfinite, ours + theirs)):
        return shown | {"difference": "not all reach it"}
    paired = Estimate.of(ours).minus(Estimate.of(theirs))
    verdict = "SWA higher" if paired.low > 0 else "SWA lower" if paired.high < 0 else "not told apart"
    return shown | {"difference": str(paired), "verdict": verdict}


def over(rows: list[dict[str, Any]], pick: Any) -> str:
    """A mean over seeds with its interval."""
    return str(Estimate.of([pick(row) for row in rows]))


def solutions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = ("train loss", "train error", "test loss", "test error")
    found = []
    for one in SOLUTIONS:
        line: dict[str, Any] = {"solution": one, "norm": over(rows, lambda r, n=one: r["norm"][n])}
        line |= {name: over(rows, lambda r, n=one, k=name: r["whole"][n][k]) for name in names}
        gap = over(rows, lambda r, n=one: r["whole"][n]["test error"] - r["whole"][n]["train error"])
        found.append({**line, "gap of errors": gap})
    return found


def widths(rows: list[dict[str, Any]], other: str) -> list[dict[str, Any]]:
    """Every measure of width, SWA beside another solution."""
    lines: list[dict[str, Any]] = []

    def add(title: str, rows: list[dict[str, Any]], key: str, pick: Any) -> None:
        lines.append({"measure": title} | differences(rows, key, pick, other))

    def mean(distances: list[float]) -> float:
        return Estimate.of(distances).mean

    for value, rise in RISES.items():
        for how in ("norm", "filter"):
            add(f"distance, {how}: {value} + {rise}", rows, f"{how}: {value} + {rise}", mean)
        key = f"norm: {value} + {rise}"
        raw = [{key: {n: [d * r["norm"][n] for d in r[key][n]] for n in SOLUTIONS}} for r in rows]
        add(f"distance, raw: {value} + {rise}", raw, key, mean)
        add(f"rise under filter noise .1: {value}", rows, "rise under filter noise .1", lambda d, v=value: d[v])
    for key in ("top eigenvalue", "trace", "worst rise within .01 |w|", "critical sharpness"):
        add(key, rows, key, float)
    return lines


def minima(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where values are lowest on the lines, as shares of the way from SWA to SGD."""
    found = []
    for other in ("SGD", "SGD 1.5"):
        key = f"line {other}"
        line: dict[str, Any] = {"to": other, "length": over(rows, lambda r, k=key: r[k]["length"])}
        for value in ("train loss", "test loss", "test error"):
            line[f"lowest {value}"] = over(rows, lambda r, k=key, v=value: r[k]["lowest"][v])
        line["test error less train loss, of |SWA - SGD|"] = over(
            rows, lambda r, k=key: r[k]["lowest"]["test error"] - r[k]["lowest"]["train loss"]
        )
        found.append(line)
    return found


def report(options: argparse.Namespace) -> None:
    tables: dict[str, list[dict[str, Any]]] = {}
    images, bent = round(SEEN * options.train), round(BENT * options.train)
    notes = [
        "Intervals are 95 % by Student's t over seeds; a seed's distance is the mean over its directions.",
        f"{DIRECTIONS} directions, the same for all solutions of a seed; {images} images of each part, {bent} for "
        f"curvature, {round(ON_THE_LINE * options.train)} on lines; the solutions' own values are of 5,000 at most.",
        f"{options.train} training images; a budget is {options.epochs} epochs; SGD took 1, SGD 1.5 and SWA 1.5 (from "
        ".75 on) took 1.5 budgets.",
        "Rates are those of the papers, not chosen on this set.",
    ]
    for model in options.networks:
        folders = [home_of(model, options, seed) for seed in options.seeds]
        rows = [json.loads((f / "numbers.json").read_text()) for f in folders if (f / "numbers.json").exists()]
        if not rows:
            notes.append(f"{model}: no cell has been run.")
            continue
        minutes = sum(row["seconds"]["all"] for row in rows) / 60
        notes.append(f"{model}: {len(rows)} seeds, {rows[0]['parameters']:,} weights, {minutes:.0f} CPU-minutes.")
        left = Estimate.of([row["whole"]["SGD 1.5"]["train error"] for row in rows]).mean
        if left > 0.05:
            notes.append(
                f"{model}: not converged, SGD 1.5 still has a training error of {left:.2f}: these are places on the "
                "way to a minimum, and nothing here speaks for or against the width of minima."
            )
        tables[f"{model}: the solutions"] = solutions(rows)
        for other in ("SGD 1.5", "SGD"):
            tables[f"{model}: SWA beside {other}"] = widths(rows, other)
        tables[f"{model}: the line from SWA (0) to SGD (1)"] = minima(rows)
        drawn(model, folders, options)
    write("landscape_images", "How wide SGD and SWA are, and where their minima lie", tables, notes)


def drawn(model: str, folders: list[Path], options: argparse.Namespace) -> None:
    """Figures of a network, into the documentation."""
    from lowland.figures.landscape import line_drawing, plane_drawing, rays_drawing, spectrum_drawing

    home = ROOT / "docs" / "figures"
    done = [f for f in folders if (f / "numbers.json").exists()]
    cell, study = Cell("cifar10", model, options.seeds[0]), study_of(options, model)
    said = about(cell, study, images_of(study, cell), len(done))
    walks = {f.name: load_result(f / "line-SGD.safetensors")[0] for f in done}
    line_drawing(walks, "train loss", "test error", said, ("SWA", "SGD")).write(home / f"landscape_line_{model}.svg")
    first = done[0]
    found = {n: load_result(first / f"rays-filter-{n}.safetensors")[0] for n in SOLUTIONS}
    one = {**said, "n": "one seed"}
    rays_drawing(found, "test error", one | {"normalisation": found["SGD"].about["normalisation"]}).write(
        home / f"landscape_rays_{model}.svg"
    )
    spectra = {n: load_result(first / f"spectrum-{n}.safetensors")[0] for n in SOLUTIONS}
    spectrum_drawing(spectra, one).write(home / f"landscape_spectrum_{model}.svg")
    if (first / "plane.safetensors").exists():
        grid, its = load_result(first / "plane.safetensors")
        plane_drawing(grid, ["train loss", "test error"], its).write(home / f"landscape_plane_{model}.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="CIFAR-10 as .npz")
    parser.add_argument("--networks", default="vgg7x16,preresnet8x8", type=lambda text: text.split(","))
    parser.add_argument("--seeds", default="0,1,2,3,4", type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--epochs", default=40, type=int, help="one budget")
    parser.add_argument("--train", default=5000, type=int)
    parser.add_argument("--only-report", action="store_true")
    options = parser.parse_args()
    if not options.only_report:
        for model in options.networks:
            for seed in options.seeds:
                cell_of(study_of(options, model), Cell("cifar10", model, seed), options)
    report(options)


if __name__ == "__main__":
    with one_thread():
        main()
