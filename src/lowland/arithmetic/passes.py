"""Updates of many tensors in one pass: compiled kernels where they can be used, else the operations of `moments`.

The kernels take addresses. A table of them is kept while the averager says that its weights are as last time, and made
anew when they are not, or when the averager holds other tensors. Every tensor whose address enters a table has been
looked at: kind, dtype, device, order in memory, and its shape beside the others'. No reference to a weight is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..weights.named import Weights
from ..weights.shards import local
from . import kernels, moments
from .moments import FINITE

BLOCK = 1 << 16  # elements of one entry of the table of blocks
SMALLEST_PART, LARGEST_PART = 1 << 16, 1 << 20  # elements that a thread takes at a time
WORTH = 1 << 19  # elements of a part from which another turn of every thread costs less than it evens out
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in kernels/updates.py


class Passes:
    """What one averager needs for its updates; holds addresses only, so that copies of it start empty.

    >>> passes, mean = Passes(), {"w": torch.zeros(2)}
    >>> passes.lerp_(mean, {"w": torch.tensor([2.0, 4.0])}, 0.5)
    >>> mean
    {'w': tensor([1., 2.])}
    """

    def __init__(self) -> None:
        self._table: _Table | None = None
        self._current: Weights | None = None  # the weights that the table is for, while their update is under way

    def __reduce__(self) -> tuple[Callable[[], Passes], tuple[()]]:
        return Passes, ()

    def expect(self, weights: Weights, same: bool) -> None:
        """Say what the next passes are over, and whether it lies as what was expected last did."""
        self._current = weights
        if not same:
            self._table = None

    def done(self) -> None:
        """Refer to no weights any more; where they lay stays known."""
        self._current = None

    def first_nonfinite(self, weights: Weights, room: str = FINITE) -> str | None:
        """Return the name of the first tensor with a number that is not finite or beyond the limit, as `moments` does.

        >>> Passes().first_nonfinite({"a": torch.zeros(1), "b": torch.tensor([float("inf")])})
        'b'
        """
        if not kernels.available():
            return moments.first_nonfinite({name: local(tensor) for name, tensor in weights.items()}, room)
        updates = _compiled()
        table = (self._table if self._current is weights else None) or _made(weights, {})
        bad = [index for index in table.run(updates.first_bad, _fields(room)) if index >= 0]
        names = {table.names[min(bad)]} if bad else set()
        if table.rest:
            name = moments.first_nonfinite({name: local(weights[name]) for name in table.rest}, room)
            names |= set() if name is None else {name}
        return next((name for name in weights if name in names), None) if names else None

    def _fitting(self, weights: Weights, slots: Mapping[str, Weights], rank: int = 0) -> _Table:
        expected = self._current is weights
        table = self._table if expected else None
        if table is None or table.slots.keys() != slots.keys() or table.rank != rank or table.held != _held(slots):
            table = _made(weights, slots, rank)
            if expected:
                self._table = table
        return table

    def lerp_(self, average: Weights, weights: Weights, rate: float) -> None:
        """`average += rate (weights - average)`, in the average's dtype; other than floats are copied."""
        rest: Iterable[str] = average
        if kernels.available():
            updates = _compiled()
            table = self._fitting(weights, {"mean": average})
            table.run(updates.absorb, updates.MEAN, 0, np.float32(rate), np.float32(0), backwards=True)
            rest = table.rest
        names = list(rest)
        if names:
            moments.lerp_([local(average[name]) for name in names], [local(weights[name]) for name in names], rate)

    def welford_(
        self,
        mean: Weights,
        base: Weights,
        weights: Weights,
        count: int,
        ring: Weights | None = None,
        evicted: float | None = None,
    ) -> None:
        """Absorb the `count`-th iterate into means, second moments and a ring of deviations (rank, *shape).

        As `moments.welford_`, with the ring's next row as the columns.
        """
        rank = 0 if ring is None else len(next(iter(ring.values())))
        place = (count - 1) % rank if rank else 0
        rest: Iterable[str] = mean
        if kernels.available() and count > 1:
            updates = _compiled()
            slots = {"mean": mean, "base": base} | ({} if ring is None else {"ring": ring})
            mode, factor = updates.SQUARES, count / (count - 1)
            if evicted is not None:
                mode, factor = (updates.EVICT, evicted) if evicted else (updates.COLUMN, 0.0)
            elif ring is not None:
                mode = updates.ROUNDED
            # What the mode writes is the ring's dtype: a negative rank stands for rounded columns.
            table = self._fitting(weights, slots, -rank if mode == updates.ROUNDED else rank)
            table.run(updates.absorb, mode, place, np.float32(1 / count), np.float32(factor), backwards=True)
            rest = table.rest
        names = list(rest)
        if names:
            columns = None if ring is None else [local(ring[name])[place] for name in names]
            means, bases, sources = ([local(slot[name]) for name in names] for slot in (mean, base, weights))
            moments.welford_(means, bases, sources, count, columns, evicted)


