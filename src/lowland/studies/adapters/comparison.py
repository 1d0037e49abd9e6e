"""The methods of a text study on the same texts: their metrics, their differences, and a sentence about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lowland.calibration import Interval, differences, fit_temperature, intervals, summary, temper

from ..runs.randomness import stream

METHODS = (
    "base",
    "early-stopped base",
    "temperature-scaled base",
    "SWA",
    "SWAG",
    "deep ensemble",
    "MultiSWA",
    "MultiSWAG",
)
RIVALS = ("base", "early-stopped base", "temperature-scaled base", "deep ensemble")  # what the verdict compares with
TRAINED = {"base": "base", "early": "early-stopped base", "swa": "SWA", "swag": "SWAG"}  # what a member predicts with
# Means of members' probabilities.
COMBINED = {
    "deep ensemble": "base",
    "deep ensemble, tuned rate": "base, tuned rate",
    "MultiSWA": "SWA",
    "MultiSWAG": "SWAG",
}
TUNED = "base, tuned rate"


def with_tuned(methods: Sequence[str]) -> tuple[str, ...]:
    """Return the methods with the base model at a rate of its own, and the ensemble of such, beside theirs.

    >>> with_tuned(("base", "SWA", "deep ensemble"))
    ('base', 'base, tuned rate', 'SWA', 'deep ensemble', 'deep ensemble, tuned rate')
    """
    beside = {"base": TUNED, "deep ensemble": "deep ensemble, tuned rate"}
    return tuple(each for method in methods for each in (method, beside.get(method)) if each)


class Judging(Protocol):
    """The settings of a study's comparison."""

    @property
    def bins(self) -> int: ...
    @property
    def resamples(self) -> int: ...
    @property
    def level(self) -> float: ...


@dataclass(frozen=True)
class Predictions:
    """What one member's variant says of the validation and the test texts: probabilities (N, C)."""

    validation: Tensor
    test: Tensor
    test_entropy: Tensor  # (N,) mean over draws of the entropy of each


@dataclass(frozen=True)
class Compared:
    """The numbers of a study."""

    metrics: dict[str, Any]  # as in metrics.json, but for the counts of texts
    test: dict[str, list[Tensor]]  # by method: one tensor a member, or one in all
    validation: dict[str, list[Tensor]]


def compare(
    members: Sequence[Mapping[str, Predictions]],
    validation_labels: Sequence[int],
    test_labels: Sequence[int],
    settings: Judging,
    seed: int,
    *,
    trained: Mapping[str, str] = TRAINED,
    methods: Sequence[str] = METHODS,
    things: str = "texts",
) -> Compared:
    """Compute the metrics of all methods.

    `trained` says which method each of a member's variants is, `methods` the order of the table, and `things` what was
    tested, for the verdict.

    Methods of one model are judged by the mean over members of each metric; MultiSWAG, MultiSWA and the deep ensemble
    by the mean of the members' probabilities, MultiSWAG by the very draws of its members' SWAGs. The temperature is
    fitted on validation texts, one for each member. Intervals resample the test texts.
    """
    truth, checked = torch.tensor(list(test_labels)), torch.tensor(list(validation_labels))
    test = {method: [member[key].test for member in members] for key, method in trained.items()}
    validation = {method: [member[key].validation for member in members] for key, method in trained.items()}
    temperatures = [fit_temperature(probs, checked) for probs in validation["base"]]
    for split in (test, validation):
        split["temperature-scaled base"] = [
            temper(probs, t) for probs, t in zip(split["base"], temperatures, strict=True)
        ]
        for method, part in COMBINED.items():
            if part in split:
                split[method] = [torch.stack(split[part]).mean(0)]
    ours = "MultiSWAG"

    def again() -> dict[str, Any]:  # the same resamples for every method
        generator = stream(seed, "bootstrap")
        return {"bins": settings.bins, "resamples": settings.resamples, "level": settings.level, "generator": generator}

    several = {method: torch.stack(each) for method, each in test.items()}  # (members or 1, N, C)
    table = {method: _plain(intervals(several[method], truth, **again())) for method in methods}
    gaps = {
        method: _plain(differences(several[ours], several[method], truth, **again()))
        for method in methods
        if method != ours
    }
    own = {
        method: [summary(probs, truth, bins=settings.bins) for probs in test[method]]
        for method in methods
        if method not in COMBINED
    }
    metrics = {
        "methods": table,
        "members": own,
        "differences": {"of": ours, "minus": gaps},
        "temperature": temperatures,
        "verdict": verdict(gaps, len(members), len(truth), settings.level, things),
    }
    return Compared(metrics, test, validation)


def _plain(found: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: {"value": value, "low": low, "high": high} for name, (value, low, high) in found.items()}


def verdict(
    gaps: Mapping[str, Mapping[str, Mapping[str, float]]],
    members: int,
    number: int,
    level: float,
    things: str = "texts",
) -> str:
    """Say in one sentence where MultiSWAG is better, worse, or not told apart, from the intervals of differences.

    >>> less, none = {"value": -0.1, "low": -0.2, "high": -0.05}, {"value": 0.0, "low": -0.1, "high": 0.1}
    >>> gaps = {rival: {"nll": less, "ece": none, "f1": none} for rival in RIVALS}
    >>> gaps["base"] = {"nll": less, "ece": less, "f1": none}
    >>> print(verdict(gaps, 3, 800, 0.95))
    MultiSWAG is better than base in NLL (-0.100) and ECE (-0.100); better than early-stopped base in NLL (-0.100);
    better than temperature-scaled base in NLL (-0.100); better than deep ensemble in NLL (-0.100): 3 members, 800 test
    texts, 95% intervals over the texts; another training run moves these numbers too.
    """
    phrases, equal = [], []
    for rival in RIVALS:
        better: list[str] = []
        worse: list[str] = []
        for name, label, sign in (("nll", "NLL", -1), ("ece", "ECE", -1), ("f1", "macro F1", 1)):
            gap = gaps[rival][name]
            if gap["low"] > 0 or gap["high"] < 0:
                (better if sign * gap["value"] > 0 else worse).append(f"{label} ({gap['value']:+.3f})")
        if better:
            phrases.append(
                f"better than {rival} in {_listed(better)}" + (f" but worse in {_listed(worse)}" if worse else "")
            )
        elif worse:
            phrases.append(f"worse than {rival} in {_listed(worse)}")
        else:
            equal.append(rival)
    if equal:
        phrases.append(f"not told apart from {_listed(equal)} in NLL, ECE or macro F1")
    trained = f"{members} member{'' if members == 1 else 's'}"
    return (
        f"MultiSWAG is {'; '.join(phrases)}: {trained}, {number} test {things}, {level:.0%} intervals over the "
        f"{things}; another training run moves these numbers too."
    )


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(", ".join(parts).rsplit(", ", 1))
