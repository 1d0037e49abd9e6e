"""Which rows go where: machines, samples and folds, chosen by what a row holds and a seed, never by its place.

A row of weight 2 is then the same as the row twice, and the order of rows changes nothing. Rows that are equal go
together. Where they are so many that this would make one machine or sample unlike the others, their weight is divided.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from .objective import Floats

Keys = NDArray[np.uint64]
_HEAVY = 2  # equal rows that outweigh a machine's rows / _HEAVY are divided among all machines
_HEAVY_SHARE = 0.01  # equal rows of more than this share of a machine's weight are always in the sample


@dataclass(frozen=True)
class Part:
    """The rows of one machine.

    >>> Part(csr_matrix([[1.0, 0.0]]), np.array(["spam"]), np.array([2.0])).X.shape
    (1, 2)
    """

    X: csr_matrix  # (n, d), float64
    y: NDArray  # type: ignore[type-arg]  # (n,), labels
    weights: Floats  # (n,), positive


def row_keys(X: csr_matrix, seed: int) -> Keys:
    """Return a number for each row, (n,): the same for equal rows, else as good as random.

    >>> keys = row_keys(csr_matrix([[1.0, 0.0], [0.0, 3.0], [1.0, 0.0]]), seed=0)
    >>> bool(keys[0] == keys[2]), bool(keys[0] == keys[1])
    (True, False)
    """
    columns = _mixed(np.arange(X.shape[1], dtype=np.uint64) + np.uint64(1))
    directions = (columns >> np.uint64(11)).astype(np.float64) / 2**53 + 0.5
    sums = X @ directions + 0.0  # -0.0 has other bits
    return _mixed(sums.view(np.uint64) ^ _mixed(np.array([seed], dtype=np.uint64)))


def distinct(keys: Keys) -> int:
    """Return how many different rows there are."""
    return len(np.unique(keys))


def split(X: csr_matrix, y: NDArray, weights: Floats, machines: int, seed: int) -> list[Part]:  # type: ignore[type-arg]
    """Return the rows in parts of nearly equal weight; never more parts than there are different rows.

    >>> X = csr_matrix(np.arange(12.0).reshape(6, 2))
    >>> [len(part.y) for part in split(X, np.array([0, 1, 0, 1, 0, 1]), np.ones(6), machines=2, seed=0)]
    [3, 3]
    """
    if machines == 1:
        return [Part(X, y, weights)]
    keys, group, sums = _groups(row_keys(X, seed), weights)
    machines = min(machines, len(keys))
    if machines == len(keys):
        return [Part(X[group == k], y[group == k], weights[group == k]) for k in range(machines)]
    everywhere = sums > sums.sum() / (_HEAVY * machines)
    light = np.where(everywhere, 0.0, sums)
    before = np.cumsum(light) - light
    place = np.minimum(before / max(light.sum(), 1e-300) * machines, machines - 1).astype(np.int64)
    parts = []
    for k in range(machines):
        rows = np.flatnonzero(everywhere[group] | (place[group] == k))
        shared = np.where(everywhere[group[rows]], 1 / machines, 1.0)
        parts.append(Part(X[rows], y[rows], weights[rows] * shared))
    return parts


def sample(keys: Keys, weights: Floats, share: float) -> tuple[NDArray[np.int64], Floats]:
    """Return the places and the weights of a random share of the rows.

    >>> places, weights = sample(row_keys(csr_matrix(np.arange(1000.0)[:, None]), seed=0), np.ones(1000), 0.1)
    >>> 70 < len(places) < 130
    True
    """
    if share >= 1:
        return np.arange(len(keys)), weights
    values, group, sums = _groups(keys, weights)
    heavy = sums > _HEAVY_SHARE * sums.sum()
    drawn = _mixed(values ^ np.uint64(0x5A)) < np.uint64(int(share * 2**64))
    taken = np.flatnonzero((heavy | drawn)[group])
    return taken, weights[taken] * np.where(heavy[group[taken]], share, 1.0)


def folds(keys: Keys, codes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the fold of each row, (n,): shuffled by the keys, and with nearly the same shares of classes.

    >>> keys = row_keys(csr_matrix(np.arange(8.0)[:, None]), seed=0)
    >>> np.bincount(folds(keys, np.array([0, 0, 0, 0, 1, 1, 1, 1]), 2)).tolist()
    [4, 4]
    """
    order = np.lexsort((keys, codes))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (keys[order][1:] != keys[order][:-1]) | (codes[order][1:] != codes[order][:-1])
    found = np.empty(len(order), dtype=np.int64)
    found[order] = (np.cumsum(new) - 1) % count
    return found


def _groups(keys: Keys, weights: Floats) -> tuple[Keys, NDArray[np.int64], Floats]:
    """Keys in order, the group of each row, and the weight of each group."""
    values, group = np.unique(keys, return_inverse=True)
    order = np.argsort(weights, kind="stable")  # one order of the sum, whatever the order of the rows
    sums = np.bincount(group[order], weights[order], minlength=len(values))
    return values, np.asarray(group, dtype=np.int64), np.asarray(sums, dtype=float)


def _mixed(values: Keys) -> Keys:
    """Steele, Lea, Flood 2014 (SplitMix64): a bijection that flips about half of the bits for each bit of the input."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))
