"""What a machine does with its rows when it is asked: each step takes the rows and a job, and returns a message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from .local import Solution, solve
from .merging import merge
from .messages import Centroids, Description, Gradients, Models, Projected
from .objective import Floats, Problem
from .rows import Part, distinct, row_keys, sample
from .tilted import solve_tilted


@dataclass(frozen=True)
class Common:
    """What all steps know once the machines have described their rows."""

    classes: NDArray[Any]  # (k,), sorted
    class_weights: Floats  # (k,)
    fit_intercept: bool
    tol: float
    max_iter: int
    seed: int

    @property
    def positives(self) -> range:
        """The class, as a place in `classes`, of each problem: the second of two, or each against the rest."""
        return range(1, 2) if len(self.classes) == 2 else range(len(self.classes))


@dataclass(frozen=True)
class FitJob:
    """Local L1 fits: penalties are lambda for all features, or follow `shares`."""

    common: Common
    lambdas: Floats
    share: float = 1.0  # of the rows
    centroids: Centroids | None = None  # rows that are added, with their counts times `centroid_weight` as weights
    centroid_weight: float = 1.0
    unit: bool = False  # centroids count one row each
    shares: Sequence[csr_matrix] | None = None  # for each lambda (problems, d): share of machines with the feature
    boost: float = 10.0


@dataclass(frozen=True)
class SampleJob:
    """Project rows by all local models: for each lambda and problem (machines with a model, d), and intercepts."""

    common: Common
    models: Sequence[Sequence[csr_matrix]]
    intercepts: Sequence[Sequence[Floats]]
    share: float


@dataclass(frozen=True)
class MergeJob:
    """Project all rows of one machine and merge there."""

    sample: SampleJob
    lambda_: float | None
    folds: int


@dataclass(frozen=True)
class GradientJob:
    """The gradient of the loss at one model for each lambda and problem."""

    common: Common
    coefs: Sequence[csr_matrix]  # for each lambda (problems, d)
    intercepts: Floats  # (lambdas, problems)


@dataclass(frozen=True)
class TiltJob:
    """The local problem with the gradient of all machines in place of the machine's own, at the averaged models."""

    at: GradientJob
    gradients: Gradients  # of all machines' loss
    lambdas: Floats
    pull: float = 0.0  # alpha: of the squared distance to the models there, halved


def describe(part: Part, job: int) -> Description:
    """Return counts and classes; the job is a seed."""
    classes, codes = np.unique(part.y, return_inverse=True)
    keys = row_keys(part.X, job)
    return Description(
        part.X.shape[1], len(part.y), distinct(keys), classes, np.bincount(codes, part.weights).astype(float)
    )


def centroids(part: Part, job: Common) -> Centroids:
    """Return the weighted mean row of each class that has rows here."""
    codes = np.searchsorted(job.classes, part.y)
    sums = np.bincount(codes, part.weights, minlength=len(job.classes)).astype(float)
    there = np.flatnonzero(sums)
    places = np.searchsorted(there, codes)
    pick = csr_matrix((part.weights / sums[codes], (places, np.arange(len(codes)))), shape=(len(there), len(codes)))
    return Centroids(csr_matrix(pick @ part.X).sorted_indices(), there, sums[there])


def fit(part: Part, job: FitJob) -> Models:
    """Return the local models."""
    if job.share < 1:
        places, weights = sample(row_keys(part.X, job.common.seed + 1), part.weights, job.share)
        part = Part(part.X[places], part.y[places], weights)
    coefs: list[list[Floats]] = [[] for _ in job.lambdas]
    shape = len(job.lambdas), len(job.common.positives)
    intercepts, gaps, converged = np.zeros(shape), np.zeros(shape), np.ones(shape, dtype=bool)
    present = np.zeros(shape[1], dtype=bool)
    iterations = 0
    order = np.argsort(job.lambdas)[::-1]  # from the largest, each starts at the last
    for k, problem in enumerate(_problems(part, job)):
        sides = {side for side in (1, -1) if (problem.y == side).any()}
        # One side only: its intercept would be infinite. Without an intercept there is a minimum.
        present[k] = len(sides) == 2 or (bool(sides) and not job.common.fit_intercept)
        if not present[k]:
            for one in coefs:
                one.append(np.zeros(part.X.shape[1]))
            continue
        penalties = [penalties_of(job, place, k, part.X.shape[1]) for place in range(len(job.lambdas))]
        # What no penalty of the path can let in is not looked at.
        open_ = np.flatnonzero(problem.steepest() > np.min(penalties, axis=0))
        problem = replace(problem, X=csr_matrix(problem.X[:, open_]))
        warm: Solution | None = None
        for place in order:
            warm = solve(
                problem,
                penalties[place][open_],
                fit_intercept=job.common.fit_intercept,
                tol=job.common.tol,
                max_iter=job.common.max_iter,
                warm=warm,
            )
            whole = np.zeros(part.X.shape[1])
            whole[open_] = warm.coef
            coefs[place].append(whole)
            intercepts[place, k], gaps[place, k] = warm.intercept, warm.gap
            converged[place, k] = warm.converged
            iterations = max(iterations, warm.iterations)
    sparse = [csr_matrix(np.vstack(one)) for one in coefs]
    return Models(sparse, intercepts, present, gaps, converged, iterations)


