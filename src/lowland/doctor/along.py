"""What scores tell: barriers between ingredients, and what averaging gains.

    barrier(a, b) = max over t in [0, 1] of  (1 - t) S(a) + t S(b) - S((1 - t) a + t b)         S: higher is better

(Frankle, Dziugaite, Roy, Carbin 2020, arXiv 1912.05671, with a straight line between the ends as in Entezari, Sedghi,
Saukh, Neyshabur 2022, arXiv 2110.06296.) S is -loss, accuracy or any score. What counts as high is told by the scale of
the score: what the ingredients gained over weights of zero, whose score is asked for once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .findings import Finding, Level
from .scoring import Scores, Values

SHARE = 0.02  # of what training gained: below this a barrier does not count
HIGH = 5.0  # so many times that, and the line leads over a ridge
RESAMPLES = 2000


@dataclass(frozen=True)
class Scale:
    """What a difference of scores is held against: `tolerance`, and `gained`, what training gained."""

    gained: float
    tolerance: float
    reference: str


def scale_of(scores: Scores, tolerance: float | None) -> Scale:
    """Return the scale of the scores: from weights of zero, or where these score no worse, from the scores' size."""
    ends = [float(scores((place,), (1.0,)).mean()) for place in range(len(scores.ingredients))]
    best = max(ends)
    try:
        nothing = float(scores((0,), (0.0,), refreshed=False).mean())
        gained, reference = best - nothing, "what the best ingredient gained over weights of zero"
    except (RuntimeError, ValueError):
        gained = 0.0
    if not 0 < gained < 1e200:
        gained, reference = max(abs(best), 1e-12), "the size of the best score, as weights of zero have no use here"
    return Scale(gained, SHARE * gained if tolerance is None else tolerance, reference)


def barrier(scores: Scores, i: int, j: int, points: int) -> tuple[float, float, float | None]:
    """Return the height of the barrier between two ingredients, where it is, and its standard error.

    The standard error is over examples, at the highest point; None where scores are bare numbers.
    """
    first, last = scores((i,), (1.0,)), scores((j,), (1.0,))
    best: tuple[float, float, float | None] = (0.0, 0.0, 0.0 if first.size > 1 else None)
    for step in range(1, points + 1):
        t = step / (points + 1)
        gap = (1 - t) * first + t * last - scores((i, j), (1 - t, t))
        if gap.mean() > best[0]:
            best = (float(gap.mean()), t, _error(gap))
    return best


def barriers(
    names: Sequence[str], scores: Scores, pairs: Sequence[tuple[int, int]], points: int, scale: Scale
) -> tuple[list[Finding], dict[tuple[int, int], Level]]:
    """Tell the barrier of each pair, and with more than two ingredients that between each of them and the mean."""
    found, levels = [], {}
    for i, j in pairs:
        height, where, error = barrier(scores, i, j, points)
        level = _level(height, error, scale)
        levels[i, j] = level
        says = f"{names[i]} and {names[j]}: {_told(height, error, scale)} on the line between them"
        found.append(_found(level, says, (names[i], names[j]), height, where, error, scale))
    n = len(names)
    if n > 2:
        equal = tuple([1 / n] * n)
        for i in range(n):
            half = tuple(0.5 * (place == i) + 0.5 / n for place in range(n))
            middle = 0.5 * scores((i,), (1.0,)) + 0.5 * scores(range(n), equal)
            gap = middle - scores(range(n), half)
            height, error = max(float(gap.mean()), 0.0), _error(gap)
            level = _level(height, error, scale)
            says = f"{names[i]} and the mean of all: {_told(height, error, scale)} halfway"
            found.append(_found(level, says, (names[i],), height, 0.5, error, scale))
    return found, levels


