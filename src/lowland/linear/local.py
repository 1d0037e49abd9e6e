"""The local fit: L1 logistic regression with a penalty for each feature and a weight for each row.

Newton's method on the features in use (`newton.py`) finds the minimum. Where it misses the duality gap, LIBLINEAR looks
for other features, and Newton's method goes on from there.

LIBLINEAR (Fan, Chang, Hsieh, Wang, Lin 2008; Yuan, Ho, Lin 2012, newGLMNET, its solver of this problem) minimises

    ||u||_1 + C sum_i c_i log(1 + exp(-y_i x'_i u))

With columns divided by their penalties, x'_ij = x_ij / p_j, and C = 1 / (l lambda), u_j = lambda p_j w_j / lambda: the
objective of `objective.py` with m_j = lambda p_j. The intercept's column is _LOOSE in every row, so that its penalty is
lambda / _LOOSE: below what the duality gap, which knows no penalty of the intercept, is asked to reach. It goes one
coordinate at a time: it does not converge on rows that are dense and heavy, as centroids are.
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from .newton import descended
from .objective import Floats, Problem

_ONE_AT_A_TIME = threading.Lock()
_LOOSE = 1e4  # the intercept's column
_STEPS = (1e-4, 1e-6, 1e-8)  # tolerances of LIBLINEAR, until the gap is reached; its line search knows no finer ones


@dataclass(frozen=True)
class Solution:
    """A fitted model of one machine."""

    coef: Floats  # (d,)
    intercept: float
    gap: float  # duality gap
    wanted: float  # the gap that was asked for
    iterations: int  # sets of features, and outer iterations of LIBLINEAR

    @property
    def converged(self) -> bool:
        """Whether the gap is as small as was asked."""
        return self.gap <= self.wanted


def solve(
    problem: Problem,
    penalties: Floats,
    *,
    fit_intercept: bool = True,
    tol: float = 1e-8,
    max_iter: int = 100,
    warm: Solution | None = None,
) -> Solution:
    """Return the minimum up to a duality gap of `tol` times the loss at zero; it may be missed: see `converged`.

    Args:
        penalties: m, (d,), all positive.
        warm: a solution of the same problem with other penalties, to begin at.

    >>> toy = Problem(csr_matrix([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [-1.0, 1.0]]), np.array([1.0, 1, 1, -1]))
    >>> solve(toy, np.full(2, 0.05), fit_intercept=False).coef.round(6)
    array([2.640371, 0.726115])
    """
    d = problem.X.shape[1]
    wanted = tol * float(problem.shares.sum()) * np.log(2.0)
    base = problem.base_rate() if fit_intercept else 0.0
    flat = Solution(np.zeros(d), base, 0.0, wanted, 0)
    slopes = np.abs(problem.gradient(flat.coef, base)[0])
    if (slopes <= penalties).all():
        return flat
    start = (flat.coef, base) if warm is None else (warm.coef, warm.intercept)
    coef, intercept, gap, iterations = descended(problem, penalties, start, fit_intercept, wanted, max_iter)
    for step in _STEPS:
        if gap <= wanted:
            break
        used = (np.abs(problem.gradient(coef, intercept)[0]) >= penalties / 2) | (coef != 0)
        coef, intercept, more = _liblinear(problem, penalties, used, fit_intercept, step, max_iter)
        coef, intercept, gap, again = descended(problem, penalties, (coef, intercept), fit_intercept, wanted, max_iter)
        iterations += more + again
    return Solution(coef, intercept, gap, wanted, iterations)


def _liblinear(
    problem: Problem, penalties: Floats, used: np.ndarray, fit_intercept: bool, tol: float, max_iter: int
) -> tuple[Floats, float, int]:
    """LIBLINEAR on the used columns, divided by their penalties relative to the smallest one."""
    places = np.flatnonzero(used)
    level = float(penalties[places].min())  # lambda of the equation
    scale = penalties[places] / level
    X = csr_matrix(problem.X[:, places]) if len(places) < problem.X.shape[1] else problem.X
    if not X.has_sorted_indices:
        X = X.sorted_indices()  # LIBLINEAR's door would sort the places in place, and they are the caller's
    # One copy at most: of the data, and only where there is something to divide.
    data = X.data if (scale == 1).all() else X.data / scale[X.indices]
    ends = X.indices.astype(np.int32, copy=False), X.indptr.astype(np.int32, copy=False)
    scaled = csr_matrix((data, *ends), shape=X.shape, copy=False)
    mean = float(problem.shares.mean())
    model = LogisticRegression(
        l1_ratio=1,
        solver="liblinear",
        C=mean / level,
        tol=tol,
        max_iter=max_iter,
        fit_intercept=fit_intercept,
        intercept_scaling=_LOOSE,
        random_state=0,
    )
    # Its random numbers are the process's: threads that took turns would change the last digits.
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the duality gap says it, in numbers
        model.fit(scaled, problem.y, sample_weight=problem.shares / mean)
    coef = np.zeros(problem.X.shape[1])
    coef[places] = model.coef_[0] / scale
    return coef, float(model.intercept_[0]) if fit_intercept else 0.0, int(model.n_iter_[0])
