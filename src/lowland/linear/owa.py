"""Optimal weighted averaging (Izbicki, Shelton 2019, arXiv 1907.11172): one round of local fits, then a merge.

w = W v        W: local models as columns, d x machines;  v: an L2 logistic regression on x_i W of a few rows
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import steps
from .classifier import PartitionedClassifier
from .objective import Floats
from .session import Path, Session


class OWALogisticRegression(PartitionedClassifier):
    """Local L1 logistic regressions, merged by a regression on what they say.

    Args:
        merge_on: "sample", rows drawn on all machines, a share `merge_rows` of them, but 10 a machine and 100 at
            least; or "root", all rows of the first machine.
        merge_lambda: lambda_2; None: the best of ten over `folds` folds.

    >>> import numpy as np
    >>> X, y = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]] * 5), [1, 1, 0, 0] * 5
    >>> OWALogisticRegression(lambda_=0.01, n_partitions=2, random_state=0).fit(X, y).predict([[1.0, 0.0]])
    array([1])
    """

    def __init__(
        self,
        lambda_: float | Sequence[float] = 1e-3,
        *,
        n_partitions: int = 4,
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
        self.merge_on, self.merge_rows, self.merge_lambda, self.folds = merge_on, merge_rows, merge_lambda, folds

    def _combined(self, session: Session, lambdas: Floats) -> Path:
        session.rounds = 1
        models = session.fits_everywhere(steps.FitJob(session.common, lambdas), "fitting")
        return session.merge(models, self)
