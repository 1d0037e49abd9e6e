"""A path of lambdas, followed by every method on the same partitions and judged on the same rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from lowland.linear import (
    ACOWALogisticRegression,
    CSLLogisticRegression,
    DebiasedAverageLogisticRegression,
    NaiveAverageLogisticRegression,
    OWALogisticRegression,
    ProxCSLLogisticRegression,
)
from lowland.linear.partitions import open_part

METHODS: dict[str, Any] = {
    "naive": NaiveAverageLogisticRegression,
    "debiased": DebiasedAverageLogisticRegression,
    "CSL": CSLLogisticRegression,
    "ProxCSL": ProxCSLLogisticRegression,
    "OWA": OWALogisticRegression,
    "ACOWA": ACOWALogisticRegression,
}
FULL = "full data"
Row = dict[str, Any]


def follow(
    holders: Sequence[Any],
    judged: Mapping[str, Sequence[Any]],
    lambdas: Sequence[float],
    methods: Sequence[str] = (*METHODS, FULL),
    *,
    client: Any = None,
    told: Callable[[str], None] = lambda method: None,
    tuned: Mapping[str, Sequence[dict[str, Any]]] | None = None,
    **settings: Any,
) -> dict[str, list[Row]]:
    """Return, by method, a row for each lambda: non-zeros, and accuracy and log-loss on each part of `judged`.

    Where the full-data solution is asked for, rows hold the distance to the one of the path with the nearest number of
    non-zeros, relative to its norm, and how far they are turned away from it: 1 less the cosine.
    Seconds, rounds and bytes are those of the whole path.

    Args:
        holders: what `fit_partitions` takes; the full-data solution reads all of them at once.
        judged: by part, such holders too.
        tuned: by method, further settings to run the path with: the rows of all of them are returned.
        settings: of the estimators, where they have them.

    >>> X, y = csr_matrix(np.eye(4)), np.array([0, 1, 0, 1])
    >>> found = follow([(X, y), (X, y)], {"test": [(X, y)]}, [0.5, 0.01], ["naive"], random_state=0)
    >>> [row["non-zeros"] for row in found["naive"]], found["naive"][1]["test"]["accuracy"]
    ([0, 4], 1.0)
    """
    ordered = sorted(methods, key=lambda name: name != FULL)  # the others are held against it
    found: dict[str, list[Row]] = {}
    reference: list[NDArray[Any]] | None = None
    for name in ordered:
        told(name)
        found[name] = []
        for more in (tuned or {}).get(name, [{}]):
            begun = time.perf_counter()
            model = _fitted(name, holders, lambdas, client, settings | more)
            about = {
                "seconds": time.perf_counter() - begun,
                "rounds": model.n_rounds_,
                "gap": float(model.duality_gap_),
                "up": model.bytes_sent_["up"],
                "down": model.bytes_sent_["down"],
                **more,
            }
            if name == FULL:
                reference = [model.at(lambda_).coef_ for lambda_ in lambdas]
            for lambda_ in lambdas:
                one = model.at(lambda_)
                row: Row = {"lambda": float(lambda_), "non-zeros": len(one.support_)}
                if reference is not None:
                    row |= _beside(one.coef_, reference)
                for part, rows in judged.items():
                    row[part] = judge(one, rows)
                found[name].append(row | about)
    return {name: found[name] for name in methods}


def judge(model: Any, holders: Sequence[Any]) -> dict[str, float]:
    """Return accuracy and log-loss, one shard in memory at a time."""
    right, loss, rows = 0.0, 0.0, 0
    for number, holder in enumerate(holders):
        part = open_part(holder, number)
        chances = model.predict_proba(part.X)
        unknown = ~np.isin(part.y, model.classes_)
        codes = np.minimum(np.searchsorted(model.classes_, part.y), len(model.classes_) - 1)
        own = np.where(unknown, 0.0, chances[np.arange(len(codes)), codes])
        right += float((~unknown & (model.predict(part.X) == part.y)).sum())
        loss += float(-np.log(np.maximum(own, 1e-12)).sum())
        rows += len(codes)
    return {"accuracy": right / rows, "nll": loss / rows}


def within(rows: Sequence[Row], budget: float, part: str = "validation") -> Row:
    """Return the row with the best accuracy on a part among those with at most so many non-zeros; ties: the sparsest.

    >>> rows = [{"non-zeros": n, "validation": {"accuracy": a}} for n, a in ((0, 0.5), (9, 0.7), (90, 0.9))]
    >>> within(rows, 10)["non-zeros"]
    9
    """
    fitting = [row for row in rows if row["non-zeros"] <= budget]
    kept = fitting or [min(rows, key=lambda row: int(row["non-zeros"]))]
    return max(kept, key=lambda row: (row[part]["accuracy"], -row["non-zeros"]))


def _beside(coef: NDArray[Any], reference: Sequence[NDArray[Any]]) -> dict[str, float]:
    """The distance to the reference of the nearest number of non-zeros, one at least, and the turn away from it."""
    sizes = np.array([np.count_nonzero(one) or np.inf for one in reference])
    near = reference[int(np.abs(sizes - np.count_nonzero(coef)).argmin())]
    long, norm = float(np.linalg.norm(coef)), float(np.linalg.norm(near))
    return {
        "distance": float(np.linalg.norm(coef - near)) / norm if norm else 0.0,
        "turned": 1 - float((coef * near).sum()) / (long * norm) if long * norm else 1.0,
    }


def _fitted(name: str, holders: Sequence[Any], lambdas: Sequence[float], client: Any, settings: dict[str, Any]) -> Any:
    if name == FULL:
        opened = [open_part(holder, number) for number, holder in enumerate(holders)]
        X, y = csr_matrix(vstack([part.X for part in opened])), np.concatenate([part.y for part in opened])
        holders, client = [(X, y, np.concatenate([part.weights for part in opened]))], None
    elif name not in METHODS:
        raise ValueError(f"there is no method {name!r}: there are {', '.join([*METHODS, FULL])}")
    model = METHODS.get(name, NaiveAverageLogisticRegression)(list(lambdas))
    known = model.get_params()
    model.set_params(**{key: value for key, value in settings.items() if key in known})
    return model.fit_partitions(holders, client=client)
