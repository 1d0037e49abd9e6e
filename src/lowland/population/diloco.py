"""DiLoCo: an outer optimiser's step along the movement of the average (Douillard, Feng, Rusu, Chhaparia, Donchev,
Kuncoro, Ranzato, Szlam, Shen 2023, arXiv 2311.08105).

    every `every` steps:  d = theta - 1/N sum_n w_n        v <- momentum v + d
                          theta <- theta - rate (d + momentum v)               w_n <- theta for all n

theta is where all members began, and then where the outer step left them; the step is Nesterov's (2013), or with
nesterov=False v alone is followed. Inner optimisers keep their state. With rate 1 and momentum 0 it is local SGD; else
the population's mean moves.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..arguments import whole
from ..arithmetic.moments import wide
from .members import Members, Named, joined, rows_of
from .rule import share


@dataclass(frozen=True)
class DiLoCo:
    """Take an outer step with momentum every so many inner ones. Members have to begin with the same weights.

    Raises:
        ValueError: a number is out of its range.

    >>> DiLoCo(every=500).rate
    0.7
    """

    every: int  # steps
    rate: float = 0.7
    momentum: float = 0.9
    nesterov: bool = True

    on_buffers = "averaged"
    on_optimizer = "kept"
    one_start = True

    def __post_init__(self) -> None:
        whole("every", self.every, 1)
        share(self.momentum, "momentum")
        if not self.rate > 0:
            raise ValueError(f"rate must be above 0, got {self.rate}")

    def needs(self) -> str:
        return ""

    def slots(self, members: Members) -> dict[str, list[Named]]:
        start = [{n: t.to(wide(t.dtype), copy=True) for n, t in own.items()} for own in members.parameters()]
        return {"outer": start, "outer momentum": [{n: t.new_zeros(t.shape) for n, t in own.items()} for own in start]}

    def mix(self, members: Members) -> None:
        if members.step % self.every:
            return
        rows, buffers = members.parameters(), members.buffers()
        members.ready(joined(rows, buffers))
        means = members.exchange.means(rows_of(rows))
        for own, theta, v in zip(rows, members.slots["outer"], members.slots["outer momentum"], strict=True):
            for (name, tensor), mean in zip(own.items(), means, strict=True):
                moved = theta[name] - mean
                v[name].mul_(self.momentum).add_(moved)
                theta[name].sub_(moved + self.momentum * v[name] if self.nesterov else v[name], alpha=self.rate)
                tensor.copy_(theta[name])
        if buffers[0]:
            members.exchange.pull_(rows_of(buffers), 1.0)
