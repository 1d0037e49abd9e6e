"""Work of an averager beside the training loop: one job at a time in a worker thread, and copies from a device for it.

An update of averages kept on the CPU from weights on an accelerator has three parts: a snapshot on the device, in the
order of the training stream; its way to pinned memory, on a stream of its own; and the arithmetic on the CPU. Only the
first is waited for. `join` ends the wait for the others, and raises what the job raised.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ..weights.shards import local
from .reader import Reader


def pays(device: torch.device | None, weights: Mapping[str, Tensor]) -> bool:
    """Say whether an update is worth running beside the step: weights on CUDA, averaged on the CPU.

    >>> pays(torch.device("cpu"), {"w": torch.zeros(1)})
    False
    """
    return device is not None and device.type == "cpu" and any(tensor.is_cuda for tensor in weights.values())


class Beside:
    """Updates of one averager beside the training step, one at a time.

    >>> beside, seen = Beside(), []
    >>> beside.run({"w": torch.ones(1)}, None, lambda copies, same: seen.append(copies))
    >>> beside.join()
    >>> seen
    [{'w': tensor([1.])}]
    """

    def __init__(self) -> None:
        self._jobs: Background | None = None
        self._snapshots = Snapshots()
        self._reader = Reader()

    def run(
        self,
        weights: Mapping[str, Tensor],
        check: Callable[[dict[str, Tensor]], None] | None,
        absorb: Callable[[dict[str, Tensor], bool], None],
    ) -> None:
        """Copy the weights where they are and return; `check` then looks at the copies, and `absorb` takes them.

        Args:
            absorb: gets the copies on the CPU, and whether they lie in the memory of the last time.
        """
        snapshot = self._snapshots.take(weights)

        def job() -> None:
            if check is not None:
                with snapshot.beside():
                    check(snapshot.copies)
            copies, same = self._reader.read(snapshot.fetch())
            absorb(copies, same)
            self._reader.accept()

        self._jobs = self._jobs or Background()
        self._jobs.submit(job)

    def join(self) -> None:
        """Wait for the update under way. What it raised is raised here, once; in its own thread this does nothing."""
        if self._jobs is not None:
            self._jobs.join()

    def wait(self) -> None:
        """Wait for the update under way; what it raised is kept for the next `join`."""
        if self._jobs is not None:
            self._jobs.wait()


class Background:
    """At most one job under way, in a worker thread that ends with this object or with the interpreter.

    Before a fork every job is finished, since the child has no worker: it starts a new one at its first job. What a job
    raised and nobody asked for is printed when the interpreter ends.

    >>> background, done = Background(), []
    >>> background.submit(lambda: done.append(1))
    >>> background.join()
    >>> done
    [1]
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._job: Future[None] | None = None
        self._worker: int | None = None
        self._number = next(_numbers)
        _all.add(self)

    def submit(self, job: Callable[[], None]) -> None:
        """Start `job`; waits for the one under way, and raises what that raised instead of starting another."""
        self.join()
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="lowland")
        self._job = self._executor.submit(self._run, job)

    def join(self) -> None:
        """Wait for the job under way. What it raised is raised here, once. In the worker itself this does nothing."""
        job = self._job
        if job is None or threading.get_ident() == self._worker:
            return
        error = job.exception()
        if self._job is job:
            self._job = None
        if error is not None:
            _unread.pop(self._number, None)
            raise error

    def wait(self) -> None:
        """Wait for the job under way; what it raised is kept for the next `join`."""
        job = self._job
        if job is not None and threading.get_ident() != self._worker:
            job.exception()

    def _run(self, job: Callable[[], None]) -> None:
        self._worker = threading.get_ident()
        try:
            job()
        except BaseException as error:
            _unread[self._number] = f"{type(error).__name__}: {error}"
            raise
        finally:
            self._worker = None

    def _forget_the_worker(self) -> None:
        self._executor = None


