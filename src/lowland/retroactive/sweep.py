"""Choose the averaging window or the half-life after training, from weights recorded on the way.

    recorded averages a_1 ... a_n with profiles p_1 ... p_n over the steps;   wanted profile q
    c = the least-squares fit of q by the p_j (see `profiles`);               result = sum_j c_j a_j

What was recorded is snapshots, each standing for the steps since the one before (`intervals`), or averages kept during
training, such as two power EMAs written every few hundred steps (`recorder`). The result is what an average with the
profile q would have been, up to the share of q that the record cannot express: the residual, told with every result.
Karras, Aittala, Lehtinen, Hellsten, Aila, Laine 2024, arXiv 2312.02696 (post-hoc EMA).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arithmetic.moments import wide
from ..weights.kinds import check_kinds, check_same_codes, check_same_kinds, check_tensors
from ..weights.named import Weights
from .profiles import Fit, Profile, fit, fits
from .records import Recorded as Recorded
from .records import intervals as intervals
from .records import opened

Scored = Callable[[Weights], float | Tensor | Sequence[float]]


def coefficients(basis: Sequence[Recorded], target: Profile) -> Fit:
    """Return what each recorded average is multiplied with, and how well the target is met (`profiles.fit`).

    Raises:
        ValueError: nothing is recorded, or the target goes on after the record.

    Example:
        >>> from lowland.retroactive import Window
        >>> kept = intervals([(10, {"w": torch.zeros(1)}), (20, {"w": torch.ones(1)})])
        >>> [round(share, 9) for share in coefficients(kept, Window(0, 20)).coefficients]
        [0.5, 0.5]
    """
    return fit([one.profile for one in basis], target)


@torch.no_grad()
def synthesise(basis: Sequence[Recorded], target: Profile, *, most_residual: float | None = None) -> dict[str, Tensor]:
    """Return the average that has the profile `target`, as near as the record allows, in float32 or wider.

    Tensors are read and summed one after the other, in float64: memory is that of one result. Other than floating-point
    tensors are those of the latest record.

    Args:
        most_residual: refuse a fit whose residual is above this; None: take it as it is (see `coefficients`).

    Raises:
        ValueError: as `coefficients`; the residual is above `most_residual`; records differ in names or shapes; the
            result is not finite.

    Example:
        >>> from lowland.retroactive import Window
        >>> kept = intervals([(10, {"w": torch.tensor([0.0])}), (20, {"w": torch.tensor([4.0])})])
        >>> synthesise(kept, Window(0, 20)), synthesise(kept, Window(10, 20))
        ({'w': tensor([2.])}, {'w': tensor([4.])})
    """
    found = coefficients(basis, target)
    if most_residual is not None and found.residual > most_residual:
        raise ValueError(
            f"the record expresses {target} only up to a residual of {found.residual:.3f}, wanted at most "
            f"{most_residual}: record more often, or choose a wider or an earlier average"
        )
    return _combined(basis, found.coefficients)


@dataclass(frozen=True)
class Trial:
    """One average that was tried; `error`, `behind` and `behind_error` need scores of single examples."""

    target: Profile
    score: float
    error: float | None  # standard error of the score
    behind: float  # how far below the best score
    behind_error: float | None  # standard error of that difference, example by example
    tied: bool  # not to be told from the best: equal, or within two standard errors of the difference
    residual: float
    amplification: float


@dataclass(frozen=True)
class Sweep:
    """What `sweep` found: a trial for every target in the order given."""

    trials: tuple[Trial, ...]
    best: int  # place of the highest score; of equal ones that with the smallest residual, then the first
    expected: float | None  # what choosing the best so scores on examples it was not chosen by; None for bare scores

    @property
    def tied(self) -> list[int]:
        """The places that are not to be told from the best, the best included."""
        return [place for place, trial in enumerate(self.trials) if trial.tied]

    def __str__(self) -> str:
        """Return the table of half-life, score and residual, in Markdown."""
        lines = ["| average | half-life | score | behind the best | residual | amplification | |", "|---" * 7 + "|"]
        for place, t in enumerate(self.trials):
            score = f"{t.score:.4f}" + ("" if t.error is None else f" ± {t.error:.4f}")
            behind = f"{t.behind:.4f}" + ("" if t.behind_error is None else f" ± {t.behind_error:.4f}")
            mark = "best" if place == self.best else "tied" if t.tied else ""
            fitted = f"{t.residual:.3f} | {t.amplification:.3g}"
            lines.append(f"| {t.target} | {t.target.half_life:.4g} | {score} | {behind} | {fitted} | {mark} |")
        return "\n".join(lines)


def sweep(
    basis: Sequence[Recorded], targets: Sequence[Profile], score: Scored, *, folds: int = 5, seed: int = 0
) -> Sweep:
    """Score every wanted average on validation data; one is in memory at a time.

    Args:
        score: takes named weights and returns how good they are, higher is better: one number, or a number for each
            validation example, in the same order every time. Single examples tell how much of a difference is noise:
            which averages are tied with the best, and what the chosen one is expected to score on other examples.
            A model with BatchNorm wants its statistics refreshed in there.
        folds: parts of the examples for `expected`: the average is chosen on all parts but one and scored on that one.
        seed: of the random split into these parts.

    Raises:
        ValueError: there is no target, a score is NaN, scores of two targets are of different lengths; as `synthesise`.

    Example:
        >>> from lowland.retroactive import Window
        >>> kept = intervals([(step, {"w": torch.tensor([float(step)])}) for step in (10, 20, 30, 40)])
        >>> found = sweep(kept, [Window(0, 40), Window(20, 40), Window(30, 40)], lambda w: -abs(w["w"].item() - 34))
        >>> [trial.score for trial in found.trials], found.best, found.tied
        ([-9.0, -1.0, -6.0], 1, [1])
    """
    if not targets:
        raise ValueError("a sweep needs at least one target, got none")
    found = fits([one.profile for one in basis], targets)
    scores = []
    for target, one in zip(targets, found, strict=True):
        scores.append(scores_of(score(_combined(basis, one.coefficients)), str(target)))
        if scores[-1].shape != scores[0].shape:
            raise ValueError(f"the score of {target} has {scores[-1].size} examples, the first has {scores[0].size}")
    table = np.stack(scores)  # (targets, examples), or (targets, 1) for bare scores
    several = table.shape[1] > 1
    best = best_of(table.mean(axis=1), [one.residual for one in found])
    trials = []
    for target, one, own in zip(targets, found, table, strict=True):
        behind = table[best] - own
        noise = standard_error(behind) if several else None
        gap = float(behind.mean())
        trials.append(
            Trial(
                target,
                float(own.mean()),
                standard_error(own) if several else None,
                gap,
                noise,
                gap <= 2 * (noise or 0.0),
                one.residual,
                one.amplification,
            )
        )
    expected = cross_fitted(table, [one.residual for one in found], folds, seed) if several else None
    return Sweep(tuple(trials), best, expected)


def _combined(basis: Sequence[Recorded], shares: Sequence[float]) -> dict[str, Tensor]:
    latest = max(range(len(basis)), key=lambda place: basis[place].profile.end)
    held = [opened(one.weights) for one in basis]
    names = list(held[latest])
    for place, one in enumerate(held):
        if set(one) != set(names):
            odd = sorted(set(one) ^ set(names))[:5]
            raise ValueError(f"record {place} and record {latest} do not both have {odd}: pass records of one model")
    result: dict[str, Tensor] = {}
    for name in names:
        for place in range(len(shares)):
            check_tensors({name: held[place][name]}, f"record {place}")
        for place, share in enumerate(shares):
            one = {name: held[place][name]}
            if share != 0.0:
                check_kinds(one, f"record {place}", ", which have no average", vectors=False)
                check_same_kinds({name: held[latest][name]}, one, f"record {place} beside record {latest}")
                check_same_codes({name: held[latest][name]}, one, f"record {place} beside record {latest}")
        newest = held[latest][name].detach()
        if not newest.is_floating_point():
            result[name] = newest.clone()
            continue
        total = torch.zeros_like(newest, dtype=torch.float64)
        for place, share in enumerate(shares):
            tensor = held[place][name]
            if tensor.shape != total.shape:
                raise ValueError(
                    f"{name} is {tuple(tensor.shape)} in record {place} and {tuple(total.shape)} in record {latest}"
                )
            if share != 0.0:  # not a NaN of a record that the target leaves out
                total.add_(tensor.detach().to(total.device, torch.float64), alpha=share)
        if not bool(torch.isfinite(total).all()):
            raise ValueError(f"{name} of the average is not finite: leave the record that holds such a value out")
        result[name] = total.to(wide(newest.dtype))
    return result


def scores_of(value: float | Tensor | Sequence[float], what: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a score as numbers (examples,), or (1,) for a bare one; NaN is refused."""
    plain = value.detach().cpu().tolist() if isinstance(value, Tensor) else value
    scores = np.atleast_1d(np.asarray(plain, dtype=np.float64))
    if scores.ndim != 1 or scores.size == 0:
        raise ValueError(f"the score of {what} must be a number, or one a validation example, got {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"the score of {what} is NaN: return -inf for weights that are of no use")
    return scores


def best_of(scores: Any, residuals: Sequence[float]) -> int:
    """Return the place of the highest score; of equal ones that with the smallest residual, then the first."""
    return min(range(len(residuals)), key=lambda place: (-scores[place], residuals[place], place))


def standard_error(values: Any) -> float:
    """Return the standard error of the mean."""
    return float(values.std(ddof=1) / math.sqrt(values.size))


def cross_fitted(table: Any, residuals: Sequence[float], folds: int, seed: int) -> float | None:
    """Return the mean score of examples, each under the average that the other parts choose."""
    examples = table.shape[1]
    parts = np.array_split(np.random.default_rng(seed).permutation(examples), min(folds, examples))
    if len(parts) < 2:
        return None
    total = 0.0
    for part in parts:
        rest = np.setdiff1d(np.arange(examples), part)
        total += float(table[best_of(table[:, rest].mean(axis=1), residuals)][part].sum())
    return float(total / examples)
