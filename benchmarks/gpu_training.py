"""One network and seed of the GPU pack, trained at the papers' settings in slices that end at a deadline.

Three runs a seed, all SGD with momentum .9 and batches of 128 (Izmailov et al. 2018, arXiv 1803.05407; Maddox et al.
2019, arXiv 1902.02476): "sgd" over one budget, "sgd long" over one and a half with its schedule stretched, and "swa"
over one and a half, whose mean (from `start` on, once an epoch) is judged at 1, 1.25 and 1.5 budgets, and SWAG (rank
20) at the end. Whatever is random in an epoch follows from seed, run and epoch, so a run that goes on from its file is
the run that was never stopped. Each judgement leaves probabilities of the test images; `gathered` reads them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowland import SWA, SWAG, predict, weights_of
from lowland.cycles import swa_linear
from lowland.predict import one_by_one
from lowland.studies.images.networks import build
from lowland.studies.images.sets import load_images
from lowland.studies.runs.randomness import derived_seed
from lowland.weights import Weights

RUNS = ("sgd", "sgd long", "swa")
MEAN_AT = (1.0, 1.25, 1.5)  # budgets
LONG = 1.5
DRAWS = 30
SOME = 5000  # training images that are judged too


@dataclass(frozen=True)
class Recipe:
    """A network and how its paper trains it."""

    network: str
    depth: int
    width: int
    budget: int  # epochs
    start: int  # SWA from this epoch on
    rate: float
    swa_rate: float
    decay: float
    paper: str  # what the papers report on CIFAR-10


RECIPES = {
    "vgg16": Recipe(
        "vgg", 16, 64, 200, 161, 0.05, 0.01, 5e-4,
        "accuracy %: SGD 93.25, SWA 93.59, 93.70, 93.64 (1, 1.25, 1.5 budgets); NLL: SGD .33, SWA .26, SWAG .20",
    ),
    "preresnet110": Recipe(
        "preresnet", 110, 16, 150, 126, 0.1, 0.01, 3e-4,
        "accuracy %: SGD 95.03, SWA 95.51, 95.65, 95.82 (1, 1.25, 1.5 budgets)",
    ),
}  # fmt: skip
TOYS = {
    "vgg16": Recipe("vgg", 7, 4, 4, 3, 0.05, 0.01, 5e-4, "none: a toy"),
    "preresnet110": Recipe("preresnet", 8, 4, 4, 3, 0.1, 0.01, 3e-4, "none: a toy"),
}


@dataclass(frozen=True, eq=False)
class Pictures:
    """Training and test images on the device: standardised pixels (N, C, H, W) and classes (N,)."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int
    batch: int


def cifar(path: Path, device: str) -> Pictures:
    """All of CIFAR-10, the validation images among the training images: nothing is chosen here."""
    found = load_images("cifar10", path=path)
    mean, std = found.mean[:, None, None], found.std[:, None, None]
    pixels = torch.cat([found.train[0], found.validation[0]])
    labels = torch.cat([found.train[1], found.validation[1]])
    train, test = (((x - mean) / std).to(device) for x in (pixels, found.test[0]))
    return Pictures((train, labels.to(device)), (test, found.test[1].to(device)), found.classes, 128)


