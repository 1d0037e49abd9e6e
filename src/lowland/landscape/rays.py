"""Rays from a solution in random directions: how far one may go until a value has risen.

    w(t) = w + t d,    d uniform on the unit sphere, the same for each solution that is compared

Izmailov, Podoprikhin, Garipov, Vetrov, Wilson 2018, arXiv:1803.05407, section 4.1. A distance is where the parabola
through the bracket of places and a place beside it meets the value: exact where the value is quadratic along the ray.
The interval is over directions; that over seeds is of the means of several runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..arguments import whole
from ..arithmetic.philox import new_key
from ..weights.named import Weights
from .bundle import Bundle
from .estimate import Estimate
from .vectors import Normalise, said
from .walk import Measure
from .working import HERE, Work, asking


@dataclass(frozen=True)
class Rays:
    """What was measured along rays.

    Attributes:
        t: the places, ascending from 0: distances in the unit of `normalise`.
        values: by the name of what was measured, (directions, places) in float64.
        about: what a caption says.

    >>> rays = Rays((0.0, 1.0, 2.0), {"loss": torch.tensor([[0.0, 1.0, 4.0], [0.0, 4.0, 16.0]])})
    >>> rays.distances(1.0)
    (1.0, 0.5)
    """

    t: tuple[float, ...]
    values: dict[str, Tensor]
    about: dict[str, str] = field(default_factory=dict)

    def of(self, name: str | None = None) -> Tensor:
        """Return the values of one name, by default the first.

        Raises:
            ValueError: nothing of that name was measured.
        """
        name = next(iter(self.values)) if name is None else name
        if name not in self.values:
            raise ValueError(f"{name!r} was not measured, only {list(self.values)}")
        return self.values[name]

    def distances(self, rise: float, name: str | None = None) -> tuple[float, ...]:
        """Return how far each direction goes until the value is `rise` above its start; infinite where it never is.

        Raises:
            ValueError: nothing of that name was measured, or `rise` is not above 0.
        """
        if not rise > 0:
            raise ValueError(f"rise must be above 0, what the value gains along a ray, got {rise}")
        return tuple(crossing(self.t, row, row[0] + rise) for row in self.of(name).tolist())

    def distance(self, rise: float, name: str | None = None) -> Estimate:
        """Return the mean distance that raises a value by `rise`, with its interval over directions.

        Raises:
            ValueError: as `distances`; or a direction does not rise so far within the places.
        """
        found = self.distances(rise, name)
        short = sum(map(math.isinf, found))
        if short:
            raise ValueError(
                f"{short} of {len(found)} directions do not rise by {rise} within t = {self.t[-1]:g}: measure farther "
                "places, or ask for less"
            )
        return Estimate.of(found)

    def mean(self, name: str | None = None) -> tuple[Estimate, ...]:
        """Return the mean over directions at each place, with its interval."""
        return tuple(Estimate.of(column) for column in self.of(name).T.tolist())

    def __str__(self) -> str:
        count = len(next(iter(self.values.values())))
        rows = [f"{name}  {self.mean(name)[0].mean:.4g} at 0, {self.mean(name)[-1]} at the end" for name in self.values]
        return "\n".join([f"{count} directions, {len(self.t)} places to t = {self.t[-1]:g}", *rows])


def rays(
    w: Weights,
    measure: Measure,
    *,
    directions: int | Sequence[Weights] = 20,
    places: Sequence[float],
    normalise: Normalise = None,
    generator: torch.Generator | None = None,
    work: Work = HERE,
) -> Rays:
    """Measure rays from `w`.

    Args:
        measure: takes weights and returns a number that is better when lower, or several by name.
        directions: how many random ones; or directions of your own, taken as long as they are.
        places: distances, ascending; 0 is added at the start.
        normalise: None, raw; `"norm"`, in norms of `w`; `"filter"`, rows as long as the rows of `w`, tensors with
            fewer than two axes not moved.
        generator: the same state gives the same directions, whatever the solution.

    Raises:
        ValueError: an argument is none of those above.

    >>> g = torch.Generator().manual_seed(0)
    >>> f = lambda weights: weights["w"].square().sum().item()
    >>> found = rays({"w": torch.zeros(3)}, f, directions=2, places=[1.0, 2.0], generator=g)
    >>> round(found.distance(1.0).mean, 5)
    1.0
    """
    ts = [float(t) for t in places]
    ts = ts if ts and ts[0] == 0 else [0.0, *ts]
    if len(ts) < 2 or any(not b > a for a, b in zip(ts, ts[1:], strict=False)) or ts[0] < 0:
        raise ValueError(f"places must be distances above 0, ascending, got {list(places)}")
    if isinstance(directions, int):
        whole("directions", directions, 1, hint="a list of weights, or ")
        key = new_key(generator)
        count = directions
    else:
        key, count = 0, len(directions)
        if not count:
            raise ValueError("directions must be at least 1, or a list of weights, got an empty list")
    bundle = Bundle(w, key if isinstance(directions, int) else directions, normalise)
    with asking(measure, bundle, work) as ask:
        found = ask([(float(number), t) for number in range(count) for t in ts])
    values = {
        name: torch.tensor([one[name] for one in found], dtype=torch.float64).view(count, len(ts)) for name in found[0]
    }
    return Rays(tuple(ts), values, {"normalisation": said(normalise, w), **work.about})


def crossing(t: Sequence[float], values: Sequence[float], level: float) -> float:
    """Return the first t at which a value reaches `level`, between places by a parabola; infinite if none does.

    >>> crossing((0.0, 1.0, 2.0), (0.0, 1.0, 4.0), 2.25)
    1.5
    """
    above = next((k for k, value in enumerate(values) if not value < level), None)
    if above is None:
        return math.inf
    if above == 0:
        return t[0]
    low, high, a, b = t[above - 1], t[above], values[above - 1], values[above]
    if not math.isfinite(b):
        return high
    third = above - 2 if above > 1 else above + 1
    share = (level - a) / (b - a)
    if third < len(t) and math.isfinite(values[third]):
        # value(s) = a + (b - a) s + bend s (s - 1), s from 0 at low to 1 at high
        s = (t[third] - low) / (high - low)
        bend = (values[third] - a - (b - a) * s) / (s * (s - 1))
        share = _root(bend, b - a - bend, a - level, share)
    return low + share * (high - low)


def _root(square: float, linear: float, constant: float, otherwise: float) -> float:
    """The root in [0, 1] of a parabola that is below 0 at 0 and not at 1."""
    if abs(square) < 1e-12 * abs(linear):
        return otherwise
    root = math.sqrt(max(0.0, linear * linear - 4 * square * constant))
    q = -(linear + math.copysign(root, linear)) / 2
    found = [x for x in (q / square, constant / q if q else math.inf) if -1e-9 <= x <= 1 + 1e-9]
    return min(found, default=otherwise)
