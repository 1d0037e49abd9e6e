"""Measure weights at places along a path through weight space, and say how high the path goes.

A path is a sum of a few points whose coefficients are functions of t:

    w(t) = sum_k c_k(t) P_k        barrier = max over 0 <= t <= 1 of  L(w(t)) - ((1 - t) L(w(0)) + t L(w(1)))

The barrier is that of Frankle, Dziugaite, Roy, Carbin 2020 (arXiv:1912.05671), above the line between the two ends' own
losses as in Entezari, Sedghi, Saukh, Neyshabur 2022 (arXiv:2110.06296). The mean by arc length takes the trapezium rule
over the straight pieces between the places measured, as Garipov and others 2018 (arXiv:1802.10026) report it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import whole
from ..arithmetic.moments import check_numbers
from ..averager.shown import one_line, table
from ..weights.kinds import check_same_codes, check_same_kinds
from ..weights.named import Weights, check_same

# What is measured at a point: numbers that are better when lower, such as a loss. One number is called "loss".
Measure = Callable[[Weights], float | Mapping[str, float]]


class Summary(NamedTuple):
    """One measured quantity along a path, in its own unit.

    `worst` is the t of the highest value. `by_length` is the mean weighted by arc length, `mean` that over the places.
    """

    barrier: float
    worst: float
    min: float
    max: float
    mean: float
    by_length: float


@dataclass(frozen=True, repr=False)
class Walk:
    """What was measured along a path.

    Attributes:
        t: the places, ascending.
        values: by the name of what was measured, one value a place.
        pieces: the distance in weight space from each place to the next, one fewer than places.

    >>> walk = Walk((0.0, 0.5, 1.0), {"loss": (1.0, 5.0, 2.0)}, (1.0, 3.0))
    >>> walk.barrier(), walk.summary().by_length, walk.length
    (3.5, 3.375, 4.0)
    >>> walk
    Walk(places 3, length 4, loss 1 to 5)
    """

    t: tuple[float, ...]
    values: dict[str, tuple[float, ...]]
    pieces: tuple[float, ...]

    def __repr__(self) -> str:
        return one_line("Walk", self._rows())

    def _repr_html_(self) -> str:
        return table("Walk", self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("places", str(len(self.t))), ("length", f"{self.length:.4g}")]
        for name, values in self.values.items():
            rows.append((name, f"{min(values):.4g} to {max(values):.4g}" if values else "none"))
        return rows

    @property
    def length(self) -> float:
        """How long the path is, as the sum of its straight pieces."""
        return math.fsum(self.pieces)

    def barrier(self, name: str | None = None) -> float:
        """Return how far the value rises above the line between the values of the two ends, at least 0.

        A value that is not a number counts as infinite: a path across it is no path.

        Args:
            name: what was measured; the first by default.

        Raises:
            ValueError: nothing of that name was measured, or not at t = 0 and t = 1.

        >>> Walk((0.0, 0.5, 1.0), {"loss": (1.0, float("nan"), 2.0)}, (1.0, 1.0)).barrier()
        inf
        """
        values = self._named(name)
        if 0.0 not in self.t or 1.0 not in self.t:
            raise ValueError(f"a barrier stands between t = 0 and t = 1, and both must be measured, got t = {self.t}")
        first, last = values[self.t.index(0.0)], values[self.t.index(1.0)]
        if not (math.isfinite(first) and math.isfinite(last)):
            raise ValueError(f"the ends have the values {first} and {last}: no barrier can be told above these")
        inside = [(t, value) for t, value in zip(self.t, values, strict=True) if 0 <= t <= 1]
        return max(0.0, *(value - ((1 - t) * first + t * last) for t, value in inside))

    def summary(self, name: str | None = None) -> Summary:
        """Return barrier, extremes and means of one measured quantity.

        Raises:
            ValueError: as `barrier`.
        """
        values = self._named(name)
        highest = max(values)
        trapezia = ((a + b) / 2 * piece for a, b, piece in zip(values[:-1], values[1:], self.pieces, strict=True))
        mean = sum(values) / len(values)
        by_length = sum(trapezia) / self.length if self.length else mean
        return Summary(
            self.barrier(name), self.t[values.index(highest)], min(values), highest, mean, by_length
        )  # fmt: skip

    def lowest(self, name: str | None = None) -> tuple[float, float]:
        """Return where a value is lowest, and that value: by the parabola through the lowest place and those beside it.

        Of equally low places the one nearest to their middle is taken; at an end the place itself counts.

        >>> Walk((-1.0, 0.0, 1.0, 2.0), {"loss": (4.0, 1.0, 0.0, 1.0)}, (1.0, 1.0, 1.0)).lowest()
        (1.0, 0.0)
        """
        values = self._named(name)
        least = min(values)
        ties = [k for k, value in enumerate(values) if value == least]
        middle = sum(ties) / len(ties)
        t, gain = vertex(self.t, values, min(ties, key=lambda k: abs(k - middle)))
        return t, least - gain

    def shift(self, one: str, other: str) -> float:
        """Return how far the lowest place of `other` lies from that of `one`, in t: shares of the way between the ends.

        >>> walk = Walk((0.0, 1.0, 2.0), {"a": (0.0, 1.0, 2.0), "b": (1.0, 0.0, 1.0)}, (1.0, 1.0))
        >>> walk.shift("a", "b")
        1.0
        """
        return self.lowest(other)[0] - self.lowest(one)[0]

    def _named(self, name: str | None) -> tuple[float, ...]:
        name = next(iter(self.values)) if name is None else name
        if name not in self.values:
            raise ValueError(f"{name!r} was not measured, only {list(self.values)}")
        return tuple(math.inf if math.isnan(value) else value for value in self.values[name])

    def __str__(self) -> str:
        lines = [f"{len(self.t)} places from t = {self.t[0]:g} to {self.t[-1]:g}, length {self.length:.4g}"]
        for name in self.values:
            lines.append(
                "  ".join([name, *(f"{key} {value:.4g}" for key, value in self.summary(name)._asdict().items())])
            )
        return "\n".join(lines)


def vertex(places: Sequence[float], values: Sequence[float], at: int) -> tuple[float, float]:
    """Return where the parabola through place `at` and those beside is lowest, and how far below the value at `at`.

    >>> vertex((0.0, 1.0, 2.0), (1.0, 0.0, 1.0), 1)
    (1.0, 0.0)
    """
    if not 0 < at < len(places) - 1 or not all(map(math.isfinite, values[at - 1 : at + 2])):
        return places[at], 0.0
    left, right = places[at - 1] - places[at], places[at + 1] - places[at]
    down, up = values[at - 1] - values[at], values[at + 1] - values[at]
    bend = 2 * (up / right - down / left) / (right - left)  # the value is slope s + bend s^2 / 2 from place `at` on
    slope = down / left - bend * left / 2
    if not bend > 0:
        return places[at], 0.0
    return places[at] - slope / bend, slope * slope / bend / 2


def mix(points: Sequence[Weights], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """Return the sum of `points`, each times its coefficient, in new tensors of the first point's dtype.

    Sums are taken in float32 or wider, in the order of the points. Gradients flow to those points that require them. A
    point whose coefficient is 0 is not read: where one alone has the coefficient 1 the sum is that point, bit for bit.
    Tensors of whole numbers are copied from the point with the largest coefficient.

    >>> mix([{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}], [0.25, 0.75])
    {'w': tensor([2.5000])}
    """
    used = [(c, point) for c, point in zip(coefficients, points, strict=True) if c != 0]
    nearest = max(used, key=lambda pair: pair[0])[1]
    mixed = {}
    for name, like in points[0].items():
        if not mixes(like):
            mixed[name] = nearest[name].clone()
            continue
        total: Tensor | None = None
        for c, point in used:
            term = point[name].to(wide(like.dtype)) * c
            total = term if total is None else total + term
        assert total is not None  # coefficients sum to 1
        mixed[name] = total.to(like.dtype)
    return mixed


def mixes(tensor: Tensor) -> bool:
    """Whether a tensor is of numbers that can be mixed, and not of whole numbers.

    >>> mixes(torch.zeros(1)), mixes(torch.zeros(1, dtype=torch.int64))
    (True, False)
    """
    return tensor.is_floating_point() or tensor.is_complex()


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which numbers of `dtype` are summed: float32 or wider.

    >>> wide(torch.bfloat16), wide(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


@torch.no_grad()
def walk(
    points: Sequence[Weights],
    coefficients: Callable[[float], Sequence[float]],
    measure: Measure,
    places: Sequence[float],
) -> Walk:
    """Measure the path at each of `places`, one set of mixed weights in memory at a time.

    `measure` gets weights of its own, which it may write into. Tensors of whole numbers are left out of distances.

    Raises:
        ValueError: the points differ in names or shapes, fewer than two places are given or they do not ascend, or
            `measure` names other quantities at one place than at another.

    >>> ends = [{"w": torch.tensor([-1.0])}, {"w": torch.tensor([3.0])}]
    >>> found = walk(ends, lambda t: (1 - t, t), lambda weights: weights["w"].item() ** 2, (0.0, 0.5, 1.0))
    >>> found.values, found.pieces
    ({'loss': (1.0, 1.0, 9.0)}, (2.0, 2.0))
    """
    check_places(points, places)
    many = getattr(measure, "many", None)
    mixed = _Mixed(points, [tuple(coefficients(t)) for t in places])
    answers = (measure(mixed.one(k)) for k in range(len(places))) if many is None else many(mixed)
    return walked(points, coefficients, places, answers)


def check_places(points: Sequence[Weights], places: Sequence[float]) -> None:
    """Refuse points that differ in names or shapes, and places that do not ascend.

    >>> check_places([{"w": torch.zeros(1)}], (0.0, 0.0))
    Traceback (most recent call last):
    ...
    ValueError: a path is measured at two or more ascending places, got [0.0, 0.0]
    """
    for number, point in enumerate(points):
        what = f"point {number} of the path"
        check_numbers(point, what, complex_too=True)
        check_same(points[0], point, what=what)
        check_same_kinds(points[0], point, what)
        check_same_codes(points[0], point, what)
    if len(places) < 2 or any(b <= a for a, b in zip(places, places[1:], strict=False)):
        raise ValueError(f"a path is measured at two or more ascending places, got {list(places)}")


def walked(
    points: Sequence[Weights],
    coefficients: Callable[[float], Sequence[float]],
    places: Sequence[float],
    answers: Iterable[float | Mapping[str, float]],
) -> Walk:
    """Return the walk along a path on which `answers` were measured, one a place.

    Raises:
        ValueError: one names other quantities than the first, or none.

    >>> ends = [{"w": torch.tensor([0.0])}, {"w": torch.tensor([3.0])}]
    >>> walked(ends, lambda t: (1 - t, t), (0.0, 1.0), [1.0, 2.0]).length
    3.0
    """
    values: dict[str, list[float]] = {}
    for t, found in zip(places, answers, strict=True):
        numbers = found if isinstance(found, Mapping) else {"loss": found}
        if t != places[0] and list(numbers) != list(values):
            raise ValueError(f"at t = {t} the measure named {list(numbers)}, before that {list(values)}")
        for name, value in numbers.items():
            values.setdefault(name, []).append(float(value))
    if not values:
        raise ValueError("the measure returned no numbers: it takes weights and returns one number, or several by name")
    steps = [_difference(coefficients(a), coefficients(b)) for a, b in zip(places, places[1:], strict=False)]
    return Walk(tuple(places), {name: tuple(v) for name, v in values.items()}, tuple(_lengths(points, steps)))


class _Mixed:
    """The places of a path, mixed when they are asked for."""

    def __init__(self, points: Sequence[Weights], coefficients: Sequence[Sequence[float]]) -> None:
        self._points, self._coefficients = points, coefficients

    def __len__(self) -> int:
        return len(self._coefficients)

    def one(self, number: int) -> dict[str, Tensor]:
        return mix(self._points, self._coefficients[number])

    def several(self, first: int, count: int) -> dict[str, Tensor]:
        made = [self.one(first + k) for k in range(count)]
        return {name: torch.stack([weights[name] for weights in made]) for name in made[0]}


def evenly(points: int) -> tuple[float, ...]:
    """Return so many places from 0 to 1, both included.

    Raises:
        ValueError: fewer than two.

    >>> evenly(3)
    (0.0, 0.5, 1.0)
    """
    points = whole("points", points, 2, hint="the places, or for both ends ")
    return tuple(k / (points - 1) for k in range(points))


def _difference(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [y - x for x, y in zip(a, b, strict=True)]


def _lengths(points: Sequence[Weights], steps: Sequence[Sequence[float]]) -> list[float]:
    """The length of each step, a sum of points with coefficients that sum to 0.

    Such a sum is one of differences from the first point, so inner products of those give every length.
    """
    names = [name for name, tensor in points[0].items() if mixes(tensor)]
    products = torch.zeros(len(points) - 1, len(points) - 1, dtype=torch.float64)
    for name in names:
        first = points[0][name].detach()
        away = torch.stack([(p[name].detach().to(wide(first.dtype)) - first).flatten() for p in points[1:]])
        if away.is_complex():
            away = torch.view_as_real(away).flatten(1)
        products += (away.double() @ away.double().T).cpu()
    changes = torch.tensor([step[1:] for step in steps], dtype=torch.float64)
    return [math.sqrt(max(0.0, float(c @ products @ c))) for c in changes]
