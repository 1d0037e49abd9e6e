"""The diagnosis: all findings, one verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .findings import Finding, among

Verdict = Literal["averageable", "doubtful", "not averageable"]
EXIT = {"averageable": 0, "doubtful": 1, "not averageable": 3}  # 2 is a wrong command


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Args:
        names: of the ingredients. findings: one a line, in the order of the checks. groups: ingredients that can be
            averaged with each other, as far as the checks tell; the largest group first.

    >>> found = Diagnosis(("a", "b"), (Finding("identical", "warning", "a = b, bit for bit"),), (("a", "b"),))
    >>> found.verdict, found.exit_code
    ('doubtful', 1)
    >>> print(found)
    doubtful: a, b
    warning  identical: a = b, bit for bit
    """

    names: tuple[str, ...]
    findings: tuple[Finding, ...]
    groups: tuple[tuple[str, ...], ...]

    @property
    def verdict(self) -> Verdict:
        """Return "not averageable" after an error, "doubtful" after a warning, else "averageable"."""
        level = "ok"
        for finding in self.findings:
            level = among(level, finding.level)  # type: ignore[arg-type]
        return {"error": "not averageable", "warning": "doubtful"}.get(level, "averageable")  # type: ignore[return-value]

    @property
    def exit_code(self) -> int:
        """Return 0 for averageable, 1 for doubtful, 3 for not averageable: 2 stays that of a wrong command."""
        return EXIT[self.verdict]

    def of(self, check: str) -> list[Finding]:
        """Return the findings of one check."""
        return [finding for finding in self.findings if finding.check == check]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        return {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "ingredients": list(self.names),
            "groups": [list(group) for group in self.groups],
            "findings": [finding.as_dict() for finding in self.findings],
        }

    def __str__(self) -> str:
        """Return the verdict and a line for each finding."""
        head = f"{self.verdict}: {', '.join(self.names)}"
        if self.verdict == "not averageable" and self.groups and len(self.groups[0]) > 1:
            head += f" (but {', '.join(self.groups[0])} are)"
        return "\n".join([head, *map(str, self.findings)])


def grouped(
    names: Sequence[str], kept: Sequence[int], apart: Mapping[tuple[int, int], bool]
) -> tuple[tuple[str, ...], ...]:
    """Put ingredients together none of which are told apart, each into the first group that takes it.

    `apart` has pairs of places within `kept`; pairs that it does not hold are taken for no obstacle.

    >>> grouped(["a", "b", "c"], [0, 1, 2], {(0, 1): True, (0, 2): False, (1, 2): True})
    (('a', 'c'), ('b',))
    """
    groups: list[list[int]] = []
    for place in range(len(kept)):
        for group in groups:
            if not any(apart.get((min(place, other), max(place, other)), False) for other in group):
                group.append(place)
                break
        else:
            groups.append([place])
    groups.sort(key=lambda group: -len(group))
    return tuple(tuple(names[kept[place]] for place in group) for group in groups)
