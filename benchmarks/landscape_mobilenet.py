"""Does a short SWA phase at a low rate move at all, and what does the plane through its solutions show?

After an experiment that found no gain by SWA: a MobileNetV2 is pretrained by AdamW (a cosine to a tenth of its rate,
decay 1e-4), then SGD without momentum runs a saw-tooth from .001 to .0001 of 3 epochs, 4 times, and its 4 ends are
averaged. Here beside it a phase long enough to move: SGD with momentum .9 at the constant rate .02, one model an epoch.
Both start at the same pretrained weights; BatchNorm is refreshed for each solution and at every place of the plane
(pretrained, last, SWA). Told are the lengths of the plane, what the SWA phase changed in test accuracy beside its
standard error, and where loss and error are lowest.

Run: python benchmarks/landscape_mobilenet.py --path cifar10_jpeg.npz [--train 5000] [--epochs 20] [--side 9]
What is finished is kept under runs/landscape_mobilenet. Results: benchmarks/results/landscape_mobilenet.json and .md,
docs/figures/landscape_mobilenet_*.svg.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, write
from torch import Tensor, nn

from lowland import SWA, load, save, weights_of
from lowland.landscape import Plane, Work, classification, exact, fast, load_result, measured, plane, save_result
from lowland.landscape.vectors import norm, sum_of
from lowland.studies.images.networks import build
from lowland.studies.images.sets import augmented, load_images, standardised
from lowland.studies.runs.randomness import one_thread

Weights = dict[str, Tensor]
KEPT = ROOT / "runs" / "landscape_mobilenet"
PHASES: dict[str, tuple[int, int, float, Callable[[float], float]]] = {
    # epochs, epochs between averaged models, momentum, rate by the time in epochs
    "short": (12, 3, 0.0, lambda t: 0.001 - (0.001 - 0.0001) * (t % 3) / 3),
    "long": (12, 1, 0.9, lambda t: 0.02),
}
PRETRAINED = 5e-3  # AdamW's first rate; .01 goes with batches of 256


class Training:
    """The images, and epochs over them that follow from one seed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.images = load_images("cifar10", path=options.path, train=options.train, validation=1000, test=options.test)
        self.batch = options.batch

    def epoch(self, model: nn.Module, optimizer: Any, rate: Callable[[float], float], number: int) -> None:
        x, y = self.images.train
        g = torch.Generator().manual_seed(number)
        parts = torch.randperm(len(y), generator=g).tensor_split(-(-len(y) // self.batch))
        model.train()
        for step, rows in enumerate(parts):
            for group in optimizer.param_groups:
                group["lr"] = rate(number + step / len(parts))
            optimizer.zero_grad()
            logits = model(standardised(augmented(x[rows], self.images, g), self.images))
            torch.autograd.backward(nn.functional.cross_entropy(logits, y[rows]))
            optimizer.step()

    def statistics(self) -> list[Tensor]:
        x = self.images.train[0]
        g = torch.Generator().manual_seed(1)
        return [standardised(augmented(part, self.images, g), self.images) for part in torch.split(x, 250)]

    def sets(self, count: int) -> dict[str, list[tuple[Tensor, Tensor]]]:
        parts = {"train": self.images.train, "test": self.images.test}
        return {name: self._batches(x[:count], y[:count]) for name, (x, y) in parts.items()}

    def _batches(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        return list(zip(torch.split(standardised(x, self.images), 250), torch.split(y, 250), strict=True))


def copied(model: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in weights_of(model).items()}


def pretrained(training: Training, model: nn.Module, epochs: int, folder: Path) -> Weights:
    file = folder / "pretrained.safetensors"
    if not file.exists():
        optimizer = torch.optim.AdamW(model.parameters(), lr=PRETRAINED, weight_decay=1e-4)
        for epoch in range(epochs):
            training.epoch(
                model, optimizer, lambda t: PRETRAINED * (0.1 + 0.9 * (1 + math.cos(math.pi * t / epochs)) / 2), epoch
            )
        save(copied(model), file)
    found: Weights = load(file)
    return found


def phase(training: Training, model: nn.Module, start: Weights, name: str, folder: Path) -> dict[str, Weights]:
    """The last weights and their average after one phase of SGD."""
    files = {key: folder / f"{name}-{key}.safetensors" for key in ("last", "SWA")}
    if not all(file.exists() for file in files.values()):
        epochs, every, momentum, rate = PHASES[name]
        with torch.no_grad():
            for key, p in model.named_parameters():
                p.copy_(start[key])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, weight_decay=1e-4)
        average = SWA()
        for epoch in range(epochs):
            training.epoch(model, optimizer, lambda t: rate(t - 1000), 1000 + epoch)
            if (epoch + 1) % every == 0:
                average.update(model)
        save(copied(model), files["last"])
        save(dict(average.mean()), files["SWA"])
    return {key: load(file) for key, file in files.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="CIFAR-10 as .npz")
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--test", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=20, help="of AdamW")
    parser.add_argument("--depth", type=int, default=17)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--side", type=int, default=9, help="places along each axis of the plane")
    options = parser.parse_args()
    begun = time.process_time()
    folder = KEPT / f"{options.depth}x{options.width}-{options.train}-{options.epochs}"
    folder.mkdir(parents=True, exist_ok=True)
    training = Training(options)
    torch.manual_seed(0)
    model = build("mobilenetv2", channels=3, size=32, classes=10, depth=options.depth, width=options.width)
    start = pretrained(training, model, options.epochs, folder)
    print(f"pretrained, {time.process_time() - begun:.0f} CPU seconds", flush=True)
    statistics = training.statistics()
    whole = measured(model, training.sets(options.test), classification, refresh=exact(statistics))
    tables: dict[str, list[dict[str, Any]]] = {"Solutions": [], "Planes": []}
    first = whole(start)
    for name in PHASES:
        found = {"pretrained": start, **phase(training, model, start, name, folder)}
        print(f"{name}, {time.process_time() - begun:.0f} CPU seconds", flush=True)
        for key, weights in found.items():
            values = first if key == "pretrained" else whole(weights)
            error = values["test error"]
            tables["Solutions"].append(
                {"phase": name, "solution": key}
                | {"moved": norm(sum_of((1.0, weights), (-1.0, start))), "norm": norm(weights)}
                | {k: round(v, 4) for k, v in values.items()}
                | {"se of the test error": math.sqrt(error * (1 - error) / options.test)}
            )
        p = Plane.through(*found.values(), names=tuple(found))
        some = fast(model, found["SWA"], statistics, few=4)
        measure = measured(model, training.sets(min(1000, options.train)), classification, refresh=some)
        about = {
            "data": f"CIFAR-10, {options.train:,} training images, values on {min(1000, options.train):,} of each part",
            "model": f"MobileNetV2, {options.depth} blocks, width {options.width}",
            "n": "one run",
            "refresh": str(some),
        }
        work = Work(keep=folder / f"{name}.jsonl", about=about)
        grid = plane(p, measure, points=options.side, margin=0.3, work=work)
        save_result(grid, folder / f"plane-{name}.safetensors")
        lows = {value: grid.lowest(value) for value in ("train loss", "test loss", "test error")}
        spread = {value: float(grid.of(value).max() - grid.of(value).min()) for value in lows}
        tables["Planes"].append(
            {"phase": name, "last at": f"({p.points[1][0]:.4g}, 0)", "SWA at": "({:.4g}, {:.4g})".format(*p.points[2])}
            | {f"lowest {value}": f"{low.value:.4g} at ({low.x:.3g}, {low.y:.3g})" for value, low in lows.items()}
            | {f"range of {value} on it": value_range for value, value_range in spread.items()}
        )
        drawn(folder / f"plane-{name}.safetensors", name)
        print(f"plane of {name}, {time.process_time() - begun:.0f} CPU seconds", flush=True)
    count, minutes = sum(t.numel() for t in start.values()), (time.process_time() - begun) / 60
    notes = [
        f"One run, {options.train} training images, batches of {options.batch}; AdamW {options.epochs} epochs from "
        f"{PRETRAINED} to a tenth of it by a cosine.",
        "Short: SGD without momentum, a saw-tooth .001 to .0001 of 3 epochs, 4 ends averaged.",
        "Long: momentum .9, constant rate .02, 12 epochs, each averaged.",
        f"{count:,} weights; {minutes:.0f} CPU-minutes in this call.",
    ]
    write("landscape_mobilenet", "A short SWA phase and one that moves, from a pretrained MobileNetV2", tables, notes)


def drawn(file: Path, name: str) -> None:
    from lowland.figures import write_landscape

    grid, about = load_result(file)
    target = ROOT / "docs" / "figures" / f"landscape_mobilenet_{name}.svg"
    write_landscape(grid, target, values=["train loss", "test error"], about=about)


if __name__ == "__main__":
    with one_thread():
        main()
