"""What travels between machines and the root, and a meter for it. Rows never do.

The payload is the bytes of the arrays; the wire is the length of the pickled message. Sparse vectors count 12 bytes for
a number that is not zero: a place and a value.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from .objective import Floats
from .rows import Keys


@dataclass(frozen=True)
class Description:
    """What a machine says of its rows."""

    features: int
    rows: int
    distinct: int
    classes: NDArray[Any]  # (k,)
    sums: Floats  # (k,), weight of each class


@dataclass(frozen=True)
class Centroids:
    """The mean row of each class on each machine that has rows of it, and their weight."""

    means: csr_matrix  # (m, d)
    codes: NDArray[np.int64]  # (m,), places in the classes
    counts: Floats  # (m,)


@dataclass(frozen=True)
class Models:
    """The local models of one machine: for each lambda, one for each problem (binary: one, else one for each class)."""

    coefs: Sequence[csr_matrix]  # for each lambda (problems, d)
    intercepts: Floats  # (lambdas, problems)
    present: NDArray[np.bool_]  # (problems,); False where one side has no row, and there is no model
    gaps: Floats  # (lambdas, problems)
    converged: NDArray[np.bool_]  # (lambdas, problems)
    iterations: int  # the most of any fit


@dataclass(frozen=True)
class Projected:
    """Rows of the second round as the local models see them."""

    values: Sequence[Sequence[Floats]]  # for each lambda and problem (rows, models)
    codes: NDArray[np.int64]  # (rows,)
    weights: Floats  # (rows,)
    keys: Keys  # (rows,)


@dataclass(frozen=True)
class Gradients:
    """Gradients of a machine's loss at the averaged models."""

    coefs: Sequence[csr_matrix]  # for each lambda (problems, d)
    intercepts: Floats  # (lambdas, problems)
    total: float  # weight of the machine's rows


@dataclass
class Meter:
    """Bytes of all machines together, to the root (up) and from it (down).

    >>> meter = Meter()
    >>> meter.up(np.zeros(10))
    >>> meter.payload
    {'up': 80, 'down': 0}
    """

    payload: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    wire: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})

    def up(self, message: Any) -> None:
        """Count a message of one machine."""
        self._add("up", message, 1)

    def down(self, message: Any, machines: int) -> None:
        """Count a message to each of some machines."""
        self._add("down", message, machines)

    def _add(self, way: str, message: Any, times: int) -> None:
        self.payload[way] += times * payload(message)
        # Out of band: arrays are counted, not copied.
        buffers: list[pickle.PickleBuffer] = []
        head = len(pickle.dumps(message, protocol=5, buffer_callback=buffers.append))
        self.wire[way] += times * (head + sum(buffer.raw().nbytes for buffer in buffers))


def payload(message: Any) -> int:
    """Return the bytes of the arrays of a message; of a sparse matrix places and values.

    >>> payload((np.zeros(3), csr_matrix([[0.0, 2.0, 0.0]])))
    36
    """
    if isinstance(message, csr_matrix):
        return int(message.nnz) * 12
    if isinstance(message, np.ndarray):
        return int(message.nbytes)
    if isinstance(message, list | tuple):
        return sum(payload(one) for one in message)
    if dataclasses.is_dataclass(message):
        return sum(payload(getattr(message, one.name)) for one in dataclasses.fields(message))
    return 0
