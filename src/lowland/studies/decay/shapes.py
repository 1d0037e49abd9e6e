"""Shapes of a decay, and the coefficients by which an average of constant-rate checkpoints stands for it.

A step at time t of a decay moves the weights by r(t) times what a step at the full rate moves them, to first order. So
the decayed weights are w_0 + sum_i r_i (w_i - w_(i-1)) of the checkpoints w_i of the constant run, which is the average
with c_i = r_i - r_(i+1), the last one r_n, and 1 - r_1 for w_0 (arXiv 2507.17634).
"""

from __future__ import annotations

import numpy as np

from lowland.retroactive import of_rates, rate

RATES = ("linear", "minus-sqrt", "cosine", "(1-x)^2")
# The equal average is no decay of a rate that is ever used: all but the first part of a step is taken back at once.
SHAPES = ("window", *RATES)


def rate_at(shape: str, x: float) -> float:
    """Return the rate at a share x of a decay, from 1 at its beginning to 0 at its end."""
    return float(rate(shape, np.array(x)))


def coefficients(shape: str, count: int) -> list[float]:
    """Return the coefficients of `count` + 1 checkpoints: the one at which the decay begins, and the `count` after it.

    >>> [round(c, 3) for c in coefficients("linear", 4)]
    [0.125, 0.25, 0.25, 0.25, 0.125]
    >>> coefficients("window", 4)
    [0.0, 0.25, 0.25, 0.25, 0.25]
    """
    if shape == "window":
        return [0.0, *([1 / count] * count)]
    # The mean rate of a stretch between two checkpoints is that of its middle, nearly.
    return of_rates([1.0, *(rate_at(shape, (index + 0.5) / count) for index in range(count))])