@cache
def _compiled() -> Any:
    """The kernels, imported at the first use: an import statement in each update costs as much as ten tensors."""
    from .kernels import updates

    return updates


@cache
def _fields(room: str) -> tuple[int, ...]:
    return tuple(_compiled().field(kind, moments.limit(dtype, room)) for dtype, kind in _KINDS.items())


_PLAIN = (Tensor, nn.Parameter)


@dataclass(frozen=True)
class _Table:
    """Where the tensors of one kind of pass lie, and how the pass is cut into parts."""

    slots: Mapping[str, Weights]
    rank: int
    held: list[tuple[list[int], int]]
    names: list[str]  # of the rows
    rest: list[str]  # tensors that no kernel takes
    rows: np.ndarray[Any, Any]  # (tensors, 6): kind of weight, four addresses, bytes from one column to the next
    blocks: np.ndarray[Any, Any]  # (blocks, 3): row, first element, elements
    parts: list[tuple[int, int]]  # blocks of each part
    reading: list[tuple[int, int]]  # the same for a pass that only reads: one part where waking a thread takes longer

    def run(self, kernel: Callable[..., Any], *arguments: object, backwards: bool = False) -> list[Any]:
        """Run `kernel` over all blocks; writing starts at the end, which the check before has left in the cache."""
        order = self.parts[::-1] if backwards else self.reading
        return kernels.run(kernel, [(*part, self.blocks, self.rows, *arguments) for part in order])


def _held(slots: Mapping[str, Weights]) -> list[tuple[list[int], int]]:
    """Which tensors the slots hold, and where the first of each lies."""
    found = []
    for slot in slots.values():
        first = local(next(iter(slot.values())))
        found.append((list(map(id, slot.values())), first.data_ptr()))
    return found


def _made(weights: Weights, slots: Mapping[str, Weights], rank: int = 0) -> _Table:
    names: list[str] = []
    rest: list[str] = []
    rows: list[tuple[int, ...]] = []
    for name, given in weights.items():
        tensor, own = local(given), {key: local(slot[name]) for key, slot in slots.items()}
        if not tensor.numel() and tensor.is_floating_point():
            continue
        if not _fits(tensor, own, rank):
            rest.append(name)
            continue
        ring = own.get("ring")
        row = 0 if ring is None else ring.stride(0) * ring.element_size()
        addresses = (tensor.data_ptr(), *(own[key].data_ptr() if key in own else 0 for key in ("mean", "base", "ring")))
        names.append(name)
        rows.append((_KINDS[tensor.dtype], *addresses, row))
    # What `local` gives of a sharded tensor is a view: its size, not the whole tensor's.
    sizes = [local(weights[name]).numel() for name in names]
    blocks, parts = _cut(sizes)
    reading = parts if sum(sizes) > 4 * WORTH else [(0, len(blocks))]
    table = np.array(rows, dtype=np.int64).reshape(-1, 6)
    return _Table(slots, rank, _held(slots), names, rest, table, blocks, parts, reading)


def _fits(tensor: Tensor, own: Mapping[str, Tensor], rank: int) -> bool:
    """Whether a kernel may walk this tensor and its state by address alone."""
    ring = own.get("ring")
    plain = all(
        type(t) in _PLAIN and t.layout == torch.strided and t.is_cpu and not t.is_neg() for t in (tensor, *own.values())
    )
    if not plain or tensor.dtype not in _KINDS:
        return False
    if any(t.dtype != torch.float32 or t.shape != tensor.shape for key, t in own.items() if key != "ring"):
        return False
    wanted = torch.bfloat16 if rank < 0 else torch.float32
    if ring is not None and (ring.dtype != wanted or ring.shape != (abs(rank), *tensor.shape)):
        return False
    if all(t.is_contiguous() for t in (tensor, *own.values())):
        return True
    # Channels last: the same order in memory, without a ring, whose rows are contiguous.
    dense = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return dense and ring is None and all(t.stride() == tensor.stride() for t in own.values())


def _cut(sizes: Sequence[int]) -> tuple[np.ndarray[Any, Any], list[tuple[int, int]]]:
    """Return the blocks of tensors of these sizes, and parts of nearly equal work, each a range of blocks."""
    blocks = [
        (row, start, min(BLOCK, size - start)) for row, size in enumerate(sizes) for start in range(0, size, BLOCK)
    ]
    total, threads = sum(sizes), torch.get_num_threads()
    turns = max(1, min(4, total // (threads * WORTH)))
    wanted = min(LARGEST_PART, max(SMALLEST_PART, -(-total // (threads * turns))))
    parts: list[tuple[int, int]] = []
    begin = held = 0
    for index, (_, _, length) in enumerate(blocks):
        held += length
        if held >= wanted or index == len(blocks) - 1:
            parts.append((begin, index + 1))
            begin, held = index + 1, 0
    return np.array(blocks, dtype=np.int64).reshape(-1, 3), parts
