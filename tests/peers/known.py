"""The problem every implementation is given, its answer in closed form, and what counts as right.

The problem: a net of two layers with one weight each; both weights follow the same ten iterates, so that a correct
posterior couples the layers. The answer (Maddox et al. 2019, arXiv 1902.02476, equation 1), for iterates w_1..w_n:

    dev_i = w_i - mean_i    with mean_i the mean of w_1..w_i       D = the last K deviations
    N(mean_n, 1/2 (diag(v) + D D^T / (K - 1)))                     v = sum_i (w_i - mean_n)^2 / n

What counts as right: every measured moment within TOLERANCE standard errors of the answer, the errors being those of
n draws from the answer itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Ten draws of N(3, 1), to four decimals.
ITERATES = (4.5410, 2.7066, 0.8212, 3.5684, 1.9155, 1.6014, 3.4033, 3.8380, 2.2807, 2.5967)
DRAWS = 10_000
TOLERANCE = 4.0  # standard errors; five moments in a row: a right row fails once in 3000

# The bf16 problem: weights N(0, 1) at first, then all of them moved by +1; updates of an EMA follow.
DECAY, UPDATES = 0.999, 3_000
EMA_TARGET = 1 - DECAY**UPDATES

# The teacher problem: bf16 students N(0, 1) that drift by so many standard deviations in all, a teacher of each rate.
TEACHER_RATES, DRIFTS, TEACHER_STEPS = (0.05, 0.01), (0.2, 0.02), 1_000

# The fp32 variance problem: iterates N(mean, std), independent for each of the weights.
SPREADS = ((1.0, 1e-4), (1.0, 1e-3), (0.05, 1e-4))
SPREAD_ITERATES, SPREAD_WEIGHTS = 40, 10_000


def paper(iterates: Array, rank: int) -> tuple[Array, Array]:
    """Return mean (d,) and covariance (d, d) of the paper's posterior for iterates (n, d), in float64."""
    iterates = np.asarray(iterates, dtype=np.float64)
    running = np.cumsum(iterates, axis=0) / np.arange(1, len(iterates) + 1)[:, None]
    deviations = (iterates - running)[-rank:]  # (k, d)
    low_rank = deviations.T @ deviations / (len(deviations) - 1)
    return running[-1], 0.5 * (np.diag(iterates.var(axis=0)) + low_rank)


def two_weights(block: bool = False) -> tuple[Array, Array]:
    """Return the answer to the problem: mean (2,), covariance (2, 2); without the coupling if `block`."""
    mean, covariance = paper(np.array([ITERATES, ITERATES]).T, rank=len(ITERATES))
    return mean, np.diag(np.diag(covariance)) if block else covariance


def standard_errors(covariance: Array, n: int) -> tuple[Array, Array]:
    """Return the standard errors of the sample mean (d,) and sample covariance (d, d) of n Gaussian draws."""
    variance = np.diag(covariance)
    return np.sqrt(variance / n), np.sqrt((np.outer(variance, variance) + covariance**2) / (n - 1))


@dataclass(frozen=True)
class Verdict:
    """Right or wrong, how far off in standard errors at worst, and which moments are off."""

    right: bool
    worst: float
    faults: tuple[str, ...]


def judge(mean: Array, covariance: Array, n: int, block: bool = False) -> Verdict:
    """Compare the moments of n draws with the answer."""
    want_mean, want = two_weights(block)
    mean_error, error = standard_errors(want, n)
    off = np.abs(np.asarray(mean) - want_mean) / mean_error
    gap = np.asarray(covariance) - want
    spread, coupling = np.abs(np.diag(gap) / np.diag(error)), abs(gap[0, 1] / error[0, 1])
    faults = []
    if off.max() > TOLERANCE:
        faults.append(f"mean off by {mean[off.argmax()] - want_mean[off.argmax()]:+.3f}")
    if spread.max() > TOLERANCE:
        worst = spread.argmax()
        faults.append(f"variance {covariance[worst][worst] / want[worst, worst]:.2f} times the paper's")
    if coupling > TOLERANCE:
        ratio = covariance[0][1] / want[0, 1] if want[0, 1] else float("inf")
        small = abs(covariance[0][1]) < TOLERANCE * error[0, 1]
        faults.append("no covariance between tensors" if small else f"covariance {ratio:.2f} times the paper's")
    return Verdict(not faults, float(max(off.max(), spread.max(), coupling)), tuple(faults))
