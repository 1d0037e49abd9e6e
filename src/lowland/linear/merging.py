"""The second round of OWA: an L2 logistic regression on what the local models say of some rows.

    min over v, v0 of  mean_i log(1 + exp(-y_i (z_i v + v0))) + (lambda_2 / 2) ||v||^2        z_i = x_i W + b

lambda_2 is the one of ten, 10^-4 to 10^4, with the best mean accuracy over folds, the smallest where several are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from .objective import Floats
from .rows import Keys, folds

GRID = 10.0 ** np.linspace(-4, 4, 10)
_STEPS = 50  # Newton steps at most


def merge(
    Z: Floats,
    y: Floats,
    weights: Floats,
    keys: Keys,
    *,
    lambda_: float | None = None,
    count: int = 5,
    fit_intercept: bool = True,
) -> tuple[Floats, float, float]:
    """Return v, v0 and lambda_2.

    Args:
        Z: (n, models).
        y: (n,), +1 and -1.
        keys: (n,); they shuffle the folds.
        lambda_: lambda_2; None: by `count` folds.

    >>> Z = np.array([[2.0], [1.0], [-1.0], [-2.0]])
    >>> v, v0, _ = merge(Z, np.sign(Z[:, 0]), np.ones(4), np.arange(4, dtype=np.uint64), lambda_=1.0)
    >>> v.round(4), abs(v0) < 1e-12
    (array([0.4721]), True)
    """
    if lambda_ is None:
        lambda_ = _chosen(Z, y, weights, keys, count, fit_intercept)
    v = ridge(Z, y, weights, lambda_, fit_intercept)
    return v[: Z.shape[1]], float(v[-1]) if fit_intercept else 0.0, lambda_


def ridge(
    Z: Floats, y: Floats, weights: Floats, lambda_: float, fit_intercept: bool, start: Floats | None = None
) -> Floats:
    """Return v, with v0 behind it where there is an intercept, by Newton's method.

    >>> ridge(np.array([[1.0], [-1.0]]), np.array([1.0, -1.0]), np.ones(2), 0.5, False).round(4)
    array([0.6748])
    """
    rows = np.column_stack([Z, np.ones(len(Z))]) if fit_intercept else Z
    shares = weights / weights.sum()
    pull = np.full(rows.shape[1], lambda_)
    if fit_intercept:
        # Labels of one side only have no finite intercept: a tiny pull gives them a large one.
        pull[-1] = 0.0 if 0 < shares[y > 0].sum() < 1 and (y < 0).any() else 1e-6
    v = np.zeros(rows.shape[1]) if start is None else start
    if not len(v):
        return v
    value = _value(rows, y, shares, pull, v)
    for _ in range(_STEPS):
        chances = expit(rows @ v)
        slopes = rows.T @ (shares * (chances - (y > 0))) + pull * v
        if np.abs(slopes).max() < 1e-14:
            break
        hessian = (rows.T * (shares * chances * (1 - chances))) @ rows + np.diag(pull)
        hessian[np.diag_indices_from(hessian)] += 1e-14 * max(1.0, float(hessian.max()))
        step = np.linalg.solve(hessian, slopes)
        size, found = 1.0, _value(rows, y, shares, pull, v - step)
        while found >= value and size > 1e-6:
            size /= 2
            found = _value(rows, y, shares, pull, v - size * step)
        if found >= value:
            break
        v, value = v - size * step, found
    return v


def _value(rows: Floats, y: Floats, shares: Floats, pull: Floats, v: Floats) -> float:
    return float(shares @ np.logaddexp(0.0, -y * (rows @ v)) + pull @ v**2 / 2)


def _chosen(Z: Floats, y: Floats, weights: Floats, keys: Keys, count: int, fit_intercept: bool) -> float:
    """The smallest lambda_2 of GRID with the best mean accuracy over folds."""
    fold = folds(keys, (y > 0).astype(np.int64), count)
    scores = np.zeros(len(GRID))
    for held in range(int(fold.max()) + 1):
        test: NDArray[np.bool_] = fold == held
        if test.all():
            continue
        start = None
        for place in reversed(range(len(GRID))):  # from the strongest pull, each start at the last solution
            start = ridge(Z[~test], y[~test], weights[~test], GRID[place], fit_intercept, start)
            said = Z[test] @ start[: Z.shape[1]] + (start[-1] if fit_intercept else 0.0)
            scores[place] += weights[test] @ ((said > 0) == (y[test] > 0)) / weights[test].sum()
    # Sums of the same weights in another order differ by a rounding: no better score.
    return float(GRID[np.flatnonzero(scores >= scores.max() - 1e-9)[0]])
