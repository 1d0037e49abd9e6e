"""What a check found: one sentence, what to do about it, and the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis.

    Args:
        check: which check: "names", "shapes", "dtypes", "finite", "identical", "distance", "permutation", "norms",
            "stall", "point", "autocorrelation", "score", "barrier" or "gain".
        level: "ok", "note" (nothing to do), "warning" (averaging may disappoint) or "error" (do not average).
        says: the sentence. do: what to do about it; empty where there is nothing.
        about: the names of the ingredients concerned. values: plain numbers behind the sentence.

    >>> print(Finding("finite", "error", "fc.weight of c holds NaN", "leave c out", about=("c",)))
    error    finite: fc.weight of c holds NaN -> leave c out
    """

    check: str
    level: Level
    says: str
    do: str = ""
    about: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the line."""
        return f"{self.level:<8} {self.check}: {self.says}" + (f" -> {self.do}" if self.do else "")

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        return {**asdict(self), "about": list(self.about), "values": dict(self.values)}


def few(names: list[str], most: int = 3) -> str:
    """Return names with commas between them, the first ones only.

    >>> few(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def among(level: Level, other: Level) -> Level:
    """Return the graver of two levels.

    >>> among("note", "error")
    'error'
    """
    return max(level, other, key=LEVELS.index)
