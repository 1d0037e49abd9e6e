"""What `landscape_images.py` writes: tables over seeds, notes and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import ROOT, write
from landscape_runs import BASES, CONTROLS, SOLUTIONS, SWAS, TUNING_SEED, Regime, Row, home_of, is_tuned, tuned

from lowland.landscape import Estimate, load_result

SIZES = {"whole": 5000, "line": 5000, "rays": 500, "curvature": 200}  # images of a part at most
DIRECTIONS = 4
RISES = {"train loss": 0.2, "test error": 0.05}
PARTS = ("train loss", "train error", "test loss", "test error")
SHIFT = "test error less train loss, of |SWA - SGD|"


def over(rows: list[Row], pick: Callable[[Row], float]) -> str:
    """A mean over seeds with its interval."""
    return str(Estimate.of([pick(row) for row in rows]))


def solutions(rows: list[Row]) -> list[Row]:
    found = []
    every = rows
    for one, budgets in (SOLUTIONS | CONTROLS).items():
        rows = [row for row in every if one in row["norm"]]
        if not rows:
            continue
        line: Row = {"solution": one, "budgets": budgets, "norm": over(rows, lambda r, n=one: r["norm"][n])}
        line |= {name: over(rows, lambda r, n=one, k=name: r["whole"][n][k]) for name in PARTS}
        gap = over(rows, lambda r, n=one: r["whole"][n]["test error"] - r["whole"][n]["train error"])
        found.append({**line, "gap of errors": gap})
    return found


def accuracies(rows: list[Row]) -> list[Row]:
    """SWA less SGD on test images, paired over seeds."""
    found = []
    every = rows
    for other in ("SGD 1.5", "SGD", *CONTROLS):
        rows = [row for row in every if other in row["norm"]]
        if not rows:
            continue
        line: Row = {"difference": f"SWA 1.5 - {other}", "budgets": f"1.5 and {(SOLUTIONS | CONTROLS)[other]}"}
        for title, key, sign in (("accuracy", "test error", -1), ("NLL", "test loss", 1)):
            ours, theirs = ([sign * row["whole"][n][key] for row in rows] for n in ("SWA 1.5", other))
            paired = Estimate.of(ours).minus(Estimate.of(theirs))
            line |= {f"test {title}": str(paired), f"{title}: SWA is": _verdict(paired)}
        found.append(line)
    return found


def _verdict(paired: Estimate) -> str:
    return "higher" if paired.low > 0 else "lower" if paired.high < 0 else "not told apart"


def differences(rows: list[Row], key: str, pick: Callable[[Any], float], other: str) -> Row:
    """SWA less another solution, paired over seeds."""
    ours, theirs = ([pick(row[key][name]) for row in rows] for name in ("SWA 1.5", other))
    shown: Row = {"SWA 1.5": Estimate.of(ours).mean, other: Estimate.of(theirs).mean}
    if not all(map(math.isfinite, ours + theirs)):
        short = sum(not math.isfinite(value) for value in ours + theirs)
        return shown | {"difference": f"{short} of {len(ours + theirs)} do not reach it", "SWA is": "", "of seeds": ""}
    paired = Estimate.of(ours).minus(Estimate.of(theirs))
    more = sum(a > b for a, b in zip(ours, theirs, strict=True))
    return shown | {"difference": str(paired), "SWA is": _verdict(paired), "of seeds": f"higher in {more}"}


def widths(rows: list[Row], other: str) -> list[Row]:
    """Every measure of width, SWA beside another solution."""
    lines: list[Row] = []

    def add(title: str, rows: list[Row], key: str, pick: Callable[[Any], float], wider: str) -> None:
        lines.append({"measure": title, "wider is": wider} | differences(rows, key, pick, other))

    def mean(distances: list[float]) -> float:
        return Estimate.of(distances).mean if all(map(math.isfinite, distances)) else math.inf

    for value, rise in RISES.items():
        for how in ("norm", "filter"):
            add(f"distance, {how}: {value} + {rise}", rows, f"{how}: {value} + {rise}", mean, "higher")
        key = f"norm: {value} + {rise}"
        raw = [{key: {n: [d * r["norm"][n] for d in r[key][n]] for n in ("SWA 1.5", other)}} for r in rows]
        add(f"distance, raw: {value} + {rise}", raw, key, mean, "higher")
        for scale in (0.1, 0.2):
            noise = f"rise under filter noise {scale}"
            add(f"{noise}: {value}", rows, noise, lambda d, v=value: d[v], "lower")
    for key in ("top eigenvalue", "trace", "worst rise within .01 |w|", "critical sharpness"):
        add(key, rows, key, float, "lower")
    return lines


def minima(rows: list[Row]) -> list[Row]:
    """Where values are lowest on the lines, as shares of the way from SWA to SGD."""
    found = []
    for other in ("SGD 1.5", "SGD"):
        key = f"line {other}"
        line: Row = {"to": other, "length": over(rows, lambda r, k=key: r[k]["length"])}
        for value in ("train loss", "train loss with decay", "test loss", "test error"):
            line[f"lowest {value}"] = over(rows, lambda r, k=key, v=value: r[k]["lowest"][v])
        for title, value in (
            (SHIFT, "train loss"),
            (SHIFT.replace("loss", "loss with decay"), "train loss with decay"),
        ):
            line[title] = over(
                rows, lambda r, k=key, v=value: r[k]["lowest"]["test error"] - r[k]["lowest"][v]
            )  # fmt: skip
        found.append(line)
    return found


def report(regimes: list[Regime], networks: list[str], seeds: list[int], path: str) -> None:
    tables: dict[str, list[Row]] = {"Rates": []}
    notes = [
        "Intervals are 95 % by Student's t over seeds, not adjusted for the number of measures; a seed's distance is "
        "the mean over its directions.",
        f"{DIRECTIONS} directions, the same for all solutions of a seed; {SIZES['rays']} images of each part for rays, "
        f"noise and planes, {SIZES['curvature']} training images for curvature, all training and 5000 test images "
        "for the solutions' own values and the lines.",
        "SGD took 1 budget, SGD 1.5 and SWA 1.5 (from .75 on) took 1.5. Rates are those with the highest accuracy on "
        f"1000 validation images of seed {TUNING_SEED}, ties by NLL: base of {BASES} by SGD, which SGD 1.5 takes over, "
        f"then SWA of {SWAS} by SWA 1.5. No test image was used for a choice.",
        "Controls: the last of SWA's run is the weights that were averaged last; SGD 1.5 at SWA's rate has that as its "
        "base rate, and then falls as SGD does. They tell what is due to averaging and what to a higher rate.",
        "Train loss with decay: what training minimises, with half the weight decay times the squared norm.",
    ]
    for regime in regimes:
        augmented = "crops and flips" if regime.augmentation == "usual" else "no augmentation"
        notes.append(f"{regime.name}: {regime.train} training images, {augmented}; a budget is {regime.epochs} epochs.")
        for model in networks:
            folders = [home_of(regime, model, seed) for seed in seeds]
            done = [f for f in folders if _whole(f)]
            if not done:
                notes.append(f"{model}, {regime.name}: no cell has been run.")
                continue
            if is_tuned(regime, model):
                tables["Rates"] += tuned(regime, path, model)
            rows = [json.loads((f / "numbers.json").read_text()) for f in done]
            minutes = sum(sum(row["seconds"].values()) for row in rows) / 60
            names = ", ".join(f.name for f in done)
            notes.append(
                f"{model}, {regime.name}: seeds {names}, {rows[0]['parameters']:,} weights, {minutes:.0f} CPU-minutes."
            )
            if not is_tuned(regime, model):
                base, swa = (rows[0]["rates"][name] for name in ("base", "SWA"))
                notes.append(f"{model}, {regime.name}: the rates {base} and {swa} of SWA were not chosen on this set.")
            left = Estimate.of([row["whole"]["SGD 1.5"]["train error"] for row in rows]).mean
            if left > 0.05:
                notes.append(
                    f"{model}, {regime.name}: not converged, SGD 1.5 has a training error of {left:.2f}: nothing here "
                    "speaks for or against the width of minima."
                )
            title = f"{model}, {regime.name}"
            tables[f"{title}: the solutions"] = solutions(rows)
            tables[f"{title}: SWA less SGD on test images"] = accuracies(rows)
            if regime.measured:
                for other in ("SGD 1.5", "SGD", *CONTROLS):
                    both = [row for row in rows if other in row["norm"]]
                    if both:
                        tables[f"{title}: SWA beside {other}"] = widths(both, other)
                drawn(model, regime, done)
            tables[f"{title}: the line from SWA (0) to SGD (1)"] = minima(rows)
    write("landscape_images", "How wide SGD and SWA are, and where their minima lie", tables, notes)


def _whole(folder: Path) -> bool:
    """Whether all solutions of a cell are measured."""
    file = folder / "numbers.json"
    return file.exists() and set(json.loads(file.read_text())["norm"]) >= set(SOLUTIONS)


def drawn(model: str, regime: Regime, done: list[Path]) -> None:
    """Figures of a network, into the documentation."""
    from lowland.figures.landscape import line_drawing, plane_drawing, rays_drawing, spectrum_drawing

    home = ROOT / "docs" / "figures"
    norms = "BatchNorm refreshed at every place from 2 batches and a control variate"
    said = {
        "data": f"CIFAR-10, {regime.train:,} training images without augmentation",
        "model": model,
        "n": f"{len(done)} seeds",
        "refresh": norms if model.startswith("preresnet") else "no BatchNorm",
    }
    walks = {f.name: load_result(f / "line-SGD 1.5.safetensors")[0] for f in done}
    line_drawing(walks, "train loss", "test error", said, ("SWA 1.5", "SGD 1.5")).write(
        home / f"landscape_line_{model}.svg"
    )
    first, one = done[0], {**said, "n": "one seed", "images": f"{SIZES['rays']} of each part"}
    found = {n: load_result(first / f"rays-filter-{n}.safetensors")[0] for n in SOLUTIONS}
    rays_drawing(found, "test error", one | {"normalisation": found["SGD"].about["normalisation"]}).write(
        home / f"landscape_rays_{model}.svg"
    )
    spectra = {n: load_result(first / f"spectrum-{n}.safetensors")[0] for n in SOLUTIONS}
    bent = {**one, "images": f"{SIZES['curvature']} training images"}
    spectrum_drawing(spectra, bent).write(home / f"landscape_spectrum_{model}.svg")
    if (first / "plane.safetensors").exists():
        grid, its = load_result(first / "plane.safetensors")
        plane_drawing(grid, ["train loss", "test error"], one | its).write(home / f"landscape_plane_{model}.svg")
