"""PAPA-all: every network becomes the mean from time to time (Jolicoeur-Martineau et al., TMLR 2024, arXiv 2304.03094).

    every `every` steps:  w_k <- 1/N sum_j w_j, then REPAIR            for all k

The authors mix every 5 epochs (1 on ImageNet) and not at the end of the last, which `until` says. With `repair=n` the
statistics of what convolutions and linear layers give are put right afterwards, on n batches of each member's own
(`lowland.population.repair`); that moves the mean. Models with BatchNorm do without: their averaged running statistics
are those of no network, but the next training steps or a refresh put them right.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..arguments import whole
from .members import Members, Named, joined, rows_of
from .repair import check, repair_, statistics


@dataclass(frozen=True)
class PAPAAll:
    """Put the mean in the place of every member, every so many steps, and repair it.

    Raises:
        ValueError: a number is out of its range.

    >>> PAPAAll(every=500).needs(), PAPAAll(every=500, repair=5).needs()
    ('', 'batches')
    """

    every: int  # steps
    repair: int = 0  # batches of each member; 0: none
    until: int = 0  # from this step on nothing is mixed; 0: always

    on_buffers = "averaged"
    on_optimizer = "kept"

    def __post_init__(self) -> None:
        whole("every", self.every, 1)
        whole("repair", self.repair, 0)
        whole("until", self.until, 0)

    def needs(self) -> str:
        return "batches" if self.repair else ""

    def slots(self, members: Members) -> dict[str, list[Named]]:
        return {}

    def mix(self, members: Members) -> None:
        if members.step % self.every or (self.until and members.step >= self.until):
            return
        rows = joined(members.parameters(), members.buffers())
        if not self.repair:
            members.ready(rows)
            members.exchange.pull_(rows_of(rows), 1.0)
            return
        for model in members.models:
            check(model)
        members.ready(rows)
        parents = [
            statistics(model, members.first_batches(place, self.repair)) for place, model in enumerate(members.models)
        ]
        goals = members.exchange.means([[t for pair in own.values() for t in pair] for own in parents])
        members.exchange.pull_(rows_of(rows), 1.0)
        for place, model in enumerate(members.models):
            pairs = dict(zip(parents[0], zip(goals[::2], goals[1::2], strict=True), strict=True))
            repair_(model, members.first_batches(place, self.repair), pairs)
