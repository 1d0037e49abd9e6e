"""Compiled kernels for tensors on the CPU: an extra (`pip install 'lowland[fast]'`), with plain torch as twin.

The kernels are written with numba, which is imported at the first use and not before, and kept on disk once compiled.
They take addresses, so the user's tensors stay where they are, and they release the interpreter, so that `run` can
share one pass over many tensors between threads of its own. numba's own threading is not used: its layers clash with
those of other libraries in the same process.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from .threads import run as run

_lock = threading.Lock()
_switched_off = 0


@cache
def _installed() -> bool:
    if sys.byteorder != "little" or importlib.util.find_spec("numba") is None:
        return False
    try:
        import numba  # noqa: F401
    except Exception:  # numba refuses some versions of numpy and of Python when it is imported
        return False
    return True


def available() -> bool:
    """Return whether kernels are used: numba can be imported and they are not switched off.

    >>> with disabled():
    ...     available()
    False
    """
    return not _switched_off and _installed()


@contextmanager
def disabled() -> Iterator[None]:
    """Run a block with plain torch, in every thread of the process.

    >>> with disabled():
    ...     pass  # updates and draws here do not use numba
    """
    global _switched_off
    with _lock:
        _switched_off += 1
    try:
        yield
    finally:
        with _lock:
            _switched_off -= 1


def _forget() -> None:
    """In a forked child the lock may be held by a thread that is not there."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
