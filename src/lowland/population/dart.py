"""DART: one training that parts into branches and is brought together, again and again (Jain, Addepalli, Sahu, Dey,
Babu, CVPR 2023, arXiv 2302.14685).

    1. one model is trained for `pretrain` steps
    2. every member begins with its weights, and is trained on its own data, augmentation or domain
    3. every `every` steps: w_n <- 1/M sum_m w_m for all n; `rounds` times, or without end

The model is the last average. While `population.trains(n)` is false a member waits: in step 1 all but the first. The
whole state is averaged, running statistics too; counters stay. Optimisers begin anew when branches part and keep their
state between rounds, as in the authors' code. The learning rate is never restarted.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..arguments import whole
from .members import Members, Named, joined, rows_of


@dataclass(frozen=True)
class DART:
    """Train one model, then branches that are averaged every so many steps.

    Raises:
        ValueError: a number is out of its range.

    >>> DART(every=40, pretrain=300, rounds=7).cost(members=4)  # steps of one model
    1420
    """

    every: int  # steps of a round
    pretrain: int = 0  # steps of the first member alone
    rounds: int = 0  # 0: without end

    on_buffers = "averaged"

    def __post_init__(self) -> None:
        whole("every", self.every, 1)
        whole("pretrain", self.pretrain, 0)
        whole("rounds", self.rounds, 0)

    @property
    def on_optimizer(self) -> str:
        return "begun anew when branches part, then kept" if self.pretrain else "kept"

    def cost(self, members: int) -> int:
        """Return how many steps of one model the whole training is.

        Raises:
            ValueError: it has no end.
        """
        if not self.rounds:
            raise ValueError("without rounds= the training has no end that it could cost up to")
        return self.pretrain + members * self.every * self.rounds

    def needs(self) -> str:
        return ""

    def slots(self, members: Members) -> dict[str, list[Named]]:
        return {}

    def mix(self, members: Members) -> None:
        done = members.step - self.pretrain
        if done < 0 or done % self.every or (self.rounds and done > self.rounds * self.every):
            return
        if done == 0 and not self.pretrain:
            return
        rows = joined(members.parameters(), members.buffers())
        members.ready(rows)
        if done:
            members.exchange.pull_(rows_of(rows), 1.0)
        else:
            members.exchange.copy_(rows_of(rows), 0)
            members.reset_states()
