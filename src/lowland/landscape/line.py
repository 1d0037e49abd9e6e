"""The straight line between two sets of weights.

    w(t) = (1 - t) a + t b

Goodfellow, Vinyals, Saxe 2015, arXiv:1412.6544. Two solutions whose line has no barrier can be averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..weights.named import Weights
from .frame import Frame
from .walk import Measure, Walk, check_places, evenly, mix, walk, walked
from .working import HERE, Place, Work, asking


def line(
    a: Weights,
    b: Weights,
    measure: Measure,
    *,
    points: int | Sequence[float] = 61,
    beyond: float = 0.0,
    work: Work = HERE,
) -> Walk:
    """Measure the straight line from `a` to `b`.

    A model with BatchNorm wants its statistics refreshed inside the measure, as `measured` does.

    Args:
        measure: takes weights and returns a number that is better when lower, or several by name.
        points: how many places from t = 0 to t = 1, or the places themselves. These may lie beyond the ends, as
            `[-0.5, 0, 0.5, 1, 1.5]` do; a barrier is told between 0 and 1 alone.
        beyond: how far a number of places is continued beyond both ends with the same step, as a share of the line.

        work: processes, journal, progress.

    Raises:
        ValueError: the two differ in names or shapes, or an argument is none of those above.

    Example:
        >>> import torch
        >>> a, b = {"w": torch.tensor([-1.0])}, {"w": torch.tensor([1.0])}
        >>> found = line(a, b, lambda weights: (weights["w"].item() ** 2 - 1) ** 2, points=5)  # two valleys
        >>> found.values["loss"], found.barrier()
        ((0.0, 0.5625, 1.0, 0.5625, 0.0), 1.0)
    """
    if not beyond >= 0 or (beyond and not isinstance(points, int)):
        raise ValueError(f"beyond must be at least 0, and goes with a number of points, got {beyond}: or give places")
    places = evenly(points) if isinstance(points, int) else tuple(float(t) for t in points)
    if beyond:
        pieces = len(places) - 1
        more = [k / pieces for k in range(1, round(beyond * pieces) + 1)]
        places = (*(-t for t in reversed(more)), *places, *(1 + t for t in more))
    if work is HERE:
        return walk([a, b], _shares, measure, places)
    check_places([a, b], places)
    with asking(measure, _Straight(a, b), work) as ask:
        return walked([a, b], _shares, places, ask([(t,) for t in places]))


def _shares(t: float) -> tuple[float, float]:
    return 1 - t, t


class _Straight:
    """The places of the line, mixed when they are asked for."""

    def __init__(self, a: Weights, b: Weights) -> None:
        self._ends = [a, b]

    def at(self, place: Place) -> dict[str, Tensor]:
        return mix(self._ends, _shares(place[0]))

    def several(self, places: Sequence[Place]) -> dict[str, Tensor]:
        made = [self.at(place) for place in places]
        return {name: torch.stack([weights[name] for weights in made]) for name in made[0]}

    def digest(self) -> str:
        return Frame(self._ends[0], [self._ends[1]]).digest()
