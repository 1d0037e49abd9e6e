"""The configuration of a study of imbalance: TOML in, frozen dataclasses out, every mistake named."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..grid.cells import Cell
from ..grid.configured import check_placed, read_placed
from ..images.names import network_of
from ..runs.settings import DIFFERENT_SEEDS, POSITIVE, SHARE, SOME, Rule, at_least, check, each_at_least, sections_of

TEXTS = ("r52",)
_DATA = re.compile(r"(.+?)(?:\.r(\d+))?(\.semi)?")
_COUNTS = re.compile(r"[^=]+=\d+/\d+/\d+")


@dataclass(frozen=True)
class Data:
    """Which examples. Images are given a long tail at every ratio, texts have their own."""

    images: tuple[str, ...] = ("digits",)  # packaged sets (mnist, digits), or any name with a path
    texts: tuple[str, ...] = ()  # r52
    ratios: tuple[int, ...] = (10, 50, 100)  # examples of the most frequent class over those of the rarest
    # examples of the most frequent class / validation / test images of all classes
    counts: tuple[str, ...] = ("mnist=400/200/800", "digits=100/200/400")
    paths: tuple[str, ...] = ()  # such as "cifar10=cifar10.npz"; relative to the configuration
    bits: int = 12  # texts are hashed to 2^bits columns


@dataclass(frozen=True)
class Semi:
    """Training on few labels (FixMatch): of a long tail a share has labels, the others are guessed."""

    images: tuple[str, ...] = ()  # such as mnist, as in data.images
    ratios: tuple[int, ...] = (50,)
    share: float = 0.2  # of each class with its label, one example at least
    batch_size: int = 16  # of examples with labels
    times: int = 2  # as many without, seen in a weak and in a strong view
    threshold: float = 0.95  # a guess counts from this probability on


@dataclass(frozen=True)
class Networks:
    """Which networks."""

    images: tuple[str, ...] = ("cnn3x8",)
    texts: tuple[str, ...] = ("mlp64",)  # one hidden layer of so many units


@dataclass(frozen=True)
class Training:
    """SGD with momentum, the rate a cosine to a thousandth of itself over all forward passes of a row."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of cells
    epochs: int = 20  # of a branch; a single network has `branches` times as many
    text_epochs: int = 6  # the same, for texts
    batch_size: int = 32  # at most
    learning_rate: float = 0.03  # of image networks
    text_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augmentation: str = "usual"  # flips and crops of colour images, small shifts of others; or "none"


@dataclass(frozen=True)
class Averaging:
    """Branches, their episodes, and the EMAs."""

    branches: int = 3
    episodes: int = 5  # of IMWA
    decay: float = 0.99  # of the EMAs of IMWA's branches
    decays: tuple[float, ...] = (0.98, 0.99, 0.995)  # of the single network's EMA, chosen on validation data


@dataclass(frozen=True)
class Evaluation:
    """How networks and averages are judged."""

    batch_size: int = 500
    statistics_batches: int = 20  # for the BatchNorm statistics of averages; 0: those of an epoch


@dataclass(frozen=True)
class ImbalanceStudy:
    """A whole study of imbalance.

    >>> ImbalanceStudy().averaging.episodes
    5
    """

    data: Data = field(default_factory=Data)
    semi: Semi = field(default_factory=Semi)
    networks: Networks = field(default_factory=Networks)
    training: Training = field(default_factory=Training)
    averaging: Averaging = field(default_factory=Averaging)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        check(self, RULES)
        for name in self.networks.images:
            network_of(name)
        for name in self.networks.texts:
            width_of(name)
        images = tuple(dict.fromkeys((*self.data.images, *self.semi.images)))
        if not images and not self.data.texts:
            raise ValueError("data.images, data.texts and semi.images are all empty: name a set in one of them")
        for name in self.data.texts:
            if name not in TEXTS:
                raise ValueError(f"data.texts must be among {', '.join(TEXTS)}, got {name!r}")
        for entry in self.data.counts:
            if not _COUNTS.fullmatch(entry):
                raise ValueError(f'data.counts must be like "mnist=400/200/800", got {entry!r}')
        check_placed(self.data.paths, images, ("mnist", "digits"), "data.images", "set")
        for name in images:
            counts_of(self, name)
        if not all(0 < decay < 1 for decay in self.averaging.decays) or not self.averaging.decays:
            raise ValueError(f"averaging.decays must lie between 0 and 1, got {list(self.averaging.decays)}")
        if self.training.augmentation not in ("usual", "none"):
            raise ValueError(f'training.augmentation must be "usual" or "none", got {self.training.augmentation!r}')
        cells(self)  # refuses names that files cannot have


