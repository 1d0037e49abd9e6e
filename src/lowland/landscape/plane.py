"""A plane through weight space, through three solutions or along two directions.

    u = b - a        v = (c - a) - <c - a, u> / <u, u> u        w(x, y) = a + x u / |u| + y v / |v|

Garipov, Izmailov, Podoprikhin, Vetrov, Wilson 2018, arXiv:1802.10026, and Izmailov and others 2018, arXiv:1803.05407,
whose pictures these are. Coordinates are distances in weight space. Principal planes of a row of checkpoints are those
of Li, Xu, Taylor, Studer, Goldstein 2018, arXiv:1712.09913.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import Tensor

from ..arithmetic.moments import check_numbers
from ..weights.named import Weights, check_same
from .frame import Frame, moves
from .vectors import dot, norm, sum_of

Point = tuple[float, float]


@final
class Plane:
    """A plane with an origin and two directions at right angles, of length 1; `Plane.through` makes one.

    Attributes:
        frame: origin and directions, in one block of memory.
        points: coordinates of the solutions that it was laid through.
        names: theirs.
        path: whether the points are a path, to be joined.
        explained: of a principal plane the share of the points' variance along each direction; else None.

    >>> a, b, c = ({"w": torch.tensor(w)} for w in ([0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, 3.0, 0.0]))
    >>> plane = Plane.through(a, b, c)
    >>> plane.points, plane.at(1.0, 1.0)
    (((0.0, 0.0), (2.0, 0.0), (1.0, 3.0)), {'w': tensor([1., 1., 0.])})
    """

    def __init__(
        self,
        frame: Frame,
        points: Sequence[Point],
        names: Sequence[str],
        *,
        path: bool = False,
        explained: tuple[float, float] | None = None,
    ) -> None:
        if frame.directions != 2 or len(points) != len(names):
            raise ValueError(f"a plane has two directions and a name a point, got {frame.directions}, {list(names)}")
        self.frame, self.points, self.names = frame, tuple(points), tuple(names)
        self.path, self.explained = path, explained

    @classmethod
    def through(cls, a: Weights, b: Weights, c: Weights, *, names: Sequence[str] = ("a", "b", "c")) -> Plane:
        """Return the plane through three sets of weights: `a` at the origin, `b` to its right, `c` above the line.

        Raises:
            ValueError: names or shapes differ, two of the three are equal, or they lie on one line.

        >>> w = {"w": torch.zeros(2)}
        >>> Plane.through(w, {"w": torch.ones(2)}, w)
        Traceback (most recent call last):
        ...
        ValueError: a and c are the same weights: three different solutions span a plane
        """
        first, second, third = names
        for name, one in zip(names, (a, b, c), strict=True):
            check_numbers(one, name)
        for name, one in ((second, b), (third, c)):
            check_same(_moving(a), _moving(one), what=f"{name} beside {first}")
        frame = Frame(a, [sum_of((1.0, b), (-1.0, a)), sum_of((1.0, c), (-1.0, a))])
        u, v = frame.direction(0), frame.direction(1)
        for length, pair in (
            (norm(u), (first, second)),
            (norm(v), (first, third)),
            (norm(sum_of((1.0, u), (-1.0, v))), (second, third)),
        ):
            if length == 0:
                raise ValueError(
                    f"{pair[0]} and {pair[1]} are the same weights: three different solutions span a plane"
                )
        plane = cls.spanned(a, u, v, what=f"{first}, {second} and {third}")
        x, y = dot(plane.u, v), dot(plane.v, v)
        return cls(plane.frame, [(0.0, 0.0), (norm(u), 0.0), (x, y)], names)

    @classmethod
    def with_direction(cls, a: Weights, b: Weights, direction: Weights, *, names: Sequence[str] = ("a", "b")) -> Plane:
        """Return the plane through two sets of weights along a direction: random, principal or of the Hessian.

        Raises:
            ValueError: as `through`.

        >>> plane = Plane.with_direction(
        ...     {"w": torch.zeros(2)}, {"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([1.0, 1.0])})
        >>> plane.at(0.0, 1.0)
        {'w': tensor([1., 0.])}
        """
        for name, one in zip((*names, "the direction"), (a, b, direction), strict=True):
            check_numbers(one, name)
        check_same(_moving(a), _moving(b), what=f"{names[1]} beside {names[0]}")
        u = sum_of((1.0, b), (-1.0, a))
        if norm(u) == 0:
            raise ValueError(f"{names[0]} and {names[1]} are the same weights: give two different solutions")
        plane = cls.spanned(a, u, direction, what=f"{names[0]}, {names[1]} and the direction")
        return cls(plane.frame, [(0.0, 0.0), (norm(u), 0.0)], names)

    @classmethod
    def spanned(
        cls,
        origin: Weights,
        u: Weights,
        v: Weights,
        *,
        names: Sequence[str] = ("origin",),
        what: str = "the two directions",
    ) -> Plane:
        """Return the plane at `origin` along two directions; `v` is turned to a right angle with `u`.

        Raises:
            ValueError: a direction is zero, or they are parallel.

        >>> Plane.spanned({"w": torch.zeros(2)}, {"w": torch.ones(2)}, {"w": 2 * torch.ones(2)})
        Traceback (most recent call last):
        ...
        ValueError: the two directions lie on one line: no plane goes through them alone; give another
        """
        for name, one in zip(("the origin", "u", "v"), (origin, u, v), strict=True):
            check_numbers(one, name)
        lengths = norm(u), norm(v)
        if 0.0 in lengths:
            raise ValueError(f"a direction of {what} is zero: give two that are not")
        one = sum_of((1 / lengths[0], u))
        two = sum_of((1 / lengths[1], v))
        for _ in range(2):  # the second time takes away what rounding left
            two = sum_of((1.0, two), (-dot(one, two), one))
            left = norm(two)
            if left < _negligible(two):
                raise ValueError(f"{what} lie on one line: no plane goes through them alone; give another")
            two = sum_of((1 / left, two))
        return cls(Frame(origin, [one, two]), [(0.0, 0.0)], names[:1])

    @classmethod
    def principal(
        cls, weights: Iterable[Weights], *, centre: Weights | None = None, names: Sequence[str] | None = None
    ) -> Plane:
        """Return the plane of the two principal directions of a row of checkpoints, which are its `points`.

        Also the main plane of SWAG's subspace: its mean as `centre`, its deviations added to it as the row.

        Args:
            centre: the origin; the row's mean by default.
            names: of the row; its numbers by default.

        Raises:
            ValueError: there are fewer than three, or all lie on one line.

        >>> row = [{"w": torch.tensor(w)} for w in ([0.0, 0.0], [4.0, 0.0], [2.0, 1.0], [2.0, -1.0])]
        >>> plane = Plane.principal(row)
        >>> [round(share, 3) for share in plane.explained]
        [0.8, 0.2]
        """
        row = list(weights)
        if len(row) < 3:
            raise ValueError(f"principal directions want a row of at least three checkpoints, got {len(row)}")
        for place, one in enumerate(row):
            check_numbers(one, f"checkpoint {place + 1} of the row")
            check_same(_moving(row[0]), _moving(one), what=f"checkpoint {place + 1} of the row")
        middle = sum_of(*((1 / len(row), one) for one in row)) if centre is None else sum_of((1.0, centre))
        away = [sum_of((1.0, one), (-1.0, middle)) for one in row]
        gram = torch.tensor([[dot(a, b) for b in away] for a in away], dtype=torch.float64)
        values, vectors = torch.linalg.eigh(gram)
        total = float(gram.trace())
        if not total > 0 or float(values[-2]) < _negligible(middle) ** 2 * float(values[-1]):
            raise ValueError("the row of checkpoints lies on one line or in one place: it has no principal plane")
        axes = [_combined(away, vectors[:, -1 - k] / math.sqrt(float(values[-1 - k]))) for k in (0, 1)]
        like = {name: middle[name].to(tensor.dtype) for name, tensor in row[0].items() if name in middle}
        plane = cls.spanned(like, *axes)
        found = [plane.project(one)[:2] for one in row]
        titles = [str(number) for number in range(1, len(row) + 1)] if names is None else names
        shares = float(values[-1]) / total, float(values[-2]) / total
        return cls(plane.frame, found, titles, path=True, explained=shares)

    @property
    def origin(self) -> dict[str, Tensor]:
        """The weights at (0, 0), in float32 or wider."""
        return self.frame.origin()

    @property
    def u(self) -> dict[str, Tensor]:
        """The direction of x, of length 1."""
        return self.frame.direction(0)

    @property
    def v(self) -> dict[str, Tensor]:
        """The direction of y, of length 1."""
        return self.frame.direction(1)

    def at(self, x: float, y: float) -> dict[str, Tensor]:
        """Return the weights at a place, in new tensors of the origin's dtypes; running statistics are left out."""
        return self.frame.at((x, y))

    def project(self, weights: Weights) -> tuple[float, float, float]:
        """Return where on the plane weights lie nearest, and how far off it they are.

        >>> plane = Plane.spanned({"w": torch.zeros(3)}, {"w": torch.eye(3)[0]}, {"w": torch.eye(3)[1]})
        >>> plane.project({"w": torch.tensor([1.0, 2.0, 5.0])})
        (1.0, 2.0, 5.0)
        """
        x, y, whole = self.frame.products(weights)
        return x, y, math.sqrt(max(0.0, whole - x * x - y * y))

    def __repr__(self) -> str:
        return f"Plane({', '.join(self.names)}; {self.frame.dimension} weights)"


def _moving(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if moves(name, tensor)}


def _combined(away: Sequence[Weights], factors: Tensor) -> dict[str, Tensor]:
    return sum_of(*((float(factor), one) for factor, one in zip(factors, away, strict=True)))


def _negligible(weights: Weights) -> float:
    """The sine of an angle that rounding alone may leave between parallel directions."""
    return max(100 * torch.finfo(tensor.dtype).eps for tensor in weights.values())
