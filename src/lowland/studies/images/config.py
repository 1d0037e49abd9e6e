"""The configuration of a study of images: TOML in, frozen dataclasses out, every mistake named."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..config import period, sections_of
from ..grid.cells import Cell
from .corruptions import CORRUPTIONS

# Base rate and SWA rate of each network; chosen on validation images by benchmarks/images_tune.py.
RATES: dict[str, tuple[float, float]] = {
    "cnn": (0.05, 0.02),
    "vgg": (0.05, 0.01),
    "preresnet": (0.1, 0.05),
    "wrn": (0.1, 0.05),
    "mobilenetv2": (0.1, 0.05),
}
_NETWORK = re.compile(rf"({'|'.join(RATES)})(\d+)?(?:x(\d+(?:\.\d+)?))?")


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
    batch_size: int = 50  # at most: an epoch's batches differ by at most one image
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
        _check(self)

    def budgets(self, share: float) -> int:
        """Return how many epochs a share of a budget is, rounded.

        >>> ImagesStudy().budgets(1.25)
        25
        """
        return max(1, int(share * self.training.epochs + 0.5))


class Network(NamedTuple):
    """What the name of a network says."""

    name: str
    depth: int | None
    width: float | None


def network_of(model: str) -> Network:
    """Read the name of a network.

    Raises:
        ValueError: there is no such network.

    >>> network_of("wrn28x10")
    Network(name='wrn', depth=28, width=10.0)
    """
    match = _NETWORK.fullmatch(model)
    if match is None:
        raise ValueError(
            f"{model!r} is no network: use one of {', '.join(RATES)}, with a depth and a width such as wrn28x10"
        )
    name, depth, width = match.groups()
    return Network(name, int(depth) if depth else None, float(width) if width else None)


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


def path_of(study: ImagesStudy, name: str) -> str | None:
    """Return the file of a set, or None for a packaged one.

    >>> path_of(ImagesStudy(data=Data(sets=("own",), paths=("own=pictures.npz",))), "own")
    'pictures.npz'
    """
    return next((path for key, _, path in (entry.partition("=") for entry in study.data.paths) if key == name), None)


def cells(study: ImagesStudy) -> list[Cell]:
    """Return the cells of a study: every network on every set with every seed.

    >>> len(cells(ImagesStudy()))
    30
    """
    return [
        Cell(name, model, seed)
        for name in study.data.sets
        for model in study.networks.names
        for seed in study.training.seeds
    ]


def read_config(path: Path) -> ImagesStudy:
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
    paths = tuple(f"{key}={(path.parent / file).resolve()}" for key, _, file in named)
    return dataclasses.replace(study, data=dataclasses.replace(study.data, paths=paths))


def from_mapping(given: dict[str, Any]) -> ImagesStudy:
    """Build a study of images from nested dictionaries.

    >>> from_mapping({"training": {"epoch": 3}})
    Traceback (most recent call last):
    ...
    ValueError: training.epoch is no setting: [training] has seeds, members, epochs, batch_size, learning_rate, ...
    """
    return ImagesStudy(**sections_of(ImagesStudy, given, "a study of images"))


def _check(s: ImagesStudy) -> None:
    at_least = {
        "training.members": (s.training.members, 1),
        "training.epochs": (s.training.epochs, 4),
        "training.batch_size": (s.training.batch_size, 2),
        "training.learning_rate": (s.training.learning_rate, 0),
        "training.weight_decay": (s.training.weight_decay, 0),
        "averages.learning_rate": (s.averages.learning_rate, 0),
        "averages.rank": (s.averages.rank, 0),
        "averages.scale": (s.averages.scale, 0),
        "averages.lawa": (s.averages.lawa, 1),
        "ensembles.snapshots": (s.ensembles.snapshots, 1),
        "evaluation.samples": (s.evaluation.samples, 1),
        "evaluation.bins": (s.evaluation.bins, 1),
        "evaluation.train_images": (s.evaluation.train_images, 0),
        "evaluation.corrupted_images": (s.evaluation.corrupted_images, 0),
        "evaluation.curve_images": (s.evaluation.curve_images, 0),
        "evaluation.curve_every": (s.evaluation.curve_every, 1),
        "evaluation.batch_size": (s.evaluation.batch_size, 1),
        "sensitivity.start": (min(s.sensitivity.start, default=1), 1),
        "sensitivity.every": (min(s.sensitivity.every, default=1), 1),
        "sensitivity.rank": (min(s.sensitivity.rank, default=2), 2),
        "sensitivity.rate": (min(s.sensitivity.rate, default=1), 1),
    }
    for key, (value, least) in at_least.items():
        if not least <= value < float("inf"):
            raise ValueError(f"{key} must be at least {least} and finite, got {value}")
    positive = {
        "averages.ema_half_life": s.averages.ema_half_life,
        "ensembles.fge_cycle": s.ensembles.fge_cycle,
        "ensembles.fge_high": s.ensembles.fge_high,
        "ensembles.snapshot_rate": s.ensembles.snapshot_rate,
    }
    for key, number in positive.items():
        if not 0 < number < float("inf"):
            raise ValueError(f"{key} must be positive and finite, got {number}")
    shares = {"averages.start": s.averages.start, "ensembles.fge_start": s.ensembles.fge_start}
    for key, number in shares.items():
        if not 0 < number < 1:
            raise ValueError(f"{key} is a share of the budget and must lie between 0 and 1, got {number}")
        if not s.budgets(number) < s.training.epochs:
            raise ValueError(f"{key} = {number} leaves no epoch of {s.training.epochs}: lower it, or train longer")
    if not 0 <= s.training.momentum < 1:
        raise ValueError(f"training.momentum must be at least 0 and below 1, got {s.training.momentum}")
    if not 0 <= s.ensembles.fge_low <= s.ensembles.fge_high:
        raise ValueError(f"ensembles.fge_low must lie between 0 and fge_high, got {s.ensembles.fge_low}")
    if s.averages.rank == 1:
        raise ValueError(
            "averages.rank must be 0 (diagonal only) or at least 2, got 1: one deviation has no covariance"
        )
    if s.averages.score not in ("accuracy", "nll"):
        raise ValueError(f'averages.score must be "accuracy" or "nll", got {s.averages.score!r}')
    if s.ensembles.snapshots > s.training.epochs:
        raise ValueError(f"ensembles.snapshots must be at most training.epochs, got {s.ensembles.snapshots}: lower it")
    if min(s.training.seeds, default=0) < 0 or not _distinct(s.training.seeds):
        raise ValueError(f"training.seeds must be different whole numbers, got {list(s.training.seeds)}")
    if not _distinct(s.networks.names):
        raise ValueError(f"networks.names must be different networks, got {list(s.networks.names)}")
    if not _distinct(s.data.sets):
        raise ValueError(f"data.sets must be different sets, got {list(s.data.sets)}")
    for name in s.networks.names:
        network_of(name)
    for entry in s.data.counts:
        if not re.fullmatch(r"[^=]+=\d+/\d+/\d+", entry):
            raise ValueError(f'data.counts must be like "mnist=1000/500/1500" (train/validation/test), got {entry!r}')
    for entry in s.data.paths:
        if not re.fullmatch(r"[^=]+=.+", entry):
            raise ValueError(f'data.paths must be like "cifar10=/data/cifar10.npz", got {entry!r}')
    for entry in s.evaluation.corruptions:
        name, _, severity = entry.partition("-")
        if name not in CORRUPTIONS or severity not in ("1", "2", "3", "4", "5"):
            raise ValueError(
                f'evaluation.corruptions must be like "noise-3" (severity 1 to 5), got {entry!r}: '
                f"use one of {', '.join(CORRUPTIONS)}"
            )
    if s.training.augmentation not in ("usual", "none"):
        raise ValueError(f'training.augmentation must be "usual" or "none", got {s.training.augmentation!r}')
    try:
        every, unit = period(s.averages.every)
    except ValueError:
        raise ValueError(f'averages.every must be like "10 steps" or "epoch", got {s.averages.every!r}') from None
    last = s.training.epochs - s.budgets(s.averages.start)
    if unit == "epoch" and every > last:
        raise ValueError(f"averages.every takes {every} epochs, but {last} follow the start: lower it")
    cells(s)  # names that files cannot have


def _distinct(values: tuple[object, ...]) -> bool:
    return bool(values) and len(set(values)) == len(values)
