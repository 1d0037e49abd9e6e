"""One population on its way: all members in this process, each with its own start, order of the images and recipe."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lowland.population import DART, IMWA, PAPA, PAPA2, WASH, Independent, LocalSGD, PAPAAll, Population, Rule

from ..grid.cells import Cell
from ..images.names import RATES, network_of
from ..images.networks import build
from ..images.sets import Images, augmented, standardised
from ..images.trajectory import parted, seeded
from ..runs.randomness import derived_seed, stream
from .config import PopulationStudy, model_of
from .recipes import Recipe, drawn, prepared

FINAL = 1e-3  # the last rate, of the first


@dataclass(frozen=True)
class Trained:
    """A population that is done, and the CPU seconds of its members' steps."""

    population: Population
    models: list[nn.Module]
    seconds: float


def rules_of(study: PopulationStudy, steps_per_epoch: int, members: int) -> dict[str, tuple[Rule, int]]:
    """Return each rule and the steps of its population, so that all have as many forward passes.

    >>> rules_of(PopulationStudy(), 28, 3)["DART"]
    (DART(every=56, pretrain=504, rounds=7), 896)
    """
    settings, total = study.rules, study.training.epochs * steps_per_epoch
    every = max(1, round(settings.every * steps_per_epoch))
    # The first member alone for `pretrain` of all passes, and for what whole rounds leave.
    round_steps = max(1, round(settings.round * steps_per_epoch))
    rounds = max(1, int((1 - settings.pretrain) * total / round_steps))
    alone = members * (total - rounds * round_steps)
    episode = math.ceil(total / settings.episodes)  # the last may be shorter: its average is the population's
    return {
        "independent": (Independent(), total),
        "local SGD": (LocalSGD(every=settings.local_every), total),
        "PAPA": (PAPA(every=settings.papa_every, alpha=settings.papa_alpha, epoch=steps_per_epoch), total),
        "PAPA-all": (PAPAAll(every=every, until=total), total),
        "PAPA-2": (PAPA2(every=every, until=total), total),
        "DART": (DART(every=round_steps, pretrain=alone, rounds=rounds), alone + rounds * round_steps),
        "WASH": (WASH(p=settings.wash_p), total),
        "WASH+Opt": (WASH(p=settings.wash_p, optimizer_state=True), total),
        "IMWA": (IMWA(every=episode), total),
    }


def recipes_of(cell: Cell) -> list[Recipe]:
    """Return the recipe of each member of a cell, the same under every rule.

    >>> recipes_of(Cell("digits", "cnn.n2", 0))[0]
    Recipe(mixup=0.0, smoothing=0.0, cutmix=0.0, erasing=0.0)
    """
    model = model_of(cell)
    seeds = [derived_seed(cell.seed, f"recipe of member {place}") for place in range(model.members)]
    return [drawn(np.random.default_rng(seed)) if model.mixed else Recipe() for seed in seeds]


def train(study: PopulationStudy, cell: Cell, images: Images, rule: Rule, steps: int) -> Trained:
    """Train a cell's population under one rule.

    Raises:
        RuntimeError: a member's loss is not finite any more.
    """
    settings, model = study.training, model_of(cell)
    network = network_of(model.network)
    rate = settings.learning_rate or RATES[network.name][0]
    models = []
    for place in range(model.members):
        with seeded(derived_seed(cell.seed, "start" if model.one else f"start of member {place}")):
            channels, size = images.train[0].shape[1:3]
            depth, width = network.depth, network.width
            models.append(
                build(network.name, channels=channels, size=size, classes=images.classes, depth=depth, width=width)
            )
    optimisers = [
        torch.optim.SGD(m.parameters(), lr=rate, momentum=settings.momentum, weight_decay=settings.weight_decay)
        for m in models
    ]
    population = Population(models, rule, optimizers=optimisers, seed=derived_seed(cell.seed, "population"))
    recipes = recipes_of(cell)
    sources = [_batches(study, cell, images, place, recipes[place]) for place in range(model.members)]
    begun = time.process_time()
    for step in range(steps):
        for place, (network_, optimiser) in enumerate(zip(models, optimisers, strict=True)):
            if population.trains(place):
                # While the first member is alone it sees what all of them will.
                source = sources[place] if population.trains(model.members - 1) else sources[step % model.members]
                x, targets = next(source)
                optimiser.zero_grad()
                loss = nn.functional.cross_entropy(network_.train()(x), targets)
                torch.autograd.backward(loss)
                if not math.isfinite(loss.item()):
                    raise RuntimeError(
                        f"cell {cell.name}: member {place} under {rule} diverged in step {step + 1}: "
                        "lower training.learning_rate"
                    )
                optimiser.step()
            optimiser.param_groups[0]["lr"] = rate * _cosine((step + 1) / steps)
        population.step()
    population.settle()
    return Trained(population, models, time.process_time() - begun - population.meter.total.seconds)


def _batches(
    study: PopulationStudy, cell: Cell, images: Images, member: int, recipe: Recipe
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, epoch after epoch; they follow from the cell's seed and the member alone."""
    seed = derived_seed(cell.seed, f"batches of member {member}")
    random = np.random.default_rng(derived_seed(seed, "recipe"))
    x, y = images.train
    epoch = 0
    while True:
        transforms = stream(seed, f"transforms {epoch}")
        for rows in parted(torch.randperm(len(y), generator=stream(seed, f"order {epoch}")), study.training.batch_size):
            moved = augmented(x[rows], images, transforms) if study.training.augmentation == "usual" else x[rows]
            yield prepared(standardised(moved, images), y[rows], images.classes, recipe, random)
        epoch += 1


def _cosine(share: float) -> float:
    return FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
