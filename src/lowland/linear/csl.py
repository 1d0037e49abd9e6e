"""Communication-efficient surrogate likelihood (Jordan, Lee, Yang 2019, arXiv 1605.07689), one step from the mean.

    w = argmin  f_1(w) + (grad f(w_0) - grad f_1(w_0)) w + lambda ||w||_1        f_1: loss of the root;  f: of all

w_0 is the naive average. Round one fits it, round two gathers gradients at it; the root solves the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix

from . import steps
from .classifier import PartitionedClassifier
from .messages import Gradients, Models
from .objective import Floats
from .session import Path, Session


class CSLLogisticRegression(PartitionedClassifier):
    """The first machine's problem, tilted so that its gradient at the naive average is that of all machines.

    >>> X, y = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]] * 5), [1, 1, 0, 0] * 5
    >>> CSLLogisticRegression(lambda_=0.01, n_partitions=2, random_state=0).fit(X, y).predict([[1.0, 0.0]])
    array([1])
    """

    def _combined(self, session: Session, lambdas: Floats) -> Path:
        session.rounds = 2
        mean = session.mean(session.fits_everywhere(steps.FitJob(session.common, lambdas), "round 1"))
        return updated(session, mean, lambdas, "round 2")


def updated(session: Session, path: Path, lambdas: Floats, stage: str, pull: float = 0.0) -> Path:
    """Return the minima of the root's problem, tilted to the gradient of all machines at a model of each lambda."""
    coefs, intercepts = [one[0] for one in path], np.array([one[1] for one in path])
    at = steps.GradientJob(session.common, coefs, intercepts)
    slopes: list[Gradients] = session.everywhere(steps.gradient, at, stage, (coefs, intercepts))
    whole = _mean(slopes)
    session.meter.down((whole.coefs, whole.intercepts), 1)
    found: Models = session.at_root(steps.tilt, steps.TiltJob(at, whole, lambdas, pull), "at the root")
    session.note(found)
    return list(zip(found.coefs, found.intercepts, strict=True))


def _mean(slopes: Sequence[Gradients]) -> Gradients:
    """The gradient of the loss over all rows."""
    weights = np.array([one.total for one in slopes])
    weights = weights / weights.sum()
    coefs = [
        csr_matrix(sum(one.coefs[place] * weight for one, weight in zip(slopes, weights, strict=True)))
        for place in range(len(slopes[0].coefs))
    ]
    added = sum(one.intercepts * weight for one, weight in zip(slopes, weights, strict=True))
    return Gradients(coefs, np.asarray(added), 1.0)
