"""Exponential moving average of weights, and schedules of its decay.

    mean_1 = w_1,     mean_{n+1} = d mean_n + (1 - d) w_{n+1},     d = decay, or decay(n)

Polyak, Juditsky 1992 (averaging); Tarvainen, Valpola 2017, arXiv 1703.01780 (EMA as a teacher); Karras,
Aittala, Lehtinen, Hellsten, Aila, Laine 2024, arXiv 2312.02696 (power-function profile).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from .arithmetic.moments import wide_zeros
from .averager.averager import Averager, Settings, Slot
from .weights.named import Select, Weights, clone_of, parameters

Decay = float | Callable[[int], float]


def half_life(updates: float) -> float:
    """Return the decay under which an iterate's weight halves every `updates` updates: ``0.5 ** (1 / updates)``.

    Raises:
        ValueError: `updates` is not positive.

    Example:
        >>> round(half_life(1000), 6)
        0.999307
    """
    if not updates > 0:
        raise ValueError(f"updates must be positive, got {updates}")
    return float(0.5 ** (1 / updates))


@dataclass(frozen=True)
class Warmup:
    """A decay that grows with the number n of updates absorbed: ``min(decay, 1 - (1 + n / gamma) ** -power)``.

    The warm-up of Crowson's k-diffusion, timm and diffusers. With ``gamma=1, power=1`` it is ``n / (n + 1)``:
    the equal average until `decay` is reached. `power` 2/3 suits runs of a million updates, 3/4 shorter ones.

    Raises:
        ValueError: decay is outside [0, 1], or gamma or power is not positive.

    Example:
        >>> decay = Warmup(0.9999, power=0.75)
        >>> [round(decay(n), 4) for n in (1, 10, 1000, 1_000_000)]
        [0.4054, 0.8344, 0.9944, 0.9999]
    """

    decay: float = 0.9999
    gamma: float = 1.0
    power: float = 2 / 3

    def __post_init__(self) -> None:
        _in_unit_interval(self.decay)
        for name, value in (("gamma", self.gamma), ("power", self.power)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")

    def __call__(self, count: int) -> float:
        return min(self.decay, 1.0 - math.pow(1 + count / self.gamma, -self.power))


@dataclass(frozen=True)
class Power:
    """The decay of a power-function profile: ``(1 - 1 / t) ** (gamma + 1)`` at update t = n + 1.

    Iterate i of t has a weight that grows as ``i ** gamma``: the average keeps its shape, relative to the
    length of the run, for ever. Averages of two widths that are stored along the run allow any other width to
    be synthesised afterwards. ``gamma=0`` is the equal average.

    Raises:
        ValueError: gamma is negative.

    Example:
        >>> decay = Power(gamma=1.0)
        >>> [round(decay(n), 4) for n in (1, 2, 3)]
        [0.25, 0.4444, 0.5625]
        >>> round(Power.of_width(0.1).gamma, 2), round(Power.of_width(0.05).gamma, 2)
        (6.94, 16.97)
    """

    gamma: float

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(f"gamma must be at least 0 (the equal average), got {self.gamma}")

    def __call__(self, count: int) -> float:
        return float((count / (count + 1)) ** (self.gamma + 1))

    @classmethod
    def of_width(cls, width: float) -> Power:
        """Return the profile whose standard deviation in time is `width` of the run's length (sigma_rel).

        ``width ** 2 = (gamma + 1) / ((gamma + 2) ** 2 (gamma + 3))``; the equal average has ``12 ** -0.5``,
        about 0.289.

        Raises:
            ValueError: width is not in (0, 12 ** -0.5].
        """
        widest = 12**-0.5
        if not 0 < width <= widest * (1 + 1e-12):
            raise ValueError(f"width must lie in (0, {widest:.4f}], the share of a run, got {width}")
        # Falls with gamma, and is below 1 / (gamma + 2): bisect.
        low, high = 0.0, 1 / width
        for _ in range(200):
            middle = (low + high) / 2
            wider = math.sqrt((middle + 1) / (middle + 3)) / (middle + 2) > width
            low, high = (middle, high) if wider else (low, middle)
        return cls(high)


class EMA(Averager):
    """The exponential moving average of the weights it is shown, kept in float32 or wider.

    A decay of 0.999 moves a bfloat16 average by less than its last digit: in the model's own dtype it would
    stand still. The first update copies, so there is no bias to correct. Other than floating-point tensors
    are copied from the latest update. Call `update` after optimiser steps, not after micro-batches.

    Args:
        decay: the share that the average keeps at an update: a number (see `half_life`), or a function of the
            number of updates absorbed so far, from 1: `Warmup`, `Power`, or your own. A state holds the numbers
            of the first three, and of your own function the name only.
        select: which tensors of a model are taken; a mapping given to `update` is taken as it is.
        device: where averages are kept; None: beside the weights.
        check_finite: refuse an iterate with a NaN or an infinity, by the name of its tensor.

    Raises:
        ValueError: decay is outside [0, 1]; for a function, in `update`, and nothing is changed then.

    >>> average = EMA(decay=0.5)
    >>> for w in (0.0, 4.0, 8.0):
    ...     average.update({"w": torch.tensor([w])})
    >>> average.mean()
    {'w': tensor([5.])}
    """

    def __init__(
        self,
        decay: Decay = 0.999,
        *,
        select: Select = parameters,
        device: torch.device | str | None = None,
        check_finite: bool = True,
    ) -> None:
        super().__init__(select=select, device=device, check_finite=check_finite)
        if isinstance(decay, bool) or not (callable(decay) or isinstance(decay, SupportsFloat)):
            raise ValueError(
                f"decay must be a number or a function of the count, got {decay!r}; a file holds only the name of a "
                "function of your own: pass it again with decay="
            )
        self.decay: Decay = decay if callable(decay) else _in_unit_interval(float(decay))

    @property
    def settings(self) -> Settings:
        if isinstance(self.decay, float):
            return {"decay": self.decay}
        return {"decay": repr(self.decay) if isinstance(self.decay, Warmup | Power) else _name(self.decay)}

    @classmethod
    def build(cls, settings: Settings, **given: Any) -> EMA:
        """Make one from `settings`, as a state file holds them, and the arguments that no file can hold."""
        return cls(**{**settings, "decay": _decay_from(settings["decay"]), **given})

    def _allocate(self, like: Slot) -> dict[str, Slot]:
        return {"mean": wide_zeros(like)}

    def _absorb(self, weights: Weights) -> None:
        self._passes.lerp_(self._slots["mean"], weights, 1 - self._decay_at(self.count - 1))

    def _decay_at(self, count: int) -> float:
        if count == 0:
            return 0.0
        if isinstance(self.decay, float):
            return self.decay
        return _in_unit_interval(self.decay(count), f" from {_name(self.decay)}({count})")

    def mean(self) -> dict[str, Tensor]:
        with self._lock:
            self._need()
            return clone_of(self._slots["mean"])


def _in_unit_interval(decay: float, origin: str = "") -> float:
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must lie in [0, 1], got {decay}{origin}")
    return decay


def _name(function: Callable[[int], float]) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


def _decay_from(plain: float | str) -> Any:
    """The decay that `settings` wrote as plain data; a name that is not ours stays a name."""
    match = re.fullmatch(r"(Warmup|Power)\((.*)\)", plain) if isinstance(plain, str) else None
    if match is None:
        return plain
    numbers = (pair.split("=") for pair in match[2].split(", "))
    return {"Warmup": Warmup, "Power": Power}[match[1]](**{key: float(value) for key, value in numbers})
