"""ProxCSL (Lu, Curtin, Raff, Ferraro, Holt 2024, arXiv 2407.06346): surrogate steps from OWA, each damped.

    w_t+1 = argmin  f_1(w) + (grad f(w_t) - grad f_1(w_t)) w + (alpha / 2) ||w - w_t||^2 + lambda ||w||_1

f_1: loss of the root; f: of all machines; w_0: OWA. The released code (FutureComputing4AI/ProxCSL) solves a step by ten
proximal Newton steps of 50 sweeps each; here it is solved by `tilted.py`, to the end. There alpha is a setting too, and
raised by a rule where w_t has 1,000 non-zeros or more; here it is a setting throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import steps
from .classifier import PartitionedClassifier
from .csl import updated
from .objective import Floats
from .session import Path, Session


class ProxCSLLogisticRegression(PartitionedClassifier):
    """OWA's model, carried on by steps of the first machine's problem with the gradient of all machines.

    Args:
        updates: steps; each is a round.
        alpha: how strongly a step is held to where it begins; 0 is CSL's step, which may have no minimum.
        merge_on: "sample", rows drawn on all machines, a share `merge_rows` of them, but 10 a machine and 100 at
            least; or "root", all rows of the first machine.
        merge_lambda: lambda_2 of the merge; None: the best of ten over `folds` folds.

    >>> import numpy as np
    >>> X, y = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]] * 5), [1, 1, 0, 0] * 5
    >>> ProxCSLLogisticRegression(lambda_=0.01, n_partitions=2, random_state=0).fit(X, y).predict([[1.0, 0.0]])
    array([1])
    """

    def __init__(
        self,
        lambda_: float | Sequence[float] = 1e-3,
        *,
        n_partitions: int = 4,
        updates: int = 2,
        alpha: float = 1e-2,
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
        self.updates, self.alpha = updates, alpha
        self.merge_on, self.merge_rows, self.merge_lambda, self.folds = merge_on, merge_rows, merge_lambda, folds

    def _combined(self, session: Session, lambdas: Floats) -> Path:
        session.rounds = 1 + self.updates
        path = session.merge(session.fits_everywhere(steps.FitJob(session.common, lambdas), "round 1"), self)
        for number in range(self.updates):
            path = updated(session, path, lambdas, f"round {number + 2}", self.alpha)
        return path
