"""The configuration of a study of links: TOML in, frozen dataclasses out, every mistake named."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import sections_of
from ..grid.cells import Cell
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
        return max(1, int(share * self.training.epochs + 0.5))


def rate_of(study: LinksStudy, model: str) -> float:
    """Return the learning rate of a model in a study.

    >>> rate_of(LinksStudy(training=Training(learning_rate=0.1)), "complex")
    0.1
    """
    return study.training.learning_rate or RATES.get(model, OTHER_RATE)


def path_of(study: LinksStudy, graph: str) -> str | None:
    """Return where a graph lies, or None for a packaged one.

    >>> path_of(LinksStudy(data=Data(graphs=("own",), paths=("own=triples",))), "own")
    'triples'
    """
    return next((path for name, _, path in (entry.partition("=") for entry in study.data.paths) if name == graph), None)


def cells(study: LinksStudy) -> list[Cell]:
    """Return the cells of a study: every model on every graph with every seed.

    >>> len(cells(LinksStudy()))
    45
    """
    return [
        Cell(graph, model, seed)
        for graph in study.data.graphs
        for model in study.model.names
        for seed in study.training.seeds
    ]


def read_config(path: Path) -> LinksStudy:
    """Read a study from a TOML file; what it leaves out keeps its default. Paths in it are relative to it.

    Raises:
        ValueError: no TOML, an unknown section or key, a value of the wrong kind or out of range.
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration {path}: name a TOML file")
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML file: {error}") from None
    study = from_mapping(given)
    named = [entry.partition("=") for entry in study.data.paths]
    paths = tuple(f"{name}={(path.parent / place).resolve()}" for name, _, place in named)
    return dataclasses.replace(study, data=dataclasses.replace(study.data, paths=paths))


def from_mapping(given: dict[str, Any]) -> LinksStudy:
    """Build a study of links from nested dictionaries.

    >>> from_mapping({"training": {"epoch": 3}})
    Traceback (most recent call last):
    ...
    ValueError: training.epoch is no setting: [training] has seeds, epochs, batch_size, learning_rate, ...
    """
    return LinksStudy(**sections_of(LinksStudy, given, "a study of links"))


def _check(s: LinksStudy) -> None:
    at_least = {
        "data.train_triples": (s.data.train_triples, 0),
        "model.dimension": (s.model.dimension, 1),
        "training.epochs": (s.training.epochs, 2),
        "training.batch_size": (s.training.batch_size, 1),
        "training.learning_rate": (s.training.learning_rate, 0),
        "training.weight_decay": (s.training.weight_decay, 0),
        "averages.every": (s.averages.every, 1),
        "queries.number": (s.queries.number, 0),
        "queries.beam": (s.queries.beam, 0),
        "queries.seed": (s.queries.seed, 0),
        "evaluation.curve_every": (s.evaluation.curve_every, 1),
        "sensitivity.start": (min(s.sensitivity.start, default=1), 1),
        "sensitivity.every": (min(s.sensitivity.every, default=1), 1),
        "sensitivity.rank": (min(s.sensitivity.rank, default=1), 1),
        "sensitivity.rate": (min(s.sensitivity.rate, default=1), 1),
    }
    for key, (value, least) in at_least.items():
        if not least <= value < float("inf"):
            raise ValueError(f"{key} must be at least {least} and finite, got {value}")
    if not 0 < s.model.spread < float("inf"):
        raise ValueError(f"model.spread must be positive and finite, got {s.model.spread}")
    shares = {
        "training.smoothing": s.training.smoothing,
        "averages.start": s.averages.start,
        "averages.ema_decay": s.averages.ema_decay,
    }
    for key, number in shares.items():
        if not 0 <= number < 1:
            raise ValueError(f"{key} must be at least 0 and below 1, got {number}")
    if max(s.sensitivity.start, default=1) > 100:
        raise ValueError(f"sensitivity.start is in per cent of the epochs, at most 100, got {s.sensitivity.start}")
    if s.queries.t_norm not in T_NORMS:
        raise ValueError(f"queries.t_norm must be one of {', '.join(T_NORMS)}, got {s.queries.t_norm!r}")
    for kind in s.queries.kinds:
        if kind not in KINDS:
            raise ValueError(f"queries.kinds has {kind!r}: take some of {', '.join(KINDS)}")
    several: dict[str, tuple[object, ...]] = {
        "data.graphs": s.data.graphs,
        "model.names": s.model.names,
        "training.seeds": s.training.seeds,
    }
    for key, values in several.items():
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{key} must be one or more different values, got {list(values)}")
    if min(s.training.seeds) < 0:
        raise ValueError(f"training.seeds must be at least 0, got {list(s.training.seeds)}")
    for entry in s.data.paths:
        name, _, path = entry.partition("=")
        if name not in s.data.graphs or not path:
            raise ValueError(f'data.paths must be like "GRAPH=PATH" with a graph of data.graphs, got {entry!r}')
    for graph in s.data.graphs:
        if graph not in PACKAGED and path_of(s, graph) is None:
            raise ValueError(
                f"there is no packaged graph {graph!r}: take {', '.join(PACKAGED)}, or add it to data.paths"
            )
    cells(s)  # each name must be a word
