"""Where the machines are: in this process, in joblib's workers, or where a Dask cluster keeps the rows.

An engine runs one step on every machine and returns the messages in the order of the machines. Only jobs and messages
travel; rows are opened where the step runs.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from .partitions import open_part

Step = Callable[[Any, Any], Any]  # rows and job to message
Told = Callable[[int, int], None]  # machines done, machines in all


class Engine(Protocol):
    """Runs steps."""

    def run(self, step: Step, holders: Sequence[Any], job: Any, told: Told) -> list[Any]:
        """Return the message of every machine, in order."""

    def answering(self) -> contextlib.AbstractContextManager[None]:
        """Turn what a scheduler that is gone raises into a ConnectionError."""


def run_step(step: Step, holder: Any, number: int, job: Any) -> Any:
    """Open the rows of a machine and run a step on one thread: the same bits whatever is around."""
    with _ONE_THREAD:
        return step(open_part(holder, number), job)


class Here:
    """One machine after the other, in this process."""

    def run(self, step: Step, holders: Sequence[Any], job: Any, told: Told) -> list[Any]:
        """Return the message of every machine, in order."""
        found = []
        for number, holder in enumerate(holders):
            found.append(run_step(step, holder, number, job))
            told(number + 1, len(holders))
        return found

    def answering(self) -> contextlib.AbstractContextManager[None]:
        """Nothing can be gone."""
        return contextlib.nullcontext()


class Joblib:
    """Workers of joblib: its own processes, or those of a backend that is named."""

    def __init__(self, jobs: int | None, backend: str | None = None) -> None:
        self.jobs, self.backend = jobs, backend

    def run(self, step: Step, holders: Sequence[Any], job: Any, told: Told) -> list[Any]:
        """Return the message of every machine, in order."""
        import joblib

        # Without a name, the backend that stands around the call, as joblib.parallel_config says.
        around = joblib.parallel_config(backend=self.backend) if self.backend else contextlib.nullcontext()
        # OpenBLAS heeds the limit of the main thread alone: steps in threads of this process need it set out here.
        with around, _ONE_THREAD:
            calls = (joblib.delayed(run_step)(step, holder, k, job) for k, holder in enumerate(holders))
            # Ray's and Spark's backends hand over everything at the end, and so does the progress.
            told_early = getattr(joblib.parallel.get_active_backend()[0], "supports_return_generator", False)
            found = []
            for message in joblib.Parallel(n_jobs=self.jobs, return_as="generator" if told_early else "list")(calls):
                found.append(message)
                told(len(found), len(holders))
        return found

    def answering(self) -> contextlib.AbstractContextManager[None]:
        """Nothing is looked at: joblib's backends say themselves what they miss."""
        return contextlib.nullcontext()


class Dask:
    """The workers of a cluster. Rows stay where they lie; those of a worker that is lost are made again elsewhere."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def run(self, step: Step, holders: Sequence[Any], job: Any, told: Told) -> list[Any]:
        """Return the message of every machine, in order.

        Raises:
            ConnectionError: the scheduler does not answer.
            RuntimeError: workers die whenever they run a step.
        """
        import dask
        from distributed import KilledWorker, as_completed

        # A job goes to the cluster once; as the result of a task it can be made again, which scattered data cannot.
        with self.answering(), dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
            shared = self.client.submit(_same, job, pure=False)
            futures = [
                self.client.submit(run_step, step, holder, k, shared, pure=False) for k, holder in enumerate(holders)
            ]
            places = {future.key: k for k, future in enumerate(futures)}
            found: dict[int, Any] = {}
            try:
                for future in as_completed(futures):  # type: ignore[no-untyped-call]
                    found[places[future.key]] = future.result()
                    told(len(found), len(holders))
            except KilledWorker as error:
                raise RuntimeError(f"a step of the fit killed its workers again and again: {error}") from error
            finally:
                if len(found) < len(futures):
                    with contextlib.suppress(Exception):
                        self.client.cancel(futures)
        if len(found) < len(holders):
            raise ConnectionError(_lost(self.client))
        return [found[k] for k in range(len(holders))]

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Turn what a scheduler that is gone raises into a ConnectionError."""
        from distributed import CancelledError
        from distributed.comm.core import CommClosedError

        try:
            if self.client.status not in ("running", "connecting"):
                raise ConnectionError(_lost(self.client))
            yield
        except (CancelledError, CommClosedError) as error:
            raise ConnectionError(_lost(self.client)) from error


class _OneThread:
    """BLAS on one thread from the first step that enters to the last that leaves, in whatever thread of the process."""

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.libraries: Any = None
        self.limit: Any = None

    def __enter__(self) -> None:
        from threadpoolctl import ThreadpoolController

        with self.lock:
            self.libraries = self.libraries or ThreadpoolController()
            if not self.inside:
                self.limit = self.libraries.limit(limits=1)
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.limit.restore_original_limits()


_ONE_THREAD = _OneThread()


def _same(job: Any) -> Any:
    return job


def _lost(client: Any) -> str:
    return f"the Dask scheduler does not answer (client is {client.status!r}): start it again and fit again"
