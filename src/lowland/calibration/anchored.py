"""The largest covariance that an anchor set bears: what Training-Free Bayesianization searches (Shi, Wang, Han, Zhang,
Wang 2024, arXiv 2412.05723).

    s* = max { s : cost(s) - cost(0) <= epsilon }

`cost(s)` is what predictions averaged over draws with the covariance times s cost on the anchor set, such as their NLL;
at s = 0 they are the mean's. Nothing is trained. The cost need not rise everywhere: s* is the end of the scales that
are borne one after the other, as far as they were tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

RANGE = 2.0**20  # how far from `start` a scale is looked for, up and down


@dataclass(frozen=True)
class Anchored:
    """What `largest_scale` found: the scale, its cost and the point's, and everything that was tried, in order."""

    scale: float
    cost: float
    point: float
    tried: tuple[tuple[float, float], ...]  # (scale, cost)


def largest_scale(
    cost: Callable[[float], float], epsilon: float, *, start: float = 1.0, precision: float = 0.05
) -> Anchored:
    """Find the largest scale of a covariance whose cost is at most `epsilon` above that of the point.

    From `start` the scale is doubled while it is borne, or halved until it is, 20 times at most; then the gap is
    halved on a logarithmic scale: about ten calls of `cost`. Let `cost` draw from a generator with the same seed in
    every call, or its noise decides. Anchors are examples that were not trained on: on training examples a model that
    has learned them by heart bears almost nothing.

    Args:
        cost: of a scale of the covariance, 0 included, in the units of epsilon; not finite counts as not borne.
        epsilon: 0.01 nats, say, where `cost` is an NLL.
        precision: the answer is within a factor of 1 + precision of one that is not borne.

    Returns:
        A scale of 0 if nothing is borne, and of `start` times a million if everything is.

    Raises:
        ValueError: a number is out of range, or the cost of the point is not finite.

    >>> found = largest_scale(lambda s: 1.0 + 0.5 * s, 0.1, precision=0.001)     # 0.1 / 0.5
    >>> round(found.scale, 2), round(found.cost, 2), found.point
    (0.2, 1.1, 1.0)
    """
    for what, value in (("epsilon", epsilon), ("start", start), ("precision", precision)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{what} must be a positive number, got {value}: raise it")
    point = float(cost(0.0))
    if not math.isfinite(point):
        raise ValueError(f"the point itself costs {point}: look at its predictions on the anchor set first")
    tried: list[tuple[float, float]] = [(0.0, point)]

    def borne(scale: float) -> bool:
        tried.append((scale, float(cost(scale))))
        return tried[-1][1] - point <= epsilon

    low, high = 0.0, start
    if borne(start):
        low, high = start, 2 * start
        while high <= RANGE * start and borne(high):
            low, high = high, 2 * high
        if high > RANGE * start:
            return _found(low, tried)
    else:
        while high > start / RANGE:
            if borne(high / 2):
                low = high / 2
                break
            high /= 2
        if low == 0.0:
            return _found(0.0, tried)
    while high / low > 1 + precision:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if borne(middle) else (low, middle)
    return _found(low, tried)


def _found(scale: float, tried: list[tuple[float, float]]) -> Anchored:
    return Anchored(scale, dict(tried)[scale], tried[0][1], tuple(tried))
