"""What a rule is: frozen hyper-parameters, and one method that mixes."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from .members import Members, Named


@runtime_checkable
class Rule(Protocol):
    """When members are mixed, what of them, and how. A rule keeps nothing between steps: `members.slots` do.

    >>> from lowland.population import WASH
    >>> isinstance(WASH(p=0.001), Rule), WASH(p=0.001).on_buffers
    (True, 'kept')
    """

    @property
    def on_buffers(self) -> str:
        """What becomes of floating-point buffers; counters always stay each member's own."""

    @property
    def on_optimizer(self) -> str:
        """What becomes of the optimisers' state."""

    def needs(self) -> str:
        """Say what it cannot do without: "optimizers", "batches", or "" for nothing."""

    def slots(self, members: Members) -> dict[str, list[Named]]:
        """Return what the rule keeps between steps as it is at the beginning, for each member of this process."""

    def mix(self, members: Members) -> None:
        """Do what is due after the step `members.step`, or nothing."""


def share(value: float, name: str) -> None:
    """Refuse what does not lie between 0 and 1.

    Raises:
        ValueError: it does not.

    >>> share(0.5, "p")
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
