"""Threads of our own that share one pass over many tensors."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TypeVar

import torch

T = TypeVar("T")


def run(kernel: Callable[..., T], parts: Sequence[tuple[object, ...]]) -> list[T]:
    """Return `[kernel(*part) for part in parts]`, shared between `torch.get_num_threads()` threads.

    The calling thread is one of them. Parts are handed out one at a time, so that a thread that has to wait for a core
    leaves its share to the others; results must not depend on who computes what. `kernel` has to release the
    interpreter for this to gain anything.

    >>> run(lambda a, b: a + b, [(1, 2), (3, 4)])
    [3, 7]
    """
    threads = min(torch.get_num_threads(), len(parts))
    if threads < 2:
        return [kernel(*part) for part in parts]
    results: list[T | None] = [None] * len(parts)
    places = itertools.count()

    def work() -> None:
        while (place := next(places)) < len(parts):
            results[place] = kernel(*parts[place])

    turns = _handed_out(work, threads - 1)
    try:
        work()
    finally:
        errors = [turn.end() for turn in turns]
    for error in errors:
        if error is not None:
            raise error
    return results  # type: ignore[return-value]


class _Turn:
    """One helper's share of a pass: called off if no helper has begun it when the caller is done, else waited for.

    A future of the standard library costs as much as the pass over a small model.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._begun, self._done = threading.Lock(), threading.Lock()
        self._done.acquire()

    def take(self) -> None:
        if self._begun.acquire(blocking=False):
            try:
                self._work()
            except BaseException as error:
                self._error = error
            finally:
                self._done.release()

    def end(self) -> BaseException | None:
        """Call it off, or wait for its end, as it writes; return what it raised."""
        if not self._begun.acquire(blocking=False):
            self._done.acquire()
        return self._error


_turns: SimpleQueue[_Turn] = SimpleQueue()
_helpers = 0
_lock = threading.Lock()


def _handed_out(work: Callable[[], None], helpers: int) -> list[_Turn]:
    global _helpers
    if _helpers < helpers:
        with _lock:
            try:
                while _helpers < helpers:
                    threading.Thread(target=_help, args=(_turns,), name="kernels of lowland", daemon=True).start()
                    _helpers += 1
            except RuntimeError:  # the interpreter is shutting down, or the system has no more threads
                pass
    turns = [_Turn(work) for _ in range(min(helpers, _helpers))]
    for turn in turns:
        _turns.put(turn)
    return turns


def _help(turns: SimpleQueue[_Turn]) -> None:
    while True:
        turns.get().take()


def _forget() -> None:
    """In a forked child the helpers do not exist, and the lock may be held by one thread that did."""
    global _turns, _helpers, _lock
    _turns, _helpers, _lock = SimpleQueue(), 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
