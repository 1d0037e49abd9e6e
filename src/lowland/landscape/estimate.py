"""A mean with its 95 % interval by Student's t, and the difference of two means over the same draws.

mean +- t(n - 1, .975) s / sqrt(n)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

COVERED = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` single values, with a 95 % interval; of one value the interval is infinite.

    >>> found = Estimate.of([1.0, 2.0, 3.0])
    >>> found.mean, round(found.low, 3), round(found.high, 3), found.n
    (2.0, -0.484, 4.484, 3)
    """

    mean: float
    low: float
    high: float
    n: int
    values: tuple[float, ...] = ()

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate the mean of what the values were drawn from.

        Raises:
            ValueError: there is no value.
        """
        values = tuple(float(value) for value in values)
        n = len(values)
        if not n:
            raise ValueError("a mean wants at least one value, got none")
        mean = math.fsum(values) / n if all(map(math.isfinite, values)) else sum(values) / n
        if n == 1 or not math.isfinite(mean):
            return cls(mean, -math.inf, math.inf, n, values)
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
        half = spread * t_quantile(n - 1, (1 + COVERED) / 2)
        return cls(mean, mean - half, mean + half, n, values)

    def minus(self, other: Estimate) -> Estimate:
        """Estimate the difference, value by value: both must be over the same draws, batches or seeds.

        Raises:
            ValueError: the two have not the same number of values.

        >>> Estimate.of([1.0, 5.0]).minus(Estimate.of([0.0, 4.0])).mean
        1.0
        """
        if self.n != other.n or len(self.values) != self.n or len(other.values) != other.n:
            raise ValueError(
                f"a paired difference wants as many values on both sides, got {self.n} and {other.n}: measure both on "
                "the same draws"
            )
        return Estimate.of([a - b for a, b in zip(self.values, other.values, strict=True)])

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}] (n = {self.n})"


def t_quantile(freedom: int, level: float) -> float:
    """Return Student's t with `freedom` degrees that a share `level` of the distribution lies below.

    >>> round(t_quantile(4, 0.975), 6)
    2.776445
    """
    if freedom < 1 or not 0.5 < level < 1:
        raise ValueError(f"wanted freedom of at least 1 and a level in (.5, 1), got {freedom} and {level}")
    low, high = 0.0, 1.0
    while _below(freedom, high) < level:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _below(freedom, middle) < level else (low, middle)
    return (low + high) / 2


def _below(freedom: int, t: float) -> float:
    """The distribution function, by its finite series for whole degrees of freedom."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    total, term = 0.0, cosine if freedom % 2 else 1.0
    for k in range(3 if freedom % 2 else 2, freedom + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    if freedom % 2:
        inside = 2 / math.pi * (angle + sine * total)
    else:
        inside = sine * total
    return (1 + inside) / 2
