"""Which method a study ships, chosen on validation examples, and what that choice is worth.

    score of a method = mean NLL of the validation examples (single models: the mean over members as well)
    tied with the best: behind it by less than MARGIN and by less than two standard errors, example by example
    chosen: of the tied ones the one with the fewest passes of a text through a model

The best of many looks too good. So the whole rule is asked again without each fifth of the examples and judged on that
fifth (Stone 1974, cross-validatory choice): if what it chooses so is not better than the base model, the base model is
shipped. Temperatures are fitted without the fifth too, and what the second phase's own search makes the averages look
better by is added to them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowland.calibration import fit_temperature, temper
from lowland.calibration.sums import nll_of

BASE, SCALED = "base", "temperature-scaled base"
AVERAGED = ("SWA", "SWAG", "MultiSWA", "MultiSWAG")  # what the search of the second phase chose
MARGIN = 0.005  # nats: what is nearer to the best than this is not worth more passes
FOLDS = 5
FEW = 50  # validation examples below which no choice is called certain


@dataclass(frozen=True)
class Row:
    """A method as the choice saw it: its validation NLL, and how far that is behind the best with a standard error."""

    method: str
    passes: int  # of an example through a model
    nll: float
    behind: float
    behind_error: float
    tied: bool


@dataclass(frozen=True)
class Shipped:
    """The method to ship. `win` is how much lower its NLL is expected to be than the base model's, cross-fitted."""

    method: str
    passes: int
    n: int
    expected: float  # NLL on examples that did not choose
    win: float
    win_error: float
    certain: bool
    rows: tuple[Row, ...]
    members: Mapping[str, int]  # of the methods of one model: the member with the lowest validation NLL

    def plain(self) -> dict[str, Any]:
        """Return what metrics.json holds."""
        return {**dataclasses.asdict(self), "rows": [dataclasses.asdict(row) for row in self.rows]}


def ship(
    validation: Mapping[str, Sequence[Tensor]],
    labels: Sequence[int],
    passes: Mapping[str, int],
    *,
    optimism: float = 0.0,
    seed: int = 0,
) -> Shipped:
    """Choose the method to ship.

    Args:
        validation: of each method the probabilities (N, C), one tensor a member or one in all; "base" is among them.
        labels: of the N validation examples.
        passes: of an example through a model, by method; those that are missing here are no candidates.
        optimism: what the averages' validation NLL is too low by, since their settings were chosen on it.
        seed: of the parts that are left out in turn.
    """
    truth = torch.tensor(list(labels))
    order = sorted((method for method in validation if method in passes), key=lambda method: passes[method])
    parts = np.array_split(np.random.default_rng(seed).permutation(len(truth)), min(FOLDS, len(truth)))
    table = np.stack([_scores(validation, method, truth, parts) for method in order])  # (methods, N)
    table += np.array([[optimism if method in AVERAGED else 0.0] for method in order])
    chosen, base = _pick(table), order.index(BASE)
    picked = np.empty(len(truth))
    for part in parts:
        rest = np.setdiff1d(np.arange(len(truth)), part)
        picked[part] = table[_pick(table[:, rest]) if len(rest) else chosen, part]
    gain = table[base] - picked
    if gain.mean() <= 0:
        chosen = base
        picked, gain = table[base], np.zeros(len(truth))
    rows = _rows(table, order, passes)
    win, error = float(gain.mean()), _error(gain)
    others = [row for row in rows if row.method != BASE]
    told = win > 2 * error if chosen != base else all(row.behind > 2 * row.behind_error for row in others)
    certain = len(truth) >= FEW and told
    return Shipped(
        order[chosen],
        passes[order[chosen]],
        len(truth),
        float(picked.mean()),
        win,
        error,
        certain,
        rows,
        {
            method: min(range(len(each)), key=lambda index: float(nll_of(each[index], truth).mean()))
            for method, each in validation.items()
            if len(each) > 1
        },
    )


