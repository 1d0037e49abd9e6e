"""The configuration of a study of populations: TOML in, frozen dataclasses out, every mistake named."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..grid.cells import Cell
from ..grid.configured import check_placed, read_placed
from ..images.names import network_of
from ..runs.settings import (
    BELOW_ONE,
    DIFFERENT_SEEDS,
    POSITIVE,
    SHARE,
    SOME,
    Rule,
    at_least,
    check,
    one_of,
    sections_of,
)

_MODEL = re.compile(r"(.+)\.n(\d+)(\.one)?(\.mixed)?")


@dataclass(frozen=True)
class Data:
    """Which images. A cell's seed parts training from validation images; the test images are those of all cells."""

    sets: tuple[str, ...] = ("digits",)  # packaged sets (mnist, digits), or any name with a path
    counts: tuple[str, ...] = ("mnist=1000/500/1500", "digits=700/350/747")  # train/validation/test
    paths: tuple[str, ...] = ()  # such as "cifar10=cifar10.npz"; relative to the configuration


@dataclass(frozen=True)
class Networks:
    """Every network in every size of population, from every kind of start, with every kind of recipe."""

    names: tuple[str, ...] = ("cnn",)
    members: tuple[int, ...] = (3, 5)
    starts: tuple[str, ...] = ("own", "one")  # initial weights of each member, or one for all
    pools: tuple[str, ...] = ("alike", "mixed")  # all members trained alike, or each with a recipe of PAPA's pool


@dataclass(frozen=True)
class Training:
    """SGD with momentum, the rate a cosine to a thousandth of itself over the steps of a member."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of cells
    epochs: int = 20  # of each member
    batch_size: int = 25  # at most
    learning_rate: float = 0.0  # 0: that of the network in the study of images
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augmentation: str = "usual"  # flips and crops of colour images, small shifts of others; or "none"


@dataclass(frozen=True)
class Rules:
    """The rules' hyper-parameters; shares and epochs of a member's training."""

    papa_every: int = 10  # steps
    papa_alpha: float = 0.99
    local_every: int = 10  # steps of local SGD
    every: float = 1.0  # epochs of PAPA-all and PAPA-2
    pretrain: float = 0.25  # share of all forward passes that DART spends on the first member
    round: float = 2.0  # epochs of a round of DART
    wash_p: float = 0.05
    episodes: int = 5  # of IMWA


@dataclass(frozen=True)
class Evaluation:
    """How members, their averages and their ensemble are judged."""

    batch_size: int = 500
    train_images: int = 500  # of the training images, for the gap; 0: all
    statistics_batches: int = 20  # for the BatchNorm statistics of averages; 0: all
    barrier_images: int = 200  # of the validation images, for the doctor


@dataclass(frozen=True)
class PopulationStudy:
    """A whole study of populations.

    >>> PopulationStudy().training.epochs
    20
    """

    data: Data = field(default_factory=Data)
    networks: Networks = field(default_factory=Networks)
    training: Training = field(default_factory=Training)
    rules: Rules = field(default_factory=Rules)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        check(self, RULES)
        for name in self.networks.names:
            network_of(name)
        for key, given in (("starts", ("own", "one")), ("pools", ("alike", "mixed"))):
            for word in getattr(self.networks, key):
                if word not in given:
                    raise ValueError(f'networks.{key} must be "{given[0]}" or "{given[1]}", got {word!r}')
        if min(self.networks.members) < 2:
            raise ValueError(f"networks.members must be at least 2, got {min(self.networks.members)}: a population")
        for entry in self.data.counts:
            if not re.fullmatch(r"[^=]+=\d+/\d+/\d+", entry):
                raise ValueError(f'data.counts must be like "mnist=1000/500/1500", got {entry!r}')
        check_placed(self.data.paths, self.data.sets, ("mnist", "digits"), "data.sets", "set")
        cells(self)  # refuses names that files cannot have


RULES: dict[str, Rule] = {
    "data.sets": SOME,
    "networks.names": SOME,
    "networks.members": SOME,
    "networks.starts": SOME,
    "networks.pools": SOME,
    "training.seeds": DIFFERENT_SEEDS,
    "training.epochs": at_least(2),
    "training.batch_size": at_least(2),
    "training.learning_rate": at_least(0),
    "training.momentum": BELOW_ONE,
    "training.weight_decay": at_least(0),
    "training.augmentation": one_of("usual", "none"),
    "rules.papa_every": at_least(1),
    "rules.papa_alpha": BELOW_ONE,
    "rules.local_every": at_least(1),
    "rules.every": POSITIVE,
    "rules.pretrain": SHARE,
    "rules.round": POSITIVE,
    "rules.wash_p": SHARE,
    "rules.episodes": at_least(1),
    "evaluation.batch_size": at_least(1),
    "evaluation.train_images": at_least(0),
    "evaluation.statistics_batches": at_least(0),
    "evaluation.barrier_images": at_least(10),
}


class Model(NamedTuple):
    """What a cell's model says: the network, the number of members, whether they share a start or have own recipes."""

    network: str
    members: int
    one: bool
    mixed: bool


def model_of(cell: Cell) -> Model:
    """Read a cell's model.

    >>> model_of(Cell("digits", "cnn.n3.mixed", 0))
    Model(network='cnn', members=3, one=False, mixed=True)
    """
    match = _MODEL.fullmatch(cell.model)
    if match is None:
        raise ValueError(f"{cell.model!r} is no network with a number of members, such as cnn.n3 or cnn.n3.one.mixed")
    return Model(match[1], int(match[2]), match[3] is not None, match[4] is not None)


def cells(study: PopulationStudy) -> list[Cell]:
    """Return the cells of a study: every set, network, size, pool and seed.

    >>> [cell.model for cell in cells(PopulationStudy(training=Training(seeds=(0,))))][:2]
    ['cnn.n3', 'cnn.n3.mixed']
    """
    return [
        Cell(name, f"{network}.n{members}{'.one' * (start == 'one')}{'.mixed' * (pool == 'mixed')}", seed)
        for name in study.data.sets
        for network in study.networks.names
        for members in study.networks.members
        for start in study.networks.starts
        for pool in study.networks.pools
        for seed in study.training.seeds
    ]


def read_config(path: Path) -> PopulationStudy:
    """Read a study from a TOML file; what it leaves out keeps its default. Paths in it are relative to it.

    Raises:
        ValueError: no TOML, an unknown section or key, a value of the wrong kind or out of range.
        FileNotFoundError: there is no such file.
    """
    return read_placed(path, from_mapping)


def from_mapping(given: dict[str, Any]) -> PopulationStudy:
    """Build a study of populations from nested dictionaries.

    >>> from_mapping({"training": {"epoch": 3}})
    Traceback (most recent call last):
    ...
    ValueError: training.epoch is no setting: [training] has seeds, epochs, batch_size, learning_rate, ...
    """
    return PopulationStudy(**sections_of(PopulationStudy, given, "a study of populations"))
