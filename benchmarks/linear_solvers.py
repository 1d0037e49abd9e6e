"""Solvers of the local problem: duality gap against seconds, cold and along a path, on three sets.

The problem has no intercept and one penalty, which every candidate takes. Each runs at several tolerances; its gap is
computed by `lowland.linear.objective`, whatever it says of itself. Candidates that are not installed are left out, and
so is saga where it takes longer than LIMIT at its loosest tolerance. CPU seconds of one thread; compilation apart.
Run: python benchmarks/linear_solvers.py. Results: benchmarks/results/linear_solvers.md and .json.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import harness
import numpy as np
from scipy.sparse import csc_matrix, csr_matrix

from lowland.linear.local import solve
from lowland.linear.objective import Problem
from lowland.studies.linear.sets import load_set

SHARE = 0.1  # lambda of the cold fit, as a share of lambda_max
PATH = SHARE ** np.linspace(0.1, 1, 6)
TOLERANCES = (1e-3, 1e-5, 1e-7)
LIMIT = 40.0  # CPU seconds: after a run this long a candidate is given no finer tolerance
Fit = Callable[[Problem, list[float], float], Iterator[np.ndarray]]


def ours(problem: Problem, lambdas: list[float], tol: float) -> Iterator[np.ndarray]:
    warm = None
    for lambda_ in lambdas:
        penalties = np.full(problem.X.shape[1], lambda_)
        found = solve(problem, penalties, fit_intercept=False, tol=tol, warm=warm)
        warm = found
        yield found.coef


def sklearn(solver: str) -> Fit:
    def fit(problem: Problem, lambdas: list[float], tol: float) -> Iterator[np.ndarray]:
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(l1_ratio=1, solver=solver, fit_intercept=False, tol=tol, random_state=0)
        model.set_params(max_iter=300, warm_start=solver == "saga")
        for lambda_ in lambdas:
            yield model.set_params(C=1 / (len(problem.y) * lambda_)).fit(problem.X, problem.y).coef_[0].copy()

    return fit


def celer(problem: Problem, lambdas: list[float], tol: float) -> Iterator[np.ndarray]:
    from celer import LogisticRegression

    X = csc_matrix(problem.X)
    model = LogisticRegression(fit_intercept=False, tol=tol, warm_start=True)
    for lambda_ in lambdas:
        yield model.set_params(C=1 / (len(problem.y) * lambda_)).fit(X, problem.y).coef_[0].copy()


def skglm(problem: Problem, lambdas: list[float], tol: float) -> Iterator[np.ndarray]:
    from skglm import GeneralizedLinearEstimator
    from skglm.datafits import Logistic
    from skglm.penalties import L1
    from skglm.solvers import ProxNewton

    X = csc_matrix(problem.X)
    solver = ProxNewton(tol=tol, fit_intercept=False, warm_start=True)
    model = GeneralizedLinearEstimator(Logistic(), L1(lambdas[0]), solver)
    for lambda_ in lambdas:
        model.penalty = L1(lambda_)
        yield np.ravel(model.fit(X, problem.y).coef_).copy()


CANDIDATES: dict[str, tuple[str, Fit]] = {
    "lowland (Newton)": ("sklearn", ours),
    "scikit-learn liblinear": ("sklearn", sklearn("liblinear")),
    "scikit-learn saga": ("sklearn", sklearn("saga")),
    "celer": ("celer", celer),
    "skglm": ("skglm", skglm),
}


def sets() -> dict[str, Problem]:
    found = {}
    for name, rows in (("r8", 1500), ("insults", 1500), ("synthetic", 1500)):
        train = load_set(name, bits=15).train
        X = csr_matrix(train.X[:rows])
        found[f"{name}, {X.shape[0]:,} x {X.shape[1]:,}"] = Problem(X, np.where(train.y[:rows] == 1, 1.0, -1.0))
    return found


def timed(fit: Fit, problem: Problem, lambdas: list[float], tol: float) -> tuple[float, float]:
    begun = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coefs = list(fit(problem, lambdas, tol))
    took = time.process_time() - begun
    d = problem.X.shape[1]
    pairs = zip(coefs, lambdas, strict=True)
    return took, max(problem.gap(np.asarray(w, dtype=float), 0.0, np.full(d, v), False) for w, v in pairs)


def main() -> None:
    tables: dict[str, list[dict[str, Any]]] = {}
    problems = sets()
    missing = [name for name, (package, _) in CANDIDATES.items() if importlib.util.find_spec(package) is None]
    compiled = {}
    small = Problem(next(iter(problems.values())).X[:100], next(iter(problems.values())).y[:100])
    failed: list[str] = []
    for name, (_, fit) in CANDIDATES.items():
        if name in missing:
            continue
        print(name, flush=True)
        try:
            compiled[name] = timed(fit, small, [small.lambda_max(False) * 0.5], 1e-2)[0]
        except Exception as error:
            failed.append(f"{name} cannot run here: {type(error).__name__}: {str(error)[:120]}")
    for title, problem in problems.items():
        top = problem.lambda_max(fit_intercept=False)
        rows = []
        for name in compiled:
            for tol in TOLERANCES:
                cold = timed(CANDIDATES[name][1], problem, [top * SHARE], tol)
                path = timed(CANDIDATES[name][1], problem, (top * PATH).tolist(), tol) if cold[0] < LIMIT else None
                rows.append(
                    {
                        "solver": name,
                        "tolerance": f"{tol:g}",
                        "cold, CPU s": f"{cold[0]:.2f}",
                        "gap": f"{cold[1]:.1e}",
                        "path of 6, CPU s": "" if path is None else f"{path[0]:.2f}",
                        "largest gap": "" if path is None else f"{path[1]:.1e}",
                    }
                )
                print(title, rows[-1], flush=True)
                if cold[0] > LIMIT:
                    break
        tables[title] = rows
    notes = [
        f"lambda is {SHARE:g} of lambda_max, the path goes there in six steps. First call, mostly compilation: "
        + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in compiled.items())
        + ".",
        *failed,
        *([f"Not installed: {', '.join(missing)}."] if missing else []),
        "Weights of rows are taken by lowland and scikit-learn; penalties of features by scikit-learn through columns "
        "divided by them, and by celer and skglm as an argument.",
        "glum is no candidate: with it in the list the process was killed twice (status 137 once) before any number, "
        "and without it this ran. Why was not looked into.",
    ]
    packages = ("scikit-learn", "scipy", "celer", "skglm")
    harness.write("linear_solvers", "Solvers of the local problem", tables, notes, packages=packages)


if __name__ == "__main__":
    main()
