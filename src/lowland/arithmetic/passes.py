"""Updates of many tensors in one pass: compiled kernels where they can be used, else the operations of `moments`.

The kernels take addresses. A table of them is kept from update to update and made anew when a weight has moved, changed
its dtype or its strides, or when the averager holds other tensors. No reference to a weight is kept.
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

BLOCK = 1 << 16  # elements of one entry of the table of blocks
SMALLEST_PART, LARGEST_PART = 1 << 16, 1 << 20  # elements that a thread takes at a time
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
        self._known: Weights | None = None  # the weights of the update under way, if the table was made for such

    def __reduce__(self) -> tuple[Callable[[], Passes], tuple[()]]:
        return Passes, ()

    def first_nonfinite(self, weights: Weights) -> str | None:
        """Return the name of the first tensor that holds a NaN or an infinity, or None; as `moments` does.

        >>> Passes().first_nonfinite({"a": torch.zeros(1), "b": torch.tensor([float("inf")])})
        'b'
        """
        if not kernels.available():
            return moments.first_nonfinite({name: local(tensor) for name, tensor in weights.items()})
        updates = _compiled()
        # The table of the last update serves unless something moved.
        table = self._table if self._known is weights else None
        table = table or _made(weights, {})
        bad = [index for index in table.run(updates.first_bad) if index >= 0]
        names = {table.names[min(bad)]} if bad else set()
        if table.rest:
            name = moments.first_nonfinite({name: local(weights[name]) for name in table.rest})
            names |= set() if name is None else {name}
        if names:
            self._known = None
        return next((name for name in weights if name in names), None)

    def knows(self, weights: Weights) -> bool:
        """Say whether the last update saw the same names, shapes, dtypes and memory, none of them sharded.

        >>> passes, weights = Passes(), {"w": torch.zeros(2)}
        >>> passes.knows(weights)
        False
        """
        self._known = weights if kernels.available() and self._fits(weights) else None
        return self._known is not None

    def _fits(self, weights: Weights) -> bool:
        seen = None if self._table is None else self._table.seen
        return seen is not None and _look(weights) == seen

    def _fitting(self, weights: Weights, slots: Mapping[str, Weights]) -> _Table:
        table = self._table if self._known is weights or self._fits(weights) else None
        self._known = None
        if table is None or table.slots.keys() != slots.keys() or table.held != _held(slots):
            table = self._table = _made(weights, slots)
        return table

    def lerp_(self, average: Weights, weights: Weights, rate: float) -> None:
        """`average += rate (weights - average)`, in the average's dtype; other than floats are copied."""
        rest: Iterable[str] = average
        if kernels.available():
            updates = _compiled()
            table = self._fitting(weights, {"mean": average})
            table.run(updates.absorb, updates.MEAN, 0, np.float32(rate), np.float32(0))
            rest = table.rest
        names = list(rest)
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
            table = self._fitting(weights, slots)
            mode, factor = updates.SQUARES, count / (count - 1)
            if evicted is not None:
                mode, factor = (updates.EVICT, evicted) if evicted else (updates.COLUMN, 0.0)
            elif ring is not None:
                mode = updates.ROUNDED
            table.run(updates.absorb, mode, place, np.float32(1 / count), np.float32(factor))
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


_Seen = tuple[list[str], list[int], list[Any], list[Any], list[Any]]
_PLAIN = (Tensor, nn.Parameter)


@dataclass(frozen=True)
class _Table:
    """Where the tensors of one kind of pass lie, and how the pass is cut into parts."""

    slots: Mapping[str, Weights]
    held: list[tuple[list[int], int]]
    seen: _Seen | None
    names: list[str]  # of the rows
    rest: list[str]  # tensors that no kernel takes
    rows: np.ndarray[Any, Any]  # (tensors, 6): kind of weight, four addresses, bytes from one column to the next
    blocks: np.ndarray[Any, Any]  # (blocks, 3): row, first element, elements
    parts: list[tuple[int, int]]  # blocks of each part

    def run(self, kernel: Callable[..., Any], *arguments: object) -> list[Any]:
        """Run `kernel` over all blocks; writing starts at the end, which the check before has left in the cache."""
        order = self.parts[::-1] if arguments else self.parts
        return kernels.run(kernel, [(*part, self.blocks, self.rows, *arguments) for part in order])


def _look(weights: Weights) -> _Seen | None:
    """What a table depends on, or None with tensors of other kinds, such as sharded ones."""
    tensors = weights.values()
    if not set(map(type, tensors)) <= set(_PLAIN):
        return None
    try:
        addresses = list(map(Tensor.data_ptr, tensors))
    except RuntimeError:  # such as sparse tensors
        return None
    # An address may come back with another dtype or shape after a free, so it is not enough.
    return (
        list(weights),
        addresses,
        [tensor.dtype for tensor in tensors],
        [tensor.shape for tensor in tensors],
        [tensor.stride() for tensor in tensors],
    )


def _held(slots: Mapping[str, Weights]) -> list[tuple[list[int], int]]:
    """Which tensors the slots hold, and where the first of each lies."""
    found = []
    for slot in slots.values():
        first = local(next(iter(slot.values())))
        found.append((list(map(id, slot.values())), first.data_ptr()))
    return found


def _made(weights: Weights, slots: Mapping[str, Weights]) -> _Table:
    names: list[str] = []
    rest: list[str] = []
    rows: list[tuple[int, ...]] = []
    for name, given in weights.items():
        tensor, own = local(given), {key: local(slot[name]) for key, slot in slots.items()}
        if not tensor.numel() and tensor.is_floating_point():
            continue
        if not _fits(tensor, own):
            rest.append(name)
            continue
        ring = own.get("ring")
        row = 0 if ring is None else ring.stride(0) * ring.element_size()
        addresses = (tensor.data_ptr(), *(own[key].data_ptr() if key in own else 0 for key in ("mean", "base", "ring")))
        names.append(name)
        rows.append((_KINDS[tensor.dtype], *addresses, row))
    # What `local` gives of a sharded tensor is a view: its size, not the whole tensor's.
    blocks, parts = _cut([local(weights[name]).numel() for name in names])
    table = np.array(rows, dtype=np.int64).reshape(-1, 6)
    return _Table(slots, _held(slots), _look(weights), names, rest, table, blocks, parts)


def _fits(tensor: Tensor, own: Mapping[str, Tensor]) -> bool:
    """Whether a kernel may walk this tensor and its state by address alone."""
    mean, ring = own.get("mean"), own.get("ring")
    plain = all(
        type(t) in _PLAIN and t.is_cpu and t.layout == torch.strided and not t.is_neg() for t in (tensor, *own.values())
    )
    if not plain or tensor.dtype not in _KINDS or (mean is not None and mean.dtype != torch.float32):
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
    wanted = min(LARGEST_PART, max(SMALLEST_PART, sum(sizes) // (4 * torch.get_num_threads())))
    parts: list[tuple[int, int]] = []
    begin = held = 0
    for index, (_, _, length) in enumerate(blocks):
        held += length
        if held >= wanted or index == len(blocks) - 1:
            parts.append((begin, index + 1))
            begin, held = index + 1, 0
    return np.array(blocks, dtype=np.int64).reshape(-1, 3), parts
