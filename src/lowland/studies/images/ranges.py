"""The ranges of the settings of a study of images, each with a sentence for what lies outside."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..config import period
from .corruptions import CORRUPTIONS
from .names import network_of

if TYPE_CHECKING:
    from .config import ImagesStudy


def check(s: ImagesStudy) -> None:
    """Check every setting, in about the order of the file.

    Raises:
        ValueError: a setting is out of range.
    """
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
    located = {entry.partition("=")[0] for entry in s.data.paths}
    missing = [name for name in s.data.sets if name not in ("mnist", "digits") and name not in located]
    if missing:
        raise ValueError(
            f"data.sets has {missing[0]!r}, which is no packaged set (mnist, digits): say in data.paths where it lies, "
            f'like "{missing[0]}=images.npz"'
        )
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


def _distinct(values: tuple[object, ...]) -> bool:
    return bool(values) and len(set(values)) == len(values)
