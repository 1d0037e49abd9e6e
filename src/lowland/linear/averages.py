"""Averages of local models in one round: the mean, and the mean without the bias that small parts have.

    naive:     w = mean_k w_k
    debiased:  w = (mean_k w_k - r mean_k w'_k) / (1 - r)        w'_k: fitted to a share r of the rows of machine k

Debiased: Zhang, Duchi, Wainwright 2012, arXiv 1209.4129 (SAVGM).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from . import steps
from .classifier import PartitionedClassifier
from .objective import Floats
from .session import Path, Session


class NaiveAverageLogisticRegression(PartitionedClassifier):
    """The mean of L1 logistic regressions that machines fit to their own rows.

    >>> X, y = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]] * 5), [1, 1, 0, 0] * 5
    >>> NaiveAverageLogisticRegression(lambda_=0.01, n_partitions=2, random_state=0).fit(X, y).predict([[1.0, 0.0]])
    array([1])
    """

    def _combined(self, session: Session, lambdas: Floats) -> Path:
        session.rounds = 1
        return session.mean(session.fits_everywhere(steps.FitJob(session.common, lambdas), "fitting"))


class DebiasedAverageLogisticRegression(PartitionedClassifier):
    """The mean of local models, extrapolated away from the mean of models of a `fraction` of the rows.

    >>> X, y = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]] * 5), [1, 1, 0, 0] * 5
    >>> model = DebiasedAverageLogisticRegression(lambda_=0.01, n_partitions=2, fraction=0.5, random_state=0)
    >>> model.fit(X, y).predict([[1.0, 0.0]])
    array([1])
    """

    def __init__(
        self,
        lambda_: float | Sequence[float] = 1e-3,
        *,
        n_partitions: int = 4,
        fraction: float = 0.1,
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
        self.fraction = fraction

    def _combined(self, session: Session, lambdas: Floats) -> Path:
        session.rounds = 1
        whole = session.fits_everywhere(steps.FitJob(session.common, lambdas), "fitting")
        if self.fraction == 1:
            return session.mean(whole)
        some = session.fits_everywhere(steps.FitJob(session.common, lambdas, share=self.fraction), "fitting a fraction")
        missing = ~np.any([one.present for one in some], axis=0)  # no fraction has both sides: nothing to remove
        share = np.where(missing, 0.0, self.fraction)
        return [
            (
                csr_matrix((coefs - fewer.multiply(share[:, None])).multiply(1 / (1 - share)[:, None])),
                (intercepts - share * less) / (1 - share),
            )
            for (coefs, intercepts), (fewer, less) in zip(session.mean(whole), session.mean(some), strict=True)
        ]