RULES: dict[str, Rule] = {
    "data.ratios": each_at_least(1),
    "data.bits": at_least(4),
    "semi.ratios": each_at_least(1),
    "semi.share": SHARE,
    "semi.batch_size": at_least(1),
    "semi.times": at_least(1),
    "semi.threshold": SHARE,
    "networks.images": SOME,
    "networks.texts": SOME,
    "training.seeds": DIFFERENT_SEEDS,
    "training.epochs": at_least(2),
    "training.text_epochs": at_least(2),
    "training.batch_size": at_least(2),
    "training.learning_rate": POSITIVE,
    "training.text_rate": POSITIVE,
    "training.momentum": Rule(lambda value: 0 <= value < 1, "be at least 0 and below 1"),
    "training.weight_decay": at_least(0),
    "averaging.branches": at_least(2),
    "averaging.episodes": at_least(1),
    "averaging.decay": SHARE,
    "evaluation.batch_size": at_least(1),
    "evaluation.statistics_batches": at_least(0),
}


class Source(NamedTuple):
    """What a cell's data say: the set, its ratio (0 for a set's own tail), and whether few examples have labels."""

    name: str
    ratio: int
    semi: bool


def source_of(cell: Cell) -> Source:
    """Read a cell's data.

    >>> source_of(Cell("mnist.r50.semi", "cnn3x8", 0))
    Source(name='mnist', ratio=50, semi=True)
    """
    match = _DATA.fullmatch(cell.data)
    assert match is not None  # any word matches
    return Source(match[1], int(match[2] or 0), match[3] is not None)


def counts_of(study: ImbalanceStudy, name: str) -> tuple[int, int, int]:
    """Return examples of the most frequent class, validation and test images of a set.

    Raises:
        ValueError: the study says nothing of it.
    """
    for key, _, value in (entry.partition("=") for entry in study.data.counts):
        if key == name:
            largest, validation, test = (int(each) for each in value.split("/"))
            return largest, validation, test
    raise ValueError(f'data.counts has no entry for {name!r}: add one like "{name}=400/200/800"')


def width_of(network: str) -> int:
    """Return the hidden units of a text network.

    >>> width_of("mlp64")
    64
    """
    match = re.fullmatch(r"mlp([1-9]\d*)", network)
    if match is None:
        raise ValueError(f"networks.texts must be like mlp64, got {network!r}")
    return int(match[1])


def cells(study: ImbalanceStudy) -> list[Cell]:
    """Return the cells of a study: every set at every ratio, those with few labels, the texts; every seed.

    >>> [cell.data for cell in cells(ImbalanceStudy(training=Training(seeds=(0,))))]
    ['digits.r10', 'digits.r50', 'digits.r100']
    """
    images = [f"{name}.r{ratio}" for name in study.data.images for ratio in study.data.ratios]
    images += [f"{name}.r{ratio}.semi" for name in study.semi.images for ratio in study.semi.ratios]
    pairs = [(data, network) for data in images for network in study.networks.images]
    pairs += [(data, network) for data in study.data.texts for network in study.networks.texts]
    return [Cell(data, network, seed) for data, network in pairs for seed in study.training.seeds]


def read_config(path: Path) -> ImbalanceStudy:
    """Read a study from a TOML file; what it leaves out keeps its default. Paths in it are relative to it.

    Raises:
        ValueError: no TOML, an unknown section or key, a value of the wrong kind or out of range.
        FileNotFoundError: there is no such file.
    """
    return read_placed(path, from_mapping)


def from_mapping(given: dict[str, Any]) -> ImbalanceStudy:
    """Build a study of imbalance from nested dictionaries.

    >>> from_mapping({"training": {"epoch": 3}})
    Traceback (most recent call last):
    ...
    ValueError: training.epoch is no setting: [training] has seeds, epochs, ...
    """
    return ImbalanceStudy(**sections_of(ImbalanceStudy, given, "a study of imbalance"))
