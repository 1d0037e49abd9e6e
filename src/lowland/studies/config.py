"""The configuration of a text study: TOML in, frozen dataclasses out, every mistake named."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

Study = TypeVar("Study")  # a frozen dataclass of sections, each a frozen dataclass of settings


@dataclass(frozen=True)
class Data:
    """Which texts. Counts are in texts; 0 means all there are."""

    name: str = "insults"  # a packaged set (`lowland data list`), or "" for own files
    train: str = ""  # a CSV, Parquet or JSONL file; relative to the configuration
    validation: str = ""
    test: str = ""
    text: str = "text"  # column of own files
    label: str = "label"
    train_texts: int = 600
    validation_texts: int = 300
    test_texts: int = 800
    validation_share: float = 0.1  # of the training file, where all of it is used and no validation file is given
    test_share: float = 0.2  # of the training file, where no test file is given
    seed: int = 0


@dataclass(frozen=True)
class Model:
    """Which encoder, and what stands on it."""

    encoder: str = "packaged"  # the packaged MiniLM, a local folder or a hub name
    pooling: str = "mean"  # or "cls"
    max_length: int = 48  # tokens
    encoder_dropout: float = 0.0  # with 0 attention takes its fast path
    head_dropout: float = 0.1


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()  # names of linear layers; empty: the attention's query and value
    layers: tuple[int, ...] = ()  # empty: all; upper layers only: what lies below is computed once per text


@dataclass(frozen=True)
class Training:
    """The AdamW phase: linear decay to zero over `epochs`."""

    seeds: tuple[int, ...] = (1, 2, 3)  # one member each
    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 1e-3  # chosen on validation texts by benchmarks/text_tune.py
    weight_decay: float = 0.0
    clip: float = 1.0  # of the gradient's norm, in both phases
    monitor_texts: int = 150  # of the validation texts, looked at after every epoch


@dataclass(frozen=True)
class Swag:
    """The SGD phase: starts from the weights of epoch `start` of the first and takes the rest of its epochs."""

    start: int = 2  # epochs
    learning_rate: float = 0.02  # constant; chosen on validation texts by benchmarks/text_tune.py
    momentum: float = 0.9
    every: str = "5 steps"  # a snapshot; or "epoch"
    rank: int = 20


@dataclass(frozen=True)
class Evaluation:
    """How the methods are compared."""

    samples: int = 6  # draws a member
    scale: float = 1.0  # of the covariance; 1 is the paper's
    bins: int = 20  # of the calibration error, equal width
    resamples: int = 1000  # of the bootstrap
    level: float = 0.95
    batch_size: int = 32


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
        _check(self)


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
            training=Training(seeds=seeds, epochs=2 if epochs is None else epochs),
            swag=Swag(start=1),
            evaluation=Evaluation(samples=3),
        )
    return TextStudy(data=Data(seed=seed), training=Training(seeds=seeds, epochs=8 if epochs is None else epochs))


def read_config(path: Path) -> TextStudy:
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
    sections = sections_of(TextStudy, given, "a text study")
    data = given.get("data", {})
    if isinstance(data, dict) and data.get("train") and "name" not in data:
        # Own files: the counts of the demonstration are no sensible default for them.
        counts = {key: 0 for key in ("train_texts", "validation_texts", "test_texts") if key not in data}
        sections["data"] = dataclasses.replace(sections["data"], name="", **counts)
    return TextStudy(**sections)


def sections_of(kind: type[Any], given: dict[str, Any], what: str) -> dict[str, Any]:
    """Read the sections of `what`, a study of class `kind`, from nested dictionaries.

    Raises:
        ValueError: a section or a setting is unknown or of a wrong kind.
    """
    kinds = get_type_hints(kind)
    sections: dict[str, Any] = {}
    for section, values in given.items():
        if section not in kinds:
            raise ValueError(f"[{section}] is no section of {what}: it has {', '.join(kinds)}")
        if not isinstance(values, dict):
            raise ValueError(f"{section} must be a section [{section}] with settings in it, got {values!r}")
        sections[section] = _section(section, kinds[section], values)
    return sections


def to_toml(study: Any) -> str:
    """Write every setting out, defaults included.

    >>> from_mapping(tomllib.loads(to_toml(TextStudy()))) == TextStudy()
    True
    """
    lines: list[str] = []
    for section in dataclasses.fields(study):
        lines.append(f"[{section.name}]")
        values = dataclasses.asdict(getattr(study, section.name))
        lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def differences(left: Study, right: Study) -> list[str]:
    """Name the settings in which two studies of one kind differ, with both values."""
    found = []
    for section in dataclasses.fields(left):  # type: ignore[arg-type]
        one, other = (dataclasses.asdict(getattr(study, section.name)) for study in (left, right))
        found += [f"{section.name}.{key} ({one[key]!r}, {other[key]!r})" for key in one if one[key] != other[key]]
    return found


def period(every: str) -> tuple[int, str]:
    """Read how often a snapshot is taken.

    >>> period("5 steps"), period("epoch")
    ((5, 'step'), (1, 'epoch'))
    """
    match = re.fullmatch(r"\s*(\d*)\s*(step|epoch)s?\s*", every)
    if match is None or match[1] == "0":
        raise ValueError(f'swag.every must be like "5 steps" or "epoch", got {every!r}')
    return int(match[1] or 1), match[2]


def _section(name: str, kind: type[Any], values: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise ValueError(f"{name}.{key} is no setting: [{name}] has {', '.join(hints)}")
    return kind(**{key: _typed(f"{name}.{key}", hints[key], value) for key, value in values.items()})


def _typed(key: str, hint: Any, value: Any) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str) and type(value) is hint:
        return value
    inner = {tuple[int, ...]: int, tuple[str, ...]: str}.get(hint)
    if inner is not None and isinstance(value, list | tuple) and all(type(item) is inner for item in value):
        return tuple(value)
    if inner is not None and value in ("all", "auto"):
        return ()
    wanted = f"a list of {inner.__name__}" if inner is not None else f"{hint.__name__}"
    raise ValueError(f"{key} must be {wanted}, got {value!r} ({type(value).__name__})")


def _toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _check(s: TextStudy) -> None:
    """Ranges, in the order of the file."""
    at_least = {
        "data.train_texts": (s.data.train_texts, 0),
        "data.validation_texts": (s.data.validation_texts, 0),
        "data.test_texts": (s.data.test_texts, 0),
        "data.seed": (s.data.seed, 0),
        "model.max_length": (s.model.max_length, 4),
        "lora.rank": (s.lora.rank, 1),
        "training.epochs": (s.training.epochs, 1),
        "training.batch_size": (s.training.batch_size, 1),
        "training.monitor_texts": (s.training.monitor_texts, 1),
        "training.weight_decay": (s.training.weight_decay, 0),
        "swag.start": (s.swag.start, 0),
        "swag.rank": (s.swag.rank, 0),
        "evaluation.samples": (s.evaluation.samples, 1),
        "evaluation.scale": (s.evaluation.scale, 0),
        "evaluation.bins": (s.evaluation.bins, 1),
        "evaluation.resamples": (s.evaluation.resamples, 10),
        "evaluation.batch_size": (s.evaluation.batch_size, 1),
    }
    for key, (value, least) in at_least.items():
        if not value >= least:
            raise ValueError(f"{key} must be at least {least}, got {value}")
    positive = {
        "lora.alpha": s.lora.alpha,
        "training.learning_rate": s.training.learning_rate,
        "training.clip": s.training.clip,
        "swag.learning_rate": s.swag.learning_rate,
    }
    for key, number in positive.items():
        if not 0 < number < float("inf"):
            raise ValueError(f"{key} must be positive and finite, got {number}")
    shares = {
        "data.validation_share": s.data.validation_share,
        "data.test_share": s.data.test_share,
        "evaluation.level": s.evaluation.level,
    }
    for key, number in shares.items():
        if not 0 < number < 1:
            raise ValueError(f"{key} must lie between 0 and 1, both excluded, got {number}")
    below_one = {
        "model.encoder_dropout": s.model.encoder_dropout,
        "model.head_dropout": s.model.head_dropout,
        "lora.dropout": s.lora.dropout,
        "swag.momentum": s.swag.momentum,
    }
    for key, number in below_one.items():
        if not 0 <= number < 1:
            raise ValueError(f"{key} must be at least 0 and below 1, got {number}")
    if s.swag.rank == 1:
        raise ValueError("swag.rank must be 0 (diagonal only) or at least 2, got 1: one deviation has no covariance")
    if s.model.pooling not in ("mean", "cls"):
        raise ValueError(f'model.pooling must be "mean" or "cls", got {s.model.pooling!r}')
    if not s.model.encoder:
        raise ValueError('model.encoder is empty: name a folder, a hub model, or "packaged"')
    if not s.training.seeds or len(set(s.training.seeds)) != len(s.training.seeds) or min(s.training.seeds) < 0:
        raise ValueError(f"training.seeds must be different whole numbers, one a member, got {list(s.training.seeds)}")
    if min(s.lora.layers, default=0) < 0:
        raise ValueError(f"lora.layers counts from 0, got {list(s.lora.layers)}")
    if not s.swag.start < s.training.epochs:
        raise ValueError(
            f"swag.start must come before the last epoch, got start {s.swag.start} of {s.training.epochs} epochs: "
            "lower it, or train longer"
        )
    period(s.swag.every)
    if bool(s.data.name) == bool(s.data.train):
        raise ValueError("data takes either name= (a packaged set) or train= (your file), got both or none of them")
    if s.data.name and (s.data.validation or s.data.test):
        raise ValueError(f"data.name = {s.data.name!r} brings its own splits: leave validation and test out")
