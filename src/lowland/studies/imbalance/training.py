"""The rows of the study as phases of one or several branches, all of as many forward passes, and one row's training."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lowland import EMA, copy_to, refresh_bn
from lowland.population import IMWA, Population
from lowland.weights import clone_of

from ..grid.cells import Cell
from ..images.names import network_of
from ..images.networks import build
from ..images.trajectory import seeded
from ..runs.randomness import derived_seed
from .config import ImbalanceStudy, width_of
from .sets import Examples
from .views import batches, loss_of

FINAL = 1e-3  # the last rate, of the first


class Phase(NamedTuple):
    """Branches that start from one network, train for so many steps, and are averaged at the end if not before."""

    branches: int
    steps: int
    every: int = 0  # steps of an episode; 0: all of them


def phases(steps: int, branches: int, episodes: int) -> dict[str, tuple[Phase, ...]]:
    """Return the phases of each row; all but "one branch" have `branches` times `steps` forward passes.

    >>> phases(10, 3, 5)["averaged early"]
    (Phase(branches=3, steps=5, every=0), Phase(branches=1, steps=15, every=0))
    """
    half = steps // 2
    return {
        "single": (Phase(1, branches * steps),),
        "one branch": (Phase(1, steps),),
        "MWA": (Phase(branches, steps),),
        "IMWA": (Phase(branches, steps, -(-steps // episodes)),),
        "averaged early": (Phase(branches, half), Phase(1, branches * (steps - half))),
        "averaged late": (Phase(1, branches * half), Phase(branches, steps - half)),
    }


@dataclass
class Trained:
    """A row that is done: a network that holds its result, and what EMAs have found beside it."""

    network: nn.Module
    seconds: float = 0.0  # of CPU, in steps
    mixing: float = 0.0  # of CPU, in averages and EMAs
    passes: int = 0  # examples passed forward
    means: dict[float, dict[str, Tensor]] = field(default_factory=dict)  # by the EMA's decay


def train(study: ImbalanceStudy, cell: Cell, examples: Examples, row: tuple[Phase, ...]) -> Trained:
    """Train one row of a cell.

    Raises:
        RuntimeError: a branch's loss is not finite any more.
    """
    found = Trained(_network(study, cell, examples))
    done, total = 0, sum(phase.branches * phase.steps for phase in row)
    for number, phase in enumerate(row):
        models = [found.network, *(copy.deepcopy(found.network) for _ in range(phase.branches - 1))]
        optimisers = [_optimiser(study, examples, model) for model in models]
        population = _population(study, cell, models, optimisers, phase)
        alone = phase.branches == len(row) == 1
        followers = {decay: EMA(decay) for decay in study.averaging.decays} if alone else {}
        seed = derived_seed(cell.seed, f"phase {number}")
        sources = [batches(study, examples, derived_seed(seed, f"branch {place}")) for place in range(len(models))]
        for _ in range(phase.steps):
            begun = time.process_time()
            for place, (model, optimiser) in enumerate(zip(models, optimisers, strict=True)):
                optimiser.param_groups[0]["lr"] = optimiser.defaults["lr"] * _cosine(done / total)
                batch = next(sources[place])
                optimiser.zero_grad()
                loss = loss_of(model.train()(batch.x), batch, study.semi.threshold)
                torch.autograd.backward(loss)
                if not math.isfinite(loss.item()):
                    raise RuntimeError(
                        f"cell {cell.name}: branch {place} of {len(models)} diverged: lower "
                        f"training.{'learning_rate' if examples.images else 'text_rate'}"
                    )
                optimiser.step()
                done += 1
                found.passes += len(batch.x)
            stepped = time.process_time()
            for follower in followers.values():
                follower.update(found.network)
            if population is not None:
                try:
                    population.step()
                except ValueError as error:
                    raise RuntimeError(f"cell {cell.name}: {error}") from error
            found.seconds += stepped - begun
            found.mixing += time.process_time() - stepped
        found.means = {decay: clone_of(follower.mean()) for decay, follower in followers.items()}
        if population is not None:
            copy_to(found.network, population.average())
            refresh(study, cell, examples, found.network)
            found.means = {study.averaging.decay: _mean(population)}
    return found


def refresh(study: ImbalanceStudy, cell: Cell, examples: Examples, network: nn.Module) -> None:
    """Find BatchNorm statistics anew on training batches, the same ones for every row."""
    source = batches(study, examples, derived_seed(cell.seed, "statistics"))
    count = study.evaluation.statistics_batches or -(-len(examples.train[1]) // study.training.batch_size)
    refresh_bn(network, (batch.x for batch, _ in zip(source, range(count), strict=False)))


def _mean(population: Population) -> dict[str, Tensor]:
    """The branches' EMAs, averaged."""
    teachers = population.teacher()
    return {name: torch.stack([own[name] for own in teachers]).mean(0) for name in teachers[0]}


def _population(
    study: ImbalanceStudy, cell: Cell, models: list[nn.Module], optimisers: list[torch.optim.SGD], phase: Phase
) -> Population | None:
    if phase.branches == 1:
        return None
    rule = IMWA(every=phase.every or phase.steps, ema=study.averaging.decay)
    return Population(models, rule, optimizers=optimisers, seed=derived_seed(cell.seed, "population"))


def _network(study: ImbalanceStudy, cell: Cell, examples: Examples) -> nn.Module:
    x, classes = examples.train[0], len(examples.sizes)
    with seeded(derived_seed(cell.seed, "start")):
        if examples.images is None:
            width = width_of(cell.model)
            return nn.Sequential(nn.Linear(x.shape[1], width), nn.ReLU(), nn.Linear(width, classes))
        name, depth, width_ = network_of(cell.model)
        return build(name, channels=x.shape[1], size=x.shape[2], classes=classes, depth=depth, width=width_)


def _optimiser(study: ImbalanceStudy, examples: Examples, model: nn.Module) -> torch.optim.SGD:
    settings = study.training
    rate = settings.text_rate if examples.images is None else settings.learning_rate
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=settings.momentum, weight_decay=settings.weight_decay)


def _cosine(share: float) -> float:
    return FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * share))
