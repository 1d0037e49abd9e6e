"""PAPA-2: every network becomes the mean of two (Jolicoeur-Martineau et al., TMLR 2024, arXiv 2304.03094).

    every `every` steps:  w_k <- (w_a + w_b) / 2,  the pairs (a, b) drawn without replacement from all pairs

Two networks are one pair, which both take. With more than two, the population's mean is kept in expectation only. The
authors' code draws from the first N pairs alone, so that for five networks the first is a parent of four; here all
N (N - 1) / 2 take part. Seed and step decide the pairs; ranks send whole members to those that ask for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..arguments import whole
from .members import Members, Named, joined, rows_of
from .streams import pairs


@dataclass(frozen=True)
class PAPA2:
    """Put the mean of a random pair of members in the place of each, every so many steps.

    Raises:
        ValueError: a number is out of its range.

    >>> PAPA2(every=500).on_buffers
    'averaged'
    """

    every: int  # steps
    until: int = 0  # from this step on nothing is mixed; 0: always

    on_buffers = "averaged"
    on_optimizer = "kept"

    def __post_init__(self) -> None:
        whole("every", self.every, 1)
        whole("until", self.until, 0)

    def needs(self) -> str:
        return ""

    def slots(self, members: Members) -> dict[str, list[Named]]:
        return {}

    def mix(self, members: Members) -> None:
        if members.step % self.every or (self.until and members.step >= self.until):
            return
        rows = joined(members.parameters(), members.buffers())
        members.ready(rows)
        members.exchange.blend_(rows_of(rows), pairs(members.seed, members.step, members.size))
