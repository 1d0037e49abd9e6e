"""Curves between two sets of weights, by points that are free to move.

Garipov, Izmailov, Podoprikhin, Vetrov, Wilson 2018, arXiv:1802.10026. With n points, P_0 and P_(n-1) the two ends,

    phi(t) = sum_k c_k(t) P_k
    Bezier    c_k(t) = C(n-1, k) t^k (1-t)^(n-1-k)
    chain     c_k(t) = max(0, 1 - |t (n-1) - k|)

The free points start on the straight line between the ends; `CurveTraining` moves them to where the curve is low.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor

from ..arguments import whole
from ..arithmetic.moments import check_numbers
from ..weights.kinds import check_same_codes, check_same_kinds
from ..weights.named import Weights, check_same, clone_of
from .walk import Measure, Walk, evenly, mix, mixes, walk, wide

Kind = Literal["bezier", "chain"]


@final
class Curve:
    """A curve through weight space from its first point to its last; `bezier` and `chain` make one between two ends.

    The points are copies. Those between the ends are kept in float32 or wider. Tensors are paired by name. Tensors of
    whole numbers are not mixed: `at` gives those of the point with the largest coefficient.

    Args:
        kind: `"bezier"` or `"chain"`.
        points: at least two: from the first end to the last.

    Raises:
        ValueError: an unknown kind, fewer than two points, points that differ in names or shapes, ends that differ in
            dtype or device, or a point that is not finite.

    >>> curve = Curve("bezier", [{"w": torch.tensor([w])} for w in (0.0, 4.0, 0.0)])
    >>> curve.at(0.5)
    {'w': tensor([2.])}
    """

    def __init__(self, kind: Kind, points: Sequence[Weights]) -> None:
        if kind not in ("bezier", "chain"):
            raise ValueError(f'kind must be "bezier" or "chain", got {kind!r}')
        if len(points) < 2:
            raise ValueError(f"a curve needs its two ends, got {len(points)} point(s)")
        first = points[0]
        # The ends before what may have been mixed from them.
        for number, point in sorted(enumerate(points), key=lambda pair: 0 < pair[0] < len(points) - 1):
            check_numbers(point, f"point {number} of the curve", complex_too=True)
            check_same(first, point, what=f"point {number} of the curve")
        for name, tensor in points[-1].items():
            got, wanted = (tensor.dtype, tensor.device), (first[name].dtype, first[name].device)
            if got != wanted:
                raise ValueError(f"the curve's last end has {name} in {got}, its first in {wanted}: make them alike")
        self.kind = kind
        self._points = [clone_of(point) for point in points]
        for point in self._points[1:-1]:
            for name, tensor in point.items():
                if mixes(tensor):
                    point[name] = tensor.to(device=first[name].device, dtype=wide(first[name].dtype))

    @property
    def points(self) -> list[dict[str, Tensor]]:
        """The points from end to end: the curve's own tensors, of which training moves those between the ends."""
        return [{name: tensor.detach() for name, tensor in point.items()} for point in self._points]

    def coefficients(self, t: float) -> tuple[float, ...]:
        """Return the coefficient of each point at `t`; they sum to 1.

        Raises:
            ValueError: `t` lies outside [0, 1].

        >>> ends = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
        >>> bezier(*ends).coefficients(0.25), chain(*ends).coefficients(0.25)
        ((0.5625, 0.375, 0.0625), (0.5, 0.5, 0.0))
        """
        if not 0 <= t <= 1:
            raise ValueError(f"t must lie in [0, 1], from the curve's first end to its last, got {t}")
        last = len(self._points) - 1
        if self.kind == "chain":
            return tuple(max(0.0, 1 - abs(t * last - k)) for k in range(last + 1))
        return tuple(math.comb(last, k) * t**k * (1 - t) ** (last - k) for k in range(last + 1))

    @torch.no_grad()
    def at(self, t: float) -> dict[str, Tensor]:
        """Return the weights at `t`, in new tensors of the ends' dtype; at 0 and 1 these are the ends, bit for bit.

        Raises:
            ValueError: `t` lies outside [0, 1].
        """
        return mix(self._points, self.coefficients(t))

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the points with the kind: what `torch.save` writes and reads with `weights_only=True`."""
        return {"kind": self.kind, "points": [clone_of(point) for point in self._points]}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Curve:
        """Make the curve that `state_dict` described.

        >>> curve = bezier({"w": torch.zeros(1)}, {"w": torch.ones(1)})
        >>> Curve.from_state_dict(curve.state_dict()).at(0.5)
        {'w': tensor([0.5000])}
        """
        return cls(state["kind"], state["points"])

    def __repr__(self) -> str:
        numbers = sum(tensor.numel() for tensor in self._points[0].values())
        return f"Curve({self.kind!r}, {len(self._points) - 2} free point(s), {numbers} weights)"


def bezier(a: Weights, b: Weights, *, free: int = 1) -> Curve:
    """Return the Bezier curve from `a` to `b` with `free` points between them, as yet on the straight line.

    Raises:
        ValueError: the ends do not fit each other (see `Curve`), or `free` is no whole number of at least 1.

    >>> bezier({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    Curve('bezier', 1 free point(s), 2 weights)
    """
    return Curve("bezier", _on_the_line(a, b, free))


def chain(a: Weights, b: Weights, *, free: int = 1) -> Curve:
    """Return the polygonal chain from `a` to `b` with `free` corners between them, as yet on the straight line.

    Raises:
        ValueError: as `bezier`.

    >>> chain({"w": torch.zeros(2)}, {"w": torch.ones(2)}, free=2).at(0.5)
    {'w': tensor([0.5000, 0.5000])}
    """
    return Curve("chain", _on_the_line(a, b, free))


def along(curve: Curve, measure: Measure, *, points: int | Sequence[float] = 61) -> Walk:
    """Measure a curve from end to end.

    Args:
        measure: takes weights and returns a number that is better when lower, or several by name.
        points: how many places from t = 0 to t = 1, or the places themselves, in [0, 1].

    Raises:
        ValueError: an argument is none of those above.

    >>> curve = Curve("chain", [{"w": torch.tensor(w)} for w in ([0.0, 0.0], [3.0, 4.0], [6.0, 0.0])])
    >>> found = along(curve, lambda weights: weights["w"][1].item(), points=5)
    >>> found.values["loss"], found.length
    ((0.0, 2.0, 4.0, 2.0, 0.0), 10.0)
    """
    places = evenly(points) if isinstance(points, int) else [float(t) for t in points]
    return walk(curve.points, curve.coefficients, measure, places)


@torch.no_grad()
def _on_the_line(a: Weights, b: Weights, free: int) -> list[Weights]:
    free = whole("free", free, 1, hint="the points between the ends, ")
    for end, what in ((a, "the curve's first end"), (b, "the curve's second end")):
        check_numbers(end, what, complex_too=True)
    check_same(a, b, what="the curve's second end")
    check_same_kinds(a, b, "the curve's second end")
    check_same_codes(a, b, "the curve's second end")
    wider = [{n: t.to(wide(t.dtype)) if mixes(t) else t for n, t in end.items()} for end in (a, b)]
    places = [k / (free + 1) for k in range(1, free + 1)]
    return [a, *(mix(wider, (1 - t, t)) for t in places), b]
