"""One cell of a linear study: one set, cut into the rows of so many machines, and a path by every method.

Validation rows, which are no machine's, choose the lambda within a budget of non-zeros; test rows choose nothing.
"""

from __future__ import annotations

import time
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from lowland.linear.objective import Problem
from lowland.linear.rows import split

from ..grid.cells import Cell
from ..grid.configured import path_of
from ..grid.kinds import Kind, Metric
from .config import LinearStudy
from .following import FULL, METHODS, Row, follow, within
from .sets import Rows, Set, load_set

KIND = Kind(
    name="linear",
    things="rows",
    metrics=(
        Metric("accuracy", "accuracy", higher=True),
        Metric("nll", "log-loss", higher=False),
        Metric("distance", "distance to the full-data solution of as many non-zeros", higher=False),
        Metric("turned", "1 less the cosine to it", higher=False),
        Metric("non-zeros", "non-zeros", higher=False),
    ),
    baseline="naive",
    methods=(FULL, *METHODS),
    claims=(
        ("ACOWA", "OWA"),
        ("OWA", "naive"),
        ("ACOWA", "naive"),
        ("ACOWA", "CSL"),
        ("ACOWA", "debiased"),
        ("ACOWA", "ProxCSL"),
    ),
    meanings={
        FULL: "L1 logistic regression on all rows at once",
        "naive": "the mean of the machines' models",
        "debiased": "the mean, extrapolated away from models of a tenth of the rows",
        "CSL": "one machine's problem with the gradient of all, at the mean",
        "ProxCSL": "two such steps from OWA, each held to where it begins by the alpha that validation rows choose",
        "OWA": "the machines' models merged by a regression on a tenth of the rows",
        "ACOWA": "OWA after machines told each other centroids and features",
    },
    seeded="which machine gets which row",
    wants="scikit-learn",
)


def run_cell(study: LinearStudy, cell: Cell) -> dict[str, Any]:
    """Cut, follow the path and judge; plain data for a file. The same study and cell give the same numbers.

    Raises:
        ValueError: the set is not there, or there are fewer rows than machines.

    >>> from lowland.studies.linear.config import Data, Model, Training
    >>> study = LinearStudy(Data(("synthetic",), bits=10), Model((2,)), Training((0,), lambdas=2))
    >>> sorted(run_cell(study, Cell("synthetic", "m2", 0))["methods"]["ACOWA"])[:3]
    ['at_100', 'at_1000', 'at_30']
    """
    begun = time.perf_counter()
    whole = _loaded(cell.data, study.data.bits, path_of(study.data.paths, cell.data))
    rng = np.random.default_rng(1)  # of all partitionings the same rows choose
    order = rng.permutation(len(whole.train.y))
    cut = max(1, int(study.data.validation * len(order)))
    kept = np.sort(order[cut:])
    machines = int(cell.model[1:])
    train = Rows(whole.train.X[kept], whole.train.y[kept])
    parts = split(train.X, train.y, np.ones(len(kept)), machines, cell.seed)
    if len(parts) < machines:
        raise ValueError(f"{cell.data} has {len(parts)} different rows, fewer than {machines} machines")
    top = Problem(train.X, np.where(train.y == 1, 1.0, -1.0)).lambda_max()
    lambdas = top * np.geomspace(study.training.first, study.training.ratio, study.training.lambdas)
    judged = {
        "validation": [(whole.train.X[order[:cut]], whole.train.y[order[:cut]])],
        "train": [(train.X, train.y)],
        "test": [(whole.test.X, whole.test.y)],
    }
    loaded, budget = time.perf_counter() - begun, study.evaluation.budget
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # every row of a path says its gap
        tuned = {"ProxCSL": [{"alpha": alpha} for alpha in study.training.alphas]}
        settings: dict[str, Any] = {"tol": study.training.tol, "random_state": cell.seed}
        paths = follow(parts, judged, lambdas.tolist(), KIND.methods, tuned=tuned, **settings)
    return {
        "methods": {name: _judged(study, rows) for name, rows in paths.items()},
        "curves": {},
        "trace": [],
        "sensitivity": {},
        "chosen": {f"lambda of {name}": within(rows, budget)["lambda"] for name, rows in paths.items()},
        "paths": paths,
        "seconds": {"loading": loaded, **{name: _seconds(rows) for name, rows in paths.items()}},
    }


def _judged(study: LinearStudy, rows: list[Row]) -> dict[str, dict[str, float]]:
    def told(row: Row, part: str) -> dict[str, float]:
        return {**row[part], "distance": row["distance"], "turned": row["turned"], "non-zeros": float(row["non-zeros"])}

    main = within(rows, study.evaluation.budget)
    parts = {part: told(main, part) for part in ("train", "validation", "test")}
    return parts | {f"at_{budget}": told(within(rows, budget), "test") for budget in study.evaluation.budgets}


def _seconds(rows: list[Row]) -> float:
    """Of all paths of a method, one for each setting."""
    return float(sum({row.get("alpha"): row["seconds"] for row in rows}.values()))


@lru_cache(maxsize=1)
def _loaded(name: str, bits: int, path: str | None) -> Set:
    return load_set(name, bits=bits, path=path)
