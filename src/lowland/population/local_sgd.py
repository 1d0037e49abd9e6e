"""Local SGD: plain periodic averaging (McMahan et al. 2017, arXiv 1602.05629; Stich 2019, arXiv 1805.09767).

    every `every` steps:  w_n <- 1/N sum_m w_m          for all n

Optimisers go on with their state; buffers are averaged with the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..arguments import whole
from .members import Members, Named, joined, rows_of


@dataclass(frozen=True)
class LocalSGD:
    """Put the mean of all members in the place of each, every so many steps.

    Raises:
        ValueError: every is no whole number from 1 on.

    >>> LocalSGD(every=100).on_optimizer
    'kept'
    """

    every: int  # steps

    on_buffers = "averaged"
    on_optimizer = "kept"

    def __post_init__(self) -> None:
        whole("every", self.every, 1)

    def needs(self) -> str:
        return ""

    def slots(self, members: Members) -> dict[str, list[Named]]:
        return {}

    def mix(self, members: Members) -> None:
        if members.step % self.every == 0:
            rows = joined(members.parameters(), members.buffers())
            members.ready(rows)
            members.exchange.pull_(rows_of(rows), 1.0)
