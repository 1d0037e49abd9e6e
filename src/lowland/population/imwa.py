"""IMWA: vanilla model averaging in several episodes (Huang, Cai, Chen, Zhang, Wu 2024, arXiv 2404.16331).

    for e = 1 .. E:  M branches start at theta^{e-1}, are trained for `every` steps on the same data in other orders,
                     theta^e = 1/M sum_m theta_m;  the model is theta^E

One episode is vanilla model averaging, an episode of one step is a batch M times as large for plain SGD. The learning
rate follows one schedule over all episodes. No code and no text of the paper could be had: what becomes of momenta is
an argument, and so is the reading of "with EMA":

    ema_of="branches"   each branch keeps a teacher, t <- ema t + (1 - ema) w after every step; teachers are averaged
                        when branches are
    ema_of="averages"   one teacher follows theta^1, theta^2, ...: t <- ema t + (1 - ema) theta^e

Buffers are averaged with the weights; `Population.average(refresh=...)` finds BatchNorm's statistics anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..arguments import whole
from ..arithmetic.moments import lerp_, wide
from .members import Members, Named, joined, rows_of
from .rule import share

TEACHER = "teacher"


@dataclass(frozen=True)
class IMWA:
    """Average all branches at the end of every episode.

    Raises:
        ValueError: a number is out of its range.

    >>> IMWA(every=200).on_optimizer
    'begun anew'
    """

    every: int  # steps of an episode
    momentum: Literal["reset", "keep", "average"] = "reset"  # of the optimisers, at the beginning of an episode
    ema: float = 0.0  # decay of the teachers; 0: none
    ema_of: Literal["branches", "averages"] = "branches"

    on_buffers = "averaged"

    def __post_init__(self) -> None:
        whole("every", self.every, 1)
        share(self.ema, "ema")
        if self.momentum not in ("reset", "keep", "average"):
            raise ValueError(f'momentum must be "reset", "keep" or "average", got {self.momentum!r}')
        if self.ema_of not in ("branches", "averages"):
            raise ValueError(f'ema_of must be "branches" or "averages", got {self.ema_of!r}')

    @property
    def on_optimizer(self) -> str:
        return {"reset": "begun anew", "keep": "kept", "average": "averaged"}[self.momentum]

    def needs(self) -> str:
        return "" if self.momentum == "keep" else "optimizers"

    def slots(self, members: Members) -> dict[str, list[Named]]:
        if not self.ema:
            return {}
        rows = joined(members.parameters(), members.buffers())
        return {TEACHER: [{name: t.to(wide(t.dtype), copy=True) for name, t in own.items()} for own in rows]}

    def mix(self, members: Members) -> None:
        ends = members.step % self.every == 0
        if ends:
            rows = joined(members.parameters(), members.buffers())
            states = members.states() if self.momentum == "average" else [{}] * len(rows)
            members.ready(joined(rows, states))
        if self.ema and self.ema_of == "branches":
            self._teach(members)
        if not ends:
            return
        members.exchange.pull_(rows_of(rows), 1.0)
        if self.momentum == "reset":
            members.reset_states()
        elif states[0]:
            members.exchange.pull_(rows_of(states), 1.0)
        if self.ema and self.ema_of == "averages":
            self._teach(members)
        elif self.ema:
            members.exchange.pull_(rows_of(members.slots[TEACHER]), 1.0)

    def _teach(self, members: Members) -> None:
        rows = joined(members.parameters(), members.buffers())
        members.check(rows)
        for teacher, own in zip(members.slots[TEACHER], rows, strict=True):
            lerp_(teacher.values(), (own[name] for name in teacher), 1 - self.ema)
