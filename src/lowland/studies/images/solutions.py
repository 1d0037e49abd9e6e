"""The solutions of a cell for landscapes: SWA and SGD, trained again as the cell did, bit for bit, and kept."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lowland import SWA
from lowland.batchnorm.statistics import layers_of
from lowland.landscape import classification
from lowland.weights import Weights

from ..grid.cells import Cell
from ..runs.randomness import derived_seed, one_thread
from ..runs.solutions import Solutions, kept
from .cell import LONGEST, images_of
from .config import ImagesStudy
from .methods import AlongSWA, Clock, sgd_schedule, swa_schedule
from .sets import Images, standardised
from .trajectory import Trajectory, network, seeded, shared_epochs, statistics_batches

MOST = 1000  # images of each part


def solutions(study: ImagesStudy, cell: Cell, folder: Path) -> Solutions:
    """Return SWA of 1.5 budgets, SGD of 1.5 and SGD of one, of the first member; trained where `folder` lacks them."""
    images = images_of(study, cell)
    found = kept(folder, lambda: _trained(study, cell, images))
    model = network(cell, images, derived_seed(cell.seed, "judge"))
    sets = batches_of(images, study.evaluation.batch_size)
    return Solutions(
        model,
        found,
        sets,
        classification,
        statistics_batches(study, images, derived_seed(cell.seed, "statistics")) if layers_of(model) else [],
        {"data": f"{cell.data} ({', '.join(f'{sum(len(y) for _, y in s)} {n}' for n, s in sets.items())})"}
        | {"model": cell.model, "n": f"seed {cell.seed}"},
    )


def batches_of(images: Images, size: int) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Return the first training and test images as batches."""
    parts = {"train": images.train, "test": images.test}
    return {
        name: list(zip(torch.split(standardised(x[:MOST], images), size), torch.split(y[:MOST], size), strict=True))
        for name, (x, y) in parts.items()
    }


def _trained(study: ImagesStudy, cell: Cell, images: Images) -> dict[str, Weights]:
    budget, longest = study.budgets(1), study.budgets(LONGEST)
    with one_thread(), seeded(cell.seed):
        run = Trajectory(study, cell, images, 0)
        along = AlongSWA(study, run, Clock(), (longest,))
        along.add("SWA", SWA())
        run.walk(
            longest,
            swa_schedule(study, cell.model, run.steps_per_epoch),
            after_step=along.after_step,
            after_epoch=along.after_epoch,
        )
        swa = along.watched["SWA"].average
        run = Trajectory(study, cell, images, 0)
        plain, long = (sgd_schedule(study, run.steps_per_epoch, share) for share in (1.0, LONGEST))
        run.walk(shared_epochs(plain, long, run.steps_per_epoch, budget), plain)
        state = run.state()
        run.walk(budget, plain)
        sgd = run.weights()
        run.back_to(state)
        run.walk(longest, long)
    every = {"SWA 1.5": dict(swa.mean()), "SGD 1.5": run.weights(), "SGD": sgd}
    own = [name for name, _ in run.model.named_parameters()]
    return {title: {name: weights[name].cpu() for name in own} for title, weights in every.items()}