def gain(names: Sequence[str], scores: Scores, scale: Scale, seed: int) -> list[Finding]:
    """Tell what the equal average gains over the ingredients' mean score and over the best of them."""
    n = len(names)
    ends = np.stack([scores((place,), (1.0,)) for place in range(n)])
    mean = scores(range(n), [1 / n] * n)
    over_mean, over_best = float((mean - ends.mean(0)).mean()), float(mean.mean() - ends.mean(1).max())
    values: dict[str, Any] = {"over_mean": over_mean, "over_best": over_best, "tolerance": scale.tolerance}
    told = "no interval: the score gives one number"
    sure_loss = over_best < -scale.tolerance
    if mean.size > 1:
        values["over_mean_interval"], values["over_best_interval"] = _intervals(ends, mean, seed)
        low, high = values["over_best_interval"]
        told = f"95% [{low:+.3g}, {high:+.3g}] over examples"
        sure_loss = sure_loss and high < 0
    says = (
        f"the average scores {over_mean:+.3g} against the mean ingredient, {over_best:+.3g} against the best ({told})"
    )
    do = "keep the best ingredient, or build the greedy soup" if sure_loss else ""
    return [Finding("gain", "warning" if sure_loss else "ok", says, do, tuple(names), values)]


def poor(names: Sequence[str], scores: Scores, scale: Scale) -> tuple[list[Finding], set[int]]:
    """Tell ingredients that lost more than half of what the best gained, as which no line from them shows a barrier."""
    ends = [float(scores((place,), (1.0,)).mean()) for place in range(len(names))]
    best = int(np.argmax(ends))
    found, places = [], set()
    for place, own in enumerate(ends):
        if ends[best] - own > max(0.5 * scale.gained, scale.tolerance):
            says = f"{names[place]} scores {own:.4g} where {names[best]} scores {ends[best]:.4g}"
            do = "find out why before averaging: another order of classes, statistics of other data, an early step?"
            about = (names[place], names[best])
            found.append(Finding("score", "warning", says, do, about, {"score": own, "best": ends[best]}))
            places.add(place)
    return found, places


def effect(scores: Scores, scale: Scale) -> float:
    """Return how much the ingredients' scores differ, example by example, as a share of what training gained."""
    ends = np.stack([scores((place,), (1.0,)) for place in range(len(scores.ingredients))])
    return float((ends.max(0) - ends.min(0)).mean() / scale.gained)


def useless(names: Sequence[str], scores: Scores) -> list[Finding]:
    """Tell ingredients whose own score is not finite."""
    bad = [name for place, name in enumerate(names) if abs(scores((place,), (1.0,))).max() >= 1e200]
    do = "leave it out, or let the score return finite numbers"
    return [Finding("score", "error", f"the score of {name} is not finite", do, (name,)) for name in bad]


def _intervals(ends: Values, mean: Values, seed: int) -> tuple[list[float], list[float]]:
    """Bootstrap intervals over examples; the best ingredient is chosen anew in every resample."""
    random = np.random.default_rng(seed)
    against_mean, against_best = np.empty(RESAMPLES), np.empty(RESAMPLES)
    for k in range(RESAMPLES):
        chosen = random.integers(0, mean.size, mean.size)
        own, others = mean[chosen].mean(), ends[:, chosen].mean(1)
        against_mean[k], against_best[k] = own - others.mean(), own - others.max()
    return np.quantile(against_mean, [0.025, 0.975]).tolist(), np.quantile(against_best, [0.025, 0.975]).tolist()


def _error(gap: Values) -> float | None:
    return float(gap.std(ddof=1) / np.sqrt(gap.size)) if gap.size > 1 else None


def _level(height: float, error: float | None, scale: Scale) -> Level:
    if height <= scale.tolerance or height <= 2 * (error or 0.0):
        return "ok"
    return "error" if height > HIGH * scale.tolerance else "warning"


def _told(height: float, error: float | None, scale: Scale) -> str:
    noise = "" if error is None else f" ± {error:.1g}"
    return f"barrier {height:.3g}{noise} ({height / scale.gained:.1%} of what training gained)"


def _found(
    level: Level, says: str, about: tuple[str, ...], height: float, where: float, error: float | None, scale: Scale
) -> Finding:
    do = {
        "ok": "",
        "note": "",
        "warning": "averaging costs score here: compare with the greedy soup",
        "error": "a ridge lies between them: do not average these; an ensemble of predictions serves",
    }[level]
    values = {
        "barrier": height,
        "at": where,
        "error": error,
        "tolerance": scale.tolerance,
        "share": height / scale.gained,
    }
    return Finding("barrier", level, says, do, about, {**values, "scale": scale.reference})
