"""The members of a cell under one rule, and their average, for landscapes: trained again as the cell did, and kept."""

from __future__ import annotations

from pathlib import Path

import torch

from lowland.batchnorm.statistics import layers_of
from lowland.landscape import classification
from lowland.weights import Weights, weights_of

from ..grid.cells import Cell
from ..images.names import network_of
from ..images.networks import build
from ..images.sets import Images
from ..images.solutions import batches_of
from ..images.trajectory import parted, seeded
from ..runs.randomness import one_thread
from ..runs.solutions import Solutions, kept
from .cell import Judge, images_of
from .config import PopulationStudy, model_of
from .training import recipes_of, rules_of, train


def solutions(study: PopulationStudy, cell: Cell, folder: Path, rule: str) -> Solutions:
    """Return the members of a population under a rule, and their average; trained where `folder` lacks them.

    Raises:
        ValueError: the study has no such rule.
    """
    images = images_of(study, cell)
    steps = len(parted(torch.arange(len(images.train[1])), study.training.batch_size))
    rules = rules_of(study, steps, len(recipes_of(cell)))
    if rule not in rules:
        raise ValueError(f"the study has no rule {rule!r}: use one of {', '.join(rules)}")

    def trained() -> dict[str, Weights]:
        with one_thread(), seeded(cell.seed):
            done = train(study, cell, images, *rules[rule])
        own = [name for name, _ in done.models[0].named_parameters()]
        average = done.population.average()
        members = {f"member {k}": weights_of(model) for k, model in enumerate(done.models, start=1)}
        every = {**members, "average": average}
        return {title: {name: weights[name].detach() for name in own} for title, weights in every.items()}

    found = kept(folder, trained)
    model = _network(cell, images)
    sets = batches_of(images, study.evaluation.batch_size)
    return Solutions(
        model,
        found,
        sets,
        classification,
        Judge(study, cell, images).statistics if layers_of(model) else [],
        {"data": f"{cell.data} ({', '.join(f'{sum(len(y) for _, y in s)} {n}' for n, s in sets.items())})"}
        | {"model": f"{cell.model}, {rule}", "n": f"seed {cell.seed}"},
    )


def _network(cell: Cell, images: Images) -> torch.nn.Module:
    named = network_of(model_of(cell).network)
    channels, size = images.train[0].shape[1:3]
    with seeded(0):
        return build(
            named.name, channels=channels, size=size, classes=images.classes, depth=named.depth, width=named.width
        )
