"""The ranges of the settings of a study of images, each with a sentence for what lies outside."""

from __future__ import annotations

import re
from typing import Any

from ..grid.configured import GRID_RULES, NAMES, check_placed
from ..runs.settings import (
    BELOW_ONE,
    POSITIVE,
    SWAG_RANK,
    Rule,
    at_least,
    each_at_least,
    one_of,
    period,
)
from ..runs.settings import check as look
from .corruptions import CORRUPTIONS
from .names import network_of

RULES: dict[str, Rule] = {
    **GRID_RULES,
    "data.sets": NAMES,
    "networks.names": NAMES,
    "training.members": at_least(1),
    "training.epochs": at_least(4),
    "training.batch_size": at_least(2),
    "training.momentum": BELOW_ONE,
    "training.augmentation": one_of("usual", "none"),
    "averages.learning_rate": at_least(0),
    "averages.rank": SWAG_RANK,
    "averages.scale": at_least(0),
    "averages.score": one_of("accuracy", "nll"),
    "averages.ema_half_life": POSITIVE,
    "averages.lawa": at_least(1),
    "ensembles.fge_cycle": POSITIVE,
    "ensembles.fge_high": POSITIVE,
    "ensembles.snapshots": at_least(1),
    "ensembles.snapshot_rate": POSITIVE,
    "evaluation.samples": at_least(1),
    "evaluation.bins": at_least(1),
    "evaluation.train_images": at_least(0),
    "evaluation.corrupted_images": at_least(0),
    "evaluation.curve_images": at_least(0),
    "evaluation.landscape_images": at_least(0),
    "evaluation.batch_size": at_least(1),
    "sensitivity.start": each_at_least(1),
    "sensitivity.rank": each_at_least(2),
}


def check(s: Any) -> None:  # an ImagesStudy, whose module imports this one
    """Check every setting, in about the order of the file.

    Raises:
        ValueError: a setting is out of range.
    """
    look(s, RULES)
    shares = {"averages.start": s.averages.start, "ensembles.fge_start": s.ensembles.fge_start}
    for key, number in shares.items():
        if not 0 < number < 1:
            raise ValueError(f"{key} is a share of the budget and must lie between 0 and 1, got {number}")
        if not s.budgets(number) < s.training.epochs:
            raise ValueError(f"{key} = {number} leaves no epoch of {s.training.epochs}: lower it, or train longer")
    if not 0 <= s.ensembles.fge_low <= s.ensembles.fge_high:
        raise ValueError(f"ensembles.fge_low must lie between 0 and fge_high, got {s.ensembles.fge_low}")
    if s.ensembles.snapshots > s.training.epochs:
        raise ValueError(f"ensembles.snapshots must be at most training.epochs, got {s.ensembles.snapshots}: lower it")
    for name in s.networks.names:
        network_of(name)
    for entry in s.data.counts:
        if not re.fullmatch(r"[^=]+=\d+/\d+/\d+", entry):
            raise ValueError(f'data.counts must be like "mnist=1000/500/1500" (train/validation/test), got {entry!r}')
    check_placed(s.data.paths, s.data.sets, ("mnist", "digits"), "data.sets", "set")
    for entry in s.evaluation.corruptions:
        name, _, severity = entry.partition("-")
        if name not in CORRUPTIONS or severity not in ("1", "2", "3", "4", "5"):
            raise ValueError(
                f'evaluation.corruptions must be like "noise-3" (severity 1 to 5), got {entry!r}: '
                f"use one of {', '.join(CORRUPTIONS)}"
            )
    try:
        every, unit = period(s.averages.every)
    except ValueError:
        raise ValueError(f'averages.every must be like "10 steps" or "epoch", got {s.averages.every!r}') from None
    last = s.training.epochs - s.budgets(s.averages.start)
    if unit == "epoch" and every > last:
        raise ValueError(f"averages.every takes {every} epochs, but {last} follow the start: lower it")
