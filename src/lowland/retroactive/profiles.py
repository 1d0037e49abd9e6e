"""How much of an average each training step has, and one such profile as a sum of others.

    average = sum_i p_i w_i,   p_i = F(i) - F(i - 1),   F(i) = share of the weight on steps up to i

    window (a, b]              F(i) = (i - a) / (b - a)
    EMA of half-life h at T    F(i) = 2 ** (-(T - i) / h);   the first step takes what would lie before it
    power EMA of gamma at T    F(i) = (i / T) ** (gamma + 1)

These are the discrete averages to the last digit, not approximations of them: the decay (1 - 1/t) ** (gamma + 1) gives
step i of T exactly (i / T) ** (gamma + 1) - ((i - 1) / T) ** (gamma + 1).

A wanted profile q is fitted by recorded ones p_1 ... p_n in the least-squares sense over time,

    min_c  || q - sum_j c_j p_j ||^2   under   sum_j c_j = 1,

and the same coefficients then combine the recorded averages. Karras, Aittala, Lehtinen, Hellsten, Aila, Laine 2024,
arXiv 2312.02696, section 3.2 (power profiles; there without the constraint).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Up to so many steps the fit is over single steps; longer runs are cut into cells that are fine where profiles jump.
MOST_CELLS = 16_384
# Directions of the basis that are this much weaker than the strongest are rounding, and are left out.
CUTOFF = 1e-10


class Profile(Protocol):
    """A profile over the steps after `start` up to `end`."""

    @property
    def start(self) -> int:
        """The step after which the average begins."""

    @property
    def end(self) -> int:
        """The last step averaged."""

    @property
    def half_life(self) -> float:
        """The number of steps up to `end` that hold half of the weight; of an EMA, the half-life of its decay."""

    def share(self, steps: Floats) -> Floats:
        """Return the share of the weight that lies on steps up to each of `steps`."""


@dataclass(frozen=True)
class Window:
    """The equal average of the steps after `start` up to `end`: SWA from a step on, LAWA, or one snapshot.

    Raises:
        ValueError: the window holds no step, or starts before step 0.

    >>> Window.last(3, end=10), Window(0, 8).half_life
    (Window(start=7, end=10), 4.0)
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        check_span(self.start, self.end)

    @classmethod
    def last(cls, steps: int, end: int) -> Window:
        """Return the window of the last `steps` steps up to `end`."""
        return cls(end - steps, end)

    @property
    def half_life(self) -> float:
        return (self.end - self.start) / 2

    def share(self, steps: Floats) -> Floats:
        return np.clip((steps - self.start) / (self.end - self.start), 0.0, 1.0)

    def __str__(self) -> str:
        return f"window of {self.end - self.start}"


@dataclass(frozen=True)
class Exponential:
    """The EMA whose weights halve every `half_life` steps, fed with every step after `start`, read at `end`.

    Args:
        corrected: share out what would lie before the first step over all steps, in proportion. False is the EMA that
            starts as a copy of its first iterate, as `lowland.EMA` does: that one step then holds the share, much more
            than its neighbours when the half-life is not small beside the run.

    Raises:
        ValueError: the half-life is not positive, or there is no step.

    >>> Exponential(100.0, end=1000)
    Exponential(half_life=100.0, end=1000, start=0, corrected=False)
    >>> round(Exponential.of_decay(0.999, end=5000).half_life, 1)
    692.8
    """

    half_life: float
    end: int
    start: int = 0
    corrected: bool = False

    def __post_init__(self) -> None:
        check_span(self.start, self.end)
        if not (self.half_life > 0 and math.isfinite(self.half_life)):
            raise ValueError(f"half_life must be a positive number of steps, got {self.half_life}")

    @classmethod
    def of_decay(cls, decay: float, end: int, start: int = 0) -> Exponential:
        """Return the profile of an EMA of this decay, a number inside (0, 1)."""
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie inside (0, 1), got {decay}")
        return cls(math.log(0.5) / math.log(decay), end, start)

    def share(self, steps: Floats) -> Floats:
        inside = 0.5 ** ((self.end - np.clip(steps, self.start, self.end)) / self.half_life)
        if self.corrected:
            past = 0.5 ** ((self.end - self.start) / self.half_life)
            return np.asarray((inside - past) / (1 - past))
        first = 0.5 ** ((self.end - self.start - 1) / self.half_life)
        return np.where(steps < self.start + 1, np.clip(steps - self.start, 0.0, 1.0) * first, inside)

    def __str__(self) -> str:
        return f"{'corrected ' if self.corrected else ''}EMA, half-life {self.half_life:.4g}"


