"""How good weights are on every part of the images: one network to hold them, the parts as batches, the metrics."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowland import predict
from lowland.averager import Drawable
from lowland.calibration import accuracy, nll, summary
from lowland.predict import one_by_one
from lowland.weights import Weights

from ..grid.cells import Cell
from ..runs.randomness import derived_seed, stream
from .config import ImagesStudy
from .corruptions import corrupted
from .sets import Images, standardised
from .trajectory import network, statistics_batches

METRICS = ("accuracy", "nll", "ece", "brier")
Labelled = tuple[Tensor, Tensor]  # standardised images (N, C, H, W), classes (N,)


@dataclass(frozen=True)
class Candidate:
    """Weights, an average or a posterior to be judged.

    `refresh`: BatchNorm statistics are found anew on the training images; else the candidate brings its own.
    """

    posterior: Drawable
    refresh: bool
    samples: int | None = None  # draws; None for what is finite


class Judge:
    """Predictions and metrics of candidates for one cell; a network of its own holds them meanwhile."""

    def __init__(self, study: ImagesStudy, cell: Cell, images: Images) -> None:
        self.study, self.cell = study, cell
        self.model = network(cell, images, derived_seed(cell.seed, "judge")).to(study.training.device)
        self.parts = parts_of(study, cell, images)
        self.statistics = statistics_batches(study, images, derived_seed(cell.seed, "statistics"))
        x, y = self.parts["test"]
        some = _some(len(y), study.evaluation.curve_images)
        self._shown = {**{key: self.parts[key] for key in ("train", "validation")}, "test": (x[some], y[some])}

    def metrics(self, name: str, candidate: Candidate) -> dict[str, dict[str, float]]:
        """Return every metric of a candidate on every part; `name` decides the draws."""
        found = {}
        for part, (probs, labels) in self._predict(candidate, self.parts, name).items():
            every = summary(probs, labels, bins=self.study.evaluation.bins)
            found[part] = {key: float(every[key]) for key in METRICS}
        return found

    def shown(self, candidate: Candidate) -> dict[str, float]:
        """Return the accuracy on training, validation and test images, for curves: of these some."""
        return {part: accuracy(*both) for part, both in self._predict(candidate, self._shown).items()}

    def main(self, name: str, candidate: Candidate) -> dict[str, float]:
        """Return the accuracy on all validation and test images."""
        parts = {key: self.parts[key] for key in ("validation", "test")}
        return {part: accuracy(*both) for part, both in self._predict(candidate, parts, name).items()}

    def validation(self, candidate: Candidate, metric: str) -> float:
        """Return the accuracy or the NLL on the validation images."""
        probs, labels = self._predict(candidate, {"validation": self.parts["validation"]})["validation"]
        return accuracy(probs, labels) if metric == "accuracy" else nll(probs, labels)

    def _predict(self, candidate: Candidate, parts: Mapping[str, Labelled], name: str = "") -> dict[str, Labelled]:
        batches, lengths = [], []
        for x, _ in parts.values():
            batches += list(torch.split(x, self.study.evaluation.batch_size))
            lengths.append(len(x))
        with one_by_one():  # stacked draws may round otherwise
            probs = predict(
                self.model,
                candidate.posterior,
                batches,
                samples=candidate.samples,
                bn_batches=self.statistics if candidate.refresh else None,
                generator=stream(self.cell.seed, f"draws of {name}"),
            ).probs
        each = torch.split(probs, lengths)
        return {key: (each[index], labels) for index, (key, (_, labels)) in enumerate(parts.items())}


class Score:
    """What ASWA maximises: the validation accuracy, or minus the NLL, with BatchNorm refreshed for it.

    The last scores are remembered: several averages along one run are shown the same weights.
    """

    def __init__(self, judge: Judge, metric: str) -> None:
        self.judge, self.metric = judge, metric
        self._known: dict[str, float] = {}

    def __call__(self, weights: Weights) -> float:
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in weights.items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        key = digest.hexdigest()
        if key not in self._known:
            found = self.judge.validation(Candidate(dict(weights), refresh=True), self.metric)
            self._known[key] = found if self.metric == "accuracy" else -found
            while len(self._known) > 64:
                self._known.pop(next(iter(self._known)))
        return self._known[key]


def parts_of(study: ImagesStudy, cell: Cell, images: Images) -> dict[str, Labelled]:
    """Return what methods are judged on, by the name of the part: train, validation, test, and corrupted test images.

    Training images come without the transforms of training. The corruptions are the same for all seeds.
    """
    settings = study.evaluation
    count = settings.train_images or len(images.train[1])
    chosen = torch.randperm(len(images.train[1]), generator=stream(cell.seed, "training images judged"))[:count]
    parts = {
        "train": (images.train[0][chosen], images.train[1][chosen]),
        "validation": images.validation,
        "test": images.test,
    }
    some = _some(len(images.test[1]), settings.corrupted_images)
    pixels, labels = images.test[0][some], images.test[1][some]
    for entry in settings.corruptions:
        name, severity = entry.rsplit("-", 1)
        parts[entry] = (corrupted(pixels, name, int(severity), derived_seed(0, entry)), labels)
    return {key: (standardised(x, images), y) for key, (x, y) in parts.items()}


def _some(images: int, count: int) -> Tensor:
    """The places of `count` test images, the same ones for all cells; sets may lie in the order of their classes."""
    return torch.randperm(images, generator=stream(0, "test images"))[: count or images]
