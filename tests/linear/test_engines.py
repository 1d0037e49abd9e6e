"""Where machines are changes no bit of a fit, nor does a worker that dies."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
from joblib.parallel import ThreadingBackend
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_info, threadpool_limits

from lowland.linear import ACOWALogisticRegression, OWALogisticRegression
from lowland.linear.messages import Meter, payload
from tests.linear.toy import ALL, drawn, parts_of

X, Y = drawn(rows=240, columns=40)
PARTS = parts_of(X, Y, 3)
SETTINGS = {"lambda_": [0.02, 0.01], "random_state": 0}


def same(one, other):
    np.testing.assert_array_equal(one.coef_, other.coef_)
    np.testing.assert_array_equal(one.intercept_, other.intercept_)
    for first, second in zip(one.coef_path_, other.coef_path_, strict=True):
        np.testing.assert_array_equal(first.toarray(), second.toarray())
    assert one.bytes_sent_ == other.bytes_sent_


class Loader:
    """Rows that are opened where a step runs; a file may say at which opening the process dies, once."""

    def __init__(self, number, folder=None, stage=0):
        self.number, self.folder, self.stage = number, folder, stage

    def __call__(self):
        if self.folder is not None and self.number == 1:
            count = len(list(Path(self.folder).glob("open-*")))
            Path(self.folder, f"open-{count}").touch()
            if count == self.stage:
                os.kill(os.getpid(), signal.SIGKILL)
        return PARTS[self.number]


def test_loaders_and_joblib_give_what_this_process_gives():
    here = ACOWALogisticRegression(**SETTINGS).fit_partitions(PARTS)
    same(here, ACOWALogisticRegression(**SETTINGS).fit_partitions([Loader(k) for k in range(3)]))
    same(here, ACOWALogisticRegression(**SETTINGS, n_jobs=2).fit_partitions(PARTS, engine="threading"))
    with joblib.parallel_config(backend="threading"):
        same(here, ACOWALogisticRegression(**SETTINGS, n_jobs=2).fit_partitions(PARTS))


class AtOnce(ThreadingBackend):
    """A backend that hands over its results all at once, as Ray's and Spark's do."""

    supports_return_generator = False


def test_a_backend_that_returns_no_generator():
    joblib.register_parallel_backend("at-once", AtOnce)
    told = []
    found = ACOWALogisticRegression(**SETTINGS, n_jobs=2)
    found.fit_partitions(PARTS, engine="at-once", progress=lambda *one: told.append(one))
    same(found, ACOWALogisticRegression(**SETTINGS).fit_partitions(PARTS))
    assert told[-1] == ("projecting", 3, 3)


class Threads:
    """Rows whose opening notes how many threads linear algebra may use: the only one of a step that starts any."""

    def __init__(self, number, seen):
        self.number, self.seen = number, seen

    def __call__(self):
        self.seen.extend(
            (one["num_threads"], one["filepath"]) for one in threadpool_info() if one["internal_api"] == "openblas"
        )
        return PARTS[self.number]


def test_steps_use_one_thread_each_however_many_run():
    for engine in (None, "threading"):
        seen = []
        with threadpool_limits(3):
            before = [one["num_threads"] for one in threadpool_info()]
            model = OWALogisticRegression(0.02, random_state=0, n_jobs=None if engine is None else 2)
            model.fit_partitions([Threads(k, seen) for k in range(3)], engine=engine)
            assert [one["num_threads"] for one in threadpool_info()] == before
        assert len(seen) >= 9 and {count for count, _ in seen} == {1}, seen


@pytest.mark.slow
def test_processes_of_joblib():
    for cls in (OWALogisticRegression, ACOWALogisticRegression):
        here = cls(**SETTINGS, n_partitions=3).fit(X, Y)
        same(here, cls(**SETTINGS, n_partitions=3, n_jobs=2).fit(X, Y))


def test_progress():
    told = []
    ACOWALogisticRegression(**SETTINGS).fit_partitions(PARTS, progress=lambda *one: told.append(one))
    stages = ["reading", "centroids", "round 1", "round 2", "projecting"]
    assert told == [(stage, done, 3) for stage in stages for done in (1, 2, 3)]


def test_bytes_follow_the_formula():
    """Vectors of d numbers: 2d a machine up and 2pd down, then d up, d down, d up; a sparse number takes 12 bytes."""
    d, p = 40, 3
    model = ACOWALogisticRegression(0.01, random_state=0, merge_on="root").fit_partitions(PARTS)
    dense = {"up": p * (2 * d + d + d) * 8, "down": p * (2 * p * d + d) * 8}
    head = {"up": 400 * p, "down": 400 * p}  # counts, classes, intercepts, gaps
    for way in ("up", "down"):
        # A sparse number takes 12 bytes where a dense one takes 8; the root gets the models once more, to merge.
        assert model.bytes_sent_[way] <= dense[way] * 1.5 + head[way] + (way == "down") * p * d * 12
    centroid = [csr_matrix(part[labels == k].mean(axis=0)).nnz for part, labels in PARTS for k in (0, 1)]
    assert model.bytes_sent_["down"] >= p * sum(centroid) * 12
    meter = Meter()
    meter.down([np.zeros(5), csr_matrix([[1.0, 0.0, 2.0]])], 4)
    assert meter.payload == {"up": 0, "down": 4 * (40 + 24)}
    assert meter.wire["down"] > meter.payload["down"]
    assert payload("words cost nothing here") == 0


@pytest.fixture
def cluster():
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            distributed.LocalCluster(
                n_workers=2,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                memory_limit=0,
                silence_logs=50,
            ) as cluster,
            distributed.Client(cluster, timeout=600) as client,
        ):
            yield client


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_dask_workers_give_the_same_bits(cluster):
    import dask
    import dask.array as da

    assert len(cluster.scheduler_info()["workers"]) == 2
    for cls in ALL:
        here = cls(**SETTINGS).fit_partitions(PARTS)
        same(here, cls(**SETTINGS).fit_partitions(PARTS, client=cluster))
    here = OWALogisticRegression(**SETTINGS).fit_partitions(PARTS)
    delayed = [dask.delayed(Loader(k))() for k in range(3)]
    same(here, OWALogisticRegression(**SETTINGS).fit_partitions(delayed, engine=cluster))
    same(here, OWALogisticRegression(**SETTINGS).fit_partitions(delayed))
    futures = [cluster.submit(Loader(k)) for k in range(3)]
    same(here, OWALogisticRegression(**SETTINGS).fit_partitions(futures, client=cluster))
    pairs = [tuple(dask.delayed(Loader(k), nout=2)()) for k in range(3)]
    same(here, OWALogisticRegression(**SETTINGS).fit_partitions(pairs, client=cluster))
    rows = np.concatenate([part.toarray() for part, _ in PARTS]), np.concatenate([y for _, y in PARTS])
    arrays = da.from_array(rows[0], chunks=(80, 40)), da.from_array(rows[1], chunks=80)
    same(here, OWALogisticRegression(**SETTINGS).fit_partitions(arrays, client=cluster))
    loaders = [Loader(k) for k in range(3)]
    same(here, OWALogisticRegression(**SETTINGS, n_jobs=2).fit_partitions(loaders, engine="dask"))
    with joblib.parallel_config(backend="dask"):
        same(here, OWALogisticRegression(**SETTINGS, n_jobs=2).fit_partitions(loaders))
    with pytest.raises(ValueError, match="partition 1: Input X contains NaN"):
        broken = [PARTS[0], (np.full((2, 40), np.nan), [0, 1])]
        OWALogisticRegression(**SETTINGS).fit_partitions(broken, client=cluster)


# Openings of the second machine's rows in ACOWA: description, centroids, round 1, round 2, merge.
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [2, 3, 4], ids=["round 1", "round 2", "merge"])
def test_a_worker_that_is_killed_changes_nothing(cluster, stage, tmp_path):
    here = ACOWALogisticRegression(**SETTINGS).fit_partitions(PARTS)
    found = ACOWALogisticRegression(**SETTINGS)
    found.fit_partitions([Loader(k, tmp_path, stage) for k in range(3)], client=cluster)
    same(here, found)
    assert len(list(tmp_path.iterdir())) == 6  # five openings and the one that died


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dead_scheduler(tmp_path):
    dask = pytest.importorskip("dask")
    Client = pytest.importorskip("distributed").Client

    place = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    start = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    scheduler = subprocess.Popen([*start, "--no-dashboard", "--scheduler-file", str(place)], **quiet)
    begin = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(place), "--no-nanny"]
    worker = subprocess.Popen([*begin, "--nthreads", "1", "--no-dashboard", "--death-timeout", "60"], **quiet)

    def quick():
        return dask.config.set({"distributed.comm.timeouts.connect": "3s"})

    def kill(stage, done, count):
        if stage == "round 1":
            scheduler.kill()
            scheduler.wait()

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client = Client(scheduler_file=str(place), timeout=30)
        client.wait_for_workers(1, timeout=600)
        for _ in range(2):  # it dies in the middle, and it is dead from the start
            model = ACOWALogisticRegression(**SETTINGS)
            with quick(), pytest.raises(ConnectionError, match="the Dask scheduler does not answer"):
                model.fit_partitions(PARTS, client=client, progress=kill)
            assert not hasattr(model, "coef_")
        client.close(timeout=1)
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait()
