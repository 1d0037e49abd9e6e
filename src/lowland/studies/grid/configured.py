"""How a grid study is configured: the settings that all of them have, their cells, and data that lie outside packages.

A study names its data in `data`, its models in a section of its own, and its seeds in `training.seeds`; sets that are
no package's are entries "NAME=PATH" of `data.paths`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..runs.settings import DIFFERENT_SEEDS, SOME, Rule, at_least, each_at_least, read_toml
from .cells import Cell

Study = TypeVar("Study")  # a frozen dataclass of sections, `data` with `paths` among them

# Of the settings that every grid study has.
GRID_RULES: dict[str, Rule] = {
    "training.seeds": DIFFERENT_SEEDS,
    "training.learning_rate": at_least(0),  # 0: the model's own
    "training.weight_decay": at_least(0),
    "evaluation.curve_every": at_least(1),
    "sensitivity.every": each_at_least(1),
    "sensitivity.rate": each_at_least(1),
}
NAMES = SOME  # of data and of models


def every_cell(data: Sequence[str], models: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Return the cells of a study: every model on every data set with every seed.

    >>> [cell.name for cell in every_cell(["a"], ["x", "y"], [0])]
    ['a-x-0', 'a-y-0']
    """
    return [Cell(name, model, seed) for name in data for model in models for seed in seeds]


def epoch_at(share: float, epochs: int) -> int:
    """Return the epoch at whose end a share of the epochs is over, from 1.

    >>> epoch_at(0.25, 40), epoch_at(0.0, 40)
    (10, 1)
    """
    return max(1, int(share * epochs + 0.5))


def read_placed(path: Path, build: Callable[[dict[str, Any]], Study]) -> Study:
    """Read a study from a TOML file; the paths of its data are relative to it.

    Raises:
        ValueError: no TOML, an unknown section or key, a value of the wrong kind or out of range.
        FileNotFoundError: there is no such file.
    """
    study = build(read_toml(path))
    data = study.data  # type: ignore[attr-defined]
    named = [entry.partition("=") for entry in data.paths]
    paths = tuple(f"{key}={(path.parent / place).resolve()}" for key, _, place in named)
    changed = dataclasses.replace(data, paths=paths)
    return dataclasses.replace(study, data=changed)  # type: ignore[type-var]


def path_of(paths: Sequence[str], name: str) -> str | None:
    """Return where a set lies, or None where no entry names it.

    >>> path_of(("own=pictures.npz",), "own")
    'pictures.npz'
    """
    return next((path for key, _, path in (entry.partition("=") for entry in paths) if key == name), None)


def check_placed(paths: Sequence[str], names: Sequence[str], packaged: Sequence[str], key: str, what: str) -> None:
    """See that every set is a package's or has a path; a path of a set that is not asked for is well.

    `key` is the setting that names the sets, `what` a word for one of them.

    Raises:
        ValueError: one is not.

    >>> check_placed((), ["own"], ["umls"], "data.graphs", "graph")
    Traceback (most recent call last):
    ...
    ValueError: data.graphs has 'own', which is no packaged graph (umls): say in data.paths where it lies, like ...
    """
    for entry in paths:
        name, _, place = entry.partition("=")
        if not name or not place:
            raise ValueError(f'data.paths must be like "NAME=PATH" with the name of a {what}, got {entry!r}')
    for name in names:
        if name not in packaged and path_of(paths, name) is None:
            raise ValueError(
                f"{key} has {name!r}, which is no packaged {what} ({', '.join(packaged)}): say in data.paths where it "
                f'lies, like "{name}=PATH"'
            )
