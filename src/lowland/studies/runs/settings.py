"""What the configurations of all studies share: reading sections, writing them out, and one table of checks.

A study is a frozen dataclass of sections, each a frozen dataclass of settings. Its checks are a mapping from
"section.setting" to a `Rule`; `check` names the first setting that breaks its own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

Study = TypeVar("Study")  # a frozen dataclass of sections


@dataclass(frozen=True)
class Rule:
    """What a setting must be: a test of its value, the words for it, and why where that is not plain."""

    holds: Callable[[Any], bool]
    wanted: str  # completes "KEY must ..."
    why: str = ""


def at_least(least: float) -> Rule:
    """A finite number from `least` on.

    >>> at_least(1).holds(0)
    False
    """
    return Rule(lambda value: least <= value < math.inf, f"be at least {least}")


def each_at_least(least: float) -> Rule:
    """Numbers from `least` on; none is well.

    >>> each_at_least(1).holds((1, 0))
    False
    """
    return Rule(lambda values: all(least <= value < math.inf for value in values), f"be numbers from {least} on")


def one_of(*names: str) -> Rule:
    """One of a few words.

    >>> one_of("mean", "cls").wanted
    'be "mean" or "cls"'
    """
    quoted = [f'"{name}"' for name in names]
    listed = " or ".join(part for part in (", ".join(quoted[:-1]), quoted[-1]) if part)
    return Rule(lambda value: value in names, f"be {listed}")


POSITIVE = Rule(lambda value: 0 < value < math.inf, "be positive and finite")
SHARE = Rule(lambda value: 0 < value < 1, "lie between 0 and 1, both excluded")
BELOW_ONE = Rule(lambda value: 0 <= value < 1, "be at least 0 and below 1")
SOME = Rule(lambda values: len(values) > 0 and len(set(values)) == len(values), "be one or more different names")
DIFFERENT_SEEDS = Rule(
    lambda seeds: len(seeds) > 0 and len(set(seeds)) == len(seeds) and min(seeds) >= 0,
    "be different whole numbers, none below 0",
)
SWAG_RANK = Rule(
    lambda rank: rank == 0 or rank >= 2, "be 0 (diagonal only) or at least 2", "one deviation has no covariance"
)


def check(study: Any, rules: Mapping[str, Rule]) -> None:
    """Look at every setting that has a rule, in the order of the rules.

    Raises:
        ValueError: a setting breaks its rule; the message names it, what it must be and what it is.

    >>> @dataclass(frozen=True)
    ... class Training:
    ...     epochs: int = 0
    >>> @dataclass(frozen=True)
    ... class Study:
    ...     training: Training = Training()
    >>> check(Study(), {"training.epochs": at_least(1)})
    Traceback (most recent call last):
    ...
    ValueError: training.epochs must be at least 1, got 0
    """
    for key, rule in rules.items():
        section, _, name = key.partition(".")
        value = getattr(getattr(study, section), name)
        if not rule.holds(value):
            shown = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{key} must {rule.wanted}, got {shown!r}" + (f": {rule.why}" if rule.why else ""))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        ValueError: it is no TOML.
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration {path}: name a TOML file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no TOML file: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is no configuration: its values are nested too deeply") from None


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

    >>> from lowland.studies.text import TextStudy
    >>> print(to_toml(TextStudy()).splitlines()[1])
    name = "insults"
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
    if hint in (int, float, str, bool) and type(value) is hint:
        return value
    inner = {tuple[int, ...]: int, tuple[str, ...]: str, tuple[float, ...]: float}.get(hint)
    if inner is float and isinstance(value, list | tuple):
        value = [float(item) if type(item) is int else item for item in value]
    if inner is not None and isinstance(value, list | tuple) and all(type(item) is inner for item in value):
        return tuple(value)
    if inner is not None and value in ("all", "auto"):
        return ()
    wanted = f"a list of {inner.__name__}" if inner is not None else f"{hint.__name__}"
    raise ValueError(f"{key} must be {wanted}, got {value!r} ({type(value).__name__})")


def _toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)
