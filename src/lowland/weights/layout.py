"""Where the part of a tensor on one rank lies in the whole: geometry, without a tensor."""

from __future__ import annotations

from collections.abc import Sequence

Run = tuple[int, int, int]


Interval = tuple[int, int]  # start and length, in elements of one dimension


def runs_of(
    shape: Sequence[int],
    mesh: Sequence[int],
    coordinate: Sequence[int],
    layout: Sequence[tuple[int, int] | None],
) -> list[Run]:
    """Return the runs of the shard at `coordinate` of a mesh, from plain numbers.

    Args:
        layout: one entry an axis of the mesh: None for a replica, else the dimension that is split and the split factor
            (1, or for tensor parallelism under FSDP2 the number of parts that the axis to the right makes first).

    The second of two ranks holds rows 2 and 3 of 3, of which there is one:

    >>> runs_of((3, 2), (2,), (1,), [(0, 1)])
    [(4, 0, 2)]
    >>> runs_of((2, 3), (2,), (0,), [(1, 1)])
    [(0, 0, 2), (3, 2, 2)]
    """
    found: list[Run] = [(0, 0, 1)]
    whole, part = 1, 1  # elements of the dimensions to the right, global and local
    for size, intervals in zip(reversed(shape), reversed(held_of(shape, mesh, coordinate, layout)), strict=True):
        found = _outer(intervals, found, whole, part)
        whole *= size
        part *= sum(length for _, length in intervals)
    return found


def held_of(
    shape: Sequence[int], mesh: Sequence[int], coordinate: Sequence[int], layout: Sequence[tuple[int, int] | None]
) -> list[list[Interval]]:
    """Of each dimension, what the rank at `coordinate` holds, in the order of its local tensor."""
    held: list[list[Interval]] = [[(0, size)] if size else [] for size in shape]
    for size, index, entry in zip(mesh, coordinate, layout, strict=True):
        if entry is not None:
            dim, factor = entry
            held[dim] = _split(held[dim], size, index, factor)
    return held


def _split(held: list[Interval], parts: int, index: int, factor: int) -> list[Interval]:
    """The part `index` of `parts`, cut as torch.chunk cuts; with a factor, of each of so many chunks."""
    size = sum(length for _, length in held)
    outer = -(-size // factor)
    found: list[Interval] = []
    for begin in range(0, size, outer or 1):
        length = min(outer, size - begin)
        step = -(-length // parts)
        low, high = min(index * step, length), min((index + 1) * step, length)
        found += _cut(held, begin + low, begin + high)
    return _merged(found)


def _cut(held: list[Interval], low: int, high: int) -> list[Interval]:
    """What lies between the local positions `low` and `high`."""
    found, position = [], 0
    for start, length in held:
        first, last = max(low - position, 0), min(high - position, length)
        if first < last:
            found.append((start + first, last - first))
        position += length
    return found


def _merged(intervals: list[Interval]) -> list[Interval]:
    found: list[Interval] = []
    for start, length in intervals:
        if found and sum(found[-1]) == start:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((start, length))
    return found


def _outer(intervals: list[Interval], inner: list[Run], whole: int, part: int) -> list[Run]:
    """The runs of one more dimension to the left, whose elements are `whole` globally and `part` locally."""
    found: list[Run] = []
    position = 0
    for start, length in intervals:
        if inner == [(0, 0, whole)]:  # whole to the right: the elements of this dimension follow each other
            found.append((start * whole, position * part, length * whole))
        else:
            found += [
                ((start + step) * whole + there, (position + step) * part + here, count)
                for step in range(length)
                for there, here, count in inner
            ]
        position += length
    return found
