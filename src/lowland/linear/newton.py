"""The local fit: Newton's method on the coefficients in use, each kept on its side of zero.

    minimise  f(w, b) + sum_j m_j s_j w_j   with  s_j w_j >= 0        s_j: sign of w_j or, at zero, of the descent

In use are the coefficients that are not zero and, of those at zero whose slope is above their penalty, the steepest; a
step that would cross zero ends there (two-metric projection: Gafni, Bertsekas 1984; orthants: Andrew, Gao 2007). More
features come into use until the duality gap is reached, which is computed over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.sparse import csr_matrix, diags_array, hstack
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import expit

from .objective import Floats, Problem

_AT_ONCE = 2000  # coefficients up to which Newton's system is solved at once
_NUMBERS = 2_000_000  # rows times coefficients up to which rows are dense
_FULL = 0.05  # else rows with more than this share of the columns are multiplied as dense ones
_STEPS = 30  # Newton steps for one set of features
_FAINT = 1e-2  # of what the first step on a set of features promised: others come into use
_FEW = 20  # features that come into use at once, at least
_RIDGES = (1e-12, 1e-6, 1e-3, 1e-1, 1e1)  # times the largest curvature, until a step descends
_SMALL = 0.05  # of a step: another ridge


@dataclass(frozen=True)
class Tilt:
    """What is added to the loss: a w + a_0 b + (alpha / 2) ||w - w_0||^2.

    >>> Tilt(np.zeros(2), 0.0, 0.1, np.ones(2)).pull
    0.1
    """

    slopes: Floats  # a, (d,)
    slope: float  # a_0
    pull: float  # alpha
    centre: Floats  # w_0, (d,)


def descended(
    problem: Problem,
    penalties: Floats,
    start: tuple[Floats, float],
    fit_intercept: bool,
    wanted: float,
    rounds: int,
) -> tuple[Floats, float, float, int]:
    """Return coefficients, intercept, their duality gap, at most `wanted` unless `rounds` were too few, and the rounds.

    >>> toy = Problem(csr_matrix([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [-1.0, 1.0]]), np.array([1.0, 1, 1, -1]))
    >>> descended(toy, np.full(2, 0.05), (np.zeros(2), 0.0), False, 1e-9, 10)[0].round(6)
    array([2.640371, 0.726115])
    """
    (coef, intercept), best, number = start, np.inf, 0
    margins = problem.margins(coef, intercept)
    while number < rounds:
        number += 1
        places, signs, more = _in_use(coef, problem.gradient_at(margins)[0], penalties)
        point = coef, intercept
        coef, intercept, margins = moved(problem, penalties, places, signs, point, fit_intercept, wanted / 10)
        gap = problem.gap_at(margins, coef, penalties, fit_intercept)
        if gap <= wanted or (not more and gap >= best):
            break
        best = min(best, gap)
    places = np.flatnonzero(coef)  # the last digits
    signs, point = np.sign(coef[places]), (coef, intercept)
    coef, intercept, margins = moved(problem, penalties, places, signs, point, fit_intercept, 0.0)
    return coef, intercept, problem.gap_at(margins, coef, penalties, fit_intercept), number


def _in_use(coef: Floats, slopes: Floats, penalties: Floats) -> tuple[NDArray[np.int64], Floats, bool]:
    """Places in use, the side of each, and whether some are new."""
    over = np.where(coef == 0, np.abs(slopes) - penalties * (1 + 1e-9), 0.0)
    new = over > 0
    most = max(_FEW, int(np.count_nonzero(coef)))
    if new.sum() > most:
        new &= over >= np.partition(over, -most)[-most]
    places = np.flatnonzero((coef != 0) | new)
    return places, np.where(new[places], -np.sign(slopes[places]), np.sign(coef[places])), bool(new.any())


def moved(
    problem: Problem,
    penalties: Floats,
    places: NDArray[np.int64],
    signs: Floats,
    start: tuple[Floats, float],
    fit_intercept: bool,
    enough: float,
    tilt: Tilt | None = None,
) -> tuple[Floats, float, Floats]:
    """Newton's method on some coefficients on their sides, as far as `enough` asks; 0: until no step falls.

    Coefficients, intercept and margins are returned.
    """
    count = len(places)
    chosen = problem.columns[:, places]
    ones = np.ones((len(problem.y), int(fit_intercept)))
    small = len(ones) * (count + 1) <= _NUMBERS
    rows: Any = np.hstack([chosen.toarray(), ones]) if small else csr_matrix(hstack([chosen, ones]))
    free = np.ones(int(fit_intercept))
    pull, side = np.concatenate([penalties[places] * signs, 0 * free]), np.concatenate([signs, 0 * free])
    point = np.concatenate([start[0][places], start[1] * free])
    y, shares = problem.y, problem.shares
    stiff, centre = 0.0 * pull, 0.0 * pull
    if tilt is not None:
        pull = pull + np.concatenate([tilt.slopes[places], tilt.slope * free])
        stiff[:count], centre[:count] = tilt.pull, tilt.centre[places]

    def told(at: Floats) -> tuple[float, Floats, Floats]:
        margins = y * (rows @ at)
        wrong = expit(-margins)
        bent = stiff * (at - centre)
        value = float(shares @ np.logaddexp(0.0, -margins) + pull @ at + bent @ (at - centre) / 2)
        return value, rows.T @ (-y * shares * wrong) + pull + bent, shares * wrong * (1 - wrong)

    value, slopes, curve = told(point)
    first: float | None = None
    for _ in range(_STEPS):
        # At zero only what falls away from it, on its side.
        live = np.flatnonzero((point != 0) | (side == 0) | (slopes * side < 0))
        if not len(live):
            break
        for step, kept in _steps(rows, (curve, stiff), slopes, point, side, live):
            size, found = 1.0, None
            while size > _SMALL and found is None:
                tried = point - size * step
                tried[:count] = np.where(tried[:count] * signs > 0, tried[:count], 0.0)
                there = told(tried)
                # Near the minimum the objective no longer tells points apart; the slopes do.
                flat = abs(there[0] - value) <= 1e-14 * abs(value)
                halved = np.abs(there[1][kept]).max(initial=0) < np.abs(slopes[kept]).max(initial=0) / 2
                found = (tried, there) if (halved if flat else there[0] < value) else None
                size /= 2
            if found is not None:
                break
        else:
            break
        promised = float(slopes @ step)
        first = promised if first is None else first
        point, (value, slopes, curve) = found
        if enough and promised < max(enough, _FAINT * first):
            break
    coef = np.zeros(problem.X.shape[1])
    coef[places] = point[:count]
    return coef, float(point[-1]) if fit_intercept else 0.0, np.asarray(y * (rows @ point))


def _steps(
    rows: Any, curve: tuple[Floats, Floats], slopes: Floats, point: Floats, side: Floats, live: NDArray[np.int64]
) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
    """Newton's steps on what is live, with larger and larger ridges, and what moves in each.

    What would leave zero to the wrong side does not move.
    """
    for ridge in _RIDGES:
        kept = live
        while True:
            step = np.zeros_like(point)
            step[kept] = _newton(
                rows if len(kept) == len(point) else rows[:, kept], (curve[0], curve[1][kept]), slopes[kept], ridge
            )
            wrong = (point == 0) & (step * side > 0)
            if not wrong.any():
                break
            kept = kept[~wrong[kept]]
        yield step, kept


def _newton(rows: Any, curves: tuple[Floats, Floats], slopes: Floats, ridge: float) -> Floats:
    """Solve (rows' diag(curve) rows + diag(stiff) + ridge) step = slopes."""
    size, (curve, stiff) = len(slopes), curves
    if isinstance(rows, np.ndarray):
        hessian = (rows.T * curve) @ rows
    elif size <= _AT_ONCE:
        full = rows.getnnz(axis=1) > max(_FULL * size, 20)
        dense, sparse = rows[full].toarray(), csr_matrix(rows[~full])
        hessian = (sparse.T @ diags_array(curve[~full]) @ sparse).toarray() + (dense.T * curve[full]) @ dense
    else:
        diagonal = rows.power(2).T @ curve + stiff
        ridge = ridge * float(diagonal.max(initial=1e-300))
        times = LinearOperator(
            (size, size), matvec=lambda v: rows.T @ (curve * (rows @ v)) + stiff * v + ridge * v, dtype=float
        )
        inverse = LinearOperator((size, size), matvec=lambda v: v / (diagonal + ridge), dtype=float)
        return np.asarray(cg(times, slopes, rtol=1e-8, maxiter=500, M=inverse)[0])
    hessian[np.diag_indices_from(hessian)] += stiff + ridge * float(hessian.diagonal().max(initial=1e-300))
    try:
        return np.asarray(cho_solve(cho_factor(hessian, lower=True, check_finite=False), slopes, check_finite=False))
    except LinAlgError:
        return np.asarray(np.linalg.lstsq(hessian, slopes)[0])
