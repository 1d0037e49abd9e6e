"""Values on a rectangle of a plane: measured on a grid, finer near the levels that are asked for.

The area under a level is that of the surface made of flat triangles between the grid's places, four to a cell with the
mean of its corners in the middle. A cell is refined where a level passes between its corners or its neighbours'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import whole
from .plane import Plane, Point
from .walk import Measure, vertex
from .working import HERE, Work, asking


class Lowest(NamedTuple):
    """Where a value is lowest on a grid, and that value."""

    x: float
    y: float
    value: float


@dataclass(frozen=True)
class Grid:
    """What was measured on a rectangle of a plane.

    Attributes:
        x, y: the columns and the rows, ascending, as distances in weight space.
        values: by the name of what was measured, (rows, columns) in float64; between measured places interpolated.
        measured: (rows, columns), whether a place was measured and not interpolated.
        points: coordinates of the solutions by name.
        path: whether they are a path.
        about: what a caption says: data, model, n, refresh, normalisation.
        draws: where draws of a posterior lie, by `Plane.project`: drawn as dots in an ellipse that holds 95 % of them.

    >>> grid = Grid((0.0, 1.0), (0.0, 1.0), {"loss": torch.tensor([[0.0, 1.0], [1.0, 2.0]])}, torch.ones(2, 2) > 0)
    >>> grid.area(1.0, "loss")
    0.5
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    values: dict[str, Tensor]
    measured: Tensor
    points: dict[str, Point] = field(default_factory=dict)
    path: bool = False
    about: dict[str, str] = field(default_factory=dict)
    draws: tuple[Point, ...] = ()

    def of(self, name: str | None = None) -> Tensor:
        """Return the values of one name, by default the first.

        Raises:
            ValueError: nothing of that name was measured.
        """
        name = next(iter(self.values)) if name is None else name
        if name not in self.values:
            raise ValueError(f"{name!r} was not measured, only {list(self.values)}")
        return self.values[name]

    def area(self, level: float, name: str | None = None) -> float:
        """Return the area where a value is at most `level`; a value that is not a number is above every level.

        An area that reaches the edge (`reaches_edge`) is cut off there: a lower bound of the whole.
        """
        values = torch.nan_to_num(self.of(name).double(), nan=math.inf, posinf=math.inf)
        corners = [values[:-1, :-1], values[:-1, 1:], values[1:, 1:], values[1:, :-1]]  # around each cell
        middle = sum(corners[1:], corners[0]) / 4
        wide = torch.tensor(self.x, dtype=torch.float64).diff()[None, :]
        high = torch.tensor(self.y, dtype=torch.float64).diff()[:, None]
        share = torch.zeros_like(middle)
        for k in range(4):
            share += _share_below(torch.stack([corners[k], corners[(k + 1) % 4], middle]), level) / 4
        return float((share * wide * high).sum())

    def reaches_edge(self, level: float, name: str | None = None) -> bool:
        """Say whether a value is at most `level` somewhere on the edge of the rectangle."""
        v = self.of(name)
        return bool((torch.cat([v[0], v[-1], v[:, 0], v[:, -1]]) <= level).any())

    def lowest(self, name: str | None = None) -> Lowest:
        """Return where a value is lowest: by a parabola along each axis through the lowest place and its neighbours.

        Of equally low places the middle one of their centre of mass is taken. At the edge, and where a neighbour is not
        finite, the place itself counts.

        >>> x = torch.linspace(-1, 1, 5, dtype=torch.float64)
        >>> v = (x[None] - 0.1) ** 2 + x[:, None] ** 2
        >>> found = Grid(tuple(x.tolist()), tuple(x.tolist()), {"loss": v}, v < 9).lowest()
        >>> round(found.x, 6), round(found.y, 6), round(found.value, 6)
        (0.1, 0.0, 0.0)
        """
        values = torch.nan_to_num(self.of(name).double(), nan=math.inf, posinf=math.inf)
        ties = (values == values.min()).nonzero().double()
        row, column = map(int, ties[(ties - ties.mean(0)).square().sum(1).argmin()])
        value = float(values[row, column])
        x, gain_x = vertex(self.x, values[row].tolist(), column)
        y, gain_y = vertex(self.y, values[:, column].tolist(), row)
        return Lowest(x, y, value - gain_x - gain_y)

    def shift(self, one: str, other: str) -> float:
        """Return how far apart two values are lowest: a distance in weight space."""
        a, b = self.lowest(one), self.lowest(other)
        return math.hypot(a.x - b.x, a.y - b.y)

    def ellipse(self, share: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the centre (2,) and the half axes (2, 2), a row each, of the ellipse that holds a share of the draws.

        It is that of a Gaussian with the mean and the covariance of the draws.

        Raises:
            ValueError: there are fewer than three draws, or the share is no share.

        >>> corners = ((0.0, 0.0), (2.0, 0.0), (0.0, 2.0), (2.0, 2.0))
        >>> grid = Grid((0.0, 1.0), (0.0, 1.0), {}, torch.ones(2, 2) > 0, draws=corners)
        >>> grid.ellipse(0.5)[0]
        tensor([1., 1.], dtype=torch.float64)
        """
        if len(self.draws) < 3 or not 0 < share < 1:
            raise ValueError(
                f"an ellipse wants three draws or more and a share in (0, 1), got {len(self.draws)}, {share}"
            )
        places = torch.tensor(self.draws, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(places.T.cov())
        # In two dimensions the squared distance of a Gaussian's draws is exponential with mean 2.
        lengths = (-2 * math.log(1 - share) * values.clamp_min(0)).sqrt()
        return places.mean(0), vectors.T * lengths[:, None]

    def __str__(self) -> str:
        size = f"{len(self.x)} x {len(self.y)} places, {int(self.measured.sum())} of them measured"
        rows = [f"{name}  lowest {low.value:.4g} at ({low.x:.4g}, {low.y:.4g})" for name, low in self._lowest()]
        return "\n".join([size, *rows])

    def _lowest(self) -> Iterator[tuple[str, Lowest]]:
        return ((name, self.lowest(name)) for name in self.values)


def plane(
    p: Plane,
    measure: Measure,
    *,
    points: int | tuple[int, int] = 21,
    margin: float = 0.2,
    levels: Mapping[str, Sequence[float]] | None = None,
    work: Work = HERE,
) -> Grid:
    """Measure a plane on a grid around its points.

    Args:
        measure: takes weights and returns a number that is better when lower, or several by name.
        points: columns and rows.
        margin: what is added on each side, in widths and heights of the points' box.
        levels: by name, levels near which the grid is refined: first every fourth place is measured, then every second
            and every place, in cells near a level; the rest is interpolated. `points` less 1 must be a multiple of 4.
        work: processes, journal, progress.

    Raises:
        ValueError: the box of the points has no width or height (give `spanned` planes a box by `window`), or an
            argument is none of those above.

    >>> p = Plane.through(*({"w": torch.tensor(w)} for w in ([0.0, 0.0], [2.0, 0.0], [1.0, 2.0])))
    >>> grid = plane(p, lambda w: (w["w"] - 1).square().sum().item(), points=5, margin=0.0)
    >>> grid.values["loss"].shape, grid.lowest()
    (torch.Size([5, 5]), Lowest(x=1.0, y=1.0, value=0.0))
    """
    xs, ys = [x for x, _ in p.points], [y for _, y in p.points]
    wide, high = max(xs) - min(xs), max(ys) - min(ys)
    if not (wide > 0 and high > 0):
        raise ValueError("the plane's points have no box around them: give the rectangle to `window`")
    if not margin >= 0:
        raise ValueError(f"margin must be at least 0, in widths of the points' box, got {margin}")
    box = (min(xs) - margin * wide, max(xs) + margin * wide), (min(ys) - margin * high, max(ys) + margin * high)
    return window(p, measure, *box, points=points, levels=levels, work=work)


def window(
    p: Plane,
    measure: Measure,
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    points: int | tuple[int, int] = 21,
    levels: Mapping[str, Sequence[float]] | None = None,
    work: Work = HERE,
) -> Grid:
    """Measure a rectangle of a plane, from `x[0]` to `x[1]` and `y[0]` to `y[1]`; the rest is as in `plane`.

    >>> p = Plane.spanned({"w": torch.zeros(2)}, {"w": torch.eye(2)[0]}, {"w": torch.eye(2)[1]})
    >>> window(p, lambda w: w["w"].square().sum().item(), (-1.0, 1.0), (-1.0, 1.0), points=3).values["loss"][0, 0]
    tensor(2., dtype=torch.float64)
    """
    columns, rows = (points, points) if isinstance(points, int) else points
    for what, count, (low, high) in (("columns", columns, x), ("rows", rows, y)):
        whole(f"the number of {what}", count, 2)
        if not low < high:
            raise ValueError(f"{what} want a range that ascends, got {low} to {high}")
        if levels and (count - 1) % 4:
            raise ValueError(f"with levels, {what} less 1 must be a multiple of 4 (such as 21 or 41), got {count}")
    xs, ys = _even(*x, columns), _even(*y, rows)
    measured = torch.zeros(rows, columns, dtype=torch.bool)
    values: dict[str, Tensor] = {}
    with asking(measure, p.frame, work) as ask:
        for stride in (4, 2, 1) if levels else (1,):
            wanted = torch.zeros_like(measured)
            wanted[::stride, ::stride] = True
            if values:
                wanted &= _near(values, levels or {}, 2 * stride)
            wanted &= ~measured
            found = ask([(xs[c], ys[r]) for r, c in wanted.nonzero().tolist()])
            measured |= wanted
            for name in dict.fromkeys(name for one in found for name in one):
                grid = values.setdefault(name, torch.full(measured.shape, math.nan, dtype=torch.float64))
                grid[wanted] = torch.tensor([one.get(name, math.nan) for one in found], dtype=torch.float64)
            values = {name: _filled(grid, measured, stride) for name, grid in values.items()}
    unknown = [name for name in levels or {} if name not in values]
    if unknown:
        raise ValueError(f"there are levels for {unknown}, and {list(values)} were measured")
    marks = dict(zip(p.names, p.points, strict=True))
    return Grid(xs, ys, values, measured, marks, p.path, dict(work.about))


def _even(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(low + (high - low) * (k / (count - 1)) for k in range(count))


def _near(values: Mapping[str, Tensor], levels: Mapping[str, Sequence[float]], cell: int) -> Tensor:
    """Places of the cells, `cell` steps wide, that a level crosses, and of those beside them."""
    shape = next(iter(values.values())).shape
    near = torch.zeros(shape, dtype=torch.bool)
    for name, wanted in levels.items():
        if name not in values:
            continue
        coarse = torch.nan_to_num(values[name][::cell, ::cell], nan=math.inf)
        corners = torch.stack([coarse[:-1, :-1], coarse[:-1, 1:], coarse[1:, :-1], coarse[1:, 1:]])
        low, high = corners.amin(0), corners.amax(0)
        crossed = torch.zeros_like(low, dtype=torch.bool)
        for level in wanted:
            crossed |= (low <= level) & (high > level)
        for r, c in crossed.nonzero().tolist():
            near[max(0, (r - 1) * cell) : (r + 2) * cell + 1, max(0, (c - 1) * cell) : (c + 2) * cell + 1] = True
    return near


def _filled(grid: Tensor, measured: Tensor, stride: int) -> Tensor:
    """Interpolate the places of this stride that are not measured from those of twice the stride."""
    if stride == 4 or bool(measured.all()):
        return grid
    grid, step = grid.clone(), 2 * stride
    for target, one, other in (
        ((slice(0, None, step), slice(stride, None, step)),) + _beside(slice(0, None, step), step),
        ((slice(stride, None, step), slice(0, None, stride)),) + _beside(slice(0, None, stride), step, rows=True),
    ):
        grid[target] = torch.where(measured[target], grid[target], (grid[one] + grid[other]) / 2)
    return grid


def _beside(kept: slice, step: int, rows: bool = False) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    before, after = slice(0, -1, step), slice(step, None, step)
    return ((before, kept), (after, kept)) if rows else ((kept, before), (kept, after))


def _share_below(triangle: Tensor, level: float) -> Tensor:
    """The share of flat triangles, values (3, ...) at their corners, that lies at or below a level.

    Of a triangle with a corner that is infinite nothing is.
    """
    low, middle, high = triangle.sort(0).values
    # With s the level between corners, the part below is similar to the whole, or the part above is.
    below = (level - low) ** 2 / ((middle - low) * (high - low))
    above = (high - level) ** 2 / ((high - low) * (high - middle))
    share = torch.where(level < middle, below, 1 - above)
    share = torch.where(level >= high, torch.ones_like(low), share)
    return torch.where((level < low) | torch.isinf(high), torch.zeros_like(low), share)
