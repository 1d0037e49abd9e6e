"""Ten million rows by a million sparse columns out of shards, on one machine, beside what else reads such shards.

`python benchmarks/linear_large.py --folder FOLDER` makes the shards where they are not there yet (about 0.9 GB, and 1
GB of text for Vowpal Wabbit where it is installed), runs every setting of every contender in a process of its own on
all shards, and writes results/linear_large.md. A validation shard, which nobody is fitted to, chooses the setting; the
test shard judges it. Memory is the process's own high-water mark. Contenders: OWA, ACOWA, scikit-learn's SGDClassifier
with partial_fit, Vowpal Wabbit; one pass each for the last two. Finished settings are kept in the folder.
"""

from __future__ import annotations

import argparse
import json
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
CENTROIDS = 0.1  # weight of a centroid in ACOWA, times its count: that of the released single-node code
GRIDS = {
    "SGDClassifier": [{"alpha": alpha} for alpha in (1e-4, 1e-5, 1e-6)],
    "Vowpal Wabbit": [{"l": rate, "l1": pull} for rate in (0.5, 0.1) for pull in (0.0, 1e-8)],
    "OWA": [{"lambda": value} for value in (1e-4, 5e-5)],
    "ACOWA": [{"lambda": value} for value in (1e-4, 5e-5)],
}


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
    for k in range(shards + 2):
        path = folder / (f"shard-{k:03d}.npz" if k < shards else ("test.npz", "validation.npz")[k - shards])
        if not path.exists():
            write_shard(path, *make_rows(rows // shards if k < shards else TEST_ROWS, k))


def scored(folder: Path, scores: Any) -> dict[str, float]:
    """Log-loss and accuracy of a function of rows to log-odds, on the validation and on the test shard."""
    from lowland.linear import Shard

    found = {}
    for part in ("validation", "test"):
        X, y, _ = Shard(folder / f"{part}.npz")()
        said = scores(X, part)
        sign = np.where(y == 1, 1.0, -1.0)
        found[f"{part} log-loss"] = float(np.logaddexp(0, -sign * said).mean())
        found[f"{part} accuracy"] = float(((said > 0) == (y == 1)).mean())
    return found


def lowland(folder: Path, name: str, setting: dict[str, float]) -> dict[str, Any]:
    from lowland.linear import ACOWALogisticRegression, OWALogisticRegression

    cls = {"OWA": OWALogisticRegression, "ACOWA": ACOWALogisticRegression}[name]
    model = cls(setting["lambda"], random_state=0, merge_rows=0.01, tol=1e-5)
    if name == "ACOWA":
        model.set_params(centroid_weight=CENTROIDS)
    begun = time.perf_counter()
    model.fit_partitions(
        sorted(folder.glob("shard-*.npz")),
        progress=lambda *told: print(name, *told, f"{time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True),
    )
    took = time.perf_counter() - begun
    return {
        "seconds": took,
        "non-zeros": len(model.support_),
        "gap": model.duality_gap_,
        "payload up, MB": model.bytes_sent_["up"] / 1e6,
        "payload down, MB": model.bytes_sent_["down"] / 1e6,
        **scored(folder, lambda X, part: model.decision_function(X)),
    }


def sgd(folder: Path, setting: dict[str, float]) -> dict[str, Any]:
    from sklearn.linear_model import SGDClassifier

    from lowland.linear import Shard

    model = SGDClassifier(loss="log_loss", penalty="l1", alpha=setting["alpha"], random_state=0)
    begun = time.perf_counter()
    for path in sorted(folder.glob("shard-*.npz")):
        X, y, _ = Shard(path)()
        model.partial_fit(X, y, classes=[0, 1])
    took = time.perf_counter() - begun
    told = {"seconds": took, "non-zeros": int((model.coef_ != 0).sum())}
    return told | scored(folder, lambda X, part: model.decision_function(X))


def vw(folder: Path, setting: dict[str, float]) -> dict[str, Any]:
    """Vowpal Wabbit on text that is made beforehand; making it is timed apart."""
    from vowpalwabbit import Workspace

    begun = time.perf_counter()
    for path in [*sorted(folder.glob("shard-*.npz")), folder / "test.npz", folder / "validation.npz"]:
        if not path.with_suffix(".vw").exists():
            _text(path)
    made = time.perf_counter() - begun
    begun = time.perf_counter()
    options = "--loss_function logistic -b 20 --link identity --quiet --no_stdin"
    model = Workspace(f"{options} -l {setting['l']} --l1 {setting['l1']}")
    for path in sorted(folder.glob("shard-*.vw")):
        with path.open() as file:
            for line in file:
                model.learn(line)
    took = time.perf_counter() - begun

    def said(X: csr_matrix, part: str) -> np.ndarray:
        with (folder / f"{part}.vw").open() as file:
            return np.array([model.predict(line) for line in file])

    found = {"seconds": took, "making the text, s": made, **scored(folder, said)}
    model.finish()
    return found


def _text(path: Path) -> None:
    from lowland.linear import Shard

    X, y, _ = Shard(path)()
    with path.with_suffix(".vw").open("w") as file:
        for k, label in enumerate(y):
            places = X.indices[X.indptr[k] : X.indptr[k + 1]]
            file.write(f"{2 * int(label) - 1} | {' '.join(map(str, places.tolist()))}\n")


def _peak() -> float:
    """The high-water mark of this program; getrusage would hand on that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6


def alone(folder: Path, name: str, setting: dict[str, float], python: str) -> dict[str, Any]:
    """One setting in a process of its own, with its high-water mark of memory."""
    command = [python, __file__, "--folder", str(folder), "--one", name, "--setting", json.dumps(setting)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--one")
    parser.add_argument("--setting", type=json.loads)
    parser.add_argument("--only", default="SGDClassifier,Vowpal Wabbit,OWA,ACOWA")
    parser.add_argument("--vw-python", default=sys.executable, help="the interpreter that has vowpalwabbit")
    asked = parser.parse_args()
    if asked.one:
        run = {"SGDClassifier": sgd, "Vowpal Wabbit": vw}.get(asked.one)
        found = lowland(asked.folder, asked.one, asked.setting) if run is None else run(asked.folder, asked.setting)
        found["peak memory, GB"] = _peak()
        print(json.dumps(found))
        return
    make(asked.folder, asked.shards, asked.rows)
    kept = asked.folder / "found.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for name in asked.only.split(","):
        for setting in GRIDS[name]:
            key = f"{name} {json.dumps(setting)}"
            if key not in found:
                python = asked.vw_python if name == "Vowpal Wabbit" else sys.executable
                found[key] = {"method": name, "setting": setting} | alone(asked.folder, name, setting, python)
                kept.write_text(json.dumps(found))
                print(key, found[key], file=sys.stderr, flush=True)
        report(asked, list(found.values()))


def report(asked: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in found for key in row if key not in ("method", "setting")))
    shown = [
        {"method": row["method"], "setting": ", ".join(f"{key} {value:g}" for key, value in row["setting"].items())}
        | {key: f"{row[key]:.4g}" if key in row else "" for key in columns}
        for row in found
    ]
    best = []
    for name in dict.fromkeys(row["method"] for row in found):
        own = [place for place, row in enumerate(found) if row["method"] == name]
        chosen = min(own, key=lambda place: found[place]["validation log-loss"])
        best.append(shown[chosen] | {"seconds of the grid": f"{sum(found[place]['seconds'] for place in own):.4g}"})
    weights, bias = truth()
    drew = scored(asked.folder, lambda X, part: X @ weights + bias)
    made = sum(path.stat().st_size for path in asked.folder.glob("shard-*.npz")) / 1e9
    notes = [
        f"{asked.rows:,} rows by {COLUMNS:,} columns in {asked.shards} shards, {made:.2f} GB of .npz files; "
        f"{TEST_ROWS:,} other rows to choose settings and as many to test. The model that drew the labels has a "
        f"log-loss of {drew['test log-loss']:.4f} and an accuracy of {drew['test accuracy']:.4f}.",
        "Every setting is fitted to all shards; the validation log-loss chooses. OWA and ACOWA: one partition a shard, "
        f"one after the other, 1 % of the rows merge, gap 1e-5; centroids with {CENTROIDS:g} of their counts. "
        "SGDClassifier: log loss, L1, one pass. Vowpal Wabbit: logistic, 20 bits, one pass, lines handed over from "
        "Python.",
        "Seconds are of the wall clock, with other work on the machine.",
    ]
    missing = [name for name in GRIDS if name not in {row["method"] for row in found}]
    if missing:
        notes.append(f"Not in this run: {', '.join(missing)}.")
    tables = {"The setting that the validation rows chose": best, "All settings": shown}
    harness.write("linear_large", f"{asked.rows:,} rows by a million columns", tables, notes)


if __name__ == "__main__":
    main()
