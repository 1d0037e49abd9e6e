"""A worker is killed by SIGKILL in round 1, in round 2 and at the merge, three times each: is the fit the same?

Two Dask workers on loopback hold three machines of ACOWA, a new cluster each time. The rows of the second machine are
opened once a step; at one of these openings its process kills itself. Measured: whether coefficients, intercepts and
counted bytes are those of a fit in one process, bit for bit, and the seconds of the fit.
Run: python benchmarks/linear_killed.py [TIMES]   Results: benchmarks/results/linear_killed.md and .json
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import harness
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.linear.toy import drawn, parts_of

from lowland.linear import ACOWALogisticRegression

PARTS = parts_of(*drawn(rows=240, columns=40), 3)
# Openings of a machine's rows before: description, centroids, round 1, round 2, merge.
STAGES = {"round 1": 2, "round 2": 3, "the merge": 4}
SETTINGS: dict[str, Any] = {"lambda_": [0.02, 0.01], "random_state": 0}


class Loader:
    """Rows that are opened where a step runs; at one opening of the second machine the process dies, once."""

    def __init__(self, number: int, folder: Path | None = None, stage: int = 0) -> None:
        self.number, self.folder, self.stage = number, folder, stage

    def __call__(self) -> tuple[Any, Any]:
        if self.folder is not None and self.number == 1:
            count = len(list(self.folder.glob("open-*")))
            (self.folder / f"open-{count}").touch()
            if count == self.stage:
                os.kill(os.getpid(), signal.SIGKILL)
        return PARTS[self.number]


def same(one: Any, other: Any) -> bool:
    paths = zip(one.coef_path_, other.coef_path_, strict=True)
    equal = all(np.array_equal(first.toarray(), second.toarray()) for first, second in paths)
    return equal and np.array_equal(one.intercept_path_, other.intercept_path_) and one.bytes_sent_ == other.bytes_sent_


def timed(client: Any, folder: Path | None, stage: int) -> tuple[float, Any]:
    model = ACOWALogisticRegression(**SETTINGS)
    begun = time.perf_counter()
    model.fit_partitions([Loader(k, folder, stage) for k in range(3)], client=client)
    return time.perf_counter() - begun, model


def main() -> None:
    from distributed import Client, LocalCluster

    times = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    here = ACOWALogisticRegression(**SETTINGS).fit_partitions(PARTS)
    settings = {"n_workers": 2, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
    rows: list[dict[str, object]] = []
    for number in range(1, times + 1):
        for stage, opening in STAGES.items():
            with warnings.catch_warnings(), tempfile.TemporaryDirectory() as name:
                warnings.simplefilter("ignore")
                with LocalCluster(**settings, memory_limit=0, silence_logs=50) as cluster:
                    with Client(cluster, timeout=600) as client:
                        took, model = timed(client, Path(name), opening)
                openings = len(list(Path(name).iterdir()))
            told = {"killed in": stage, "time": number, "openings of its rows": openings}
            rows.append(told | {"the same bits": "yes" if same(model, here) else "no", "seconds": f"{took:.2f}"})
            print(rows[-1], flush=True)
    equal = sum(row["the same bits"] == "yes" and row["openings of its rows"] == 6 for row in rows)
    checks = [("a worker's death changes no bit", f"{len(rows)} fits", f"{equal} fits", equal == len(rows))]
    notes = ["Rows are opened five times, and once more after a death. Seconds with other work on the machine."]
    packages = ("scikit-learn", "dask", "distributed")
    harness.write("linear_killed", "A worker killed in a linear fit", {"Fits": rows}, notes, checks, packages=packages)


if __name__ == "__main__":
    main()
