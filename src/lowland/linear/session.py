"""One fit: the machines, what they said of their rows, and what has travelled so far."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_class_weight

from . import steps
from .engines import Engine, Step
from .messages import Description, Meter, Models, Projected
from .objective import Floats

Progress = Callable[[str, int, int], None]  # stage, machines done, machines in all
Path = list[tuple[csr_matrix, Floats]]  # for each lambda: coefficients (problems, d), intercepts (problems,)
_FLOOR = 10  # rows of the second round for each machine, at least, as far as there are rows
_LEAST = 100  # and of all machines together


class Session:
    """Runs steps on the machines of one fit, counts bytes, and keeps the worst gap."""

    def __init__(self, engine: Engine, holders: Sequence[Any], progress: Progress | None) -> None:
        self.engine, self.holders, self.progress = engine, holders, progress
        self.meter = Meter()
        self.rounds = 0
        self.gap, self.iterations, self.missed, self.fits = 0.0, 0, 0, 0
        self.descriptions: list[Description] = []
        self.common: steps.Common

    def open(self, settings: Any, seed: int) -> None:
        """Ask the machines what they have, and check that it fits together."""
        self.descriptions = self.everywhere(steps.describe, seed, "reading")
        self.features = self.descriptions[0].features
        for number, one in enumerate(self.descriptions):
            if one.features != self.features:
                raise ValueError(
                    f"partition {number}: X has {one.features} features, but partition 0 has {self.features}: "
                    "give every shard the same n_features"
                )
        classes = np.unique(np.concatenate([one.classes for one in self.descriptions]))
        if len(classes) < 2:
            raise ValueError(
                "This solver needs samples of at least 2 classes in the data, but the data contains only one class: "
                f"{classes[0]!r}"
            )
        sums = np.zeros(len(classes))
        for one in self.descriptions:
            sums[np.searchsorted(classes, one.classes)] += one.sums
        self.common = steps.Common(
            classes,
            _class_weights(settings.class_weight, classes, sums),
            bool(settings.fit_intercept),
            float(settings.tol),
            int(settings.max_iter),
            seed,
        )

    def everywhere(self, step: Step, job: Any, stage: str, down: Any = None) -> list[Any]:
        """Run a step on all machines; `down` is what of the job had to travel there."""
        return self._run(step, self.holders, job, stage, down)

    def at_root(self, step: Step, job: Any, stage: str, down: Any = None) -> Any:
        """Run a step on the first machine."""
        return self._run(step, self.holders[:1], job, stage, down)[0]

    def fits_everywhere(self, job: steps.FitJob, stage: str, down: Any = None) -> list[Models]:
        """Return the local models of all machines."""
        found: list[Models] = self.everywhere(steps.fit, job, stage, down)
        for models in found:
            self.note(models)
        return found

    def note(self, models: Models) -> None:
        """Keep the worst of what the fits say of themselves."""
        self.gap = max(self.gap, float(models.gaps.max(initial=0.0)))
        self.iterations = max(self.iterations, models.iterations)
        self.missed += int((~models.converged).sum())
        self.fits += models.converged.size

    def warn(self, tol: float) -> None:
        """Say which fits missed the gap that was asked for."""
        if self.missed:
            warnings.warn(
                f"{self.missed} of {self.fits} local fits did not reach a duality gap of {tol:g} times the loss at "
                f"zero; the largest gap is {self.gap:.2g}. Increase max_iter or tol.",
                ConvergenceWarning,
                stacklevel=4,
            )

    def mean(self, models: Sequence[Models]) -> Path:
        """Return the mean of the local models, over the machines that have one."""
        weights = np.array([one.present for one in models], dtype=float)  # (machines, problems)
        weights = weights / np.maximum(weights.sum(axis=0), 1)
        path = []
        for place in range(len(models[0].coefs)):
            coefs = sum(one.coefs[place].multiply(weight[:, None]) for one, weight in zip(models, weights, strict=True))
            intercepts = sum(one.intercepts[place] * weight for one, weight in zip(models, weights, strict=True))
            path.append((csr_matrix(coefs), np.asarray(intercepts)))
        return path

    def merge(self, models: Sequence[Models], settings: Any) -> Path:
        """Return W v of every lambda and problem: OWA's second round."""
        pool = [[_stacked(models, place, k) for k in range(len(models[0].present))] for place in _places(models)]
        distinct = sum(one.distinct for one in self.descriptions)
        share = min(1.0, max(float(settings.merge_rows), max(_FLOOR * len(models), _LEAST) / distinct))
        columns, added = [[one[0] for one in row] for row in pool], [[one[1] for one in row] for row in pool]
        job = steps.SampleJob(self.common, columns, added, 1.0 if settings.merge_on == "root" else share)
        if settings.merge_on == "root":
            whole = steps.MergeJob(job, settings.merge_lambda, settings.folds)
            self.meter.down((columns, added), 1)
            found = self.at_root(steps.merge_here, whole, "merging")
        else:
            seen: list[Projected] = self.everywhere(steps.project, job, "projecting", (columns, added))
            found = steps.merged(_joined(seen), self.common, settings.merge_lambda, settings.folds)
        path = []
        for row, merged in zip(pool, found, strict=True):
            pairs = [(columns, added, v, v0) for (columns, added), (v, v0, _) in zip(row, merged, strict=True)]
            coefs = [csr_matrix(v[None, :] @ columns) for columns, _, v, _ in pairs]
            path.append((csr_matrix(vstack(coefs)), np.array([float(b @ v) + v0 for _, b, v, v0 in pairs])))
        self.merge_lambdas = np.array([[one[2] for one in row] for row in found])
        return path

    def _run(self, step: Step, holders: Sequence[Any], job: Any, stage: str, down: Any) -> list[Any]:
        def told(done: int, count: int) -> None:
            if self.progress is not None:
                self.progress(stage, done, count)

        if down is not None:
            self.meter.down(down, len(holders))
        found = self.engine.run(step, holders, job, told)
        for message in found:
            self.meter.up(message)
        return found


def _places(models: Sequence[Models]) -> range:
    return range(len(models[0].coefs))


def _stacked(models: Sequence[Models], place: int, k: int) -> tuple[csr_matrix, Floats]:
    """The models of one lambda and problem that have a coefficient, (models, d), and their intercepts."""
    kept = [one for one in models if one.present[k] and one.coefs[place][[k]].count_nonzero()]
    if not kept:
        return csr_matrix((0, models[0].coefs[place].shape[1])), np.zeros(0)
    rows = csr_matrix(vstack([one.coefs[place][[k]] for one in kept]))
    return rows, np.array([one.intercepts[place, k] for one in kept])


def _joined(seen: Sequence[Projected]) -> Projected:
    values = [
        [np.concatenate(blocks) for blocks in zip(*rows, strict=True)]
        for rows in zip(*(one.values for one in seen), strict=True)
    ]
    return Projected(
        values,
        np.concatenate([one.codes for one in seen]),
        np.concatenate([one.weights for one in seen]),
        np.concatenate([one.keys for one in seen]),
    )


def _class_weights(asked: Any, classes: NDArray[Any], sums: Floats) -> Floats:
    if isinstance(asked, str) and asked == "balanced":
        return np.asarray(sums.sum() / (len(classes) * sums))
    return np.asarray(compute_class_weight(asked, classes=classes, y=classes), dtype=float)
