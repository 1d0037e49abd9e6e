"""One member on each rank of a process group.

means     one all-reduce a dtype, a flat bucket in float32 or wider; a ring sends 2 (N - 1) / N of it
permute   one all-to-all, a flat bucket a dtype, of the values that change their owner
blend     the same, of whole members to those that ask for them
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..arithmetic.moments import wide
from .exchange import Row, between, ring, towards_
from .meter import Traffic


class Ranks:
    """One member a rank of a process group."""

    def __init__(self, group: Any, device: torch.device) -> None:
        self.traffic = Traffic()
        self.device, self._given = device, group

    @property
    def group(self) -> Any:
        """The group as it is now: torchft's keep one object, whose inner group changes with the quorum."""
        return getattr(self._given, "parent", self._given)

    @property
    def size(self) -> int:
        return int(self.group.size())

    @property
    def here(self) -> Sequence[int]:
        return (int(self.group.rank()),)

    def means(self, rows: Sequence[Row]) -> Row:
        found: list[Tensor | None] = [None] * len(rows[0])
        for places in _by_dtype(rows[0]):
            own = [rows[0][place] for place in places]
            bucket = _flat(own, wide(own[0].dtype))
            with self._waiting():
                dist.all_reduce(bucket, group=self.group)
            bucket.div_(self.size)
            for place, mean in zip(places, _views(bucket, own), strict=True):
                found[place] = mean
            size = bucket.numel() * bucket.element_size()
            self.traffic += Traffic(payload=size, wire=ring(self.size) * size)
        return [mean for mean in found if mean is not None]

    def pull_(self, rows: Sequence[Row], weight: float) -> None:
        for tensor, mean in zip(rows[0], self.means(rows), strict=True):
            towards_(tensor, mean, weight)

    def permute(self, values: Sequence[Tensor], order: Tensor) -> Callable[[], list[Tensor]]:
        own, (rank,) = values[0], self.here
        order = order.to(own.device)
        # Value i of this rank goes to the member whose source it is, in the order of members, then of coordinates.
        goes = torch.argsort(order, 0)[rank]
        sent = torch.argsort(goes, stable=True)
        got = torch.argsort(order[rank], stable=True)
        sizes = [torch.bincount(places, minlength=self.size) for places in (goes, order[rank])]
        away = [places[_away(places, of, rank)] for places, of in ((sent, goes), (got, order[rank]))]
        for each in sizes:
            each[rank] = 0  # what stays does not travel
        send, arrive = own[away[0]], own.new_empty(len(away[1]))
        work = self._all_to_all(arrive, send, sizes[1].tolist(), sizes[0].tolist(), later=True)
        size = own.element_size()
        self.traffic += Traffic(payload=size * len(own), wire=size * len(send))

        def done() -> list[Tensor]:
            with self._waiting():
                if work is not None:
                    work.wait()
            mixed = own.clone()
            mixed[away[1]] = arrive
            return [mixed]

        return done

    def blend_(self, rows: Sequence[Row], pairs: Sequence[tuple[int, int]]) -> None:
        (rank,), row = self.here, rows[0]
        asked = [[m for m, pair in enumerate(pairs) if n in pair and m != n] for n in range(self.size)]
        for places in _by_dtype(row):
            own = [row[place] for place in places]
            bucket = _flat(own, own[0].dtype)
            to = [len(bucket) * (m in asked[rank]) for m in range(self.size)]
            of = [len(bucket) * (rank in asked[n]) for n in range(self.size)]
            arrive = bucket.new_empty(sum(of))
            self._all_to_all(arrive, bucket.repeat(len(asked[rank])), of, to)
            parts = {n: part for n, part in enumerate(torch.split(arrive, of))} | {rank: bucket}
            child = between(*(parts[n] for n in pairs[rank]))
            for tensor, view in zip(own, _views(child, own), strict=True):
                tensor.copy_(view)
            size = bucket.numel() * bucket.element_size()
            self.traffic += Traffic(payload=size, wire=size * len(asked[rank]))

    def copy_(self, rows: Sequence[Row], source: int) -> None:
        (rank,) = self.here
        for places in _by_dtype(rows[0]):
            own = [rows[0][place] for place in places]
            bucket = _flat(own, own[0].dtype)
            with self._waiting():
                dist.broadcast(bucket, group=self.group, group_src=source)
            for tensor, view in zip(own, _views(bucket, own), strict=True):
                tensor.copy_(view)
            size = bucket.numel() * bucket.element_size() * (rank == source)
            self.traffic += Traffic(payload=size, wire=(self.size - 1) * size)

    def told(self, thing: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        with self._waiting():
            dist.all_gather_object(found, thing, group=self.group)
        return found

    def agreed(self, numbers: Sequence[int]) -> bool:
        said = torch.tensor([*numbers, *(-number for number in numbers)], device=self.device)
        with self._waiting():
            dist.all_reduce(said, dist.ReduceOp.MAX, group=self.group)
        high, low = said.chunk(2)
        return torch.equal(high, -low)

    def gathered(self, rows: Sequence[Row]) -> list[Row]:
        found: list[Row] = [[] for _ in range(self.size)]
        order: list[int] = []
        for places in _by_dtype(rows[0]):
            own = [rows[0][place] for place in places]
            bucket = _flat(own, own[0].dtype)
            every = bucket.new_empty(self.size, len(bucket))
            with self._waiting():
                dist.all_gather(list(every), bucket, group=self.group)
            for row, flat in zip(found, every, strict=True):
                row += _views(flat, own)
            order += places
        back = sorted(range(len(order)), key=order.__getitem__)
        return [[row[place] for place in back] for row in found]

    def total(self, values: Sequence[float]) -> float:
        said = torch.tensor(float(sum(values)), dtype=torch.float64, device=self.device)
        with self._waiting():
            dist.all_reduce(said, group=self.group)
        return float(said)

    def _all_to_all(self, arrive: Tensor, send: Tensor, of: list[int], to: list[int], later: bool = False) -> Any:
        with self._waiting():
            return dist.all_to_all_single(arrive, send, of, to, group=self.group, async_op=later)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        except RuntimeError as error:
            said = re.sub(r"\[[^\]]*/[^\]]*\] *", "", " ".join(str(error).split())).split(". ")[0]
            raise RuntimeError(
                f"a rank was lost or did not come in time ({said}): this bucket was not mixed; start all ranks again "
                "from their latest checkpoint, as torchrun --max-restarts does"
            ) from error
        finally:
            self.traffic.waited += time.perf_counter() - begun


def _by_dtype(row: Row) -> list[list[int]]:
    """The places of a row's tensors, those of one dtype and device together."""
    found: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for place, tensor in enumerate(row):
        found.setdefault((tensor.dtype, tensor.device), []).append(place)
    return list(found.values())


def _flat(own: Row, dtype: torch.dtype) -> Tensor:
    return torch.cat([tensor.reshape(-1).to(dtype) for tensor in own])


def _views(bucket: Tensor, own: Row) -> Row:
    parts = torch.split(bucket, [tensor.numel() for tensor in own])
    return [part.view(tensor.shape) for part, tensor in zip(parts, own, strict=True)]


def _away(places: Tensor, of: Tensor, rank: int) -> Tensor:
    return of[places] != rank
