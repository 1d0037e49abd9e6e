"""Linear assignment: which row of one matrix belongs to which row of another.

    maximise sum_i s[i, p(i)]   over permutations p

by shortest augmenting paths with dual prices (Kuhn 1955, doi:10.1002/nav.3800020109; Jonker, Volgenant 1987,
doi:10.1007/BF02278710), exact, in O(n^3): each row in turn is given a column by the cheapest chain of reassignments.
scipy's solver does it where scipy is installed, for rows up to 16,384; the one here, for cores without, up to 1,024.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

OWN_LIMIT = 1024  # rows that the solver here takes
SCIPY_LIMIT = 16_384

Matrix = np.ndarray[Any, np.dtype[np.float64]]
Order = np.ndarray[Any, np.dtype[np.int64]]


def limit() -> int:
    """Return the number of rows above which the doctor does not look for permutations."""
    return SCIPY_LIMIT if find_spec("scipy") is not None else OWN_LIMIT


def assign(similarity: Matrix) -> Order:
    """Return for each row of a square matrix its column, no column twice, such that the sum is the largest possible.

    Raises:
        ValueError: the matrix is not square, has more rows than can be solved, or holds a value that is not finite.

    >>> assign(np.array([[1.0, 9.0, 8.0], [9.0, 8.0, 0.0], [5.0, 6.0, 7.0]])).tolist()
    [1, 0, 2]
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"an assignment wants a square matrix, got {similarity.shape}")
    n = similarity.shape[0]
    if n > limit():
        raise ValueError(f"an assignment of over {limit()} rows takes too long, got {n}; scipy takes {SCIPY_LIMIT}")
    if not np.isfinite(similarity).all():
        raise ValueError("an assignment wants finite values")
    if not n:
        return np.empty(0, dtype=np.int64)
    best = similarity.argmax(axis=1)
    if len(np.unique(best)) == n:  # each row has the column that it likes most
        return np.asarray(best, dtype=np.int64)
    if find_spec("scipy") is None:
        return by_augmenting_paths(similarity)
    from scipy.optimize import linear_sum_assignment

    return np.asarray(linear_sum_assignment(similarity, maximize=True)[1], dtype=np.int64)


def by_augmenting_paths(similarity: Matrix) -> Order:
    """Solve without scipy.

    >>> by_augmenting_paths(np.array([[2.0, 1.0], [3.0, 1.0]])).tolist()
    [1, 0]
    """
    n = similarity.shape[0]
    # Place 0 of rows and columns stands for "none", which ends each chain.
    cost = -np.asarray(similarity, dtype=np.float64)
    rows, columns = np.zeros(n + 1), np.zeros(n + 1)  # dual prices: cost - rows - columns >= 0
    owner = np.zeros(n + 1, dtype=np.int64)  # the row that has a column
    for row in range(1, n + 1):
        owner[0], column = row, 0
        nearest = np.full(n + 1, np.inf)  # cheapest way so far to each column
        before = np.zeros(n + 1, dtype=np.int64)  # the column that this way comes from
        done = np.zeros(n + 1, dtype=bool)
        while owner[column] != 0:
            done[column] = True
            reduced = cost[owner[column] - 1] - rows[owner[column]] - columns[1:]
            better = ~done[1:] & (reduced < nearest[1:])
            nearest[1:][better] = reduced[better]
            before[1:][better] = column
            following = 1 + int(np.argmin(np.where(done[1:], np.inf, nearest[1:])))
            step = nearest[following]
            rows[owner[done]] += step
            columns[done] -= step
            nearest[~done] -= step
            column = following
        while column:
            owner[column] = owner[before[column]]
            column = int(before[column])
    chosen = np.empty(n, dtype=np.int64)
    chosen[owner[1:] - 1] = np.arange(n)
    return chosen
