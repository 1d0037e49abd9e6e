"""Which average of a run's checkpoints to ship: candidates, searched from coarse to fine, and what the best is worth.

A candidate is an average of the last checkpoints of a run: the shape of a decay over a window of them, gone to by a
share from the last checkpoint (1: the average itself; above 1 beyond it). Single checkpoints are candidates too. Scores
come from a function of the user's; with a value for each validation example the search knows which candidates cannot be
told from the best, spends its scores there, and says what the winner scores on examples that did not choose it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from torch import Tensor

from .decays import SHAPES, blended, decayed
from .sweep import best_of, cross_fitted, scores_of, standard_error

BLENDS = (0.5, 0.7, 0.85, 1.0, 1.15)
SINGLE = "checkpoint"
_REFINED = 2  # windows and shapes that each stage hands on


@dataclass(frozen=True)
class Candidate:
    """An average of the last `window` checkpoints of a run, or the one checkpoint that stands `window`-th from its end.

    Args:
        shape: of the decay that the average stands for ("linear": the equal average), or "checkpoint".
        blend: how far it goes from the last checkpoint to the average.
        groups: patterns of names and blends of their own; of several that match a name the first counts.

    >>> Candidate("linear", 2).coefficients([10, 20, 30])
    [0.0, 0.5, 0.5]
    >>> Candidate("checkpoint", 3).coefficients([10, 20, 30]), str(Candidate("cosine", 3, 0.7))
    ([1.0, 0.0, 0.0], 'cosine over 3, blend 0.7')
    """

    shape: str
    window: int
    blend: float = 1.0
    groups: tuple[tuple[str, float], ...] = ()

    def coefficients(self, steps: Sequence[float], name: str = "") -> list[float]:
        """Return the coefficient of every checkpoint of the run, for the tensor of this name.

        Raises:
            ValueError: the window is longer than the run, or the shape is not known.
        """
        if not 1 <= self.window <= len(steps):
            raise ValueError(f"a window must hold 1 to {len(steps)} checkpoints, got {self.window}")
        before = [0.0] * (len(steps) - self.window)
        if self.shape == SINGLE:
            return [*before, 1.0, *([0.0] * (self.window - 1))]
        chosen = list(steps[-self.window :])
        return [*before, *blended(decayed(self.shape, chosen), self.blend_of(name))]

    def blend_of(self, name: str) -> float:
        """Return the blend of a tensor."""
        return next((blend for pattern, blend in self.groups if fnmatchcase(name, pattern)), self.blend)

    def __str__(self) -> str:
        if self.shape == SINGLE:
            return "the last checkpoint" if self.window == 1 else f"checkpoint {self.window} from the end"
        if self.window == 1:
            return "the last checkpoint"
        parts = [f"{self.shape} over {self.window}"]
        parts += [f"blend {self.blend:g}"] if self.blend != 1.0 else []
        parts += [f"{pattern} {blend:.3g}" for pattern, blend in self.groups]
        return ", ".join(parts)


Scored = Callable[[Candidate], "float | Tensor | Sequence[float]"]


@dataclass(frozen=True)
class Tried:
    """A candidate and its score; `error`, `behind` and `behind_error` as in `Trial`."""

    candidate: Candidate
    score: float
    error: float | None  # standard error of the score, where there are examples
    behind: float  # how far below the best
    behind_error: float | None
    tied: bool  # not to be told from the best


@dataclass(frozen=True)
class Choice:
    """What `choose` found.

    Args:
        tried: in the order in which they were scored. best: its place.
        expected: the score of what is chosen so, on examples that did not choose it; None without examples. The best of
            many scores is too high by what its luck gave.
    """

    tried: tuple[Tried, ...]
    best: int
    expected: float | None

    @property
    def winner(self) -> Tried:
        """The best candidate."""
        return self.tried[self.best]

    def single(self) -> Tried | None:
        """Return the best of the single checkpoints that were scored."""
        found = [tried for tried in self.tried if is_single(tried.candidate)]
        return max(found, key=lambda tried: tried.score, default=None)


def is_single(candidate: Candidate) -> bool:
    """Say whether a candidate is one checkpoint as it is."""
    return candidate.shape == SINGLE or candidate.window == 1


def choose(
    steps: Sequence[float],
    score: Scored,
    *,
    shapes: Sequence[str] = SHAPES,
    windows: Sequence[int] = (),
    blends: Sequence[float] = BLENDS,
    groups: Sequence[str] = (),
    exhaustive: bool = False,
    folds: int = 5,
    seed: int = 0,
) -> Choice:
    """Search the averages of a run's checkpoints for the best; higher scores are better.

    From coarse to fine: single checkpoints at the ends of windows; equal averages over windows of 1, 2, 4, ...
    checkpoints, then between the best and its neighbours; there every shape; for the best of these every blend. Where
    the score gives a value for each example, a few candidates that cannot be told from the best are followed too.

    Args:
        steps: of the checkpoints, rising. score: of a candidate, one number or one for each validation example, in the
            same order every time; it is asked once for each candidate.
        windows: numbers of checkpoints; none given, all lengths are open.
        groups: patterns of names that may have blends of their own, fitted on every second example and shrunk towards
            one blend as far as the others want. Needs a value for each example.
        exhaustive: score every shape over every window with every blend.
        folds, seed: of the parts of the examples by which `expected` is taken.

    Raises:
        ValueError: there is no checkpoint, a window is no length, a score is NaN, or groups without examples.

    >>> scored = lambda c: -abs(sum(x * w for x, w in zip((1.0, 5.0, 3.0, 4.2), c.coefficients([1, 2, 3, 4]))) - 4.0)
    >>> str(choose([1, 2, 3, 4], scored).winner.candidate)
    'cosine over 3, blend 0.5'
    """
    search = _Search(list(steps), score, folds, seed)
    count = len(search.steps)
    if not count:
        raise ValueError("there is no checkpoint to choose from")
    bad = [w for w in windows if isinstance(w, bool) or not isinstance(w, int) or not 1 <= w <= count]
    if bad:
        raise ValueError(f"windows must hold 1 to {count} checkpoints, got {bad}")
    asked = sorted(set(windows) | {1}) if windows else list(range(1, count + 1))
    coarse = asked if exhaustive or windows else _powers(count)
    for window in asked if exhaustive else coarse:
        search.ask(Candidate(SINGLE, window))
    for window in coarse:
        search.ask(Candidate("linear", window))
    if exhaustive:
        for shape in shapes:
            for window in asked:
                for blend in blends if window > 1 else (1.0,):
                    search.ask(Candidate(shape, window, blend))
    else:
        _refine(search, shapes, asked, blends)
    if groups:
        _group(search, groups, blends)
    return search.choice()


def _refine(search: _Search, shapes: Sequence[str], windows: Sequence[int], blends: Sequence[float]) -> None:
    # Between the best windows and their neighbours, by halves, until nothing lies between.
    for _ in range(len(windows).bit_length()):
        known = sorted({c.window for c in search.values if c.shape == "linear"})
        between = set()
        for one in search.leading(lambda c: c.shape == "linear"):
            place = known.index(one.window)
            for low, high in ((place - 1, place), (place, place + 1)):
                if low >= 0 and high < len(known):
                    inside = [w for w in windows if known[low] < w < known[high]]
                    between |= {inside[len(inside) // 2]} if inside else set()
        if not between:
            break
        for window in sorted(between):
            search.ask(Candidate("linear", window))
    for one in search.leading(lambda c: c.shape == "linear" and c.window > 1):
        for shape in shapes:
            for window in _near(windows, one.window):
                search.ask(Candidate(shape, window))
    for one in search.leading(lambda c: c.shape != SINGLE and c.window > 1 and c.blend == 1.0):
        for blend in blends:
            search.ask(replace(one, blend=blend))


def _near(windows: Sequence[int], window: int) -> list[int]:
    """A window, and the next ones that are half again as short and as long: shapes weigh the older half differently."""
    shorter = [w for w in windows if 1 < w <= window / 1.5][-1:]
    longer = [w for w in windows if w >= 1.5 * window][:1]
    return [*shorter, window, *longer]


def _group(search: _Search, groups: Sequence[str], blends: Sequence[float]) -> None:
    """Fit a blend to each group on one half of the examples, and shrink them towards one on the other half."""
    one = max(
        (c for c in search.values if c.shape != SINGLE and c.window > 1 and not c.groups),
        key=lambda c: float(search.values[c].mean()),
        default=None,
    )
    if one is None:
        return
    if search.values[one].size < 4:
        raise ValueError("blends by groups overfit a single score: give one for each of at least 4 examples")
    first, second = slice(0, None, 2), slice(1, None, 2)
    fitted = dict.fromkeys(groups, one.blend)
    for group in groups:
        options = [replace(one, groups=tuple({**fitted, group: blend}.items())) for blend in {*blends, one.blend}]
        best = max(options, key=lambda c: float(search.ask(c)[first].mean()))
        fitted = dict(best.groups)
    paths = [
        replace(one, groups=tuple((g, one.blend + share * (b - one.blend)) for g, b in fitted.items()))
        for share in (0.25, 0.5, 0.75, 1.0)
    ]
    shrunk = max([one, *paths], key=lambda c: float(search.ask(c)[second].mean()))
    # Only what the second half keeps may win: the others were fitted to the first.
    for candidate in [c for c in search.values if c.groups and c != shrunk]:
        search.set_aside(candidate)


class _Search:
    """The candidates asked so far and their values, (examples,) each."""

    def __init__(self, steps: Sequence[float], score: Scored, folds: int, seed: int) -> None:
        self.steps, self._score, self._folds, self._seed = list(steps), score, folds, seed
        self.values: dict[Candidate, np.ndarray[Any, np.dtype[np.float64]]] = {}
        self._aside: set[Candidate] = set()
        self._same: dict[tuple[object, ...], Candidate] = {}

    def ask(self, candidate: Candidate) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the values of a candidate; of two that are the same average one is scored."""
        key = (tuple(round(c, 12) for c in candidate.coefficients(self.steps)), candidate.groups)
        known = self._same.setdefault(key, candidate)
        if known not in self.values:
            values = scores_of(self._score(known), str(known))
            size = next((v.size for v in self.values.values()), values.size)
            if values.size != size:
                raise ValueError(f"the score of {known} has {values.size} examples, the first had {size}")
            self.values[known] = values
        if known != candidate:
            self.values.setdefault(candidate, self.values[known])
        return self.values[known]

    def set_aside(self, candidate: Candidate) -> None:
        """Leave a candidate out of the choice."""
        self._aside.add(candidate)

    def leading(self, wanted: Callable[[Candidate], bool]) -> list[Candidate]:
        """Return the best of the wanted candidates and those that are not told from it, a few at most."""
        found = sorted((c for c in self.values if wanted(c)), key=lambda c: -float(self.values[c].mean()))
        if not found:
            return []
        best = self.values[found[0]]
        close = [c for c in found[1:] if best.size == 1 or _tied(best, self.values[c])]
        return [found[0], *close[: _REFINED - 1 if best.size == 1 else 2 * _REFINED - 1]]

    def choice(self) -> Choice:
        """Return what the search found."""
        shown: dict[int, Candidate] = {}
        for candidate, values in self.values.items():
            if candidate not in self._aside:
                shown.setdefault(id(values), candidate)
        candidates = list(shown.values())
        table = np.stack([self.values[c] for c in candidates])
        simple = [len(c.groups) + (c.blend != 1.0) for c in candidates]  # of equal scores the plainest average
        best = best_of(table.mean(axis=1), simple)
        several = table.shape[1] > 1
        tried = []
        for candidate, own in zip(candidates, table, strict=True):
            behind = table[best] - own
            tried.append(
                Tried(
                    candidate,
                    float(own.mean()),
                    standard_error(own) if several else None,
                    float(behind.mean()),
                    standard_error(behind) if several else None,
                    _tied(table[best], own),
                )
            )
        expected = cross_fitted(table, simple, self._folds, self._seed) if several else None
        return Choice(tuple(tried), best, expected)


def _tied(best: Any, own: Any) -> bool:
    behind = best - own
    return bool(behind.mean() <= (2 * standard_error(behind) if behind.size > 1 else 0.0))


def _powers(count: int) -> list[int]:
    found = [1]
    while 2 * found[-1] < count:
        found.append(2 * found[-1])
    return found if found[-1] == count else [*found, count]