class Snapshots:
    """Copies of weights as they are now, brought to the CPU later; pinned memory is kept for the next time.

    >>> weights = {"w": torch.zeros(2)}
    >>> snapshot = Snapshots().take(weights)
    >>> weights["w"].add_(1)
    tensor([1., 1.])
    >>> snapshot.fetch()
    {'w': tensor([0., 0.])}
    """

    def __init__(self) -> None:
        self._pinned: dict[str, Tensor] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def take(self, weights: Mapping[str, Tensor]) -> Snapshot:
        """Copy the weights, or of DTensors this rank's shards, where they are.

        The snapshot before must have been fetched: both come to the same pinned memory.
        """
        copies = {name: local(tensor).clone(memory_format=torch.preserve_format) for name, tensor in weights.items()}
        ready: dict[torch.device, torch.cuda.Event] = {}
        for name, copy in copies.items():
            if not copy.is_cuda:
                continue
            if copy.device not in ready:
                ready[copy.device] = torch.cuda.current_stream(copy.device).record_event()
                if copy.device not in self._streams:
                    self._streams[copy.device] = torch.cuda.Stream(copy.device)  # type: ignore[no-untyped-call]
            pinned = self._pinned.get(name)
            if pinned is None or pinned.shape != copy.shape or pinned.dtype != copy.dtype:
                self._pinned[name] = torch.empty_like(copy, device="cpu", pin_memory=True)
        return Snapshot(copies, self._pinned, self._streams, ready)


class Snapshot:
    """One snapshot, made by `Snapshots.take`."""

    def __init__(
        self,
        copies: dict[str, Tensor],
        pinned: dict[str, Tensor],
        streams: dict[torch.device, torch.cuda.Stream],
        ready: dict[torch.device, torch.cuda.Event],
    ) -> None:
        self.copies = copies
        self._pinned = pinned
        self._streams = streams
        self._ready = ready

    def beside(self) -> ExitStack:
        """Return a context in which the devices work on the copies beside the training stream."""
        stack = ExitStack()
        for device, ready in self._ready.items():
            stack.enter_context(torch.cuda.stream(self._streams[device]))
            self._streams[device].wait_event(ready)
        return stack

    def fetch(self) -> dict[str, Tensor]:
        """Bring the copies to the CPU, wait until they are there, and give back the devices' memory."""
        found = dict(self.copies)
        with self.beside():
            for name, copy in self.copies.items():
                if copy.is_cuda:
                    copy.record_stream(self._streams[copy.device])
                    found[name] = self._pinned[name].copy_(copy, non_blocking=True)
            arrived = []
            for device in self._ready:
                # The thread sleeps meanwhile; by default it would spin.
                event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                event.record(self._streams[device])
                arrived.append(event)
        for event in arrived:
            event.synchronize()
        self.copies = {}
        return found


_all: weakref.WeakSet[Background] = weakref.WeakSet()
_numbers = itertools.count()
_unread: dict[int, str] = {}  # what jobs raised that nobody has asked for
_locked: weakref.WeakSet[Any] = weakref.WeakSet()


def own_lock(owner: Any) -> threading.RLock:
    """Return a lock for `owner` to keep under `_lock`; a forked child gets another, as no thread could release it.

    >>> class Owner:
    ...     def __init__(self):
    ...         self._lock = own_lock(self)
    >>> with Owner()._lock:
    ...     pass
    """
    _locked.add(owner)
    return threading.RLock()


def _finish_all() -> None:
    for background in list(_all):
        background.wait()


def _forget_all() -> None:
    for background in list(_all):
        background._forget_the_worker()
    for owner in list(_locked):
        owner._lock = threading.RLock()
    _unread.clear()


def _tell() -> None:
    _finish_all()
    for error in _unread.values():
        sys.stderr.write(f"lowland: an update beside the step failed and nobody asked for it since: {error}\n")


atexit.register(_tell)
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(before=_finish_all, after_in_child=_forget_all)
