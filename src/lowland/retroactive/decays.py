"""A decay of the learning rate as an average of iterates at a constant rate, and its coefficients for checkpoints.

    average = sum_j c_j w_j,     c_j = r(t_{j-1}) - r(t_j),     the last one r at its time

for the rate r that falls from 1 where the average begins to 0 where it ends, and checkpoints at the ends of the
intervals (t_{j-1}, t_j]. Steps at a constant rate that are then scaled by r add up to this average, if gradients were
the same.

    linear          r(x) = 1 - x                    the equal average
    minus-sqrt      r(x) = 1 - sqrt(x)
    cosine          r(x) = (1 + cos(pi x)) / 2
    (1-x)^p         r(x) = (1 - x)^p

Tian, Wang, Zhao, Chen, Liu, Liu, Mao, Zhao, Zhang, Zhou 2025, arXiv 2507.17634 (WSM); Li et al. 2025, arXiv 2505.12082
(PMA).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .profiles import Floats, check_span

_POWER = re.compile(r"\(1-x\)\^([0-9.]+)|power[:= ]?([0-9.]+)")
SHAPES = ("linear", "minus-sqrt", "cosine", "(1-x)^2")


def power_of(shape: str) -> float | None:
    """Return the exponent of a shape `(1-x)^p`, or None for a shape of another kind.

    >>> power_of("(1-x)^1.5"), power_of("cosine")
    (1.5, None)
    """
    found = _POWER.fullmatch(shape.replace(" ", ""))
    try:
        power = float(found.group(1) or found.group(2)) if found else None
    except ValueError:
        power = -1.0
    if power is not None and not 0 < power <= 100:
        raise ValueError(f"the exponent of {shape} must lie above 0, and be at most 100")
    return power


def rate(shape: str, x: Floats) -> Floats:
    """Return the rate of a decay at shares `x` of its length; 1 before it and 0 after.

    Raises:
        ValueError: the shape is not known.

    >>> [rate(shape, np.array([0.25])).item() for shape in ("linear", "minus-sqrt", "(1-x)^2")]
    [0.75, 0.5, 0.5625]
    """
    inside = np.clip(np.asarray(x, dtype=np.float64), 0.0, 1.0)
    power = power_of(shape)
    if power is not None:
        return np.asarray((1.0 - inside) ** power)
    if shape == "linear":
        return np.asarray(1.0 - inside)
    if shape == "minus-sqrt":
        return np.asarray(1.0 - np.sqrt(inside))
    if shape == "cosine":
        return np.asarray(0.5 * (1.0 + np.cos(np.pi * inside)) * (inside < 1.0))
    raise ValueError(f"a decay is one of {', '.join(SHAPES)} (any exponent), got {shape!r}")


@dataclass(frozen=True)
class Decay:
    """The average over the steps after `start` up to `end` that stands for a decay of the rate over them.

    Called with the number n of updates, it is the decay under which `lowland.EMA`, fed with every step after `start`,
    is this average: no checkpoints are kept for one average whose start and end are known beforehand. A choice of
    shape or window afterwards wants recorded checkpoints: `minus-sqrt`, whose weight is largest where it begins, is no
    sum of two power EMAs (residual 0.6).

    Raises:
        ValueError: the shape is not known, or there is no step.

    >>> import torch
    >>> from lowland import EMA
    >>> average = EMA(Decay("minus-sqrt", end=4))
    >>> for w in (1.0, 2.0, 3.0, 4.0):
    ...     average.update({"w": torch.tensor([w])})
    >>> wanted = sum(c * w for c, w in zip(decayed("minus-sqrt", [1, 2, 3, 4]), (1, 2, 3, 4)))
    >>> round(average.mean()["w"].item(), 6) == round(wanted, 6)
    True
    """

    shape: str
    end: int
    start: int = 0

    def __post_init__(self) -> None:
        check_span(self.start, self.end)
        rate(self.shape, np.zeros(1))

    @property
    def half_life(self) -> float:
        """The number of steps up to `end` that hold half of the weight."""
        power = power_of(self.shape)
        middle = {"linear": 0.5, "minus-sqrt": 0.25, "cosine": 0.5}.get(self.shape, 0.0)
        return (1.0 - (1.0 - 0.5 ** (1 / power) if power else middle)) * (self.end - self.start)

    def share(self, steps: Floats) -> Floats:
        """Return the share of the weight that lies on steps up to each of `steps`."""
        return np.asarray(1.0 - rate(self.shape, (steps - self.start) / (self.end - self.start)))

    def __call__(self, count: int) -> float:
        now, following = self.share(np.array([count, count + 1.0]) + self.start)
        return float(now / following)

    def __str__(self) -> str:
        return f"{self.shape} decay over {self.end - self.start}"


def decayed(shape: str, steps: Sequence[float]) -> list[float]:
    """Return the coefficients of checkpoints at these steps, which sum to 1.

    The decay begins at the first checkpoint and ends one interval after the last: n checkpoints at equal distances
    stand at 0, 1/n, ..., (n-1)/n of it.

    Raises:
        ValueError: the shape is not known, there is no checkpoint, or steps do not rise.

    >>> decayed("linear", [100, 200, 300, 400])
    [0.25, 0.25, 0.25, 0.25]
    >>> [round(c, 4) for c in decayed("minus-sqrt", [100, 200, 300, 400])]
    [0.5, 0.2071, 0.1589, 0.134]
    """
    _check_steps(steps)
    if len(steps) == 1:
        rate(shape, np.zeros(1))
        return [1.0]
    first, last = float(steps[0]), float(steps[-1])
    length = (last - first) * len(steps) / (len(steps) - 1)
    return _differences(rate(shape, (np.asarray(steps, dtype=np.float64) - first) / length))


def of_rates(rates: Sequence[float]) -> list[float]:
    """Return the coefficients of checkpoints at which the rate has these values; they sum to 1.

    Rates that rise again give negative coefficients.

    Raises:
        ValueError: there is none, one is not finite, or the first is not positive.

    >>> of_rates([2.0, 1.0, 0.5])
    [0.5, 0.25, 0.25]
    """
    values = np.asarray(rates, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all() or not values[0] > 0:
        raise ValueError(f"rates must be finite and the first positive, got {list(rates)[:5]}")
    return _differences(values / values[0])


def rates_from(path: str | os.PathLike[str], steps: Sequence[float]) -> list[float]:
    """Read the rates of checkpoints at these steps from a text file.

    A line has one number, the rate of a checkpoint in its turn, or two, a step and the rate there; between steps the
    rate is interpolated. Commas, blanks and lines that begin with # are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is something else, or the file does not reach from the first checkpoint to the last.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"there is no decay and no file of rates {source}: shapes are {', '.join(SHAPES)}")
    rows: list[list[float]] = []
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                rows.append([float(part) for part in line.replace(",", " ").split()])
            except ValueError:
                raise ValueError(f"line {number} of {source} is no number and no pair of them: {line[:40]!r}") from None
    widths = {len(row) for row in rows}
    if widths == {1}:
        if len(rows) != len(steps):
            raise ValueError(f"{source} holds {len(rows)} rates for {len(steps)} checkpoints: give one for each")
        return [row[0] for row in rows]
    if widths != {2}:
        raise ValueError(f"{source} wants one number a line, or a step and a rate, got {sorted(widths)} a line")
    known = sorted(rows)
    if known[0][0] > steps[0] or known[-1][0] < steps[-1]:
        raise ValueError(
            f"{source} has rates from step {known[0][0]:g} to {known[-1][0]:g}, the checkpoints are from {steps[0]:g} "
            f"to {steps[-1]:g}: give rates for all of them"
        )
    return [float(v) for v in np.interp(steps, [row[0] for row in known], [row[1] for row in known])]


def blended(coefficients: Sequence[float], towards: float) -> list[float]:
    """Return the coefficients of last + towards (average - last).

    >>> blended([0.5, 0.5], 0.5)
    [0.25, 0.75]
    """
    if not math.isfinite(towards):
        raise ValueError(f"a blend must be a finite number, got {towards}")
    made = [towards * c for c in coefficients]
    made[-1] += 1.0 - towards
    return made


def _differences(rates: Floats) -> list[float]:
    return [*(float(a - b) for a, b in zip(rates, rates[1:], strict=False)), float(rates[-1])]


def _check_steps(steps: Sequence[float]) -> None:
    if not steps or any(not later > earlier for earlier, later in zip(steps, steps[1:], strict=False)):
        raise ValueError(f"checkpoints of a decay need rising steps, got {list(steps)[:6]}: name them by their steps")
