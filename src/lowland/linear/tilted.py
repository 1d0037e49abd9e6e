"""The local problem of CSL and ProxCSL: the objective of `objective.py` with a linear term and a pull to the start.

    f(w, b) + a w + a_0 b + (alpha / 2) ||w - w_0||^2 + sum_j m_j |w_j|

Two variables for each coefficient, w = u - v with u, v >= 0, make it smooth with bounds: L-BFGS-B (Byrd, Lu, Nocedal,
Zhu 1995) from scipy, on the features in use; those that break the conditions of optimality come into use, and Newton's
method ends it. There is no dual point at hand, so the gap is the one of Frank and Wolfe, which bounds how far the point
lies above the best one with |w_j| and |b| up to R: twice its own largest, and 2 at least:

    w g + sum_j m_j |w_j| + R sum_j max(0, |g_j| - m_j) + (b g_0 + R |g_0|)        g: gradient of what is smooth
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from .local import Solution
from .newton import Tilt, moved
from .objective import Floats, Problem

_STEPS = 2000
_SETS = 20  # times that features come into use
_FAR = 1e6  # a coefficient beyond this: there is no minimum


def solve_tilted(
    problem: Problem,
    penalties: Floats,
    tilt: tuple[Floats, float],
    *,
    start: tuple[Floats, float],
    pull: float = 0.0,
    fit_intercept: bool = True,
    tol: float = 1e-8,
) -> Solution:
    """Return the minimum; a problem that is not bounded below returns its start, not converged.

    Args:
        tilt: a, (d,), and a_0.
        start: w_0, (d,), and b.
        pull: alpha.

    >>> from scipy.sparse import csr_matrix
    >>> toy = Problem(csr_matrix([[1.0], [-1.0]]), np.array([1.0, -1.0]))
    >>> zero = np.zeros(1), 0.0
    >>> solve_tilted(toy, np.array([0.1]), (np.array([0.2]), 0.0), start=zero, fit_intercept=False).coef.round(4)
    array([0.8473])
    """
    coef, intercept = start
    iterations, wanted = 0, max(tol, 1e-6) * float(problem.shares.sum()) * np.log(2.0)
    used = coef != 0
    for _ in range(_SETS):
        slopes = problem.gradient(coef, intercept)[0] + tilt[0] + pull * (coef - start[0])
        over = np.abs(slopes) - penalties
        new = ~used & (over > 1e-9 * penalties)
        if iterations and not new.any():
            break
        most = max(200, int(used.sum()))
        if new.sum() > most:  # the steepest first
            new &= over >= np.partition(np.where(new, over, -np.inf), -most)[-most]
        used = used | new
        if not used.any() and not fit_intercept:
            break  # zero is the minimum
        coef, intercept, more = _on(problem, penalties, tilt, start, (coef, intercept), pull, used, fit_intercept, tol)
        iterations += max(more, 1)
        if max(np.abs(coef).max(initial=0.0), abs(intercept)) > _FAR:
            coef, intercept = start
            break
    places = np.flatnonzero(coef)
    if len(places) and (coef != start[0]).any():  # the last digits
        added, at = Tilt(tilt[0], tilt[1], pull, start[0]), (coef, intercept)
        coef, intercept, _ = moved(problem, penalties, places, np.sign(coef[places]), at, fit_intercept, 0.0, added)
    slopes, slope = problem.gradient(coef, intercept)
    slopes = slopes + tilt[0] + pull * (coef - start[0])
    slope = (slope + tilt[1]) * fit_intercept
    radius = 2 * max(float(np.abs(coef).max(initial=0.0)), abs(intercept), 1.0)
    gap = float(slopes @ coef + penalties @ np.abs(coef) + radius * np.maximum(np.abs(slopes) - penalties, 0).sum())
    gap += slope * intercept + radius * abs(slope)
    return Solution(coef, intercept, max(gap, 0.0), wanted, iterations)


def _on(
    problem: Problem,
    penalties: Floats,
    tilt: tuple[Floats, float],
    start: tuple[Floats, float],
    at: tuple[Floats, float],
    pull: float,
    used: NDArray[np.bool_],
    fit_intercept: bool,
    tol: float,
) -> tuple[Floats, float, int]:
    """L-BFGS-B on the used features, from a point; more than _FAR away it stops."""
    places = np.flatnonzero(used)
    part = Problem(problem.X[:, places], problem.y, problem.weights, problem.total)
    lean, limits, centre, n = tilt[0][places], penalties[places], start[0][places], len(places)

    def value(point: Floats) -> tuple[float, Floats]:
        coef, intercept = point[:n] - point[n : 2 * n], float(point[-1]) if fit_intercept else 0.0
        slopes, slope = part.gradient(coef, intercept)
        away = coef - centre
        found = part.loss(coef, intercept) + lean @ coef + tilt[1] * intercept + pull / 2 * (away @ away)
        slopes = slopes + lean + pull * away
        full = [slopes + limits, limits - slopes]
        found += limits @ (point[:n] + point[n : 2 * n])
        return float(found), np.concatenate([*full, [slope + tilt[1]]] if fit_intercept else full)

    first = at[0][places]
    begin = np.concatenate([np.maximum(first, 0), np.maximum(-first, 0), [at[1]] * int(fit_intercept)])
    bounds = [(0.0, None)] * (2 * n) + [(None, None)] * int(fit_intercept)
    options = {"maxiter": _STEPS, "maxfun": 2 * _STEPS, "ftol": 0.0, "gtol": tol * 1e-2, "maxcor": 20}

    def far(intermediate_result: Any) -> None:
        if np.abs(intermediate_result.x).max(initial=0.0) > _FAR:
            raise StopIteration

    result = minimize(value, begin, jac=True, method="L-BFGS-B", bounds=bounds, options=options, callback=far)
    coef = np.zeros_like(start[0])
    coef[places] = result.x[:n] - result.x[n : 2 * n]
    return coef, float(result.x[-1]) if fit_intercept else 0.0, int(result.nit)
