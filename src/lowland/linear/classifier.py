"""The shape that all estimators here share: scikit-learn's, for rows in one place and for rows in many."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from .engines import Dask, Engine, Here, Joblib
from .objective import Floats
from .partitions import holders_of
from .rows import split
from .session import Path, Progress, Session


class PartitionedClassifier(ClassifierMixin, BaseEstimator, ABC):  # type: ignore[misc]
    """An L1 logistic regression out of local fits; `_combined` says how they become one model.

    The settings are those that all estimators have; what one adds stands in its own `__init__`.
    """

    def __init__(
        self,
        lambda_: float | Sequence[float] = 1e-3,
        *,
        n_partitions: int = 4,
        fit_intercept: bool = True,
        class_weight: Any = None,
        tol: float = 1e-8,
        max_iter: int = 100,
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.lambda_, self.n_partitions, self.fit_intercept = lambda_, n_partitions, fit_intercept
        self.class_weight, self.tol, self.max_iter = class_weight, tol, max_iter
        self.n_jobs, self.random_state = n_jobs, random_state

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Split the rows into `n_partitions` by what they hold and the random state, and fit.

        Raises:
            ValueError: bad settings, or rows or weights that scikit-learn refuses too.
        """
        self._check()
        X, labels = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)
        check_classification_targets(labels)
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        kept = weights > 0
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        sparse = csr_matrix(X)
        if not sparse.has_canonical_format:
            sparse = sparse.copy()
            sparse.sum_duplicates()
        parts = split(sparse[kept], labels[kept], weights[kept], self.n_partitions, seed)
        return self._fitted(Joblib(self.n_jobs), parts, seed, None)

    def fit_partitions(
        self, parts: Any, *, engine: Any = None, client: Any = None, progress: Progress | None = None
    ) -> Self:
        """Fit on rows that lie apart; they stay where they are.

        Args:
            parts: for each machine (X, y) or (X, y, weights), a function without arguments that returns such, a path of
                a shard, or Dask's delayed object or future of one; or a pair of Dask arrays with the same chunks.
            engine: the name of a joblib backend; None: this process, or joblib with `n_jobs`.
            client: a Dask client. It may be given as `engine` too.
            progress: is called with a stage and with how many of the machines are done, of how many.

        Raises:
            ValueError: bad settings, or bad rows; the message begins with the number of the partition.
            ConnectionError: the Dask scheduler does not answer.
        """
        self._check()
        if engine is not None and not isinstance(engine, str):
            engine, client = None, engine
        if client is not None:
            runs: Engine = Dask(client)
        else:
            runs = Here() if engine is None and self.n_jobs is None else Joblib(self.n_jobs, engine)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.__dict__.pop("feature_names_in_", None)
        with runs.answering():
            holders = holders_of(parts, client)
        self._fitted(runs, holders, seed, progress)
        return self

    def _fitted(self, engine: Engine, holders: Sequence[Any], seed: int, progress: Progress | None) -> Self:
        session = Session(engine, holders, progress)
        session.open(self, seed)
        lambdas = np.atleast_1d(np.asarray(self.lambda_, dtype=float))
        path = self._combined(session, lambdas)
        session.warn(self.tol)
        self.n_features_in_ = session.features
        self.classes_ = session.common.classes
        self.lambdas_ = lambdas
        self.coef_path_ = [coefs for coefs, _ in path]
        self.intercept_path_ = np.array([intercepts for _, intercepts in path])
        self.n_rounds_ = session.rounds
        self.n_iter_ = max(1, session.iterations)
        self.duality_gap_ = session.gap
        self.bytes_sent_ = dict(session.meter.payload)
        self.bytes_wire_ = dict(session.meter.wire)
        self._show(len(lambdas) - 1)
        return self

    @abstractmethod
    def _combined(self, session: Session, lambdas: Floats) -> Path:
        """Return the model of every lambda."""

    def _show(self, place: int) -> None:
        self.coef_ = self.coef_path_[place].toarray()
        self.intercept_ = self.intercept_path_[place]
        self.support_ = np.flatnonzero(self.coef_.any(axis=0))

    def at(self, lambda_: float) -> Self:
        """Return the fitted model of one lambda of the path; nothing is fitted anew."""
        check_is_fitted(self)
        places = np.flatnonzero(np.isclose(self.lambdas_, lambda_, rtol=1e-9, atol=0))
        if not len(places):
            raise ValueError(f"lambda_ must be one of the path {self.lambdas_.tolist()}, got {lambda_}")
        found = copy.copy(self)
        found.lambda_ = float(self.lambdas_[places[0]])
        found._show(int(places[0]))
        return found

    def decision_function(self, X: ArrayLike) -> Floats:
        """Return the log-odds of the second class, (n,), or of each class against the rest, (n, classes)."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        scores = np.asarray(X @ self.coef_.T + self.intercept_)
        return scores.ravel() if len(self.classes_) == 2 else scores

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable class of each row, (n,)."""
        scores = self.decision_function(X)
        return np.asarray(self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)])

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return probabilities, (n, classes); those of one against the rest are divided by their sum."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.column_stack([expit(-scores), expit(scores)])
        chances = expit(scores)
        sums = chances.sum(axis=1, keepdims=True)
        return np.asarray(np.where(sums > 0, chances / np.where(sums > 0, sums, 1), 1 / len(self.classes_)))

    def predict_log_proba(self, X: ArrayLike) -> Floats:
        """Return logarithms of the probabilities, (n, classes)."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.predict_proba(X)))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")  # `lambda_` is a setting, whatever its last letter

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _check(self) -> None:
        lambdas = np.atleast_1d(np.asarray(self.lambda_, dtype=float))
        if lambdas.ndim != 1 or not len(lambdas) or not (np.isfinite(lambdas).all() and (lambdas > 0).all()):
            raise ValueError(f"lambda_ must be positive, a number or several, got {self.lambda_!r}")
        for name, least in _LEAST.items():
            value = getattr(self, name, least)
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")
        for name, (low, high) in _BETWEEN.items():
            value = getattr(self, name, high)
            if value is not None and not low < value <= high:
                raise ValueError(f"{name} must lie above {low:g} and at most at {high:g}, got {value!r}")
        alpha = getattr(self, "alpha", 0.0)
        if not 0 <= alpha < np.inf:
            raise ValueError(f"alpha must be 0 or more, got {alpha!r}")
        if getattr(self, "merge_on", "sample") not in ("sample", "root"):
            raise ValueError(f"merge_on must be 'sample' or 'root', got {self.merge_on!r}")


_LEAST = {"n_partitions": 1, "max_iter": 1, "folds": 2, "updates": 0}
_BETWEEN = {
    "tol": (0.0, 1.0),
    "merge_lambda": (0.0, np.inf),
    "merge_rows": (0.0, 1.0),
    "fraction": (0.0, 1.0),
    "centroid_weight": (0.0, np.inf),
}
