"""Learning-rate schedules of the averaging methods, and when each says to collect.

Every schedule is a frozen bundle of numbers that is called with a step (0-based) and answers the *multiplier*
of the base rate, as ``torch.optim.lr_scheduler.LambdaLR`` wants it: a rate of a method is divided by the base
rate first. Being plain numbers, a schedule goes into the scheduler's ``state_dict`` and comes back from it.
``schedule.collect_at(step)`` says whether the weights *after* that step are the ones to collect. For the
cyclic schedules these are the weights at the lowest rate of a cycle. For the others they are those at the
final rate.

    lr = LambdaLR(optimizer, schedule)
    for step in range(steps):
        train_step(model)               # optimizer.step(), then lr.step()
        if schedule.collect_at(step):
            average.update(model)

The classes are written small because they are used as functions.

Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, 2018, arXiv:1803.05407 (`swa_linear`, `sawtooth`,
`constant_after`). Garipov, Izmailov, Podoprikhin, Vetrov, Wilson, 2018, arXiv:1802.10026 (`triangle`). Huang,
Li, Pleiss, Liu, Hopcroft, Weinberger, 2017, arXiv:1704.00109 (`cosine_restarts`).
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from .arguments import whole


class Schedule(Protocol):
    """What every schedule here is: a multiplier of the base rate, and the steps after which to collect.

    Example:
        >>> schedule: Schedule = constant_after(2, 0.5)
        >>> [schedule(step) for step in range(4)]
        [1.0, 1.0, 0.5, 0.5]
    """

    def __call__(self, step: int, /) -> float:
        """Multiplier of the base rate at `step`, counted from 0."""

    def collect_at(self, step: int, /) -> bool:
        """Whether the weights after `step` are to be collected."""


@dataclass(frozen=True)
class swa_linear:
    """Piecewise linear: constant, a ramp down, constant at the rate that is averaged: that of SWA and SWAG.

        t = epoch / start;   1 up to t = 0.5;   1 - (1 - rate) (t - 0.5) / 0.4 up to t = 0.9;   then rate

    `start` is in steps, `rate` is the SWA rate over the base rate. The rate is constant within an epoch of
    `steps_per_epoch` steps. Collects every `every` steps (one epoch by default) from the moment `start` steps
    are done. The official baseline without averaging is ``swa_linear(all_steps, 0.01)``.
    Raises ValueError for a number out of range.

    Example:
        >>> schedule = swa_linear(126, 0.5)  # 0.1 falls to 0.05
        >>> [round(0.1 * schedule(epoch), 6) for epoch in (63, 64, 100, 114)]
        [0.1, 0.099008, 0.063294, 0.05]
        >>> sum(map(swa_linear(161, 0.2).collect_at, range(300)))
        140
    """

    start: int  # steps
    rate: float  # of the base rate
    steps_per_epoch: int = 1
    every: int | None = None  # steps

    def __post_init__(self) -> None:
        whole("start", self.start, 1)
        _positive("rate", self.rate)
        whole("steps_per_epoch", self.steps_per_epoch, 1)
        if self.every is not None:
            whole("every", self.every, 1)

    def __call__(self, step: int, /) -> float:
        t = (step - step % self.steps_per_epoch) / self.start
        if t <= 0.5:
            return 1.0
        return 1 - (1 - self.rate) * (t - 0.5) / 0.4 if t <= 0.9 else self.rate

    def collect_at(self, step: int, /) -> bool:
        every = self.steps_per_epoch if self.every is None else self.every
        done = step + 1
        return done >= self.start and (done - self.start) % every == 0


@dataclass(frozen=True)
class triangle:
    """Down and up in straight lines, collecting in the valleys: fast geometric ensembling (FGE).

        t = (step mod cycle) / cycle;   (1 - 2t) + 2t low for t < 0.5;   (2 - 2t) low + (2t - 1) after

    `cycle` is in steps and even, `low` is the lowest rate over the base rate. Collects when half a cycle is
    done, so the step that is taken next would be the one at `low`. The released code writes checkpoints on
    the peaks as well: drop those. Raises ValueError for an odd cycle or a `low` out of range.

    Example:
        >>> schedule = triangle(8, 0.01)
        >>> [round(0.05 * schedule(step), 6) for step in range(0, 8, 2)]
        [0.05, 0.02525, 0.0005, 0.02525]
        >>> [step for step in range(16) if schedule.collect_at(step)]
        [3, 11]
    """

    cycle: int  # steps
    low: float  # of the base rate

    def __post_init__(self) -> None:
        whole("cycle", self.cycle, 2)
        if self.cycle % 2:
            raise ValueError(f"cycle must be even to have a middle, got {self.cycle}: use {self.cycle + 1}")
        _fraction("low", self.low)

    def __call__(self, step: int, /) -> float:
        t = step % self.cycle / self.cycle
        return (1 - 2 * t) + 2 * t * self.low if t < 0.5 else (2 - 2 * t) * self.low + (2 * t - 1)

    def collect_at(self, step: int, /) -> bool:
        return (step + 1) % self.cycle == self.cycle // 2


@dataclass(frozen=True)
class sawtooth:
    """Down in a line or half a cosine, then a jump back: the cyclical rate of SWA.

        form="paper":  t = (step mod cycle + 1) / cycle          the first step is already below the base rate
        form="code":   t = (step mod cycle) / (cycle - 1)        the first step is at the base rate
        shape="linear":  1 - t + t low                shape="cos":  low + (1 - low) (1 + cos(pi t)) / 2

    Collects after the last, lowest step of a cycle. Both forms end it at exactly `low` (the lowest rate over
    the base rate); "code" is that of an iteration-wise re-implementation, which tiles whole cycles. `cycle`
    is in steps. Raises ValueError for a number out of range or an unknown form or shape.

    Example:
        >>> [sawtooth(4, 0.2)(step) for step in range(5)]
        [0.8, 0.6, 0.4, 0.2, 0.8]
        >>> [sawtooth(5, 0.2, form="code")(step) for step in range(5)]
        [1.0, 0.8, 0.6, 0.4, 0.2]
        >>> [step for step in range(10) if sawtooth(5, 0.2).collect_at(step)]
        [4, 9]
    """

    cycle: int  # steps
    low: float  # of the base rate
    form: Literal["paper", "code"] = "paper"
    shape: Literal["linear", "cos"] = "linear"

    def __post_init__(self) -> None:
        _one_of("form", self.form, ("paper", "code"))
        _one_of("shape", self.shape, ("linear", "cos"))
        whole("cycle", self.cycle, 2 if self.form == "code" else 1)
        _fraction("low", self.low)

    def __call__(self, step: int, /) -> float:
        k = step % self.cycle
        t = (k + 1) / self.cycle if self.form == "paper" else k / (self.cycle - 1)
        if self.shape == "cos":
            return self.low + (1 - self.low) * (1 + math.cos(math.pi * t)) / 2
        return 1 - t + t * self.low

    def collect_at(self, step: int, /) -> bool:
        return (step + 1) % self.cycle == 0


@dataclass(frozen=True)
class cosine_restarts:
    """Half a cosine down to about 0, `cycles` times in `steps`, a model at each end: Snapshot Ensembles.

        form="code":   (1 + cos(pi (k + 1) / length)) / 2     ends a cycle at exactly 0
        form="paper":  (1 + cos(pi k / length)) / 2           starts a cycle at exactly 1

    k counts the steps of the current cycle from 0. In the code's form a cycle is ``epochs // cycles`` whole
    epochs of `steps_per_epoch` steps, and the last one takes what remains, counted from its own first step.
    (The released code takes the remainder by ``(epoch - 1) mod length``, so where `cycles` does not divide
    the epochs its last cycle may start in the middle, without a restart.) In the paper's form a cycle is
    ``ceil(steps / cycles)`` steps, and the last may be cut short: its end is collected all the same. After
    `steps` the last multiplier is held.
    Raises ValueError for fewer epochs than cycles, a number out of range, or an unknown form.

    Example:
        >>> schedule = cosine_restarts(20_000, 5, steps_per_epoch=100)  # 200 epochs
        >>> [round(0.2 * schedule(100 * (epoch - 1)), 6) for epoch in (1, 11, 21, 31, 40, 41)]
        [0.2, 0.170655, 0.099921, 0.029234, 0.000302, 0.2]
        >>> [step for step in range(20_000) if schedule.collect_at(step)]
        [3999, 7999, 11999, 15999, 19999]
    """

    steps: int
    cycles: int
    steps_per_epoch: int = 1
    form: Literal["paper", "code"] = "code"

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        whole("cycles", self.cycles, 1)
        whole("steps_per_epoch", self.steps_per_epoch, 1)
        _one_of("form", self.form, ("paper", "code"))
        epochs = self.steps // self.steps_per_epoch
        if epochs < self.cycles:
            raise ValueError(f"cycles must be at most {epochs}, the number of whole epochs, got {self.cycles}")

    def __call__(self, step: int, /) -> float:
        k, length = self._phase(min(step, self.steps - 1))
        return (1 + math.cos(math.pi * (k if self.form == "paper" else k + 1) / length)) / 2

    def collect_at(self, step: int, /) -> bool:
        if not 0 <= step < self.steps:
            return False
        k, length = self._phase(step)
        return k + 1 == length or step + 1 == self.steps

    def _phase(self, step: int) -> tuple[int, int]:
        """The place of `step` in its cycle, and the length of that cycle."""
        if self.form == "paper":
            length = -(-self.steps // self.cycles)
            return step % length, length
        length = self.steps // self.steps_per_epoch // self.cycles * self.steps_per_epoch
        begin = min(step // length, self.cycles - 1) * length
        last = begin == (self.cycles - 1) * length
        return step - begin, self.steps - begin if last else length


@dataclass(frozen=True)
class constant_after:
    """The base rate, and from step `start` on the constant SWA rate: as torchcontrib's SWA optimiser.

    `start` is in steps and may be 0, `rate` is the SWA rate over the base rate. Collects where torchcontrib
    does: after more than `start` steps whose number is a multiple of `every`. Raises ValueError for a number
    out of range.

    Example:
        >>> schedule = constant_after(10, 0.5, every=5)
        >>> schedule(9), schedule(10)
        (1.0, 0.5)
        >>> [step + 1 for step in range(30) if schedule.collect_at(step)]
        [15, 20, 25, 30]
    """

    start: int  # steps
    rate: float  # of the base rate
    every: int = 1  # steps

    def __post_init__(self) -> None:
        whole("start", self.start, 0)
        _positive("rate", self.rate)
        whole("every", self.every, 1)

    def __call__(self, step: int, /) -> float:
        return 1.0 if step < self.start else self.rate

    def collect_at(self, step: int, /) -> bool:
        done = step + 1
        return done > self.start and done % self.every == 0


@dataclass(frozen=True)
class anneal:
    """From the base rate to `rate` in `steps` steps, then constant: as `torch.optim.swa_utils.SWALR`.

        t = (step - start) / steps, in [0, 1];   a = (1 - cos(pi t)) / 2, or t if linear;   1 - a + a rate

    `start` steps come first. Collects after every step at the constant rate: not while it still falls. Unlike
    SWALR, which moves the rate that it finds, this one is a function of the step alone, so it can be resumed
    at any step. `steps` = 0 switches at once.
    Raises ValueError for a number out of range or an unknown shape.

    Example:
        >>> [round(0.1 * anneal(4, 0.5)(step), 6) for step in range(6)]
        [0.1, 0.092678, 0.075, 0.057322, 0.05, 0.05]
        >>> [anneal(4, 0.5, shape="linear")(step) for step in range(6)]
        [1.0, 0.875, 0.75, 0.625, 0.5, 0.5]
    """

    steps: int
    rate: float  # of the base rate
    start: int = 0  # steps
    shape: Literal["cos", "linear"] = "cos"

    def __post_init__(self) -> None:
        whole("steps", self.steps, 0)
        _positive("rate", self.rate)
        whole("start", self.start, 0)
        _one_of("shape", self.shape, ("cos", "linear"))

    def __call__(self, step: int, /) -> float:
        if step >= self.start + self.steps:
            return self.rate
        t = max(0, step - self.start) / self.steps
        a = (1 - math.cos(math.pi * t)) / 2 if self.shape == "cos" else t
        return 1 - a + a * self.rate

    def collect_at(self, step: int, /) -> bool:
        return step >= self.start + self.steps


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive: it is a share of the base learning rate, got {value}")


def _fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1]: it is a share of the base learning rate, got {value}")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
