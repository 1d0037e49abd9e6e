"""The configuration of a choice study: TOML in, frozen dataclasses out, every mistake named."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..adapters.config import ADAPTER_RULES, MODEL_NAME, Lora, check_adapters, in_epochs, searched
from ..runs.settings import BELOW_ONE, at_least, check, one_of, read_toml, sections_of


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
    scores are the logits of the letters at the last position. "words": the same without letters, where all questions
    have the same options and each is a single token, such as No and Yes.
    """

    kind: str = "pairs"  # or "letters" or "words"
    model: str = "packaged"  # MiniLM for pairs, else SmolLM2-135M; or a local folder or a hub name
    max_length: int = 64  # tokens of a text (pairs) or of a whole prompt (others)
    scale: float = 0.0  # of a cosine; 0: the one with the lowest NLL of the training questions before training


@dataclass(frozen=True)
class Training:
    """The first AdamW phase: warm-up, then linear decay to zero over `epochs`."""

    seeds: tuple[int, ...] = (1, 2, 3)  # one member each
    epochs: int = 8
    batch_size: int = 16
    learning_rate: float = 3e-4  # chosen on validation questions by benchmarks/choice_tune.py
    base_rate: float = 0.0  # above 0: the base model is trained at this rate too, for the rows "tuned rate"
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
    other_starts: tuple[int, ...] = ()  # tried by the first member; the best on validation questions is taken by all
    other_rates: tuple[float, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """How the methods are compared."""

    samples: int = 10  # draws a member
    dropout_samples: int = 10  # passes of MC dropout a member
    scale: float = 1.0  # of the covariance; 1 is the paper's
    other_scales: tuple[float, ...] = ()  # tried as the other starts and rates
    rivals: bool = False  # also last iterate, scale 2, a fitted scale, TFB, and Laplace where it is installed
    bins: int = 20  # of the calibration error, equal width
    resamples: int = 1000  # of the bootstrap
    level: float = 0.95
    batch_size: int = 32


_RULES = {
    "data.train_questions": at_least(0),
    "data.validation_questions": at_least(0),
    "data.test_questions": at_least(0),
    "data.shifted_questions": at_least(0),
    "model.kind": one_of("pairs", "letters", "words"),
    "model.model": MODEL_NAME,
    "model.max_length": at_least(8),
    "model.scale": at_least(0),
    **ADAPTER_RULES,
    "training.warmup": BELOW_ONE,
    "training.base_rate": at_least(0),
    "swag.anneal": at_least(0),
    "evaluation.dropout_samples": at_least(1),
}


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
        check(self, _RULES)
        check_adapters(self)


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
    study = from_mapping(read_toml(path))

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
    given = in_epochs(given, ChoiceStudy().training.epochs)
    sections = sections_of(ChoiceStudy, given, "a choice study")
    data = given.get("data", {})
    if isinstance(data, dict) and data.get("train"):
        # Own files: what the packaged set is tested on is no sensible default for them.
        changes: dict[str, Any] = {"name": ""} if "name" not in data else {}
        changes |= {} if "shifted" in data else {"shifted": ()}
        sections["data"] = dataclasses.replace(sections["data"], **changes)
        searched(sections, given, ChoiceStudy())
    if "lora" in given and "dropout" not in given["lora"]:
        sections["lora"] = dataclasses.replace(sections["lora"], dropout=0.1)
    return ChoiceStudy(**sections)
