"""The configuration of a study of images: TOML in, frozen dataclasses out, every mistake named."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..grid.cells import Cell
from ..grid.configured import epoch_at, every_cell, read_placed
from ..runs.settings import sections_of
from .names import RATES, network_of
from .ranges import check


@dataclass(frozen=True)
class Data:
    """Which images. A cell's seed parts training from validation images; the test images are those of all cells."""

    sets: tuple[str, ...] = ("mnist", "digits")  # packaged sets, or any name with a path
    counts: tuple[str, ...] = ("mnist=1000/500/1500", "digits=700/350/747")  # train/validation/test; 0 as `load_images`
    paths: tuple[str, ...] = ()  # such as "cifar10=cifar10.npz"; relative to the configuration


@dataclass(frozen=True)
class Networks:
    """Which networks: a name, a depth and a width, such as "preresnet164", "wrn28x10" or "mobilenetv2x0.5"."""

    names: tuple[str, ...] = ("cnn", "vgg", "preresnet")


@dataclass(frozen=True)
class Training:
    """SGD with momentum: the rate is constant to half the budget, falls to 1 % of itself at 90 % and stays there."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of cells
    members: int = 3  # networks of a cell, each with its own initial weights and its own order of the images
    epochs: int = 20  # one budget
    batch_size: int = 25  # at most: an epoch's batches differ by at most one image
    learning_rate: float = 0.0  # 0: that of the network in RATES
    momentum: float = 0.9
    weight_decay: float = 5e-4  # on all parameters
    augmentation: str = "usual"  # flips and crops of colour images, small shifts of others; or "none"
    device: str = "cpu"


@dataclass(frozen=True)
class Averages:
    """SWA, SWAG and ASWA, along one run of 1.5 budgets with the schedule of SWA; EMA and LAWA, along that of SGD."""

    start: float = 0.75  # budgets before the first weights are collected
    learning_rate: float = 0.0  # of SWA; 0: that of the network in RATES
    every: str = "epoch"  # weights of SWA and SWAG are collected; or "10 steps"
    rank: int = 10  # of SWAG
    scale: float = 1.0  # of its covariance; 1 is the paper's
    score: str = "accuracy"  # of ASWA, on the validation images; or "nll"
    ema_half_life: float = 1.0  # epochs
    lawa: int = 5  # epochs whose last weights LAWA averages


@dataclass(frozen=True)
class Ensembles:
    """FGE and Snapshot ensembles, both within one budget."""

    fge_start: float = 0.8  # budgets of SGD before the cycles
    fge_cycle: float = 1.0  # epochs
    fge_high: float = 0.5  # of the base rate
    fge_low: float = 0.005  # of the base rate
    snapshots: int = 5  # cycles of Snapshot in its budget
    snapshot_rate: float = 1.0  # of the base rate, at the beginning of a cycle


@dataclass(frozen=True)
class Evaluation:
    """How the methods are compared."""

    samples: int = 8  # draws of SWAG from each member
    bins: int = 20  # of the calibration error, equal width
    train_images: int = 500  # of the training images, for the gap; 0: all
    corruptions: tuple[str, ...] = ("noise-3", "blur-3", "rotation-3", "shift-3")  # name and severity of a changed test
    corrupted_images: int = 500  # of the test images, for each corruption; 0: all
    curve_images: int = 500  # of the test images, for the curves; 0: all
    curve_every: int = 2  # epochs between points of the curves of averages
    landscape_images: int = 200  # training, and test, images on the line from SWA to SGD; 0: no line
    batch_size: int = 500


@dataclass(frozen=True)
class Sensitivity:
    """What is varied, one thing at a time, in the cells that `seeds` names; in per cent where it is a share."""

    seeds: tuple[int, ...] = (0,)  # empty: nowhere
    start: tuple[int, ...] = (5, 25, 50, 75, 100, 125)  # per cent of a budget; averages of the same run
    every: tuple[int, ...] = (1, 2, 5)  # epochs between collected weights of the same run
    rank: tuple[int, ...] = (2, 5, 10)  # of SWAG, and the k of LAWA
    rate: tuple[int, ...] = (25, 50, 200)  # per cent of the SWA rate; a run of its own each


@dataclass(frozen=True)
class ImagesStudy:
    """A whole study of images.

    >>> ImagesStudy().training.epochs
    20
    """

    data: Data = field(default_factory=Data)
    networks: Networks = field(default_factory=Networks)
    training: Training = field(default_factory=Training)
    averages: Averages = field(default_factory=Averages)
    ensembles: Ensembles = field(default_factory=Ensembles)
    evaluation: Evaluation = field(default_factory=Evaluation)
    sensitivity: Sensitivity = field(default_factory=Sensitivity)

    def __post_init__(self) -> None:
        check(self)
        cells(self)  # refuses names that files cannot have

    def budgets(self, share: float) -> int:
        """Return how many epochs a share of a budget is, rounded.

        >>> ImagesStudy().budgets(1.25)
        25
        """
        return epoch_at(share, self.training.epochs)


def rates_of(study: ImagesStudy, model: str) -> tuple[float, float]:
    """Return the base rate and the SWA rate of a network in a study.

    >>> rates_of(ImagesStudy(training=Training(learning_rate=0.3)), "cnn")[0]
    0.3
    """
    base, swa = RATES[network_of(model).name]
    return study.training.learning_rate or base, study.averages.learning_rate or swa


def counts_of(study: ImagesStudy, name: str) -> tuple[int, int, int]:
    """Return the numbers of training, validation and test images of a set; 0 is what `load_images` makes of it.

    >>> counts_of(ImagesStudy(), "digits")
    (700, 350, 747)
    """
    for entry in study.data.counts:
        key, _, counts = entry.partition("=")
        if key == name:
            train, validation, test = (int(count) for count in counts.split("/"))
            return train, validation, test
    return 0, 0, 0


def cells(study: ImagesStudy) -> list[Cell]:
    """Return the cells of a study: every network on every set with every seed.

    >>> len(cells(ImagesStudy()))
    30
    """
    return every_cell(study.data.sets, study.networks.names, study.training.seeds)


def read_config(path: Path) -> ImagesStudy:
    """Read a study from a TOML file; what it leaves out keeps its default. Paths in it are relative to it.

    Raises:
        ValueError: no TOML, an unknown section or key, a value of the wrong kind or out of range.
        FileNotFoundError: there is no such file.
    """
    return read_placed(path, from_mapping)


def from_mapping(given: dict[str, Any]) -> ImagesStudy:
    """Build a study of images from nested dictionaries.

    >>> from_mapping({"training": {"epoch": 3}})
    Traceback (most recent call last):
    ...
    ValueError: training.epoch is no setting: [training] has seeds, members, epochs, batch_size, learning_rate, ...
    """
    return ImagesStudy(**sections_of(ImagesStudy, given, "a study of images"))