@dataclass(frozen=True)
class PowerLaw:
    """The power EMA of exponent `gamma`, fed with every step after `start`, read at `end`.

    Raises:
        ValueError: gamma is negative, or there is no step.

    >>> profile = PowerLaw.of_width(0.1, end=1000)
    >>> round(profile.gamma, 2), round(profile.width, 3), round(profile.half_life, 1)
    (6.94, 0.1, 83.6)
    """

    gamma: float
    end: int
    start: int = 0

    def __post_init__(self) -> None:
        check_span(self.start, self.end)
        if not (self.gamma >= 0 and math.isfinite(self.gamma)):
            raise ValueError(f"gamma must be at least 0 (the equal average), got {self.gamma}")

    @classmethod
    def of_width(cls, width: float, end: int, start: int = 0) -> PowerLaw:
        """Return the profile whose standard deviation is `width` of the run, in (0, 12 ** -0.5] (sigma_rel)."""
        if not 0 < width <= 12**-0.5 * (1 + 1e-12):
            raise ValueError(f"width must lie in (0, {12**-0.5:.4f}], the share of a run, got {width}")
        # width ** -2 (gamma + 1) = (gamma + 2) ** 2 (gamma + 3) has one root at or above 0.
        scale = width**-2.0
        roots = np.roots([1.0, 7.0, 16.0 - scale, 12.0 - scale])
        return cls(max(0.0, float(roots.real.max())), end, start)

    @property
    def width(self) -> float:
        """The standard deviation as a share of the run (sigma_rel)."""
        return math.sqrt((self.gamma + 1) / (self.gamma + 3)) / (self.gamma + 2)

    @property
    def half_life(self) -> float:
        return float((self.end - self.start) * (1 - 0.5 ** (1 / (self.gamma + 1))))

    def share(self, steps: Floats) -> Floats:
        inside = np.clip((steps - self.start) / (self.end - self.start), 0.0, 1.0)
        return np.asarray(inside ** (self.gamma + 1))

    def __str__(self) -> str:
        return f"power EMA, width {self.width:.3g}"


class Fit(NamedTuple):
    """A wanted profile as a sum of others.

    >>> fit([Window(0, 2), Window(2, 4)], Window(0, 4))
    Fit(coefficients=(0.5, 0.5), residual=0.0, amplification=1.0)
    """

    coefficients: tuple[float, ...]
    residual: float  # size of what the basis cannot express, over the size of the wanted profile: 0 all, 1 nothing
    amplification: float  # sum of the coefficients' sizes: how much errors of the recorded weights can grow


def fit(basis: Sequence[Profile], target: Profile) -> Fit:
    """Return the coefficients, with sum 1, under which `basis` comes closest to `target`.

    Raises:
        ValueError: the basis is empty, or the target goes on after its last step.

    Example:
        >>> basis = [PowerLaw.of_width(width, end=t) for t in (250, 500, 750, 1000) for width in (0.05, 0.1)]
        >>> found = fit(basis, PowerLaw.of_width(0.07, end=1000))
        >>> round(sum(found.coefficients), 9), found.residual < 0.05
        (1.0, True)
    """
    return fits(basis, [target])[0]


