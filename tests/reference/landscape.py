"""Curves and planes as written in the papers' code: Python floats and explicit loops over flat vectors."""

import math
from collections.abc import Callable, Sequence

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


def plane_point(a: Floats, b: Floats, c: Floats, x: float, y: float) -> Floats:
    """The place (x, y) of the plane through three flat weights, as the paper's script writes it."""
    u = b - a
    dx = np.linalg.norm(u)
    u = u / dx
    v = c - a
    v = v - np.dot(u, v) * u
    v = v / np.linalg.norm(v)
    place: Floats = a + x * u + y * v
    return place


def plane_grid(a: Floats, b: Floats, c: Floats, measure: Callable[[Floats], float], n: int, margin: float) -> Floats:
    """The values on an n x n grid around three flat weights, one place after the other, rows of y."""
    u = b - a
    width = float(np.linalg.norm(u))
    u = u / width
    along = float(np.dot(c - a, u))
    height = float(np.linalg.norm(c - a - along * u))
    left, right = min(0.0, along), max(width, along)
    grid = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            x = left - margin * (right - left) + (1 + 2 * margin) * (right - left) * j / (n - 1)
            y = -margin * height + (1 + 2 * margin) * height * i / (n - 1)
            grid[i, j] = measure(plane_point(a, b, c, x, y))
    return grid


def power_iteration(matrix: Floats, steps: int) -> float:
    """The eigenvalue of a symmetric matrix that is largest by magnitude."""
    v = np.ones(len(matrix)) / np.sqrt(len(matrix))
    for _ in range(steps):
        v = matrix @ v
        v = v / np.linalg.norm(v)
    return float(v @ matrix @ v)
