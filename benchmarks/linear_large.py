"""Ten million rows by a million sparse columns out of shards, on one machine, beside what else reads such shards.

Settings first. `python benchmarks/linear_large.py --folder FOLDER` makes the shards where they are not there yet
(about 0.9 GB, and 1 GB of text for Vowpal Wabbit where it is installed), runs every contender in a process of its own,
and writes results/linear_large.md. Memory is the process's own high-water mark. Contenders: OWA, ACOWA,
scikit-learn's SGDClassifier with partial_fit, Vowpal Wabbit; one pass each for the last two.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness

ROWS = 10_000_000
COLUMNS = 1_000_000
SHARDS = 16
TEST_ROWS = 200_000
PER_ROW = 10  # draws of a column; equal ones fall together
STEEP = 6.0  # column floor(COLUMNS * u ** STEEP): as words, few are frequent
TRUE = 20_000  # of the most frequent columns, a tenth has a weight
LAMBDA = 5e-5  # of the L1 methods
CENTROIDS = 0.1  # weight of a centroid in ACOWA, times its count: that of the released single-node code
ALPHA = 1e-4  # of SGDClassifier: of 1e-4, 1e-5 and 1e-6 the best on the test rows after one shard


def truth() -> tuple[np.ndarray, float]:
    rng = np.random.default_rng(1)
    weights = np.zeros(COLUMNS)
    places = rng.choice(TRUE, TRUE // 10, replace=False)
    weights[places] = rng.standard_normal(len(places))
    return weights, -0.5


def make_rows(count: int, seed: int) -> tuple[csr_matrix, np.ndarray]:
    rng = np.random.default_rng([2, seed])
    columns = (COLUMNS * rng.random((count, PER_ROW)) ** STEEP).astype(np.int32)
    columns.sort(axis=1)
    X = csr_matrix(
        (np.ones(columns.size, dtype=np.float32), columns.ravel(), np.arange(count + 1) * PER_ROW),
        shape=(count, COLUMNS),
    )
    X.sum_duplicates()
    X.data[:] = 1.0
    weights, bias = truth()
    y = (rng.random(count) < 1 / (1 + np.exp(-(X @ weights + bias)))).astype(np.int8)
    return X, y


def make(folder: Path, shards: int, rows: int) -> None:
    from lowland.linear import write_shard

    folder.mkdir(parents=True, exist_ok=True)
    for k in range(shards + 1):
        path = folder / (f"shard-{k:03d}.npz" if k < shards else "test.npz")
        if not path.exists():
            write_shard(path, *make_rows(rows // shards if k < shards else TEST_ROWS, k))


def scored(folder: Path, scores: Any) -> dict[str, float]:
    """Log-loss and accuracy of a function of rows to log-odds, on the test shard."""
    from lowland.linear import Shard

    X, y, _ = Shard(folder / "test.npz")()
    said = scores(X)
    sign = np.where(y == 1, 1.0, -1.0)
    return {
        "log-loss": float(np.logaddexp(0, -sign * said).mean()),
        "accuracy": float(((said > 0) == (y == 1)).mean()),
    }


def lowland(folder: Path, name: str) -> dict[str, Any]:
    from lowland.linear import ACOWALogisticRegression, OWALogisticRegression

    cls = {"OWA": OWALogisticRegression, "ACOWA": ACOWALogisticRegression}[name]
    model = cls(LAMBDA, random_state=0, merge_rows=0.01, tol=1e-5)
    if name == "ACOWA":
        model.set_params(centroid_weight=CENTROIDS)
    begun = time.perf_counter()
    model.fit_partitions(
        sorted(folder.glob("shard-*.npz")),
        progress=lambda *told: print(name, *told, f"{time.perf_counter() - begun:.0f} s", file=sys.stderr),
    )
    took = time.perf_counter() - begun
    return {
        "seconds": took,
        "non-zeros": len(model.support_),
        "gap": model.duality_gap_,
        "payload up, MB": model.bytes_sent_["up"] / 1e6,
        "payload down, MB": model.bytes_sent_["down"] / 1e6,
        **scored(folder, model.decision_function),
    }


def sgd(folder: Path, alpha: float = ALPHA) -> dict[str, Any]:
    from sklearn.linear_model import SGDClassifier

    from lowland.linear import Shard

    model = SGDClassifier(loss="log_loss", penalty="l1", alpha=alpha, random_state=0)
    begun = time.perf_counter()
    for path in sorted(folder.glob("shard-*.npz")):
        X, y, _ = Shard(path)()
        model.partial_fit(X, y, classes=[0, 1])
    took = time.perf_counter() - begun
    return {"seconds": took, "non-zeros": int((model.coef_ != 0).sum()), **scored(folder, model.decision_function)}


def vw(folder: Path) -> dict[str, Any]:
    """Vowpal Wabbit on text that is made beforehand; making it is timed apart."""
    from vowpalwabbit import Workspace

    begun = time.perf_counter()
    for path in [*sorted(folder.glob("shard-*.npz")), folder / "test.npz"]:
        if not path.with_suffix(".vw").exists():
            _text(path)
    made = time.perf_counter() - begun
    begun = time.perf_counter()
    options = "--loss_function logistic -b 20 --link identity --quiet --no_stdin"
    model = Workspace(f"{options} -f {folder / 'model.vw'}")
    for path in sorted(folder.glob("shard-*.vw")):
        with path.open() as file:
            for line in file:
                model.learn(line)
    took = time.perf_counter() - begun
    with (folder / "test.vw").open() as file:
        said = np.array([model.predict(line) for line in file])
    model.finish()
    return {"seconds": took, "making the text, s": made, **scored(folder, lambda X: said)}


def _text(path: Path) -> None:
    from lowland.linear import Shard

    X, y, _ = Shard(path)()
    with path.with_suffix(".vw").open("w") as file:
        for k, label in enumerate(y):
            places = X.indices[X.indptr[k] : X.indptr[k + 1]]
            file.write(f"{2 * int(label) - 1} | {' '.join(map(str, places.tolist()))}\n")


def alone(folder: Path, name: str, python: str) -> dict[str, Any]:
    """One contender in a process of its own, with its high-water mark of memory."""
    command = [python, __file__, "--folder", str(folder), "--one", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--one")
    parser.add_argument("--only", default="SGDClassifier,OWA,ACOWA,Vowpal Wabbit")
    parser.add_argument("--vw-python", default=sys.executable, help="the interpreter that has vowpalwabbit")
    asked = parser.parse_args()
    if asked.one:
        run = {"SGDClassifier": sgd, "Vowpal Wabbit": vw}.get(asked.one)
        found = lowland(asked.folder, asked.one) if run is None else run(asked.folder)
        found["peak memory, GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps(found))
        return
    make(asked.folder, asked.shards, asked.rows)
    kept = asked.folder / "found.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for name in asked.only.split(","):
        if name not in found:
            python = asked.vw_python if name == "Vowpal Wabbit" else sys.executable
            found[name] = alone(asked.folder, name, python)
            kept.write_text(json.dumps(found))
            print(name, found[name], file=sys.stderr)
    columns = list(dict.fromkeys(key for row in found.values() for key in row))
    rows = [
        {"method": name} | {key: f"{row[key]:.4g}" if key in row else "" for key in columns}
        for name, row in found.items()
    ]
    weights, bias = truth()
    best = scored(asked.folder, lambda X: X @ weights + bias)
    made = sum(path.stat().st_size for path in asked.folder.glob("*.npz")) / 1e9
    notes = [
        f"{asked.rows:,} rows by {COLUMNS:,} columns in {asked.shards} shards, {made:.2f} GB of .npz files; "
        f"{TEST_ROWS:,} other rows to test. The model that drew the labels has a log-loss of {best['log-loss']:.4f} "
        f"and an accuracy of {best['accuracy']:.4f}.",
        f"OWA and ACOWA: lambda {LAMBDA:g}, centroids with {CENTROIDS:g} of their counts, "
        "one partition a shard, one after the other, 1 % of the rows merge, gap "
        f"1e-5. SGDClassifier: log loss, L1, alpha {ALPHA:g}, one pass. Vowpal Wabbit: logistic, 20 bits, one pass, "
        "lines handed over from Python.",
        "Seconds are of the wall clock, with other work on the machine.",
        "These rows are no ranking: OWA's lambda was set by hand for its time, SGDClassifier's alpha is the best of "
        "three on these test rows, and Vowpal Wabbit was not tuned.",
    ]
    absent = [name for name in ("SGDClassifier", "OWA", "ACOWA", "Vowpal Wabbit") if name not in found]
    if absent:
        notes.append(f"Not in this run: {', '.join(absent)}.")
    harness.write("linear_large", "Ten million rows by a million columns", {"One machine": rows}, notes)


if __name__ == "__main__":
    main()
