"""Which coordinates are shuffled and how, and which pairs are mixed: pure functions of seed, step and tensor.

Nothing of this travels: every rank computes it. The numbers are those of Philox4x32-10 (`lowland.arithmetic.philox`):

    key      64 bits that follow from the seed
    counter  (event, block, step, tensor); pairs are those of tensor 0, which no name has

An event of block 0 says with its first word how many coordinates are passed over before the next one that is chosen:
a geometric number, found in a table of `TABLE` whole numbers, whose end says "none of the next TABLE", from where on
the same holds again. So each coordinate is chosen with probability p, to 2^-32, whatever happens to the others, at a
cost that grows with those chosen. Its other words, and those of further blocks, are the Fisher-Yates shuffle of the
members. No function of floating-point numbers is asked: machines of every kind agree.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from ..arithmetic.philox import MASK, philox, tensor_ids

TABLE = 1 << 12


class Shuffle(NamedTuple):
    """Which coordinates of each tensor are shuffled, and how.

    >>> chosen = shuffle(0, 1, {"w": 1000}, {"w": 0.01}, members=3)
    >>> [len(places) for places in chosen.places.values()], chosen.order.shape
    ([7], torch.Size([3, 7]))
    """

    places: dict[str, Tensor]  # (k,) int64 in the flattened tensor, ascending
    order: Tensor  # (members, K) int64: member n takes the value of member order[n], tensors one after the other


def key_of(seed: int) -> int:
    """Return the 64-bit key of a seed.

    >>> key_of(0) != key_of(1)
    True
    """
    return int.from_bytes(hashlib.blake2b(f"population {seed}".encode(), digest_size=8).digest(), "little")


def shuffle(seed: int, step: int, sizes: Mapping[str, int], chances: Mapping[str, float], members: int) -> Shuffle:
    """Return the coordinates of every tensor that a step shuffles, and the permutation of each.

    Args:
        sizes: elements of each tensor.
        chances: of each tensor, the probability that a coordinate is chosen.

    >>> one = shuffle(0, 5, {"a": 50, "b": 70}, {"a": 1.0, "b": 0.0}, members=2)
    >>> len(one.places["a"]), len(one.places["b"])
    (50, 0)
    """
    key, enough = key_of(seed), 1
    while (found := _walk(_walked(tuple(sizes.items()), tuple(chances[n] for n in sizes), enough), step, key)) is None:
        enough *= 2  # the first events are the same ones
    counts, places, chosen, words, tensors = found
    order = _permutations(words, chosen, tensors, step, key, members)
    return Shuffle(dict(zip(sizes, torch.split(places, counts), strict=True)), order)


def pairs(seed: int, step: int, members: int) -> list[tuple[int, int]]:
    """Return a pair of members for each child, drawn without replacement from all pairs; two members are one pair.

    >>> pairs(0, 1, 2)
    [(0, 1), (0, 1)]
    >>> sorted(pairs(0, 1, 3))
    [(0, 1), (0, 2), (1, 2)]
    """
    every = list(combinations(range(members), 2))
    if members == 2:
        return every * 2
    blocks = torch.arange(-(-members // 4))
    drawn = torch.stack(philox((blocks, *_constants(0, step), torch.tensor(0)), key_of(seed))).T.reshape(-1).tolist()
    for place in range(members):  # the first steps of a Fisher-Yates shuffle
        other = place + (drawn[place] * (len(every) - place) >> 32)
        every[place], every[other] = every[other], every[place]
    return every[:members]


@lru_cache(maxsize=1024)
def _thresholds(chance: float) -> Tensor:
    """A word below the g-th of these means: at most g coordinates are passed over."""
    stays, left, found = (1 << 64) - int(Fraction(chance) * (1 << 64)), 1 << 64, []
    for _ in range(TABLE):
        left = left * stays >> 64
        found.append((1 << 64) - left >> 32)
    return torch.tensor(found)


class _Walk(NamedTuple):
    """What the walk over all tensors needs, one entry an event, tensors one after the other."""

    events: Tensor  # counted anew in each tensor
    tensors: Tensor  # their numbers in the counter
    sizes: Tensor
    rows: Tensor  # of the table, times 2^33
    table: Tensor  # thresholds of all probabilities, row after row
    firsts: Tensor  # of each tensor, the place of its first event
    owners: Tensor  # of each event, which tensor it is of
    counts: tuple[int, ...]  # of each tensor, its events


@lru_cache(maxsize=8)
def _walked(sizes: tuple[tuple[str, int], ...], chances: tuple[float, ...], enough: int) -> _Walk:
    ids = tensor_ids(name for name, _ in sizes)
    rows = {chance: row for row, chance in enumerate(dict.fromkeys(c for c in chances if c > 0))}
    table = [_thresholds(chance) + (row << 33) for chance, row in rows.items()]
    counts = tuple(_events(size, c) * enough if c > 0 else 0 for (_, size), c in zip(sizes, chances, strict=True))
    times = torch.tensor(counts)
    firsts = torch.cumsum(times, 0) - times
    return _Walk(
        torch.arange(sum(counts)) - firsts.repeat_interleave(times),
        torch.tensor([ids[name] for name, _ in sizes]).repeat_interleave(times),
        torch.tensor([size for _, size in sizes]).repeat_interleave(times),
        torch.tensor([rows.get(chance, 0) << 33 for chance in chances]).repeat_interleave(times),
        torch.cat([*table, torch.empty(0, dtype=torch.int64)]),
        firsts,
        torch.arange(len(counts)).repeat_interleave(times),
        counts,
    )


def _walk(walk: _Walk, step: int, key: int) -> tuple[list[int], Tensor, Tensor, Tensor, Tensor] | None:
    """Of each tensor how many are chosen; of each one chosen its place, event, words (4, k) and tensor.

    None: the events do not reach the end of every tensor.
    """
    if not len(walk.events):
        none = torch.empty(0, dtype=torch.int64)
        return [0] * len(walk.counts), none, none, none.expand(4, 0), none
    words = torch.stack(philox((walk.events, *_constants(0, step), walk.tensors), key))  # (4, events)
    gaps = torch.searchsorted(walk.table, words[0] + walk.rows, right=True) - (walk.rows >> 33) * TABLE
    hits = gaps < TABLE
    ends = torch.cumsum(torch.where(hits, gaps + 1, TABLE), 0)
    before = torch.cat([ends.new_zeros(1), ends])[walk.firsts]
    times = torch.tensor(walk.counts)
    ends = ends - before[walk.owners]
    lasts = (walk.firsts + times - 1)[times > 0]
    if bool((ends[lasts] < walk.sizes[lasts]).any()):
        return None
    chosen = torch.nonzero(hits & (ends <= walk.sizes)).flatten()
    stops = torch.searchsorted(chosen, torch.cat([walk.firsts, ends.new_tensor([len(ends)])]))
    return stops.diff().tolist(), ends[chosen] - 1, walk.events[chosen], words[:, chosen], walk.tensors[chosen]


def _events(size: int, chance: float) -> int:
    """More events than a tensor nearly ever needs."""
    if chance == 1:
        return size
    expected = size * chance / -math.expm1(TABLE * math.log1p(-chance))
    return math.ceil(expected + 8 * math.sqrt(expected) + 16) if size else 0


def _permutations(drawn: Tensor, events: Tensor, tensor: Tensor, step: int, key: int, members: int) -> Tensor:
    """A uniform permutation of the members for each event: (members, K)."""
    words = [*drawn[1:]]
    while len(words) < members - 1:
        block = (len(words) + 1) // 4
        words += philox((events, *_constants(block, step), tensor), key)
    order = torch.arange(members)[:, None].repeat(1, len(events))
    for place in range(members - 1, 0, -1):
        other = (words[members - 1 - place] * (place + 1) >> 32)[None]
        swapped = order.gather(0, other)
        order.scatter_(0, other, order[place : place + 1].clone())
        order[place] = swapped[0]
    return order


def _constants(block: int, step: int) -> tuple[Tensor, Tensor]:
    return torch.tensor(block), torch.tensor(step & MASK)