def penalties_of(job: FitJob, place: int, k: int, d: int) -> Floats:
    """Return the penalty of each feature, (d,): their mean is lambda.

    W_j = 1 + boost s_j;  lambda_2 = lambda d / sum_j (1 / W_j);  m_j = lambda_2 / W_j
    """
    lambda_ = float(job.lambdas[place])
    if job.shares is None:
        return np.full(d, lambda_)
    inverse = 1 / (1 + job.boost * job.shares[place][[k]].toarray().ravel())
    return np.asarray(lambda_ * d / inverse.sum() * inverse)


def project(part: Part, job: SampleJob) -> Projected:
    """Return what the local models say of some rows."""
    keys = row_keys(part.X, job.common.seed + 2)
    places, weights = sample(keys, part.weights, job.share)
    X, codes = part.X[places], np.searchsorted(job.common.classes, part.y[places])
    values = [
        [np.asarray((X @ model.T).toarray()) + intercept for model, intercept in zip(models, added, strict=True)]
        for models, added in zip(job.models, job.intercepts, strict=True)
    ]
    return Projected(values, codes, weights * job.common.class_weights[codes], keys[places])


def merge_here(part: Part, job: MergeJob) -> list[list[tuple[Floats, float, float]]]:
    """Return v, v0 and lambda_2 of each lambda and problem, from all rows of this machine."""
    return merged(project(part, job.sample), job.sample.common, job.lambda_, job.folds)


def merged(
    seen: Projected, common: Common, lambda_: float | None, count: int
) -> list[list[tuple[Floats, float, float]]]:
    """Return v, v0 and lambda_2 of each lambda and problem."""
    found: list[list[tuple[Floats, float, float]]] = []
    for values in seen.values:
        found.append([])
        for Z, positive in zip(values, common.positives, strict=True):
            y = np.where(seen.codes == positive, 1.0, -1.0)
            settings = {"lambda_": lambda_, "count": count, "fit_intercept": common.fit_intercept}
            found[-1].append(merge(Z, y, seen.weights, seen.keys, **settings))  # type: ignore[arg-type]
    return found


def gradient(part: Part, job: GradientJob) -> Gradients:
    """Return the gradients of this machine's mean loss, and its weight."""
    problems = list(_problems(part, FitJob(job.common, np.zeros(len(job.coefs)))))
    rows, added = [], np.zeros(job.intercepts.shape)
    for place, coefs in enumerate(job.coefs):
        slopes = []
        for k, problem in enumerate(problems):
            slope, added[place, k] = problem.gradient(coefs[[k]].toarray().ravel(), job.intercepts[place, k])
            slopes.append(slope)
        rows.append(csr_matrix(np.vstack(slopes)))
    return Gradients(rows, added, float(part.weights.sum()))


def tilt(part: Part, job: TiltJob) -> Models:
    """Return the models of the tilted local problems."""
    own = gradient(part, job.at)
    coefs: list[csr_matrix] = []
    shape = job.at.intercepts.shape
    intercepts, gaps, converged = np.zeros(shape), np.zeros(shape), np.ones(shape, dtype=bool)
    iterations = 0
    problems = list(_problems(part, FitJob(job.at.common, job.lambdas)))
    for place, lambda_ in enumerate(job.lambdas):
        found = []
        for k, problem in enumerate(problems):
            away = (job.gradients.coefs[place][[k]] - own.coefs[place][[k]]).toarray().ravel()
            solution = solve_tilted(
                problem,
                np.full(part.X.shape[1], lambda_),
                (away, float(job.gradients.intercepts[place, k] - own.intercepts[place, k])),
                start=(job.at.coefs[place][[k]].toarray().ravel(), float(job.at.intercepts[place, k])),
                pull=job.pull,
                fit_intercept=job.at.common.fit_intercept,
                tol=job.at.common.tol,
            )
            found.append(solution.coef)
            intercepts[place, k], gaps[place, k] = solution.intercept, solution.gap
            converged[place, k] = solution.converged
            iterations = max(iterations, solution.iterations)
        coefs.append(csr_matrix(np.vstack(found)))
    return Models(coefs, intercepts, np.ones(shape[1], dtype=bool), gaps, converged, iterations)


def _problems(part: Part, job: FitJob) -> Iterator[Problem]:
    """The problem of each class against the rest, with the centroids behind the rows."""
    common = job.common
    X, codes, weights = part.X, np.searchsorted(common.classes, part.y), part.weights
    total = float(weights.sum())
    if job.centroids is not None:
        added = job.centroids
        counts = np.ones(len(added.codes)) if job.unit else added.counts * job.centroid_weight
        X = csr_matrix(vstack([X, added.means]))
        codes, weights = np.concatenate([codes, added.codes]), np.concatenate([weights, counts])
        total += len(added.codes)
    base = Problem(X, np.zeros(0), weights * common.class_weights[codes], total)
    for positive in common.positives:
        yield replace(base, y=np.where(codes == positive, 1.0, -1.0))
