"""One cell of a grid study: a model on a data set with a seed, and what is kept of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .kinds import Kind

Result = dict[str, Any]  # what a cell returns: plain data, as `check_result` says
_WORD = re.compile(r"[a-z0-9][a-z0-9_.]*")


@dataclass(frozen=True, order=True)
class Cell:
    """A model on a data set with a seed; data and model are words of lower-case letters, digits, `_` and `.`.

    >>> Cell("umls", "complex", 0).name
    'umls-complex-0'
    >>> Cell.named("umls-complex-0")
    Cell(data='umls', model='complex', seed=0)
    """

    data: str
    model: str
    seed: int

    def __post_init__(self) -> None:
        for word in (self.data, self.model):
            if not _WORD.fullmatch(word):
                raise ValueError(f"a cell's data and model are words of a-z, 0-9, _ and ., got {word!r}")
        if self.seed < 0:
            raise ValueError(f"a seed must be at least 0, got {self.seed}")

    @property
    def name(self) -> str:
        """The stem of the cell's file."""
        return f"{self.data}-{self.model}-{self.seed}"

    @property
    def pair(self) -> tuple[str, str]:
        """Data set and model: what seeds repeat."""
        return self.data, self.model

    @classmethod
    def named(cls, name: str) -> Cell:
        """Return the cell of this name.

        Raises:
            ValueError: it is no name of a cell.
        """
        data, model, seed = name.split("-") if name.count("-") == 2 else ("", "", "")
        if not seed.isdecimal():
            raise ValueError(f"a cell is named DATA-MODEL-SEED, got {name!r}")
        return cls(data, model, int(seed))


def check_result(result: Mapping[str, Any], kind: Kind, cell: Cell) -> None:
    """Check what a cell returned, so that a broken cell is named before it is kept.

    A result holds `methods` (method, part, metric: a finite number; every method of the kind, every part, every
    metric), `curves` (by name: `epoch`, and `train`, `validation`, `test` of the same length), `trace`, `sensitivity`,
    `chosen` and `seconds`.

    Raises:
        ValueError: something is missing, of the wrong length or not finite.
    """

    def wrong(what: str) -> ValueError:
        return ValueError(f"cell {cell.name}: {what}: nothing of it is kept")

    for key in ("methods", "curves", "trace", "sensitivity", "chosen", "seconds"):
        if key not in result:
            raise wrong(f"its result has no {key!r}")
    for method in kind.methods:
        if method not in result["methods"]:
            raise wrong(f"its result has no method {method!r}")
        parts = result["methods"][method]
        for part in ("train", "validation", "test"):
            if part not in parts:
                raise wrong(f"{method} has no part {part!r}")
        for part, metrics in parts.items():
            for metric in kind.metrics:
                value = metrics.get(metric.key)
                if not isinstance(value, int | float) or not math.isfinite(value):
                    raise wrong(f"{metric.key} of {method} on {part} is {value!r}, wanted a finite number")
    for name, curve in result["curves"].items():
        lengths = {key: len(values) for key, values in curve.items()}
        if "epoch" not in curve or len(set(lengths.values())) != 1:
            raise wrong(f"the curve {name!r} has columns of lengths {lengths}")
