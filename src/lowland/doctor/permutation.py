"""Are units or classes of one ingredient those of another in a different order?

Rows of each matrix (output units, or classes of a head) of one ingredient are matched with the other's by their
cosines, with the assignment whose sum is largest (Singh, Jaggi 2020, arXiv 1910.05653; Ainsworth, Hayase, Srinivasa
2023, arXiv 2209.04836). An order found for rows is tried on the columns of the matrices that follow it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..weights.named import Weights
from .assignment import assign, limit
from .findings import Finding, few
from .survey import Surveyed

SURE = 0.8  # mean cosine of the moved rows after matching, at least
GAIN = 0.3  # and so much more than before
_LARGEST = 1 << 26  # elements of a tensor

Order = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Match:
    """Rows of tensor `name`: row i of the first ingredient is row `order[i]` of the second."""

    name: str
    order: Order
    before: float  # mean cosine of the rows that move
    after: float
    columns: str | None = None  # the tensor whose columns have the same order: these are hidden units


def permutations(a: Weights, b: Weights, surveyed: Sequence[Surveyed]) -> tuple[list[Match], list[str]]:
    """Return the tensors whose rows match in another order, and those left out as too large.

    >>> a = {"head": torch.eye(12)}
    >>> match, = permutations(a, {"head": torch.eye(12).flip(0)}, [_bare("head", (12, 12))])[0]
    >>> match.order.tolist() == list(range(12))[::-1], round(match.before, 2), round(match.after, 2)
    (True, -0.09, 1.0)
    """
    matrices = [one for one in surveyed if len(one.shape) > 1 and one.shape[0] > 1 and not one.is_statistic]
    left = [one.name for one in matrices if one.shape[0] > limit() or one.numel > _LARGEST]
    found: dict[str, Match] = {}
    waiting = [one for one in matrices if one.name not in left]
    orders: list[Match] = []
    for _ in range(len(waiting)):
        fresh = [match for one in waiting if (match := _rows(a, b, one, orders)) is not None]
        if not fresh:
            break
        for match in fresh:
            found[match.name] = match
        waiting = [one for one in waiting if one.name not in found]
        orders = fresh  # an order found now may free the matrices after it
    return [_followed(match, a, b, matrices) for match in found.values()], left


def describe(names: tuple[str, str], matches: Sequence[Match], left: Sequence[str] = ()) -> list[Finding]:
    """Return a finding for each match, and one for tensors that were `left` out."""
    found = []
    heads = [match for match in matches if match.columns is None]
    hidden = [match for match in matches if match.columns is not None]
    for match in heads:
        says = (
            f"rows of {match.name} stand in another order in {names[1]} than in {names[0]}: cosine {match.before:.2f} "
            f"as they stand, {match.after:.2f} matched ({int((match.order != np.arange(len(match.order))).sum())} rows)"
        )
        do = f"give both one order of classes: take rows {_shown(match.order)} of {names[1]}, of its bias too"
        found.append(Finding("permutation", "error", says, do, names, _values(match)))
    for match in hidden:
        says = (
            f"units of {match.name} stand in another order in {names[1]}, and so do the columns of {match.columns}: "
            f"cosine {match.before:.2f} as they stand, {match.after:.2f} matched"
        )
        do = "undo the order in both tensors, and in what stands between, before averaging"
        found.append(Finding("permutation", "error", says, do, names, _values(match)))
    if left:
        says = f"no order was looked for in {few(list(left))}: more than {limit()} rows"
        found.append(Finding("permutation", "note", says, "", names, {"tensors": list(left)}))
    return found


def _rows(a: Weights, b: Weights, one: Surveyed, orders: Sequence[Match]) -> Match | None:
    first, second = _matrix(a[one.name]), _matrix(b[one.name])
    tries = [second]
    for known in orders:
        if len(one.shape) > 1 and one.shape[1] == len(known.order):
            tries.append(_matrix(b[one.name].index_select(1, torch.from_numpy(known.order))))
    best: Match | None = None
    for candidate in tries:
        match = _matched(one.name, first, candidate)
        if match is not None and (best is None or match.after > best.after):
            best = match
    return best


def _matched(name: str, first: Tensor, second: Tensor) -> Match | None:
    similarity = _cosines(first, second)
    here = np.diag(similarity)
    if (here >= similarity.max(axis=1)).all():
        return None  # no row has a better partner
    best = similarity.argmax(axis=1)
    if not ((best != np.arange(len(best))) & (similarity.max(axis=1) >= SURE)).any():
        return None  # no order can reach what makes one sure
    order = assign(similarity)
    moved = order != np.arange(len(order))
    if not moved.any():
        return None
    before, after = float(here[moved].mean()), float(similarity[np.arange(len(order)), order][moved].mean())
    n, d = len(order), first.shape[1]
    # What the best of n partners reaches by chance among random rows of d numbers.
    chance = math.sqrt(2 * math.log(max(n, 2)) / d) + 3 / math.sqrt(int(moved.sum()) * d)
    return Match(name, order, before, after) if after >= max(SURE, chance) and after >= before + GAIN else None


def _followed(match: Match, a: Weights, b: Weights, matrices: Sequence[Surveyed]) -> Match:
    """The match with the tensor whose columns its order explains, if there is one."""
    order = torch.from_numpy(match.order)
    for one in matrices:
        if one.name == match.name or one.shape[1] != len(match.order):
            continue
        first, second = a[one.name], b[one.name]
        turned = _columns(first, second.index_select(1, order))
        if turned > _columns(first, second) + GAIN:
            return Match(match.name, match.order, match.before, match.after, one.name)
        # Its rows may have an order of their own, which is not known here: what its columns hold tells all the same.
        if (
            _columns(first.sort(0).values, second.index_select(1, order).sort(0).values)
            > SURE
            > _columns(first.sort(0).values, second.sort(0).values)
        ):
            return Match(match.name, match.order, match.before, match.after, one.name)
    return match


def _columns(first: Tensor, second: Tensor) -> float:
    return float(np.diag(_cosines(_matrix(first.transpose(0, 1)), _matrix(second.transpose(0, 1)))).mean())


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().reshape(tensor.shape[0], -1).double()


def _cosines(first: Tensor, second: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    # What all rows share (the mean over classes) says nothing of their order.
    rows = [part - part.mean(0) if len(part) > 2 else part for part in (first, second)]
    sizes = [part.norm(dim=1, keepdim=True) for part in rows]
    unit = [part / size.clamp_min(1e-300) for part, size in zip(rows, sizes, strict=True)]
    return np.asarray((unit[0] @ unit[1].T).numpy())


def _values(match: Match) -> Mapping[str, Any]:
    return {
        **{"tensor": match.name, "order": match.order.tolist(), "columns": match.columns},
        **{"cosine": match.before, "cosine_matched": match.after},
    }


def _shown(order: Order, most: int = 16) -> str:
    numbers = [str(place) for place in order[:most]]
    return "[" + ", ".join(numbers) + (", ..." if len(order) > most else "") + "]"


def _bare(name: str, shape: tuple[int, ...]) -> Surveyed:
    return Surveyed(name, shape, np.zeros((2, 2)), [], None)
