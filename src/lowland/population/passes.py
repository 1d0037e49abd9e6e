"""Passes over the tensors of all members at once: compiled where they are float32 on the CPU, in pieces otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arithmetic import kernels
from .exchange import Row

PIECE = 1 << 17  # elements: those of all members at once stay in a core's own cache


def pieces(rows: Sequence[Row]) -> Iterator[list[Tensor]]:
    """Return the same piece of all rows, one after the other: what is read twice is read from the cache.

    >>> [[t.tolist() for t in own] for own in pieces([[torch.zeros(2)], [torch.ones(2)]])]
    [[[0.0, 0.0], [1.0, 1.0]]]
    """
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


def pulled_(rows: Sequence[Row], weight: float) -> Sequence[Row]:
    """Pull to the mean what the compiled pass takes, and return the rows of the rest.

    >>> [list(row) for row in pulled_([[torch.tensor([1])], [torch.tensor([3])]], 0.5)]  # no float32
    [[tensor([1])], [tensor([3])]]
    """
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
