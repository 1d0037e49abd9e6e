"""One cell: every row of one network on one set with one seed, judged class by class."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowland.weights import Weights, applied

from ..grid.cells import Cell
from ..images.trajectory import seeded
from ..runs.randomness import one_thread
from .config import ImbalanceStudy
from .sets import Examples, load
from .tails import thirds
from .training import Trained, phases, refresh, train
from .views import steps_of

Metrics = dict[str, dict[str, float]]  # by part, then by metric


def run_cell(study: ImbalanceStudy, cell: Cell) -> dict[str, Any]:
    """Run one cell on one thread and return its result as plain data; the same cell gives the same numbers again.

    Raises:
        RuntimeError: a branch diverged.
        ValueError, FileNotFoundError: as `load` and the networks.
    """
    with one_thread(), seeded(cell.seed):
        examples = load(study, cell)
        judge = Judge(study, cell, examples)
        settings = study.averaging
        epochs = study.training.epochs if examples.images else study.training.text_epochs
        steps = epochs * steps_of(study, examples)
        methods: dict[str, Metrics] = {}
        choices: list[dict[str, Any]] = []
        training, mixing, judging = 0.0, 0.0, 0.0
        for name, row in phases(steps, settings.branches, settings.episodes).items():
            trained = train(study, cell, examples, row)
            training, mixing = training + trained.seconds, mixing + trained.mixing
            begun = time.process_time()
            methods[name] = judge.metrics(trained)
            if name == "IMWA":
                methods["IMWA + EMA"] = judge.metrics(trained, trained.means[settings.decay])
            if name == "single":
                every = {decay: judge.metrics(trained, mean) for decay, mean in trained.means.items()}
                # Of equal ones the first.
                chosen = max(every, key=lambda decay: every[decay]["validation"]["balanced"])
                methods["EMA"] = every[chosen]
                choices = [
                    {"method": "EMA", "value": decay} | {part: own[part]["balanced"] for part in ("validation", "test")}
                    for decay, own in every.items()
                ]
            judging += time.process_time() - begun
    return {
        "methods": methods,
        "curves": {},
        "trace": [],
        "sensitivity": {"decay": choices},
        "chosen": {
            "decay of the EMA": chosen,
            "training examples of the classes": examples.sizes,
            "with labels": len(examples.train[1]),
            "parameters": sum(p.numel() for p in trained.network.parameters()),
            "steps of a branch": steps,
        },
        "seconds": {"training": training, "averaging": mixing, "evaluation": judging},
    }


class Judge:
    """Accuracy over all classes, over each third of them, and NLL, on every part."""

    def __init__(self, study: ImbalanceStudy, cell: Cell, examples: Examples) -> None:
        self.study, self.cell, self.examples = study, cell, examples
        parts = {"train": examples.train, "validation": examples.validation, "test": examples.test}
        self.parts = {name: (examples.ready(x), y) for name, (x, y) in parts.items()}
        self.groups = thirds(examples.sizes)
        for name, (_, y) in self.parts.items():
            for group, classes in self.groups.items():
                if len(classes) and not np.isin(y.numpy(), classes).any():
                    raise ValueError(f"no {name} example is of the classes {group} {classes.tolist()[:5]}: take more")

    def metrics(self, trained: Trained, weights: Weights | None = None) -> Metrics:
        """Return all numbers of a trained row, or of an EMA beside it."""
        if weights is not None:
            with applied(trained.network, weights):
                refresh(self.study, self.cell, self.examples, trained.network)
                return self.metrics(trained)
        found: Metrics = {}
        for name, (x, y) in self.parts.items():
            probabilities = self._probabilities(trained.network, x)
            right = (probabilities.argmax(-1) == y).double().numpy()
            labels = y.numpy()
            of_class = {k: float(right[labels == k].mean()) for k in np.unique(labels).tolist()}
            balanced = float(np.mean(list(of_class.values())))
            groups = {
                group: float(np.mean([of_class[k] for k in classes.tolist() if k in of_class] or [balanced]))
                for group, classes in self.groups.items()
            }
            nll = -probabilities[torch.arange(len(y)), y].clamp_min(1e-12).log().double().mean()
            found[name] = {
                "balanced": balanced,
                "accuracy": float(right.mean()),
                **groups,
                "nll": float(nll),
                "passes": trained.passes / 1e3,
            }
        return found

    @torch.no_grad()
    def _probabilities(self, network: nn.Module, x: Tensor) -> Tensor:
        network.eval()
        return torch.cat([network(part).softmax(-1) for part in torch.split(x, self.study.evaluation.batch_size)])
