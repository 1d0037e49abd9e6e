"""The configuration of a study of links: TOML in, frozen dataclasses out, every mistake named."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..grid.cells import Cell
from ..grid.configured import GRID_RULES, NAMES, check_placed, epoch_at, every_cell, read_placed
from ..runs.settings import (
    BELOW_ONE,
    POSITIVE,
    Rule,
    at_least,
    check,
    each_at_least,
    one_of,
    sections_of,
)
from .answering import T_NORMS
from .graphs import PACKAGED
from .queries import KINDS

# Learning rates of Adam; chosen on validation triples by benchmarks/links_tune.py.
RATES: dict[str, float] = {"distmult": 0.003, "complex": 0.003, "quate": 0.003}
OTHER_RATE = 0.003  # of models that were not tuned


@dataclass(frozen=True)
class Data:
    """Which graphs."""

    graphs: tuple[str, ...] = ("umls", "kinships", "nations")  # packaged graphs, or any name with a path
    paths: tuple[str, ...] = ()  # such as "fb15k237=graphs.tar.xz": a folder or an archive, relative to the file
    train_triples: int = 500  # of the training triples, whose ranks are shown; 0: all


@dataclass(frozen=True)
class Model:
    """Which scoring functions, by PyKEEN's names."""

    names: tuple[str, ...] = ("distmult", "complex", "quate")
    dimension: int = 64  # real numbers per entity
    spread: float = 0.1  # standard deviation of the embeddings at the start


@dataclass(frozen=True)
class Training:
    """Adam at a constant rate against all tails of a head and a relation at once (KvsAll)."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of cells
    epochs: int = 400  # long enough to overfit: that is what ASWA is for
    batch_size: int = 256  # pairs of head and relation
    learning_rate: float = 0.0  # 0: that of the model in RATES
    weight_decay: float = 0.0  # decoupled
    smoothing: float = 0.0  # of the labels


@dataclass(frozen=True)
class Averages:
    """Averages along the run: each is updated at the end of an epoch."""

    start: float = 0.5  # share of the epochs before SWA begins
    every: int = 1  # epochs between updates of SWA
    ema_decay: float = 0.9  # per epoch


@dataclass(frozen=True)
class Queries:
    """Multi-hop queries that the fitted scorers answer; all cells of a graph answer the same ones."""

    kinds: tuple[str, ...] = tuple(KINDS)
    number: int = 100  # of each kind; 0: none
    t_norm: str = "product"  # or "min"
    beam: int = 0  # entities kept after a hop; 0: all
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """How often the curves get a point."""

    curve_every: int = 10  # epochs


@dataclass(frozen=True)
class Sensitivity:
    """What is varied, one thing at a time, in the cells that `seeds` names; in per cent where it is a share."""

    seeds: tuple[int, ...] = (0, 1, 2)  # empty: nowhere
    start: tuple[int, ...] = (5, 25, 50, 75, 90)  # per cent of the epochs; averages of the same run
    every: tuple[int, ...] = (1, 2, 5, 10)  # epochs between updates of averages of the same run
    rank: tuple[int, ...] = (5, 20, 50)  # the k of LAWA: the last so many epochs
    rate: tuple[int, ...] = (30, 300)  # per cent of the learning rate; a run of its own each


@dataclass(frozen=True)
class LinksStudy:
    """A whole study of links.

    >>> LinksStudy().model.names
    ('distmult', 'complex', 'quate')
    """

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    averages: Averages = field(default_factory=Averages)
    queries: Queries = field(default_factory=Queries)
    evaluation: Evaluation = field(default_factory=Evaluation)
    sensitivity: Sensitivity = field(default_factory=Sensitivity)

    def __post_init__(self) -> None:
        _check(self)

    def epoch(self, share: float) -> int:
        """Return the epoch at whose end a share of the epochs is over, from 1.

        >>> LinksStudy(training=Training(epochs=40)).epoch(0.25)
        10
        """
        return epoch_at(share, self.training.epochs)


def rate_of(study: LinksStudy, model: str) -> float:
    """Return the learning rate of a model in a study.

    >>> rate_of(LinksStudy(training=Training(learning_rate=0.1)), "complex")
    0.1
    """
    return study.training.learning_rate or RATES.get(model, OTHER_RATE)


def cells(study: LinksStudy) -> list[Cell]:
    """Return the cells of a study: every model on every graph with every seed.

    >>> len(cells(LinksStudy()))
    45
    """
    return every_cell(study.data.graphs, study.model.names, study.training.seeds)


def read_config(path: Path) -> LinksStudy:
    """Read a study from a TOML file; what it leaves out keeps its default. Paths in it are relative to it.

    Raises:
        ValueError: no TOML, an unknown section or key, a value of the wrong kind or out of range.
        FileNotFoundError: there is no such file.
    """
    return read_placed(path, from_mapping)


def from_mapping(given: dict[str, Any]) -> LinksStudy:
    """Build a study of links from nested dictionaries.

    >>> from_mapping({"training": {"epoch": 3}})
    Traceback (most recent call last):
    ...
    ValueError: training.epoch is no setting: [training] has seeds, epochs, batch_size, learning_rate, ...
    """
    return LinksStudy(**sections_of(LinksStudy, given, "a study of links"))


_RULES: dict[str, Rule] = {
    **GRID_RULES,
    "data.train_triples": at_least(0),
    "data.graphs": NAMES,
    "model.names": NAMES,
    "model.dimension": at_least(1),
    "model.spread": POSITIVE,
    "training.epochs": at_least(2),
    "training.batch_size": at_least(1),
    "training.smoothing": BELOW_ONE,
    "averages.start": BELOW_ONE,
    "averages.ema_decay": BELOW_ONE,
    "averages.every": at_least(1),
    "queries.number": at_least(0),
    "queries.beam": at_least(0),
    "queries.seed": at_least(0),
    "queries.t_norm": one_of(*T_NORMS),
    "sensitivity.start": Rule(
        lambda shares: all(1 <= share <= 100 for share in shares), "be per cents of the epochs, 1 to 100"
    ),
    "sensitivity.rank": each_at_least(1),
}


def _check(s: LinksStudy) -> None:
    check(s, _RULES)
    for kind in s.queries.kinds:
        if kind not in KINDS:
            raise ValueError(f"queries.kinds has {kind!r}: take some of {', '.join(KINDS)}")
    check_placed(s.data.paths, s.data.graphs, tuple(PACKAGED), "data.graphs", "graph")
    cells(s)  # each name must be a word