def sentence(found: Shipped, things: str = "texts") -> str:
    """Say what to ship, by how much it is expected to win, and against what.

    >>> rows = (Row("base", 1, 0.4, 0.1, 0.01, False), Row("MultiSWA", 3, 0.3, 0.0, 0.0, True))
    >>> print(sentence(Shipped("MultiSWA", 3, 300, 0.3, 0.1, 0.01, True, rows, {})))
    Ship MultiSWA: on validation texts that did not choose it its NLL is 0.300, 0.100 ± 0.020 below base.
    >>> rows = (Row("base", 1, 0.4, 0.0, 0.0, True), Row("MultiSWA", 3, 0.5, 0.1, 0.01, False))
    >>> print(sentence(Shipped("base", 1, 40, 0.4, 0.0, 0.0, False, rows, {})))
    Ship base: nothing else is expected to have a lower NLL (0.400), but 40 validation texts leave that uncertain.
    """
    own = next(row for row in found.rows if row.method == found.method)
    best = min(found.rows, key=lambda row: row.nll)
    if found.method == BASE:
        said = f"Ship base: nothing else is expected to have a lower NLL ({found.expected:.3f})"
    else:
        said = (
            f"Ship {found.method}: on validation {things} that did not choose it its NLL is {found.expected:.3f}, "
            f"{found.win:.3f} ± {2 * found.win_error:.3f} below base"
        )
    if best.method != own.method and own.tied:
        more = f"takes {best.passes} passes a {things.removesuffix('s')}, not {own.passes}"
        said += f"; {best.method} is tied ({own.nll - best.nll:.3f} better) and {more}"
    if not found.certain:
        rivals = [row.method for row in found.rows if row.method != own.method and _untold(row, own)]
        close = f" ({_listed(rivals)} may be as good)" if rivals else ""
        said += f", but {found.n} validation {things} leave that uncertain{close}"
    return f"{said}."


def passes_of(members: int, draws: int, dropout: int = 0) -> dict[str, int]:
    """Return the passes of an example through a model that each method takes, the simpler ones first.

    >>> passes_of(3, 6)["MultiSWAG"]
    18
    """
    found = {
        BASE: 1, SCALED: 1, "early-stopped base": 1, "base, tuned rate": 1, "SWA": 1, "deep ensemble": members,
        "deep ensemble, tuned rate": members, "MultiSWA": members, "MC dropout": dropout, "SWAG": draws,
        "MultiSWAG": members * draws,
    }  # fmt: skip
    return {method: count for method, count in found.items() if count}


def _scores(validation: Mapping[str, Sequence[Tensor]], method: str, truth: Tensor, parts: Sequence[Any]) -> Any:
    """The NLL of each example, (N,); under temperatures that were fitted on other examples."""
    if method != SCALED:
        return torch.stack([nll_of(probs.double(), truth) for probs in validation[method]]).mean(0).numpy()
    scores = np.zeros(len(truth))
    for probs in validation[BASE]:
        for part in parts:
            rest = np.setdiff1d(np.arange(len(truth)), part)
            heat = fit_temperature(probs[rest], truth[rest]) if len(rest) else 1.0
            scores[part] += nll_of(temper(probs[part], heat), truth[part]).numpy()
    return scores / len(validation[BASE])


def _pick(table: Any) -> int:
    """The first of those that are tied with the best; the rows stand in the order of their cost."""
    best = int(table.mean(axis=1).argmin())
    return next(place for place in range(len(table)) if _tied(table[place] - table[best]))


def _tied(behind: Any) -> bool:
    gap = float(behind.mean())
    return gap <= 0 or (gap < MARGIN and gap < 2 * _error(behind))


def _rows(table: Any, order: Sequence[str], passes: Mapping[str, int]) -> tuple[Row, ...]:
    best = int(table.mean(axis=1).argmin())
    found = []
    for method, scores in zip(order, table, strict=True):
        behind = scores - table[best]
        found.append(
            Row(method, passes[method], float(scores.mean()), float(behind.mean()), _error(behind), _tied(behind))
        )
    return tuple(found)


def _untold(row: Row, own: Row) -> bool:
    return row.nll - own.nll <= 2 * max(row.behind_error, own.behind_error)


def _error(values: Any) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(", ".join(parts).rsplit(", ", 1))
