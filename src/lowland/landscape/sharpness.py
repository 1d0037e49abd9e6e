"""Critical sharpness: curvature along a step, by a handful of forward passes and no Hessian.

    lambda_c = 2 / eta_c,    eta_c the smallest step size eta at which f(w - eta d) > f(w)

Kalra, Gagnon-Audet, Gromov, Mediratta, Niu, Miller, Shvartsman 2026, arXiv:2601.16979. For a quadratic and the gradient
as the step it is g'Hg / g'g, the curvature along the gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..weights.named import Weights
from .frame import Frame
from .walk import Measure
from .working import Place, asking


class CriticalSharpness(NamedTuple):
    """The sharpness, the interval that the search leaves for it, and the step size it stands for."""

    value: float
    low: float
    high: float
    rate: float
    passes: int


def critical_sharpness(
    w: Weights,
    measure: Measure,
    step: Weights,
    *,
    name: str | None = None,
    start: float = 1.0,
    precision: float = 0.05,
    most: int = 60,
) -> CriticalSharpness:
    """Return 2 / eta_c along the update `w - eta step`.

    The step size is doubled or halved from `start` until the critical one lies within a factor of two, and the bracket
    halved in its logarithm until it is narrow enough: 5 or 6 passes from a good start, such as the last rate.

    Args:
        measure: takes weights and returns a number that is better when lower, or several by name.
        step: what an optimiser subtracts times its rate: a gradient, or its preconditioned form.
        name: which of the values; the first by default.
        precision: the width of the interval that is left, as a share of the value.
        most: measurements after which the search gives up.

    Raises:
        ValueError: the step is no way down, however small, or leads down as far as `most` doublings go.

    >>> f = lambda weights: 3 * weights["w"].item() ** 2
    >>> import torch
    >>> found = critical_sharpness({"w": torch.tensor([1.0])}, f, {"w": torch.tensor([6.0])}, precision=1e-4)
    >>> round(found.value, 2)
    6.0
    """
    if not (start > 0 and 0 < precision < 1):
        raise ValueError(f"wanted start above 0 and precision in (0, 1), got {start} and {precision}")
    passes = 0
    with asking(measure, Frame(w, [step])) as ask:

        def value(rate: float) -> float:
            nonlocal passes
            passes += 1
            place: Place = (-rate,)
            found = ask([place])[0]
            key = next(iter(found)) if name is None else name
            if key not in found:
                raise ValueError(f"{key!r} was not measured, only {list(found)}")
            return found[key]

        here = value(0.0)

        def rises(rate: float) -> bool:
            return not value(rate) <= here  # also where it is not a number

        low, high = (0.0, start) if rises(start) else (start, math.inf)
        while (low == 0.0 or high == math.inf) and passes < most:
            rate = high / 2 if low == 0.0 else low * 2
            low, high = (low, rate) if rises(rate) else (rate, high)
        if low == 0.0:
            raise ValueError(f"the value rises along the step for every rate down to {high:g}: give a way down")
        if high == math.inf:
            raise ValueError(f"the value does not rise along the step up to the rate {low:g}: give a larger start")
        while high - low > precision * low and passes < most:
            rate = math.sqrt(low * high)
            low, high = (low, rate) if rises(rate) else (rate, high)
    rate = math.sqrt(low * high)
    return CriticalSharpness(2 / rate, 2 / high, 2 / low, rate, passes)
