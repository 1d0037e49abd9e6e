"""What members give each other: in one process, or over a process group with one member a rank.

Nothing above this file knows which. `rows` hold, for each member of this process, its tensors in one order; what comes
back does too. Neither class keeps the number of ranks or the number of this one: a group may change between steps.

    means     ranks: one all-reduce a dtype, a flat bucket in float32 or wider; a ring sends 2 (N - 1) / N of it
    permute   ranks: one all-to-all, a flat bucket a dtype, of the values that change their owner
    blend     ranks: the same, of whole members to those that ask for them
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..arithmetic import kernels
from ..arithmetic.moments import wide
from .meter import Traffic

Row = list[Tensor]
PIECE = 1 << 17  # elements: those of all members at once stay in a core's own cache


class Exchange(Protocol):
    """What both ways can do."""

    traffic: Traffic  # since it was last set to zero

    @property
    def size(self) -> int:
        """How many members there are."""

    @property
    def here(self) -> Sequence[int]:
        """The numbers of those in this process."""

    def means(self, rows: Sequence[Row]) -> Row:
        """Return the mean of each tensor over all members, in float32 or wider: memory of its own."""

    def pull_(self, rows: Sequence[Row], weight: float) -> None:
        """Move every tensor towards its mean by this share of the way; 1 puts the mean in its place."""

    def permute(self, values: Sequence[Tensor], order: Tensor) -> Callable[[], list[Tensor]]:
        """Begin to give member n the i-th value of member order[n, i]; what is returned waits, and gives them."""

    def blend_(self, rows: Sequence[Row], pairs: Sequence[tuple[int, int]]) -> None:
        """Put the mean of two members in the place of each: member n becomes that of pairs[n]."""

    def copy_(self, rows: Sequence[Row], source: int) -> None:
        """Put the tensors of member `source` in the place of all."""

    def told(self, thing: Any) -> list[Any]:
        """Return what the processes say, in their order; small things that can be pickled."""

    def agreed(self, numbers: Sequence[int]) -> bool:
        """Say whether all processes give the same numbers, below 2^62."""

    def gathered(self, rows: Sequence[Row]) -> list[Row]:
        """Return copies of the tensors of all members, in their order."""

    def total(self, values: Sequence[float]) -> float:
        """Return the sum of one number of each member of this process, over all processes."""


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
        for mean, *own in _pieces([found, *rows]):
            mean.copy_(_mean(own))
        self._count(rows[0], 1.0, _ring(self.size))
        return found

    def pull_(self, rows: Sequence[Row], weight: float) -> None:
        for own in _pieces(_compiled_(rows, weight)):
            mean = _mean(own)
            for tensor in own:
                _towards_(tensor, mean, weight)
        self._count(rows[0], 1.0, _ring(self.size))

    def permute(self, values: Sequence[Tensor], order: Tensor) -> Callable[[], list[Tensor]]:
        given = list(torch.stack(list(values)).gather(0, order.to(values[0].device)))
        moved = float((order != torch.arange(self.size)[:, None]).sum()) / self.size
        size = values[0].element_size()
        self.traffic += Traffic(payload=size * order.shape[1], wire=size * moved)
        return lambda: given

    def blend_(self, rows: Sequence[Row], pairs: Sequence[tuple[int, int]]) -> None:
        for own in _pieces(rows):
            for tensor, child in zip(own, [_between(own[a], own[b]) for a, b in pairs], strict=True):
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


class Ranks:
    """One member a rank of a process group."""

    def __init__(self, group: Any, device: torch.device) -> None:
        self.traffic = Traffic()
        self.group, self.device = group, device

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    @property
    def here(self) -> Sequence[int]:
        return (dist.get_rank(self.group),)

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
            self.traffic += Traffic(payload=size, wire=_ring(self.size) * size)
        return [mean for mean in found if mean is not None]

    def pull_(self, rows: Sequence[Row], weight: float) -> None:
        for tensor, mean in zip(rows[0], self.means(rows), strict=True):
            _towards_(tensor, mean, weight)

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
            child = _between(*(parts[n] for n in pairs[rank]))
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


def _mean(own: Sequence[Tensor]) -> Tensor:
    """In the order of the members: ranks that add up in another differ from this in rounding."""
    total = own[0].to(wide(own[0].dtype), copy=True)
    for tensor in own[1:]:
        total.add_(tensor)
    return total.div_(len(own))


def _between(a: Tensor, b: Tensor) -> Tensor:
    """The same bits whichever is first."""
    return torch.add(a.to(wide(a.dtype)), b.to(wide(b.dtype))).mul_(0.5).to(a.dtype)


def _towards_(tensor: Tensor, mean: Tensor, weight: float) -> None:
    if weight == 1:
        tensor.copy_(mean)
    elif tensor.dtype == mean.dtype:
        tensor.lerp_(mean, weight)
    else:
        tensor.copy_(tensor.to(mean.dtype).lerp_(mean, weight))


def _pieces(rows: Sequence[Row]) -> Iterator[list[Tensor]]:
    """The same piece of all rows, one after the other: what is read twice is read from the cache."""
    for own in zip(*rows, strict=True):
        if own[0].numel() <= PIECE or not all(tensor.is_contiguous() for tensor in own):
            yield list(own)
            continue
        flat = [tensor.view(-1) for tensor in own]
        for begin in range(0, len(flat[0]), PIECE):
            yield [tensor[begin : begin + PIECE] for tensor in flat]


def all_finite(rows: Sequence[Row]) -> bool:
    """Say whether compiled code has found every number of the rows finite; False also where it cannot be used.

    >>> all_finite([[torch.tensor([float("nan")])]])
    False
    """
    addresses, parts, rest = _parts(rows)
    if not parts or any(rest):
        return False
    from ..arithmetic.kernels.pulls import finite

    return all(kernels.run(finite, [(addresses, part) for part in parts]))


def _compiled_(rows: Sequence[Row], weight: float) -> Sequence[Row]:
    """Pull what the compiled pass takes and return the rows of the rest."""
    addresses, parts, rest = _parts(rows)
    if parts:
        from ..arithmetic.kernels.pulls import pull

        kernels.run(pull, [(addresses, part, weight) for part in parts])
    return rest


def _parts(rows: Sequence[Row]) -> tuple[Any, list[Any], Sequence[Row]]:
    """What compiled passes take, float32 on the CPU without gaps: addresses, equal parts of work; the other rows."""
    if not kernels.available():
        return None, [], rows
    rest: list[Row] = [[] for _ in rows]
    addresses: list[list[int]] = []
    entries: list[tuple[int, int, int]] = []
    cuts, total = [0], 0
    for own in zip(*rows, strict=True):
        if all(t.dtype == torch.float32 and t.is_cpu and t.is_contiguous() for t in own):
            size = own[0].numel()
            for first in range(0, size, PIECE):
                entries.append((len(addresses), first, min(first + PIECE, size)))
                total += entries[-1][2] - first
                if total >= PIECE:
                    cuts.append(len(entries))
                    total = 0
            addresses.append([t.data_ptr() for t in own])
        else:
            for row, tensor in zip(rest, own, strict=True):
                row.append(tensor)
    table = np.array(entries, np.int64).reshape(-1, 3)
    cuts += [len(entries)] if total else []
    parts = [table[first:stop] for first, stop in zip(cuts, cuts[1:], strict=False)]
    return np.array(addresses, np.int64), parts, rest


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


def _ring(members: int) -> float:
    return 2 * (members - 1) / members


def _bytes(row: Row, kept: bool) -> int:
    """Of a bucket: in the tensors' own dtypes, or in those of their means."""
    return sum(
        tensor.numel() * (tensor.element_size() if kept else torch.empty(0, dtype=wide(tensor.dtype)).element_size())
        for tensor in row
    )
