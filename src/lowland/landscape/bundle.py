"""Directions from one solution, made when they are asked for: one is in memory at a time, however many there are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ..arithmetic.moments import check_numbers
from ..weights.named import Weights, clone_of
from .frame import Frame
from .vectors import Normalise, gaussian_noise, normalised, random_direction


@final
class Bundle:
    """The weights `origin + t d_n`, at places (n, t).

    Args:
        directions: a key, for random ones; or directions.
        unit: random directions are of length 1, and else of independent standard normals.

    >>> bundle = Bundle({"w": torch.zeros(2)}, [{"w": torch.ones(2)}], None)
    >>> bundle.at((0.0, 3.0))
    {'w': tensor([3., 3.])}
    """

    def __init__(
        self, origin: Weights, directions: int | Sequence[Weights], normalise: Normalise, *, unit: bool = True
    ) -> None:
        check_numbers(origin, "the origin")
        for place, one in enumerate(() if isinstance(directions, int) else directions, start=1):
            check_numbers(one, f"direction {place}")
        self._origin, self._normalise, self._unit = clone_of(origin), normalise, unit
        self._directions = directions if isinstance(directions, int) else [clone_of(one) for one in directions]
        self._number = -1
        self._frame: Frame | None = None

    def at(self, place: tuple[float, ...]) -> dict[str, Tensor]:
        """Return the weights at a place."""
        return self._along(int(place[0])).at(place[1:])

    def several(self, places: Sequence[tuple[float, ...]]) -> dict[str, Tensor]:
        """Return those at several places, stacked."""
        parts: list[dict[str, Tensor]] = []
        start = 0
        while start < len(places):
            stop = start
            while stop < len(places) and places[stop][0] == places[start][0]:
                stop += 1
            frame = self._along(int(places[start][0]))
            parts.append(frame.several([place[1:] for place in places[start:stop]]))
            start = stop
        return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def digest(self) -> str:
        """Return a fingerprint."""
        found = hashlib.sha256(repr((self._normalise, self._unit)).encode())
        random = isinstance(self._directions, int)
        found.update(repr(self._directions if random else len(self._directions)).encode())  # type: ignore[arg-type]
        found.update(Frame(self._origin, [self._origin] if random else list(self._directions)).digest().encode())  # type: ignore[arg-type]
        return found.hexdigest()[:16]

    def _along(self, number: int) -> Frame:
        if self._frame is None or number != self._number:
            if not isinstance(self._directions, int):
                raw: Weights = self._directions[number]
            elif self._unit:
                raw = random_direction(self._origin, self._directions, number)
            else:
                raw = gaussian_noise(self._origin, self._directions, number)
            self._frame, self._number = Frame(self._origin, [normalised(raw, self._origin, self._normalise)]), number
        return self._frame