def fits(basis: Sequence[Profile], targets: Sequence[Profile]) -> list[Fit]:
    """Return the fit of every target; one decomposition serves them all.

    Raises:
        ValueError: as `fit`.

    Example:
        >>> [round(found.residual, 2) for found in fits([Window(0, 2), Window(2, 4)], [Window(0, 4), Window(1, 4)])]
        [0.0, 0.41]
    """
    if not basis:
        raise ValueError("a fit needs at least one recorded profile, got none")
    last = max(profile.end for profile in basis)
    late = [target for target in targets if target.end > last]
    if late:
        raise ValueError(f"{late[0]} ends at step {late[0].end}, the record at step {last}: choose an end up to that")
    if not targets:
        return []
    edges = _edges([*basis, *targets])
    recorded = np.stack([_density(profile, edges) for profile in basis], axis=1)  # (cells, n)
    wanted = np.stack([_density(target, edges) for target in targets], axis=1)  # (cells, targets)
    # The coefficients sum to 1: the last one is what the others leave, so differences from the last are fitted.
    directions = recorded[:, :-1] - recorded[:, -1:]
    sizes = np.linalg.norm(directions, axis=0)
    sizes[sizes == 0] = 1.0
    free = np.linalg.lstsq(directions / sizes, wanted - recorded[:, -1:], rcond=CUTOFF)[0] / sizes[:, None]
    found = np.concatenate([free, 1.0 - free.sum(axis=0, keepdims=True)])  # (n, targets)
    missing = np.linalg.norm(wanted - recorded @ found, axis=0) / np.linalg.norm(wanted, axis=0)
    return [
        Fit(tuple(_plain(column)), _rounded(residual), _rounded(float(np.abs(column).sum())))
        for column, residual in zip(found.T, missing.tolist(), strict=True)
    ]


def profile_of(kind: str, settings: dict[str, Any], count: int) -> Profile:
    """Return the profile of an averager's mean from its class, its settings and its count, as a state file has them.

    Raises:
        ValueError: that averager's mean has no profile known here.

    Example:
        >>> profile_of("EMA", {"decay": "Power(gamma=6.94)"}, 1000)
        PowerLaw(gamma=6.94, end=1000, start=0)
        >>> profile_of("Snapshots", {"k": 5}, 1000)
        Window(start=995, end=1000)
    """
    decay = settings.get("decay")
    if kind in {"SWA", "SWAG"}:
        return Window(0, count)
    if kind == "Snapshots":
        return Window(max(0, count - int(settings["k"])), count)
    if kind == "EMA" and isinstance(decay, float) and 0 < decay < 1:
        return Exponential.of_decay(decay, count)
    if kind == "EMA" and isinstance(decay, str) and decay.startswith("Power(gamma="):
        return PowerLaw(float(decay.removeprefix("Power(gamma=").removesuffix(")")), count)
    raise ValueError(
        f"the mean of {kind} with {settings} has no profile known here: use SWA, Snapshots, or EMA with a decay inside "
        "(0, 1) or Power"
    )


def check_span(start: int, end: int) -> None:
    """Refuse a profile without steps.

    Raises:
        ValueError: start is negative, or end is not after it.
    """
    if start < 0 or end <= start:
        raise ValueError(f"a profile needs steps: start at 0 or later and end after it, got start {start}, end {end}")


def _edges(profiles: Sequence[Profile]) -> Floats:
    """The borders of the cells of time: every step, or few enough cells that are small beside every border."""
    low, high = min(p.start for p in profiles), max(p.end for p in profiles)
    if high - low <= MOST_CELLS:
        return np.arange(low, high + 1, dtype=np.float64)
    borders = np.unique([edge for p in profiles for edge in (p.start, p.start + 1, p.end)])
    # Distances from every border grow by a quarter: what falls off from there is seen at any scale.
    ways = np.unique(np.floor(1.25 ** np.arange(0, math.log(high - low) / math.log(1.25))))
    near = (borders[:, None] + np.concatenate([-ways, ways])[None, :]).ravel()
    even = np.floor(np.linspace(low, high, MOST_CELLS // 4 + 1))
    edges = np.unique(np.concatenate([borders, near, even]))
    return np.asarray(edges[(edges >= low) & (edges <= high)], dtype=np.float64)


def _density(profile: Profile, edges: Floats) -> Floats:
    """The profile as a vector whose inner products are those of functions of time that are constant in each cell."""
    return np.asarray(np.diff(profile.share(edges)) / np.sqrt(np.diff(edges)))


def _plain(column: Floats) -> list[float]:
    return [float(value) for value in column]


def _rounded(value: float) -> float:
    """Rounding errors of the fit are not shown as a residual."""
    return 0.0 if value < 1e-12 else round(value, 12)
