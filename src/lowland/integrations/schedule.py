"""When an adapter collects: `start=` and `every=` as people write them, turned into steps of the optimiser."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

When = int | str
_WRITTEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?)\s*(%|steps?|epochs?)?|(step|epoch))\s*")


@dataclass(frozen=True)
class Span:
    """A stretch of training, in steps, in epochs or as a share of the whole."""

    amount: float
    unit: Literal["step", "epoch", "%"]

    def steps(self, total: int | None, per_epoch: int | None) -> int:
        """Return it in steps of a training of `total` steps, `per_epoch` of them an epoch; None is unknown.

        Raises:
            ValueError: what it is a part of is unknown.

        >>> Span(70, "%").steps(200, None), Span(1.5, "epoch").steps(None, 10), Span(3, "step").steps(None, None)
        (140, 15, 3)
        """
        if self.unit == "step":
            return int(self.amount)
        whole, what, given = (
            (total, "length of the training", "total")
            if self.unit == "%"
            else (per_epoch, "length of an epoch", "per_epoch")
        )
        if whole is None:
            raise ValueError(
                f"the {what} is not known, so {self} cannot be turned into steps: give a number of steps, or {given}= "
                "where the call takes it"
            )
        # A share such as 70 % of 10 must not become 7.000000000000001 and so 8.
        return math.ceil(round(self.amount * whole / (100 if self.unit == "%" else 1), 6))

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"


@dataclass(frozen=True)
class Schedule:
    """Collections after step `start`, and after every `every` steps from there.

    >>> [step for step in range(1, 12) if Schedule(4, 3).due(step)]
    [4, 7, 10]
    >>> [step for step in range(1, 12) if Schedule(0, 5).due(step)]
    [5, 10]
    """

    start: int
    every: int

    def due(self, step: int) -> bool:
        """Return whether a collection belongs after the step with this number, counted from 1."""
        return step >= self.start and (step - self.start) % self.every == 0

    @property
    def first(self) -> int:
        """The step of the first collection: with `start=0` the end of the first stretch, as no step has number 0."""
        return self.start or self.every


def span(value: When, what: str) -> Span:
    """Read `3`, `"50step"`, `"3 epochs"`, `"epoch"` or `"70%"`; a bare number is one of steps.

    Raises:
        ValueError: it is none of these; the message says what it is for.

    >>> span("70%", "start"), span(50, "every"), span("3 epochs", "start")
    (Span(amount=70.0, unit='%'), Span(amount=50, unit='step'), Span(amount=3.0, unit='epoch'))
    >>> span("epoch", "every")
    Span(amount=1.0, unit='epoch')
    """
    wanted = f'{what} wants a number of steps, or a text such as "50step", "3epoch" or "70%", got {value!r}'
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(wanted)
    if isinstance(value, int):
        if value < 0:
            raise ValueError(wanted)
        return Span(value, "step")
    found = _WRITTEN.fullmatch(value)
    if found is None:
        raise ValueError(wanted)
    amount, unit = float(found[1] or 1), (found[2] or found[3] or "step").removesuffix("s")
    if (unit == "%" and amount > 100) or (unit == "step" and amount != int(amount)):
        raise ValueError(wanted)
    return Span(amount, "%" if unit == "%" else "epoch" if unit == "epoch" else "step")


def schedule(start: When, every: When, *, total: int | None = None, per_epoch: int | None = None) -> Schedule:
    """Return the schedule of a training of `total` steps, `per_epoch` of them an epoch.

    Raises:
        ValueError: a value cannot be read or turned into steps, `every` is nothing, or `start` is after the last step.

    >>> schedule("50%", "1epoch", total=40, per_epoch=10)
    Schedule(start=20, every=10)
    """
    first = span(start, "start").steps(total, per_epoch)
    each = span(every, "every").steps(total, per_epoch)
    if each < 1:
        raise ValueError(f"every must be at least one step, got {every!r}")
    if total is not None and first > total:
        raise ValueError(
            f"start={start!r} is step {first} and the training ends after step {total}: nothing would be collected"
        )
    return Schedule(first, each)


def tell_empty(schedule: Schedule, updates: int, steps: int) -> None:
    """Warn where a training has ended, early perhaps, before its average began.

    >>> tell_empty(Schedule(4, 1), 1, 4)
    """
    if not updates and steps:
        warnings.warn(
            f"the training ended after step {steps}, before the average began at step {schedule.first}: it holds no "
            "weights; begin it earlier by start=",
            UserWarning,
            stacklevel=3,
        )


def check_resumed(before: Mapping[str, int], now: Schedule, updates: int, where: str) -> None:
    """Refuse to go on with an average under another schedule: it would have a hole, or count some steps more.

    Raises:
        ValueError: it has updates and was collected from other steps on.

    >>> check_resumed({"start": 8, "every": 1}, Schedule(24, 1), 9, "the checkpoint")
    Traceback (most recent call last):
    ...
    ValueError: the average in the checkpoint was collected from step 8 every 1 steps, here ...
    """
    if updates and (before["start"], before["every"]) != (now.start, now.every):
        raise ValueError(
            f"the average in {where} was collected from step {before['start']} every {before['every']} steps, "
            f"here it would be from step {now.start} every {now.every}: pass start={before['start']}, "
            f"every={before['every']} to go on"
        )
