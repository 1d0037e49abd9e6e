"""The configuration of a study of decays: TOML in, frozen dataclasses out, every mistake named."""

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
from .texts import SETS

# Width of the stream, by name. With two layers and a context of 128 bytes: 0.14 and 1.0 million parameters of the two
# in the middle; with 17 layers and a context of 1024: 122 million of the last.
WIDTHS: dict[str, int] = {"tiny": 16, "small": 64, "medium": 192, "large": 768}


@dataclass(frozen=True)
class Data:
    """Which texts."""

    sets: tuple[str, ...] = ("stdlib",)
    paths: tuple[str, ...] = ()  # such as "own=texts": a folder of text files, relative to the file


@dataclass(frozen=True)
class Model:
    """Which transformers."""

    names: tuple[str, ...] = ("small",)
    layers: int = 2
    heads: int = 4
    context: int = 128  # bytes


@dataclass(frozen=True)
class Training:
    """AdamW at a constant rate, and from there on decayed or not, on the same batches."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    steps: int = 1200  # at the constant rate, before any decay begins
    decay_steps: int = 300  # and so many more, with and without a decay
    batch_size: int = 32
    learning_rate: float = 3e-3
    warmup: int = 50  # steps
    weight_decay: float = 0.1
    clip: float = 1.0


@dataclass(frozen=True)
class Merging:
    """What is merged: checkpoints of the constant run over the steps of the decay."""

    every: int = 10  # steps between checkpoints
    windows: tuple[int, ...] = (20, 50, 100)  # per cent of the decay's steps, up to its end
    blends: tuple[float, ...] = (0.7, 1.0, 1.15)  # last + blend (average - last)
    half_lives: tuple[int, ...] = (20, 50, 100)  # steps, of the EMA tails


@dataclass(frozen=True)
class Evaluation:
    """How many rows the losses are taken over, a part."""

    rows: int = 256
    batch_size: int = 64


@dataclass(frozen=True)
class DecayStudy:
    """A whole study of decays.

    >>> DecayStudy().training.decay_steps
    300
    """

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    merging: Merging = field(default_factory=Merging)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        check(self, _RULES)
        check_placed(self.data.paths, self.data.sets, SETS, "data.sets", "text")
        for name in self.model.names:
            if name not in WIDTHS:
                raise ValueError(f"there is no model {name!r}: take {', '.join(WIDTHS)}")
        if any(width % self.model.heads for name, width in WIDTHS.items() if name in self.model.names):
            raise ValueError(f"model.heads must divide the width, got {self.model.heads}")
        for window in self.merging.windows:
            steps = self.training.decay_steps * window / 100
            if steps % self.merging.every or not steps:
                raise ValueError(
                    f"a window of {window} % of {self.training.decay_steps} steps holds no whole number of checkpoints "
                    f"every {self.merging.every} steps: change merging.windows or merging.every"
                )
        if 100 not in self.merging.windows or 1.0 not in self.merging.blends:
            raise ValueError("merging.windows must have 100 and merging.blends 1.0: they are rows of the table")
        cells(self)  # each name must be a word


_RULES: dict[str, Rule] = {
    "data.sets": NAMES,
    "model.names": NAMES,
    "model.layers": at_least(1),
    "model.heads": at_least(1),
    "model.context": at_least(2),
    "training.seeds": DIFFERENT_SEEDS,
    "training.steps": at_least(1),
    "training.decay_steps": at_least(2),
    "training.batch_size": at_least(1),
    "training.learning_rate": POSITIVE,
    "training.warmup": at_least(0),
    "training.weight_decay": at_least(0),
    "training.clip": POSITIVE,
    "merging.every": at_least(1),
    "merging.windows": Rule(
        lambda shares: bool(shares) and all(0 < s <= 100 for s in shares), "be per cents, 1 to 100"
    ),
    "merging.blends": each_at_least(0),
    "merging.half_lives": each_at_least(1),
    "evaluation.rows": at_least(2),
    "evaluation.batch_size": at_least(1),
}


def cells(study: DecayStudy) -> list[Cell]:
    """Return the cells of a study: every model on every set with every seed.

    >>> len(cells(DecayStudy()))
    8
    """
    return every_cell(study.data.sets, study.model.names, study.training.seeds)


def read_config(path: Path) -> DecayStudy:
    """Read a study from a TOML file; what it leaves out keeps its default. Paths in it are relative to it.

    Raises:
        ValueError: no TOML, an unknown section or key, a value of the wrong kind or out of range.
        FileNotFoundError: there is no such file.
    """
    return read_placed(path, from_mapping)


def from_mapping(given: dict[str, Any]) -> DecayStudy:
    """Build a study of decays from nested dictionaries.

    >>> from_mapping({"training": {"step": 3}})
    Traceback (most recent call last):
    ...
    ValueError: training.step is no setting: [training] has seeds, steps, decay_steps, batch_size, ...
    """
    return DecayStudy(**sections_of(DecayStudy, given, "a study of decays"))
