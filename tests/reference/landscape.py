"""Curves as written in the paper's code: Python floats and explicit loops over flat vectors."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def coefficients(kind: str, n: int, t: float) -> list[float]:
    """Of n points, the ends among them."""
    if kind == "chain":
        return [max(0.0, 1.0 - abs(t * (n - 1) - k)) for k in range(n)]
    factorial = math.factorial
    return [factorial(n - 1) / factorial(k) / factorial(n - 1 - k) * t**k * (1.0 - t) ** (n - 1 - k) for k in range(n)]


def at(kind: str, points: Sequence[Floats], t: float) -> Floats:
    """The flat weights at t; the chain by walking along its corners."""
    n = len(points)
    if kind == "chain":
        corner = min(int(t * (n - 1)), n - 2)
        share = t * (n - 1) - corner
        return (1 - share) * points[corner] + share * points[corner + 1]
    # de Casteljau: lines between lines
    while len(points) > 1:
        points = [(1 - t) * a + t * b for a, b in zip(points[:-1], points[1:], strict=True)]
    return points[0]


def by_length(path: Sequence[Floats], values: Sequence[float]) -> tuple[float, float]:
    """Length and the mean of `values` weighted by arc length, as the evaluation script sums them."""
    length = total = 0.0
    for i in range(1, len(path)):
        piece = float(np.sqrt(np.sum((path[i] - path[i - 1]) ** 2)))
        length += piece
        total += 0.5 * (values[i - 1] + values[i]) * piece
    return length, total / length
