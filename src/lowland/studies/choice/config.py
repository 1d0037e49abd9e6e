"""The configuration of a choice study: TOML in, frozen dataclasses out, every mistake named."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import Lora, period, sections_of


@dataclass(frozen=True)
class Data:
    """Which questions. Counts are in questions; 0 means all there are."""

    name: str = "commonsenseqa"  # a packaged set, or "" for own files
    train: str = ""  # a JSONL file of question, options, answer; relative to the configuration
    validation: str = ""
    test: str = ""
    shifted: tuple[str, ...] = ("siqa", "openbookqa")  # packaged sets or JSONL files, for testing only
    train_questions: int = 0
    validation_questions: int = 160
    test_questions: int = 0
    shifted_questions: int = 400  # of each set
    test_share: float = 0.34  # of a set without test questions of its own
    seed: int = 0


@dataclass(frozen=True)
class Model:
    """What answers.

    "pairs": an encoder embeds question and option apart, and the option's score is `scale` times their cosine, after a
    linear map that starts as the identity. "letters": a causal language model is asked with lettered options, and the
    scores are the logits of the letters at the last position.
    """

    kind: str = "pairs"  # or "letters"
    model: str = "packaged"  # MiniLM for pairs, SmolLM2-135M for letters; or a local folder or a hub name
    max_length: int = 64  # tokens of a text (pairs) or of a whole prompt (letters)
    scale: float = 10.0


@dataclass(frozen=True)
class Training:
    """The first AdamW phase: warm-up, then linear decay to zero over `epochs`."""

    seeds: tuple[int, ...] = (1, 2, 3)  # one member each
    epochs: int = 8
    batch_size: int = 16
    learning_rate: float = 3e-4  # chosen on validation questions by benchmarks/choice_tune.py
    warmup: float = 0.06  # of the steps
    weight_decay: float = 0.0
    clip: float = 1.0  # of the gradient's norm, in both phases


@dataclass(frozen=True)
class Swag:
    """The second phase: AdamW whose rate anneals to its own, from the best weights up to epoch `start`."""

    start: int = 4  # epochs of the first phase
    learning_rate: float = 3e-4
    anneal: float = 1.0  # epochs until that rate is reached
    every: str = "10 steps"  # a snapshot; or "epoch"
    rank: int = 20


@dataclass(frozen=True)
class Evaluation:
    """How the methods are compared."""

    samples: int = 10  # draws a member
    dropout_samples: int = 10  # passes of MC dropout a member
    scale: float = 1.0  # of the covariance; 1 is the paper's
    bins: int = 20  # of the calibration error, equal width
    resamples: int = 1000  # of the bootstrap
    level: float = 0.95
    batch_size: int = 32


@dataclass(frozen=True)
class ChoiceStudy:
    """A whole choice study.

    >>> ChoiceStudy().lora.rank
    8
    """

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    lora: Lora = field(default_factory=lambda: Lora(dropout=0.1, layers=(3, 4, 5)))
    training: Training = field(default_factory=Training)
    swag: Swag = field(default_factory=Swag)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        _check(self)


def small(kind: str, *, seed: int = 0, members: int = 3) -> ChoiceStudy:
    """Return the study that runs without a configuration: MiniLM on pairs, or a few questions to SmolLM2.

    >>> small("letters").data.train_questions
    96
    """
    if members < 1:
        raise ValueError(f"members must be at least 1, got {members}")
    seeds = tuple(100 * seed + 1 + m for m in range(members))
    if kind == "pairs":
        return ChoiceStudy(data=Data(seed=seed), training=Training(seeds=seeds))
    if kind != "letters":
        raise ValueError(f'the kind of model must be "pairs" or "letters", got {kind!r}')
    return ChoiceStudy(
        data=Data(
            shifted=("openbookqa",), train_questions=96, validation_questions=48, test_questions=96,
            shifted_questions=48, seed=seed,
        ),
        model=Model(kind="letters", max_length=128),
        lora=Lora(dropout=0.1, layers=(24, 25, 26, 27, 28, 29)),
        training=Training(seeds=seeds, epochs=4, batch_size=8, learning_rate=3e-4),
        swag=Swag(start=2, learning_rate=1e-4, every="4 steps", rank=5),
        evaluation=Evaluation(samples=5, dropout_samples=5, batch_size=16),
    )  # fmt: skip


def read_config(path: Path) -> ChoiceStudy:
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

    def found(name: str) -> str:
        local = path.parent / name
        return str(local.resolve()) if name and (local.exists() or name.endswith((".jsonl", ".ndjson"))) else name

    own = {key: found(getattr(study.data, key)) for key in ("train", "validation", "test")}
    data = dataclasses.replace(study.data, **own, shifted=tuple(found(name) for name in study.data.shifted))  # type: ignore[arg-type]
    return dataclasses.replace(study, data=data, model=dataclasses.replace(study.model, model=found(study.model.model)))


def from_mapping(given: dict[str, Any]) -> ChoiceStudy:
    """Build a study from nested dictionaries.

    >>> from_mapping({"model": {"kind": "letters"}, "lora": {"layers": [28, 29]}}).model.kind
    'letters'
    """
    sections = sections_of(ChoiceStudy, given, "a choice study")
    data = given.get("data", {})
    if isinstance(data, dict) and data.get("train"):
        # Own files: what the packaged set is tested on is no sensible default for them.
        changes: dict[str, Any] = {"name": ""} if "name" not in data else {}
        changes |= {} if "shifted" in data else {"shifted": ()}
        sections["data"] = dataclasses.replace(sections["data"], **changes)
    if "lora" in given and "dropout" not in given["lora"]:
        sections["lora"] = dataclasses.replace(sections["lora"], dropout=0.1)
    return ChoiceStudy(**sections)


def _check(s: ChoiceStudy) -> None:
    at_least = {
        "data.train_questions": (s.data.train_questions, 0),
        "data.validation_questions": (s.data.validation_questions, 0),
        "data.test_questions": (s.data.test_questions, 0),
        "data.shifted_questions": (s.data.shifted_questions, 0),
        "data.seed": (s.data.seed, 0),
        "model.max_length": (s.model.max_length, 8),
        "lora.rank": (s.lora.rank, 1),
        "training.epochs": (s.training.epochs, 1),
        "training.batch_size": (s.training.batch_size, 1),
        "training.weight_decay": (s.training.weight_decay, 0),
        "swag.start": (s.swag.start, 0),
        "swag.anneal": (s.swag.anneal, 0),
        "swag.rank": (s.swag.rank, 0),
        "evaluation.samples": (s.evaluation.samples, 1),
        "evaluation.dropout_samples": (s.evaluation.dropout_samples, 1),
        "evaluation.scale": (s.evaluation.scale, 0),
        "evaluation.bins": (s.evaluation.bins, 1),
        "evaluation.resamples": (s.evaluation.resamples, 10),
        "evaluation.batch_size": (s.evaluation.batch_size, 1),
    }
    for key, (value, least) in at_least.items():
        if not value >= least:
            raise ValueError(f"{key} must be at least {least}, got {value}")
    positive = {
        "model.scale": s.model.scale,
        "lora.alpha": s.lora.alpha,
        "training.learning_rate": s.training.learning_rate,
        "training.clip": s.training.clip,
        "swag.learning_rate": s.swag.learning_rate,
    }
    for key, number in positive.items():
        if not 0 < number < float("inf"):
            raise ValueError(f"{key} must be positive and finite, got {number}")
    shares = {
        "data.test_share": (s.data.test_share, False),
        "evaluation.level": (s.evaluation.level, False),
        "training.warmup": (s.training.warmup, True),
        "lora.dropout": (s.lora.dropout, True),
    }
    for key, (number, zero) in shares.items():
        if not (0 < number < 1 or (zero and number == 0)):
            raise ValueError(f"{key} must be a share below 1{'' if zero else ' and above 0'}, got {number}")
    if s.swag.rank == 1:
        raise ValueError("swag.rank must be 0 (diagonal only) or at least 2, got 1: one deviation has no covariance")
    if s.model.kind not in ("pairs", "letters"):
        raise ValueError(f'model.kind must be "pairs" or "letters", got {s.model.kind!r}')
    if not s.model.model:
        raise ValueError('model.model is empty: name a folder, a hub model, or "packaged"')
    if not s.training.seeds or len(set(s.training.seeds)) != len(s.training.seeds) or min(s.training.seeds) < 0:
        raise ValueError(f"training.seeds must be different whole numbers, one a member, got {list(s.training.seeds)}")
    if not s.swag.start < s.training.epochs:
        raise ValueError(
            f"swag.start must come before the last epoch, got start {s.swag.start} of {s.training.epochs} epochs: "
            "lower it, or train longer"
        )
    period(s.swag.every)
    if bool(s.data.name) == bool(s.data.train):
        raise ValueError("data takes either name= (a packaged set) or train= (your file), got both or none of them")
