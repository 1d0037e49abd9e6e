"""The bytes that a population moves, and the seconds that it waits for them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass
class Traffic:
    """What was moved, for one member: the mean over the members of this process.

    >>> Traffic(payload=8.0) + Traffic(payload=4.0, wire=2.0)
    Traffic(payload=12.0, wire=2.0, waited=0.0, seconds=0.0)
    """

    payload: float = 0.0  # bytes of the values that the rule mixes
    wire: float = 0.0  # bytes that a rank sends: of a ring for sums, of those that change their owner for shuffles
    waited: float = 0.0  # seconds in collectives, for other ranks too; 0 in one process
    seconds: float = 0.0  # in `step()`, what was waited included

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


@dataclass
class Meter:
    """The traffic of the latest step, and of all `steps` so far.

    Bytes in one process are those that its members would send with a rank each, and are the same numbers. What ranks
    tell each other beside the values, 72 bytes before a mixture, is not counted.

    >>> meter = Meter()
    >>> meter.take(Traffic(payload=8.0))
    >>> meter.take(Traffic())
    >>> meter.steps, meter.total.payload, meter.latest.payload, meter.per_step.payload
    (2, 8.0, 0.0, 4.0)
    """

    total: Traffic = field(default_factory=Traffic)
    latest: Traffic = field(default_factory=Traffic)
    steps: int = 0

    def take(self, traffic: Traffic) -> None:
        """Count one step."""
        self.latest, self.total, self.steps = traffic, self.total + traffic, self.steps + 1

    @property
    def per_step(self) -> Traffic:
        """The mean of all steps, those that mix nothing included."""
        return Traffic(*(getattr(self.total, each.name) / max(self.steps, 1) for each in fields(Traffic)))

    def state(self) -> dict[str, float]:
        """Return the totals as plain numbers."""
        return {**{each.name: float(getattr(self.total, each.name)) for each in fields(Traffic)}, "steps": self.steps}

    def load(self, state: dict[str, float]) -> None:
        """Take up totals of `state()`."""
        self.total = Traffic(*(float(state[each.name]) for each in fields(Traffic)))
        self.latest, self.steps = Traffic(), int(state["steps"])
