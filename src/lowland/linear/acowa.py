"""ACOWA (Lu et al. 2024; ECML-PKDD 2025): OWA with two rounds, in which machines learn from each other.

before round 1   every machine gets the mean rows of each class on all machines, as rows with their counts as weights
round 1          local L1 fits;  s_j: share of machines whose model uses feature j
round 2          local L1 fits with penalties m_j = lambda_2 / W_j,  W_j = 1 + boost s_j,
                 lambda_2 = lambda d / sum_j (1 / W_j), and centroids of weight 1
merge            as in OWA
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, vstack

from . import steps
from .classifier import PartitionedClassifier
from .messages import Centroids, Models
from .objective import Floats
from .session import Path, Session


class ACOWALogisticRegression(PartitionedClassifier):
    """Local L1 logistic regressions that share centroids and then their choice of features, merged as in OWA.

    Args:
        centroid_weight: times its count, the weight of a centroid in round 1.
        boost: how much less a feature is penalised in round 2 that all machines chose in round 1.
        merge_on: "sample", rows drawn on all machines, a share `merge_rows` of them, but 10 a machine and 100 at
            least; or "root", all rows of the first machine.
        merge_lambda: lambda_2 of the merge; None: the best of ten over `folds` folds.

    >>> X, y = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]] * 5), [1, 1, 0, 0] * 5
    >>> ACOWALogisticRegression(lambda_=0.01, n_partitions=2, random_state=0).fit(X, y).predict([[1.0, 0.0]])
    array([1])
    """

    def __init__(
        self,
        lambda_: float | Sequence[float] = 1e-3,
        *,
        n_partitions: int = 4,
        centroid_weight: float = 1.0,
        boost: float = 10.0,
        merge_on: str = "sample",
        merge_rows: float = 0.1,
        merge_lambda: float | None = None,
        folds: int = 5,
        fit_intercept: bool = True,
        class_weight: Any = None,
        tol: float = 1e-8,
        max_iter: int = 100,
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        shared = {"class_weight": class_weight, "tol": tol, "max_iter": max_iter, "n_jobs": n_jobs}
        super().__init__(
            lambda_, n_partitions=n_partitions, fit_intercept=fit_intercept, random_state=random_state, **shared
        )
        self.centroid_weight, self.boost = centroid_weight, boost
        self.merge_on, self.merge_rows, self.merge_lambda, self.folds = merge_on, merge_rows, merge_lambda, folds

    def _combined(self, session: Session, lambdas: Floats) -> Path:
        session.rounds = 2
        means = together(session.everywhere(steps.centroids, session.common, "centroids"))
        first = steps.FitJob(session.common, lambdas, centroids=means, centroid_weight=self.centroid_weight)
        models = session.fits_everywhere(first, "round 1", means)
        shares = shares_of(models)
        second = steps.FitJob(session.common, lambdas, centroids=means, unit=True, shares=shares, boost=self.boost)
        return session.merge(session.fits_everywhere(second, "round 2", shares), self)


def together(found: Sequence[Centroids]) -> Centroids:
    """Return the centroids of all machines."""
    return Centroids(
        csr_matrix(vstack([one.means for one in found])),
        np.concatenate([one.codes for one in found]),
        np.concatenate([one.counts for one in found]),
    )


def shares_of(models: Sequence[Models]) -> list[csr_matrix]:
    """Return, for each lambda, the share of machines whose model of a problem uses a feature, (problems, d)."""
    return [
        csr_matrix(sum((one.coefs[place] != 0).astype(float) for one in models) / len(models))
        for place in range(len(models[0].coefs))
    ]
