"""One cell: one population for each rule, of one network on one image set with one seed, judged on the same images."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from lowland import refresh_bn
from lowland.doctor import diagnose
from lowland.population import WASH, LocalSGD, Population
from lowland.soup import greedy
from lowland.weights import Weights, applied

from ..grid.cells import Cell
from ..grid.configured import path_of
from ..images.sets import Images, augmented, load_images, standardised
from ..images.trajectory import parted, seeded
from ..runs.randomness import derived_seed, one_thread, stream
from .config import PopulationStudy
from .training import Trained, recipes_of, rules_of, train

Labelled = tuple[Tensor, Tensor]


def images_of(study: PopulationStudy, cell: Cell) -> Images:
    """Read the images of a cell; its seed parts training from validation images.

    Raises:
        ValueError, FileNotFoundError: as `load_images`.
    """
    counts = {key: value for key, _, value in (entry.partition("=") for entry in study.data.counts)}
    train, validation, test = (int(each) for each in counts.get(cell.data, "0/0/0").split("/"))
    path = path_of(study.data.paths, cell.data)
    return load_images(cell.data, path=path, train=train, validation=validation, test=test, seed=cell.seed)


def run_cell(study: PopulationStudy, cell: Cell) -> dict[str, Any]:
    """Run one cell on one thread and return its result as plain data; the same cell gives the same numbers again.

    Raises:
        RuntimeError: a member diverged.
        ValueError, FileNotFoundError: as `load_images` and the networks.
    """
    with one_thread(), seeded(cell.seed):
        _warm()
        images = images_of(study, cell)
        judge = Judge(study, cell, images)
        steps_per_epoch = len(parted(torch.arange(len(images.train[1])), study.training.batch_size))
        methods, training, mixing = {}, 0.0, 0.0
        begun = time.process_time()
        members = len(recipes_of(cell))
        for name, (rule, steps) in rules_of(study, steps_per_epoch, members).items():
            trained = train(study, cell, images, rule, steps)
            training += trained.seconds
            mixing += trained.population.meter.total.seconds
            methods[name] = judge.metrics(trained)
        judging = time.process_time() - begun - training - mixing
    return {
        "methods": methods,
        "curves": {},
        "trace": [],
        "sensitivity": {},
        "chosen": {
            "recipes": [list(recipe) for recipe in recipes_of(cell)],
            "parameters": sum(p.numel() for p in trained.models[0].parameters()),
            "steps of an epoch": steps_per_epoch,
        },
        "seconds": {"training": training, "averaging": mixing, "evaluation": judging},
    }


def _warm() -> None:
    """Load compiled code, whose first call is not what a step costs."""
    for rule in (LocalSGD(every=1), WASH(p=0.5)):
        Population([nn.Linear(2, 2) for _ in range(2)], rule).step()


class Judge:
    """Accuracy and NLL of members, average, greedy soup and ensemble on every part; barriers by the doctor."""

    def __init__(self, study: PopulationStudy, cell: Cell, images: Images) -> None:
        settings = study.evaluation
        chosen = torch.randperm(len(images.train[1]), generator=stream(cell.seed, "training images judged"))
        some = chosen[: settings.train_images or len(chosen)]
        parts = {"train": (images.train[0][some], images.train[1][some]), "validation": images.validation}
        parts["test"] = images.test
        self.parts = {key: (standardised(x, images), y) for key, (x, y) in parts.items()}
        self.size = settings.batch_size
        x, y = self.parts["validation"]
        self.checked = (x[: settings.barrier_images], y[: settings.barrier_images])
        transforms = stream(derived_seed(cell.seed, "statistics"), "transforms")
        order = torch.randperm(len(images.train[1]), generator=stream(cell.seed, "order of statistics"))
        batches = parted(order, study.training.batch_size)[: settings.statistics_batches or None]
        usual = study.training.augmentation == "usual"
        pixels = [images.train[0][rows] for rows in batches]
        moved = [augmented(each, images, transforms) if usual else each for each in pixels]
        self.statistics = [standardised(each, images) for each in moved]

    def metrics(self, trained: Trained) -> dict[str, dict[str, float]]:
        """Return every metric on every part; what is of the training alone is the same on all."""
        population, model = trained.population, trained.models[0]
        members = population.members()
        soup = greedy(members, lambda weights: self._accuracy(model, weights, "validation"))
        average = population.average(refresh=self._refresh)
        probe = population.probe(self.parts["validation"][0])
        traffic = population.meter.per_step
        shared = {
            "payload": traffic.payload / 1e3,
            "wire": traffic.wire / 1e3,
            "seconds": traffic.seconds * 1e3,
            "consensus": math.sqrt(probe.consensus / len(members)),
            "disagreement": probe.disagreement,
            "barrier": self._barrier(model, members),
        }
        found = {}
        for part, (x, y) in self.parts.items():
            each = torch.stack([self._probabilities(own, None, x) for own in trained.models])  # (N, examples, classes)
            alone = [_accuracy(probabilities, y) for probabilities in each]
            ensemble = each.mean(0)
            of_average = self._probabilities(model, average, x)
            found[part] = {
                "average": _accuracy(of_average, y),
                "soup": self._accuracy(model, soup.weights, part),
                "ensemble": _accuracy(ensemble, y),
                "member": sum(alone) / len(alone),
                "worst": min(alone),
                "average_nll": _nll(of_average, y),
                "ensemble_nll": _nll(ensemble, y),
                **shared,
            }
        return found

    def _refresh(self, model: nn.Module) -> None:
        refresh_bn(model, self.statistics)

    def _accuracy(self, model: nn.Module, weights: Weights, part: str) -> float:
        x, y = self.parts[part]
        with applied(model, weights):
            self._refresh(model)
            return _accuracy(self._probabilities(model, None, x), y)

    @torch.no_grad()
    def _probabilities(self, model: nn.Module, weights: Weights | None, x: Tensor) -> Tensor:
        if weights is not None:
            with applied(model, weights):
                return self._probabilities(model, None, x)
        model.eval()
        return torch.cat([model(part).softmax(-1) for part in torch.split(x, self.size)])

    def _barrier(self, model: nn.Module, members: list[dict[str, Tensor]]) -> float:
        """The highest barrier in validation loss on the lines between members, as the doctor finds it."""
        x, y = self.checked

        def score(weights: Weights) -> list[float]:
            with applied(model, weights):
                probabilities = self._probabilities(model, None, x)
            return [float(value) for value in probabilities[torch.arange(len(y)), y].clamp_min(1e-12).log()]

        pairs = len(list(itertools.combinations(members, 2)))
        apart = any(not torch.equal(members[0][name], other[name]) for other in members[1:] for name in members[0])
        if not apart:
            return 0.0
        found = diagnose(
            {f"member {place}": own for place, own in enumerate(members)},
            score=score,
            model=model,
            batches=self.statistics,
            points=1,
            most_pairs=pairs,
        )
        return max((float(one.values["barrier"]) for one in found.findings if one.check == "barrier"), default=0.0)


def _accuracy(probabilities: Tensor, y: Tensor) -> float:
    return float((probabilities.argmax(-1) == y).double().mean())


def _nll(probabilities: Tensor, y: Tensor) -> float:
    return float(-probabilities[torch.arange(len(y)), y].clamp_min(1e-12).log().double().mean())
