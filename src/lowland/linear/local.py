"""The local fit: L1 logistic regression with a penalty for each feature and a weight for each row, by LIBLINEAR.

Fan, Chang, Hsieh, Wang, Lin 2008 (LIBLINEAR); Yuan, Ho, Lin 2012 (newGLMNET, its solver of this problem). It minimises

    ||u||_1 + C sum_i c_i log(1 + exp(-y_i x'_i u))

With columns divided by their penalties, x'_ij = x_ij / p_j, and C = 1 / (l lambda), u_j = lambda p_j w_j / lambda: the
objective of `objective.py` with m_j = lambda p_j. The intercept's column is _LOOSE in every row, so that its penalty is
lambda / _LOOSE: below what the duality gap, which knows no penalty of the intercept, is asked to reach.

LIBLINEAR finds the features soon and the last digits late or, at gaps near 1e-8, never. So Newton steps on the features
that it chose follow, with the signs of their coefficients held, as far as the objective falls.

Along a path, features that the strong rule (Tibshirani et al. 2012, arXiv 1011.2234) leaves out are not looked at; the
gap is computed over all of them, and those that break the conditions of optimality come back.
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, diags_array, hstack
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from .objective import Floats, Problem

_ONE_AT_A_TIME = threading.Lock()
_LOOSE = 1e4  # the intercept's column
_STEPS = (1e-4, 1e-6, 1e-8)  # tolerances of LIBLINEAR, until the gap is reached; its line search knows no finer ones
_DENSE = 500  # coefficients up to which Newton's system is solved at once
_POLISH = 20  # Newton steps at most


@dataclass(frozen=True)
class Solution:
    """A fitted model of one machine."""

    coef: Floats  # (d,)
    intercept: float
    gap: float  # duality gap
    wanted: float  # the gap that was asked for
    iterations: int  # of LIBLINEAR, outer

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
    warm: tuple[Solution, Floats] | None = None,
) -> Solution:
    """Return the minimum up to a duality gap of `tol` times the loss at zero; it may be missed: see `converged`.

    Args:
        penalties: m, (d,), all positive.
        warm: a solution of the same problem and its penalties, larger ones: it says which features to look at first.

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
    used = slopes > 0 if warm is None else _kept(problem, penalties, *warm)
    # A feature whose slope is zero at the start may still matter later: the check below brings it back.
    iterations = 0
    for step in _STEPS:
        while True:
            coef, intercept, more = _liblinear(problem, penalties, used, fit_intercept, step, max_iter)
            iterations += more
            left_out = np.abs(problem.gradient(coef, intercept)[0]) > penalties * (1 + 1e-9)
            left_out &= ~used
            if not left_out.any():
                break
            used = used | left_out
        coef, intercept = _polished(problem, penalties, coef, intercept, fit_intercept)
        gap = problem.gap(coef, intercept, penalties, fit_intercept)
        if gap <= wanted:
            break
    return Solution(coef, intercept, gap, wanted, iterations)


def _kept(problem: Problem, penalties: Floats, solution: Solution, larger: Floats) -> np.ndarray:
    slopes = np.abs(problem.gradient(solution.coef, solution.intercept)[0])
    kept = (slopes >= 2 * penalties - larger) | (solution.coef != 0)
    return np.asarray(kept if kept.any() else slopes == slopes.max())


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


def _polished(
    problem: Problem, penalties: Floats, coef: Floats, intercept: float, fit_intercept: bool
) -> tuple[Floats, float]:
    """Newton's method on the coefficients that are not zero, in the orthant of their signs."""
    places = np.flatnonzero(coef)
    signs = np.sign(coef[places])
    rows = csr_matrix(problem.X[:, places])
    if fit_intercept:
        rows = csr_matrix(hstack([rows, np.ones((rows.shape[0], 1))]))
    pull = np.concatenate([penalties[places] * signs, np.zeros(int(fit_intercept))])
    point = np.concatenate([coef[places], [intercept] * int(fit_intercept)])
    part = Problem(rows, problem.y, problem.weights, problem.total)
    value, slopes = part.loss(point) + pull @ point, part.gradient(point)[0] + pull
    for _ in range(_POLISH):
        live = np.flatnonzero(point)  # what has reached zero stays there
        chances = expit(rows @ point)
        step = np.zeros_like(point)
        step[live] = _newton_step(csr_matrix(rows[:, live]), problem.shares * chances * (1 - chances), slopes[live])
        size = 1.0
        while size > 1e-4:
            tried = point - size * step
            tried[: len(places)] = np.where(tried[: len(places)] * signs > 0, tried[: len(places)], 0.0)
            found, then = part.loss(tried) + pull @ tried, part.gradient(tried)[0] + pull
            # Near the minimum the objective no longer tells points apart; the slopes do.
            flat = abs(found - value) <= 1e-14 * abs(value)
            if np.abs(then[live]).max() < np.abs(slopes[live]).max() / 2 if flat else found < value:
                break
            size /= 2
        else:
            break
        point, value, slopes = tried, found, then
    polished = np.zeros_like(coef)
    polished[places] = point[: len(places)]
    return polished, float(point[-1]) if fit_intercept else 0.0


def _newton_step(rows: csr_matrix, curve: Floats, slopes: Floats) -> Floats:
    """Solve (rows' diag(curve) rows) step = slopes, up to a ridge that keeps it solvable."""
    diagonal = rows.power(2).T @ curve
    ridge = 1e-12 * float(diagonal.max(initial=1e-300))
    if len(slopes) <= _DENSE:
        hessian = (rows.T @ diags_array(curve) @ rows).toarray()
        hessian[np.diag_indices_from(hessian)] += ridge
        return np.asarray(np.linalg.lstsq(hessian, slopes)[0])
    size = len(slopes)
    times = LinearOperator((size, size), matvec=lambda v: rows.T @ (curve * (rows @ v)) + ridge * v, dtype=float)
    inverse = LinearOperator((size, size), matvec=lambda v: v / (diagonal + ridge), dtype=float)
    return np.asarray(cg(times, slopes, rtol=1e-8, maxiter=500, M=inverse)[0])
