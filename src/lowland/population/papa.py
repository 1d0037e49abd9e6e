"""PAPA: a gentle push of every network towards the mean (Jolicoeur-Martineau, Gervais, Fatras, Zhang, Lacoste-Julien,
TMLR 2024, arXiv 2304.03094).

    w_k <- a_t w_k + (1 - a_t) mean        a_t = 1 - (rate_t / rate_0) (1 - alpha)        mean = 1/N sum_k w_k

after the steps 1, 1 + every, 1 + 2 every, ... The rate is that of the optimisers when `step()` is called: call it
behind the scheduler's step, as the authors do. They count steps anew in each epoch, which `epoch` does here; 0 counts
on. The mean stays and all deviations from it shrink by a_t. The whole state is pushed: BatchNorm's running statistics
as the weights; counters stay. Optimisers keep their state, which is a little stale after each push.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..arguments import whole
from .members import Members, Named, joined, rows_of
from .rule import share


@dataclass(frozen=True)
class PAPA:
    """Push every member a little towards the mean, every so many steps.

    Raises:
        ValueError: a number is out of its range.

    >>> PAPA().push(0.5)  # at half the rate half the push
    0.0050000000000000044
    """

    every: int = 10  # steps
    alpha: float = 0.99
    follow: Literal["rate", "nothing"] = "rate"  # "nothing": the push keeps its strength
    epoch: int = 0  # steps after which counting begins anew

    on_buffers = "pushed"
    on_optimizer = "kept"

    def __post_init__(self) -> None:
        whole("every", self.every, 1)
        whole("epoch", self.epoch, 0)
        share(self.alpha, "alpha")
        if self.follow not in ("rate", "nothing"):
            raise ValueError(f'follow must be "rate" or "nothing", got {self.follow!r}')

    def push(self, rate: float) -> float:
        """Return 1 - a_t where the rate stands at this multiple of its first value."""
        return rate * (1 - self.alpha)

    def needs(self) -> str:
        return "optimizers" if self.follow == "rate" else ""

    def slots(self, members: Members) -> dict[str, list[Named]]:
        return {}

    def mix(self, members: Members) -> None:
        place = members.step - 1
        if (place % self.epoch if self.epoch else place) % self.every:
            return
        push = self.push(members.rate() if self.follow == "rate" else 1.0)
        if not 0 <= push <= 1:
            raise ValueError(f"a push of {push} leads away from the mean: the rate has grown too far for this alpha")
        rows = joined(members.parameters(), members.buffers())
        members.ready(rows, push)
        members.exchange.pull_(rows_of(rows), push)
