"""What a row of iterates tells: steps lost in low precision, a spread that is none, how many iterates count.

    rho_k = sum_i <w_i - m, w_{i+k} - m> / (n - k)  over  sum_i |w_i - m|^2 / n,    m the mean of the n iterates
    n_eff = n / (1 + 2 sum_{k=1..K} (1 - k/n) rho_k), at most n,    K the last lag before rho_{2j} + rho_{2j+1} <= 0

(Geyer 1992, doi:10.1214/ss/1177011137, for the cut), over all weights together: directions of large variance count
more.
Because m is the iterates' own mean, a short row looks less correlated than it is: n_eff is then too large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .findings import Finding
from .survey import Matrix, Surveyed, centred, distance, norms, total

POINT = 1e-4  # of the weights' size: a spread below this is taken for a point where no score says otherwise
FEW = 3.0  # effective samples below which a row counts as one place on its way
NEAR = 1e-2  # above this it is never taken for one


@dataclass(frozen=True)
class Correlation:
    """Autocorrelations of lag 0, 1, ... and the effective number of samples."""

    lags: list[float]
    effective: float


def autocorrelation(gram: Matrix) -> Correlation:
    """Return the autocorrelation of a row of iterates from the Gram matrix of w_i - m.

    Raises:
        ValueError: the iterates do not differ.

    >>> line = np.arange(8.0) - 3.5
    >>> found = autocorrelation(np.outer(line, line))
    >>> round(found.lags[1], 3), round(found.effective, 2)
    (0.714, 2.92)
    """
    n = len(gram)
    spread = np.trace(gram) / n
    if spread <= 0:
        raise ValueError("the iterates do not differ: there is nothing to correlate")
    lags = [float(np.trace(gram, offset=lag) / (n - lag) / spread) for lag in range(n)]
    total_lag, lag = 0.0, 0
    while lag < n:
        pair = [(1 - k / n) * lags[k] for k in (lag, lag + 1) if k < n]
        if lag and lags[lag] + (lags[lag + 1] if lag + 1 < n else 0.0) <= 0:
            break
        total_lag += sum(pair)
        lag += 2
    # The sum holds lag 0 once: n_eff = n / (2 sum - 1). More than n comes of the few, whose own mean takes part.
    return Correlation(lags, n / max(2 * total_lag - 1, 1.0))


def correlated(names: Sequence[str], surveyed: Sequence[Surveyed]) -> list[Finding]:
    """Tell the effective number of samples of a row of at least four iterates."""
    gram = centred(total(surveyed))
    if len(names) < 4 or np.trace(gram) <= 0:
        return []
    found = autocorrelation(gram)
    low = found.effective < FEW
    says = (
        f"{len(names)} iterates count as {found.effective:.1f} independent ones (autocorrelation {found.lags[1]:.2f} "
        "from one to the next)"
    )
    do = "the row drifts: start later, collect less often, or keep the rate constant and high" if low else ""
    values = {"effective": found.effective, "autocorrelation": found.lags[: len(names) // 2 + 1]}
    return [Finding("autocorrelation", "warning" if low else "ok", says, do, (names[0], names[-1]), values)]


def stalled(names: Sequence[str], surveyed: Sequence[Surveyed]) -> list[Finding]:
    """Tell steps that a low-precision dtype rounds away.

    Most elements stay; and those that move do so by a spacing or two, or are those with a fine spacing, near zero. In a
    model that is frozen in part, or whose embeddings are trained in few rows, neither holds of the elements that move.
    """
    moving = [one for one in surveyed if one.grid is not None and not one.is_statistic]
    count = sum(one.numel for one in moving)
    found = []
    for place in range(len(names) - 1 if count else 0):
        same = sum(one.unchanged[place] for one in moving)
        small = sum(one.small[place] for one in moving)
        moved = count - same
        finer = sum(one.finer[place] * (one.numel - one.unchanged[place]) for one in moving) / max(moved, 1)
        if same < count / 2 or moved == 0 or (small < moved / 2 and finer < 2):
            continue
        grid = str(moving[0].grid).removeprefix("torch.")
        pair = (names[place], names[place + 1])
        values = {
            **{"dtype": grid, "unchanged": same / count, "within_two_spacings": small / moved},
            "finer_where_moved": finer,
        }
        how = (
            "moved by a spacing or two"
            if small >= moved / 2
            else f"are near zero, of {2**finer:.0f} times finer spacing"
        )
        says = (
            f"from {pair[0]} to {pair[1]} {same / count:.0%} of the {grid} weights did not move, and those that did "
            f"{how}: steps are rounded away"
        )
        do = f"train with float32 master weights or stochastic rounding, and keep averages in float32, not in {grid}"
        found.append(Finding("stall", "warning", says, do, pair, values))
    return found


def point(
    names: Sequence[str], surveyed: Sequence[Surveyed], effect: float | None, outputs: float | None = None
) -> list[Finding]:
    """Tell a spread that is none. `effect` is what it changes in the score, as a share of what training gained.

    `outputs` is the change of the model's outputs, as a share of their own spread.
    """
    gram = total(surveyed)
    size = float(norms(gram).max())
    apart = max(distance(gram, 0, j) for j in range(1, len(names)))
    spread = math.sqrt(max(float(np.trace(centred(gram))), 0.0) / (len(names) - 1)) / max(size, 1e-300)
    values = {"spread": spread, "score_effect": effect, "output_effect": outputs}
    known = [part for part in (effect, outputs) if part is not None]
    small = spread < NEAR and max(known) < 1e-3 if known else spread < POINT
    if apart == 0 or not small:
        return []
    told = "" if effect is None else f", and {effect:.1g} of what training gained in the score"
    says = f"rate too low: the posterior is a point. The ingredients spread over {spread:.1g} of their size{told}"
    do = "raise the rate of the averaging phase, or collect less often; an average of these is any one of them"
    return [Finding("point", "warning", says, do, tuple(names), values)]