def toy(device: str) -> Pictures:
    """Four classes of noise around a picture each, for trying the pack."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 3, 16, 16, generator=generator)
    labels = torch.arange(96) % 4
    pixels = centres[labels] + 2 * torch.randn(96, 3, 16, 16, generator=generator)
    parts = [(pixels[part].to(device), labels[part].to(device)) for part in (slice(64), slice(64, None))]
    return Pictures(parts[0], parts[1], 4, 16)


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of images padded by an eighth, mirrored half of the time, on the images' device."""
    number, _, height, width = x.shape
    reach = height // 8
    top, left = torch.randint(0, 2 * reach + 1, (2, number, 1), generator=generator, device=x.device)
    mirrored = torch.rand(number, 1, generator=generator, device=x.device) < 0.5
    columns = left + torch.arange(width, device=x.device)
    columns = torch.where(mirrored, columns.flip(1), columns)
    rows = top + torch.arange(height, device=x.device)
    padded = F.pad(x, (reach,) * 4).permute(0, 2, 3, 1)
    cut = padded[torch.arange(number, device=x.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2)  # channels last in memory


class Job:
    """A network, a seed, its folder of files."""

    def __init__(self, name: str, recipe: Recipe, seed: int, pictures: Pictures, folder: Path, compiled: bool) -> None:
        self.name, self.recipe, self.seed, self.pictures, self.folder = name, recipe, seed, pictures, folder
        self.compiled = compiled
        self.device = pictures.train[0].device.type
        folder.mkdir(parents=True, exist_ok=True)

    def advance(self, deadline: float) -> bool:
        """Work until the monotonic clock reads `deadline`; return whether all is done."""
        for run in RUNS:
            if not self._judged("swag" if run == "swa" else run) and not self._train(run, deadline):
                return False
        return True

    def _train(self, run: str, deadline: float) -> bool:
        recipe, kept = self.recipe, self.folder / f"{run.replace(' ', '-')}.pt"
        epochs = recipe.budget if run == "sgd" else round(LONG * recipe.budget)
        shape = swa_linear(recipe.start, recipe.swa_rate / recipe.rate) if run == "swa" else swa_linear(epochs, 0.01)
        torch.manual_seed(derived_seed(self.seed, "initial weights"))
        model = self._network()
        optimiser = torch.optim.SGD(model.parameters(), lr=recipe.rate, momentum=0.9, weight_decay=recipe.decay)
        swa, swag = SWA(), SWAG(rank=20)
        done, seconds = 0, 0.0
        if kept.exists():
            state = torch.load(kept, map_location=self.device, weights_only=True)
            done, seconds = state["epoch"], state["seconds"]
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            if state["swa"] is not None:
                swa.load_state_dict(state["swa"])
                swag.load_state_dict(state["swag"])
        forward = torch.compile(model) if self.compiled else model
        longest, saved = 0.0, time.monotonic()

        def save() -> None:
            averages = (swa.state_dict(), swag.state_dict()) if swa.count else (None, None)
            states = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            whole = {"epoch": done, "seconds": seconds, **states, "swa": averages[0], "swag": averages[1]}
            replace(kept, lambda part: torch.save(whole, part))

        while done < epochs:
            if time.monotonic() + longest > deadline:
                save()
                return False
            begun = time.monotonic()
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate * shape(done)
            self._epoch(forward, model, optimiser, f"{run} {done}")
            collects = run == "swa" and shape.collect_at(done)
            done += 1
            if collects:
                swa.update(model)
                swag.update(model)
            seconds += time.monotonic() - begun
            budgets = [b for b in MEAN_AT if run == "swa" and done == round(b * recipe.budget)]
            for at in budgets:  # a mean that is needed again after a kill is judged again: the same numbers
                self._judge(f"swa {at:g}", model, swa.mean(), True, seconds)
            longest = time.monotonic() - begun  # the first compiles, the others are alike
            if time.monotonic() - saved > 60:
                save()
                saved = time.monotonic()
        save()
        if run == "swa":
            if not self._draws(model, swag, seconds, deadline):
                return False
        else:
            self._judge(run, model, weights_of(model), False, seconds)
        kept.unlink()  # gigabytes, and what it was for is there
        return True

    def _draws(self, model: nn.Module, swag: SWAG, seconds: float, deadline: float) -> bool:
        """Average the predictions of SWAG's draws, as many now as there is time for."""
        kept = self.folder / "draws.pt"
        total, done = torch.zeros((), dtype=torch.float64), 0
        if kept.exists():
            total, done = torch.load(kept, weights_only=True)
        longest = 0.0
        while done < DRAWS:
            if time.monotonic() + longest > deadline:
                return False
            begun = time.monotonic()
            draw = swag.sample(generator=torch.Generator().manual_seed(derived_seed(self.seed, f"draw {done}")))
            total, done = total + self._probs(model, draw, refresh=True), done + 1
            replace(kept, lambda part, now=(total, done): torch.save(now, part))  # type: ignore[misc]
            longest = max(longest, time.monotonic() - begun)
        self._write("swag", total / DRAWS, seconds)
        kept.unlink()
        return True

    def _network(self) -> nn.Module:
        x, _ = self.pictures.train
        recipe, classes = self.recipe, self.pictures.classes
        model = build(
            recipe.network,
            channels=x.shape[1],
            size=x.shape[2],
            classes=classes,
            depth=recipe.depth,
            width=recipe.width,
        )
        return model.to(self.device, memory_format=torch.channels_last)

    def _epoch(self, forward: Any, model: nn.Module, optimiser: torch.optim.Optimizer, purpose: str) -> None:
        x, y = self.pictures.train
        generator = torch.Generator(x.device).manual_seed(derived_seed(self.seed, purpose))
        torch.manual_seed(derived_seed(self.seed, f"dropout {purpose}"))
        order = torch.randperm(len(y), generator=generator, device=x.device)
        model.train()
        for rows in order[: len(y) // self.pictures.batch * self.pictures.batch].split(self.pictures.batch):
            optimiser.zero_grad()
            with torch.autocast(self.device, torch.bfloat16):
                loss = F.cross_entropy(forward(moved(x[rows], generator)), y[rows])
            torch.autograd.backward(loss)
            optimiser.step()
        if not bool(loss.isfinite()):
            raise RuntimeError(f"{self.name}, seed {self.seed}: the loss of {purpose} is {loss.item()}: lower the rate")

    def _judge(self, title: str, model: nn.Module, weights: Weights, refresh: bool, seconds: float) -> None:
        self._write(title, self._probs(model, weights, refresh), seconds)

    def _probs(self, model: nn.Module, weights: Weights, refresh: bool) -> Tensor:
        """Probabilities (N, C) of the test images and of some training images as they are, in float32.

        BatchNorm is refreshed for averages and draws, with the training images as training sees them.
        """
        x, _ = self.pictures.train
        images = [*self.pictures.test[0].split(500), *x[:SOME].split(500)]
        generator = torch.Generator(x.device).manual_seed(derived_seed(self.seed, "refresh"))
        parts = x[torch.randperm(len(x), generator=generator, device=x.device)].split(self.pictures.batch)
        batches = (moved(part, generator) for part in parts) if refresh else None
        with one_by_one():
            return predict(model, weights, images, bn_batches=batches).probs.cpu()

    def _write(self, title: str, probs: Tensor, seconds: float) -> None:
        tests, labels = len(self.pictures.test[1]), self.pictures.train[1][:SOME].cpu()
        arrays = {"probs": probs[:tests].float().numpy(), "labels": self.pictures.test[1].cpu().numpy()}
        fitted = float((probs[tests:].argmax(1) == labels).double().mean())

        def write(part: Path) -> None:
            with part.open("wb") as file:
                np.savez_compressed(file, **arrays, train_accuracy=fitted, seconds=seconds)

        replace(self._file(title), write)

    def _file(self, title: str) -> Path:
        return self.folder / f"{title.replace(' ', '-')}.npz"

    def _judged(self, title: str) -> bool:
        return self._file(title).exists()


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside and rename: a killed piece leaves no half file under the name."""
    part = path.with_suffix(path.suffix + ".part")
    write(part)
    os.replace(part, path)
