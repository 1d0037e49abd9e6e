"""Threads of our own that share one pass over many tensors."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_workers = 0


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

    try:
        helpers = [_executor(threads - 1).submit(work) for _ in range(threads - 1)]
    except RuntimeError:  # the interpreter is shutting down
        helpers = []
    try:
        work()
    finally:
        # A helper that never got a core has nothing left to do; one that works is waited for, as it writes.
        waiting = [helper for helper in helpers if not helper.cancel()]
        errors = [helper.exception() for helper in waiting]
    for error in errors:
        if error is not None:
            raise error
    return results  # type: ignore[return-value]


def _executor(workers: int) -> ThreadPoolExecutor:
    global _pool, _workers
    with _lock:
        if _pool is None or _workers < workers:
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool, _workers = ThreadPoolExecutor(workers, thread_name_prefix="kernels of lowland"), workers
        return _pool


def _forget() -> None:
    """In a forked child the pool's threads do not exist, and the lock may be held by one that did."""
    global _pool, _workers, _lock
    _pool, _workers, _lock = None, 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
