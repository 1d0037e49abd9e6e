"""The objective of one machine: logistic loss with instance weights and an L1 penalty of its own for each feature.

    F(w, b) = (1 / l) sum_i c_i log(1 + exp(-y_i (x_i w + b))) + sum_j m_j |w_j|        y_i = +1 or -1

The intercept b is not penalised. The duality gap bounds by how much a point lies above the minimum:

    D(a) = -(1 / l) sum_i c_i (a_i log a_i + (1 - a_i) log(1 - a_i))        0 <= a_i <= 1
    subject to |(1 / l) sum_i c_i a_i y_i x_ij| <= m_j and, with an intercept, sum_i c_i a_i y_i = 0

From w the point a_i = 1 / (1 + exp(y_i (x_i w + b))) is taken; the side of the labels with the larger sum is scaled
down to the other's, then all of it until the largest violation is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix
from scipy.special import expit, xlogy

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """The rows of one problem.

    >>> toy = Problem(csr_matrix([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [-1.0, 1.0]]), np.array([1.0, 1, 1, -1]))
    >>> toy.lambda_max(fit_intercept=False)
    0.5
    """

    X: csr_matrix  # (n, d)
    y: Floats  # (n,), +1 and -1
    weights: Floats | None = None  # (n,), positive; None: 1 each
    total: float | None = None  # l of the equation; None: the sum of the weights

    @cached_property
    def shares(self) -> Floats:
        """c_i / l, (n,)."""
        weights = np.ones(len(self.y)) if self.weights is None else self.weights
        return weights / (float(weights.sum()) if self.total is None else self.total)

    @cached_property
    def columns(self) -> csc_matrix:
        """X by columns."""
        return csc_matrix(self.X)

    def loss(self, coef: Floats, intercept: float = 0.0) -> float:
        """Return the loss without the penalty."""
        return float(self.shares @ np.logaddexp(0.0, -self.y * (self.X @ coef + intercept)))

    def margins(self, coef: Floats, intercept: float = 0.0) -> Floats:
        """Return y_i (x_i w + b), (n,)."""
        return np.asarray(self.y * (self.X @ coef + intercept))

    def gradient(self, coef: Floats, intercept: float = 0.0) -> tuple[Floats, float]:
        """Return the gradient of the loss by the coefficients, (d,), and by the intercept."""
        return self.gradient_at(self.margins(coef, intercept))

    def gradient_at(self, margins: Floats) -> tuple[Floats, float]:
        """Return the same from the margins of a point."""
        slopes = -self.y * self.shares * expit(-margins)
        return self.X.T @ slopes, float(slopes.sum())

    def steepest(self) -> Floats:
        """Return a bound of each slope at any point, (d,): a feature whose penalty is not below it stays at zero.

        max(sum_i max(z_ij, 0), sum_i max(-z_ij, 0))        z_ij = c_i y_i x_ij / l

        >>> Problem(csr_matrix([[1.0, 0.0], [2.0, 1.0], [-1.0, 1.0]]), np.array([1.0, 1, -1])).steepest()
        array([1.33333333, 0.33333333])
        """
        X, d = self.X, self.X.shape[1]
        turned = X.data * np.repeat(self.y * self.shares, np.diff(X.indptr))
        sides = [np.bincount(X.indices, np.maximum(side, 0.0), minlength=d) for side in (turned, -turned)]
        return np.maximum(*sides)

    def lambda_max(self, fit_intercept: bool = True) -> float:
        """Return the smallest penalty, the same for all features, at which all coefficients are zero."""
        slopes, _ = self.gradient(np.zeros(self.X.shape[1]), self.base_rate() if fit_intercept else 0.0)
        return float(np.abs(slopes).max(initial=0.0))

    def base_rate(self) -> float:
        """Return the intercept of the best model without features; infinite where there is one label only."""
        positive, negative = self.shares[self.y > 0].sum(), self.shares[self.y < 0].sum()
        with np.errstate(divide="ignore"):
            return float(np.log(positive) - np.log(negative))

    def gap(self, coef: Floats, intercept: float, penalties: Floats, fit_intercept: bool) -> float:
        """Return the duality gap at a point; `penalties` is m, (d,)."""
        return self.gap_at(self.margins(coef, intercept), coef, penalties, fit_intercept)

    def gap_at(self, margins: Floats, coef: Floats, penalties: Floats, fit_intercept: bool) -> float:
        """Return the same from the margins of the point."""
        primal = float(self.shares @ np.logaddexp(0.0, -margins) + penalties @ np.abs(coef))
        alpha = expit(-margins)
        if fit_intercept:
            up = self.y > 0
            sums = np.where(up, self.shares[up] @ alpha[up], self.shares[~up] @ alpha[~up])  # (n,), of the own side
            alpha = alpha * (sums.min() / np.maximum(sums, np.finfo(float).tiny))
        slopes = np.abs(self.X.T @ (self.shares * alpha * self.y))
        over = slopes > penalties
        alpha = alpha * float((penalties[over] / slopes[over]).min(initial=1.0))
        dual = -float(self.shares @ (xlogy(alpha, alpha) + xlogy(1 - alpha, 1 - alpha)))
        return max(primal - dual, 0.0)
