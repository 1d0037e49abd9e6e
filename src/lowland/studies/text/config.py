"""The configuration of a text study: TOML in, frozen dataclasses out, every mistake named."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..adapters.config import ADAPTER_RULES, LENGTH, MODEL_NAME, Lora, Model, check_adapters, in_epochs, searched
from ..runs.settings import (
    BELOW_ONE,
    SHARE,
    at_least,
    check,
    one_of,
    read_toml,
    sections_of,
)


@dataclass(frozen=True)
class Data:
    """Which texts. Counts are in texts; 0 means all there are."""

    name: str = "insults"  # a packaged set (`lowland data list`), or "" for own files
    train: str = ""  # a CSV, Parquet or JSONL file; relative to the configuration
    validation: str = ""
    test: str = ""
    text: str = "text"  # column of own files
    label: str = "label"
    two_labels: str = "refuse"  # a training text that occurs under two labels; "drop" leaves it out
    train_texts: int = 600
    validation_texts: int = 300
    test_texts: int = 800
    validation_share: float = 0.1  # of the training file, where all of it is used and no validation file is given
    test_share: float = 0.2  # of the training file, where no test file is given
    seed: int = 0


@dataclass(frozen=True)
class Training:
    """The AdamW phase: linear decay to zero over `epochs`."""

    seeds: tuple[int, ...] = (1, 2, 3)  # one member each
    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 1e-3  # chosen on validation texts by benchmarks/text_tune.py
    weight_decay: float = 0.0
    clip: float = 1.0  # of the gradient's norm, in both phases
    base_rate: float = 0.0  # above 0: the base model is trained at this rate too, for the rows "tuned rate"
    monitor_texts: int = 150  # of the validation texts, looked at after every epoch


@dataclass(frozen=True)
class Swag:
    """The SGD phase: starts from the weights of epoch `start` of the first and takes the rest of its epochs."""

    start: int = 2  # epochs
    learning_rate: float = 0.02  # constant; chosen on validation texts by benchmarks/text_tune.py
    momentum: float = 0.9
    every: str = "5 steps"  # a snapshot; or "epoch"
    rank: int = 20
    other_starts: tuple[int, ...] = ()  # tried by the first member; the best on validation texts is taken by all
    other_rates: tuple[float, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """How the methods are compared."""

    samples: int = 6  # draws a member
    scale: float = 1.0  # of the covariance; 1 is the paper's
    other_scales: tuple[float, ...] = ()  # tried as the other starts and rates
    products: str = "float32"  # or "bfloat16" in predictions, where the processor has it and they stay what they are
    bins: int = 20  # of the calibration error, equal width
    resamples: int = 1000  # of the bootstrap
    level: float = 0.95
    batch_size: int = 32


DEMO_LENGTH = 48  # tokens: what a demonstration of minutes can afford; how many comments that cuts is told

_RULES = {
    "data.train_texts": at_least(0),
    "data.validation_texts": at_least(0),
    "data.test_texts": at_least(0),
    "data.validation_share": SHARE,
    "data.two_labels": one_of("refuse", "drop"),
    "model.encoder": MODEL_NAME,
    "model.pooling": one_of("mean", "cls"),
    "model.max_length": LENGTH,
    "model.encoder_dropout": BELOW_ONE,
    "model.head_dropout": BELOW_ONE,
    **ADAPTER_RULES,
    "training.base_rate": at_least(0),
    "evaluation.products": one_of("float32", "bfloat16"),
    "training.monitor_texts": at_least(1),
    "swag.momentum": BELOW_ONE,
}


@dataclass(frozen=True)
class TextStudy:
    """A whole text study.

    >>> TextStudy().training.epochs
    8
    """

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    lora: Lora = field(default_factory=Lora)
    training: Training = field(default_factory=Training)
    swag: Swag = field(default_factory=Swag)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        check(self, _RULES)
        check_adapters(self)
        if self.data.name and (self.data.validation or self.data.test):
            raise ValueError(f"data.name = {self.data.name!r} brings its own splits: leave validation and test out")


def demo(*, full: bool = False, seed: int = 0, members: int | None = None, epochs: int | None = None) -> TextStudy:
    """The study of the packaged comments; `full` uses every text and 15 members.

    >>> demo(seed=1, members=2).training.seeds
    (101, 102)
    """
    count = members if members is not None else (15 if full else 3)
    if count < 1:
        raise ValueError(f"members must be at least 1, got {count}")
    seeds = tuple(100 * seed + 1 + m for m in range(count))
    if full:
        # An epoch of all texts is 111 steps, as many as the six SGD epochs of the demo's 600 texts: so two epochs are
        # the demo's budget in steps and half as much again.
        return TextStudy(
            data=Data(train_texts=0, validation_texts=0, test_texts=0, seed=seed),
            model=Model(max_length=DEMO_LENGTH),
            training=Training(seeds=seeds, epochs=2 if epochs is None else epochs),
            swag=Swag(start=1),
            evaluation=Evaluation(samples=3, products="bfloat16"),
        )
    return TextStudy(
        data=Data(seed=seed),
        model=Model(max_length=DEMO_LENGTH),
        training=Training(seeds=seeds, epochs=8 if epochs is None else epochs),
        evaluation=Evaluation(products="bfloat16"),
    )


def read_config(path: Path) -> TextStudy:
    """Read a study from a TOML file; what it leaves out keeps its default. Paths in it are relative to it.

    Raises:
        ValueError: no TOML, an unknown section or key, a value of the wrong kind or out of range.
        FileNotFoundError: there is no such file.
    """
    study = from_mapping(read_toml(path))
    train, validation, test = (
        str((path.parent / name).resolve()) if name else ""
        for name in (study.data.train, study.data.validation, study.data.test)
    )
    data = dataclasses.replace(study.data, train=train, validation=validation, test=test)
    local = path.parent / study.model.encoder
    model = dataclasses.replace(study.model, encoder=str(local.resolve())) if local.is_dir() else study.model
    return dataclasses.replace(study, data=data, model=model)


def from_mapping(given: dict[str, Any]) -> TextStudy:
    """Build a text study from nested dictionaries.

    >>> from_mapping({"training": {"epoch": 3}})
    Traceback (most recent call last):
    ...
    ValueError: training.epoch is no setting: [training] has seeds, epochs, batch_size, learning_rate, weight_decay, ...
    """
    given = in_epochs(given, TextStudy().training.epochs)
    sections = sections_of(TextStudy, given, "a text study")
    data = given.get("data", {})
    if isinstance(data, dict) and data.get("train") and "name" not in data:
        # Own files: the counts of the demonstration are no sensible default for them.
        counts = {key: 0 for key in ("train_texts", "validation_texts", "test_texts") if key not in data}
        sections["data"] = dataclasses.replace(sections["data"], name="", **counts)
        searched(sections, given, TextStudy())
    return TextStudy(**sections)
