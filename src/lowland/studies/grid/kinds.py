"""What tells one grid study from another: its metrics, its methods, and the claims that it puts to the test."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One metric of a study.

    >>> Metric("nll", "NLL", higher=False).better(0.2, 0.3)
    True
    """

    key: str  # in the results
    label: str  # in tables
    higher: bool  # whether more is better

    def better(self, one: float, other: float) -> bool:
        """Whether `one` is better than `other`."""
        return one > other if self.higher else one < other


@dataclass(frozen=True)
class Kind:
    """What the tables and pages of a study show.

    >>> kind = Kind("toys", "toys", (Metric("score", "score", True),), "SGD", ("SGD", "SWA"), (("SWA", "SGD"),))
    >>> kind.main.key
    'score'
    """

    name: str  # as in `lowland study NAME`
    things: str  # what is tested, in the plural
    metrics: tuple[Metric, ...]  # the first is the main one
    baseline: str  # the method that the others are shown against
    methods: tuple[str, ...]  # in the order of the tables
    claims: tuple[tuple[str, str], ...]  # ours, theirs: what Wilcoxon's test is asked
    parts: Mapping[str, str] = field(default_factory=lambda: {"test": "test"})  # by key: how tables call it
    meanings: Mapping[str, str] = field(default_factory=dict)  # by method: a sentence for the report
    seeded: str = "the start and the order of the batches"  # what a seed sets
    wants: str = ""  # a package whose version stands in the run folder too

    def plain(self) -> dict[str, Any]:
        """Return it as plain data, for files."""
        return dataclasses.asdict(dataclasses.replace(self, parts=dict(self.parts), meanings=dict(self.meanings)))

    @property
    def main(self) -> Metric:
        """The metric of curves, of the generalisation gap and of the sensitivity."""
        return self.metrics[0]
