"""The local problem of CSL: the objective of `objective.py` with a linear term, a w + a_0 b.

Two variables for each coefficient, w = u - v with u, v >= 0, make it smooth with bounds: L-BFGS-B (Byrd, Lu, Nocedal,
Zhu 1995) from scipy. There is no dual point at hand, so the gap is the one of Frank and Wolfe, which bounds how far the
point lies above the best one with |w_j| and |b| up to R: twice its own largest, and 2 at least:

    w g + sum_j m_j |w_j| + R sum_j max(0, |g_j| - m_j) + (b g_0 + R |g_0|)        g: gradient of loss and linear term
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize

from .local import Solution
from .objective import Floats, Problem

_STEPS = 2000
_FAR = 1e6  # a coefficient beyond this: there is no minimum


def solve_tilted(
    problem: Problem,
    penalties: Floats,
    tilt: tuple[Floats, float],
    *,
    start: tuple[Floats, float],
    fit_intercept: bool = True,
    tol: float = 1e-8,
) -> Solution:
    """Return the minimum; a problem that is not bounded below returns its start, not converged.

    >>> from scipy.sparse import csr_matrix
    >>> toy = Problem(csr_matrix([[1.0], [-1.0]]), np.array([1.0, -1.0]))
    >>> zero = np.zeros(1), 0.0
    >>> solve_tilted(toy, np.array([0.1]), (np.array([0.2]), 0.0), start=zero, fit_intercept=False).coef.round(4)
    array([0.8473])
    """
    lean, lean_intercept = tilt
    d = problem.X.shape[1]
    # A feature with no slope at all stays where it is: zero.
    used = np.flatnonzero((problem.X.getnnz(axis=0) > 0) | (np.abs(lean) > penalties) | (start[0] != 0))
    part = Problem(problem.X[:, used], problem.y, problem.weights, problem.total)
    lean, limits, n = lean[used], penalties[used], len(used)

    def value(point: Floats) -> tuple[float, Floats]:
        coef, intercept = point[:n] - point[n : 2 * n], float(point[-1]) if fit_intercept else 0.0
        slopes, slope = part.gradient(coef, intercept)
        found = (
            part.loss(coef, intercept)
            + lean @ coef
            + lean_intercept * intercept
            + limits @ (point[:n] + point[n : 2 * n])
        )
        full = [slopes + lean + limits, limits - slopes - lean]
        return float(found), np.concatenate([*full, [slope + lean_intercept]] if fit_intercept else full)

    first = start[0][used]
    begin = np.concatenate([np.maximum(first, 0), np.maximum(-first, 0), [start[1]] * int(fit_intercept)])
    bounds = [(0.0, None)] * (2 * n) + [(None, None)] * int(fit_intercept)
    options = {"maxiter": _STEPS, "maxfun": 2 * _STEPS, "ftol": 0.0, "gtol": tol * 1e-2, "maxcor": 20}

    def far(intermediate_result: Any) -> None:
        if np.abs(intermediate_result.x).max(initial=0.0) > _FAR:
            raise StopIteration

    result = minimize(value, begin, jac=True, method="L-BFGS-B", bounds=bounds, options=options, callback=far)
    point = begin if np.abs(result.x).max(initial=0.0) > _FAR else result.x
    coef, intercept = point[:n] - point[n : 2 * n], float(point[-1]) if fit_intercept else 0.0
    slopes, slope = part.gradient(coef, intercept)
    slopes, slope = slopes + lean, (slope + lean_intercept) * fit_intercept
    radius = 2 * max(float(np.abs(coef).max(initial=0.0)), abs(intercept), 1.0)
    gap = float(slopes @ coef + limits @ np.abs(coef) + radius * np.maximum(np.abs(slopes) - limits, 0).sum())
    gap += slope * intercept + radius * abs(slope)
    full = np.zeros(d)
    full[used] = coef
    wanted = max(tol, 1e-6) * float(problem.shares.sum()) * np.log(2.0)
    return Solution(full, intercept, max(gap, 0.0), wanted, int(result.nit))
