"""Two machines of four rows, whose solutions are known, and rows that are drawn."""

import numpy as np
from scipy.sparse import csr_matrix, random_array

from lowland.linear import (
    ACOWALogisticRegression,
    CSLLogisticRegression,
    DebiasedAverageLogisticRegression,
    NaiveAverageLogisticRegression,
    OWALogisticRegression,
    ProxCSLLogisticRegression,
)

ALL = [
    NaiveAverageLogisticRegression,
    DebiasedAverageLogisticRegression,
    OWALogisticRegression,
    ACOWALogisticRegression,
    CSLLogisticRegression,
    ProxCSLLogisticRegression,
]
FIRST = csr_matrix([[1.0, 0], [2, 1], [0, 1], [-1, 1]]), np.array([1, 1, 1, -1])
SECOND = csr_matrix([[1.0, -1], [-2, 0], [-1, -2], [0, -1]]), np.array([1, -1, -1, -1])
TOY = [FIRST, SECOND]


def drawn(rows=400, columns=60, classes=2, seed=0, density=0.2):
    """Sparse rows and labels that follow a few columns."""
    rng = np.random.default_rng(seed)
    X = csr_matrix(random_array((rows, columns), density=density, rng=rng, data_sampler=rng.standard_normal))
    truth = np.zeros((columns, classes))
    truth[:8] = 3 * rng.standard_normal((8, classes))
    return X, (X @ truth + 0.5 * rng.standard_normal((rows, classes))).argmax(axis=1)


def parts_of(X, y, count):
    """Rows k, k + count, ... for machine k."""
    return [(X[k::count], y[k::count]) for k in range(count)]
