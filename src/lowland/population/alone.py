"""All members in this process: sums in the order of the members, piece by piece, so that memory is read once.

The bytes are those that the members would send with a rank each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..arithmetic.moments import wide
from .exchange import Row, between, ring, towards_
from .meter import Traffic
from .passes import pieces, pulled_


class Alone:
    """All members in this process."""

    def __init__(self, members: int) -> None:
        self.traffic = Traffic()
        self._members = members

    @property
    def size(self) -> int:
        return self._members

    @property
    def here(self) -> Sequence[int]:
        return range(self._members)

    def means(self, rows: Sequence[Row]) -> Row:
        found = [torch.empty_like(tensor, dtype=wide(tensor.dtype)) for tensor in rows[0]]
        for mean, *own in pieces([found, *rows]):
            mean.copy_(_mean(own))
        self._count(rows[0], 1.0, ring(self.size))
        return found

    def pull_(self, rows: Sequence[Row], weight: float) -> None:
        for own in pieces(pulled_(rows, weight)):
            mean = _mean(own)
            for tensor in own:
                towards_(tensor, mean, weight)
        self._count(rows[0], 1.0, ring(self.size))

    def permute(self, values: Sequence[Tensor], order: Tensor) -> Callable[[], list[Tensor]]:
        given = list(torch.stack(list(values)).gather(0, order.to(values[0].device)))
        moved = float((order != torch.arange(self.size)[:, None]).sum()) / self.size
        size = values[0].element_size()
        self.traffic += Traffic(payload=size * order.shape[1], wire=size * moved)
        return lambda: given

    def blend_(self, rows: Sequence[Row], pairs: Sequence[tuple[int, int]]) -> None:
        for own in pieces(rows):
            for tensor, child in zip(own, [between(own[a], own[b]) for a, b in pairs], strict=True):
                tensor.copy_(child)
        asked = sum(len({a, b} - {n}) for n, (a, b) in enumerate(pairs)) / self.size
        self._count(rows[0], 1.0, asked, kept=True)

    def copy_(self, rows: Sequence[Row], source: int) -> None:
        for place, own in enumerate(rows):
            if place != source:
                for tensor, given in zip(own, rows[source], strict=True):
                    tensor.copy_(given)
        self._count(rows[0], 1 / self.size, (self.size - 1) / self.size, kept=True)

    def told(self, thing: Any) -> list[Any]:
        return [thing]

    def agreed(self, numbers: Sequence[int]) -> bool:
        return True

    def gathered(self, rows: Sequence[Row]) -> list[Row]:
        return [[tensor.clone() for tensor in own] for own in rows]

    def total(self, values: Sequence[float]) -> float:
        return float(sum(values))

    def _count(self, row: Row, payload: float, wire: float, kept: bool = False) -> None:
        size = _bytes(row, kept)
        self.traffic += Traffic(payload=payload * size, wire=wire * size)


def _mean(own: Sequence[Tensor]) -> Tensor:
    """In the order of the members: ranks that add up in another differ from this in rounding."""
    total = own[0].to(wide(own[0].dtype), copy=True)
    for tensor in own[1:]:
        total.add_(tensor)
    return total.div_(len(own))


def _bytes(row: Row, kept: bool) -> int:
    """Of a bucket: in the tensors' own dtypes, or in those of their means."""
    return sum(
        tensor.numel() * (tensor.element_size() if kept else torch.empty(0, dtype=wide(tensor.dtype)).element_size())
        for tensor in row
    )
