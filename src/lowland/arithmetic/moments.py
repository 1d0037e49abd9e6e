"""The arithmetic of averages: the only file that calls `torch._foreach_*`.

Means and squared deviations are kept in float32 or wider whatever the dtype of the weights, and second moments are
centred (Welford 1962): `E[w^2] - E[w]^2` loses every digit of a variance once the spread of the weights is below
about 3e-4 of their size.

    mean_n = mean_{n-1} + (w_n - mean_{n-1}) / n
    dev_n  = w_n - mean_n
    M2_n   = M2_{n-1} + dev_n^2 n / (n - 1)            so that the variance is M2_n / n
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..weights.kinds import check_kinds, check_tensors
from ..weights.selection import Weights
from ..weights.shards import like, local


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which an average of tensors of `dtype` is kept.

    >>> wide(torch.bfloat16), wide(torch.float64)
    (torch.float32, torch.float64)
    """
    if not dtype.is_floating_point:
        return dtype
    return torch.promote_types(dtype, torch.float32)


def wide_zeros(like: Mapping[str, Tensor], leading: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """Return zeros shaped like each tensor, with `leading` axes before, in the dtype that `wide` gives.

    >>> wide_zeros({"w": torch.ones(2, dtype=torch.float16)}, leading=(3,))["w"].shape
    torch.Size([3, 2])
    """
    return {
        name: torch.zeros((*leading, *t.shape), dtype=wide(t.dtype), device=t.device)
        if leading
        else torch.zeros_like(t, dtype=wide(t.dtype))
        for name, t in like.items()
    }


# Powers of two that what is averaged must stay below, in float32 and in float64, so that what is stored is finite too:
# the difference of two such numbers, or the sum of 2^24 squares of such differences, which are kept in float32 at most.
FINITE, MEAN, SQUARES = "finite", "mean", "squares"
_LIMITS = {FINITE: (math.inf, math.inf), MEAN: (2.0**126, 2.0**1022), SQUARES: (2.0**50, 2.0**100)}


def limit(dtype: torch.dtype, room: str) -> float:
    """Return the size that numbers of `dtype` must stay below: a power of two, or infinity where all of them do.

    >>> limit(torch.float32, SQUARES) == 2.0**50, limit(torch.float16, SQUARES)
    (True, inf)
    """
    found = _LIMITS[room][wide(dtype) == torch.float64]
    return found if found <= torch.finfo(dtype).max else math.inf


@torch.no_grad()
def first_nonfinite(weights: Mapping[str, Tensor], room: str = FINITE) -> str | None:
    """Return the name of the first tensor that holds a NaN, an infinity, or a number beyond the `limit`; or None.

    >>> first_nonfinite({"a": torch.zeros(1), "b": torch.tensor([float("nan")])})
    'b'
    >>> first_nonfinite({"a": torch.tensor([1e20])}), first_nonfinite({"a": torch.tensor([1e20])}, SQUARES)
    (None, 'a')
    """
    groups: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, tensor in weights.items():
        if tensor.is_floating_point() and tensor.numel():
            groups.setdefault((tensor.device, tensor.dtype), []).append(name)
    bad: set[str] = set()
    for (_, dtype), names in groups.items():
        batches, most = list(_together(names, weights)), limit(dtype, room)
        # One read and two scalars a batch, where isfinite().all() writes a mask of the tensor's size: NaN as soon as
        # one element is, and infinite as soon as one is. One wait for a group, not one for each batch.
        extremes = [torch.aminmax(_joined([weights[name] for name in batch])) for batch in batches]
        pairs = torch.stack([value for pair in extremes for value in pair]).abs()
        flags = (pairs < most).view(-1, 2).all(1).tolist()
        for batch, finite in zip(batches, flags, strict=True):
            if not finite and len(batch) == 1:
                bad.update(batch)
            elif not finite:
                bad.update(name for name in batch if not (weights[name].abs() < most).all())
    return next((name for name in weights if name in bad), None)


def check_numbers(weights: Weights, what: str, *, complex_too: bool = False) -> None:
    """Refuse weights of which some cannot be moved or summed: strangers among the kinds, and what is not finite.

    Whole numbers are let through, as nothing moves them.

    Raises:
        ValueError: there are some; the message begins with `what` and names the tensors.

    >>> check_numbers({"w": torch.tensor([float("nan")])}, "the origin")
    Traceback (most recent call last):
    ...
    ValueError: the origin: w holds a NaN or an infinity: give finite weights
    """
    check_tensors(weights, what)
    moving = {name: tensor.detach() for name, tensor in weights.items() if not _whole(tensor)}
    plain = {name: tensor for name, tensor in moving.items() if not tensor.is_complex()}
    check_kinds(plain if complex_too else moving, what, "", vectors=False)
    parts = {name: torch.view_as_real(t.resolve_conj()) for name, t in moving.items() if t.is_complex()}
    bad = first_nonfinite({name: parts.get(name, local(tensor)) for name, tensor in moving.items()})
    if bad is not None:
        raise ValueError(f"{what}: {bad} holds a NaN or an infinity: give finite weights")


def _whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


SMALL = 1 << 14  # elements: copying a smaller tensor beside others costs less than a call for it alone


def _together(names: list[str], weights: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Gather small tensors until a copy of them fills a core's own cache; larger ones stay alone."""
    batch: list[str] = []
    total = 0
    for name in names:
        size = weights[name].numel()
        if size > SMALL:
            yield [name]
            continue
        if batch and total + size > PIECE["cpu"]:
            yield batch
            batch, total = [], 0
        batch.append(name)
        total += size
    if batch:
        yield batch


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat([tensor.reshape(-1) for tensor in tensors])


@torch.no_grad()
def lerp_(average: Iterable[Tensor], weights: Iterable[Tensor], weight: float) -> None:
    """`average += weight (weights - average)`, in the average's dtype; other than floats are copied.

    >>> mean = torch.tensor([1.0])
    >>> lerp_([mean], [torch.tensor([3.0])], 0.5)
    >>> mean
    tensor([2.])
    """
    same: tuple[list[Tensor], list[Tensor]] = ([], [])
    other: tuple[list[Tensor], list[Tensor]] = ([], [])
    for target, source in zip(average, weights, strict=True):
        if not target.is_floating_point():
            target.copy_(source)
            continue
        alike = target.dtype == source.dtype and target.device == source.device
        for held, tensor in zip(same if alike else other, (target, source), strict=True):
            held.append(tensor)
    if same[0]:
        torch._foreach_lerp_(same[0], same[1], weight)
    for targets, sources in _batches([*other]):  # in pieces, as what is converted is a copy
        torch._foreach_lerp_(targets, [s.to(t.device, t.dtype) for s, t in zip(sources, targets, strict=True)], weight)


@torch.no_grad()
def welford_(
    means: Sequence[Tensor],
    bases: Sequence[Tensor],
    weights: Sequence[Tensor],
    count: int,
    columns: Sequence[Tensor] | None = None,
    evicted: float | None = None,
) -> None:
    """Absorb the `count`-th iterate (from 1) of many tensors into their means, second moments and deviations.

    All operations of a few tensors, or of a piece of a large one, run before those of the next, so that what is read
    from memory is read once.

    Args:
        means: of the iterates so far.
        bases: the sums of squared deviations; with `evicted`, those of the columns no longer held.
        weights: the iterate.
        columns: of one floating dtype; they receive the deviation from the mean that already holds the iterate.
        evicted: None adds this iterate's term to `bases`; a number adds that multiple of the squares of what `columns`
            hold before they are overwritten, and 0.0 leaves `bases` untouched.

    >>> mean, squares = torch.zeros(1), torch.zeros(1)
    >>> for n, w in enumerate([1.0, 3.0, 2.0, 6.0], start=1):
    ...     welford_([mean], [squares], [torch.tensor([w])], n)
    >>> mean, squares / 4
    (tensor([3.]), tensor([3.5000]))
    """
    rows = [list(means), list(bases), list(weights), [None] * len(means) if columns is None else list(columns)]
    for mean, base, source, column in _batches(rows):
        source = [w.to(m.device, m.dtype) for w, m in zip(source, mean, strict=True)]
        if columns is not None and evicted:
            leaving = [c.to(b.dtype) for c, b in zip(column, base, strict=True)]
            torch._foreach_addcmul_(base, leaving, leaving, value=evicted)
        if count == 1:
            torch._foreach_copy_(mean, source)
            if columns is not None:
                torch._foreach_zero_(column)
            continue
        torch._foreach_lerp_(mean, source, 1 / count)
        deviation = torch._foreach_sub(source, mean)
        if evicted is None:
            torch._foreach_addcmul_(base, deviation, deviation, value=count / (count - 1))
        if columns is not None:
            torch._foreach_copy_(column, deviation)


PIECE = {"cpu": 1 << 17}  # elements: what an update touches of a piece stays in a core's own cache
PIECE_ELSEWHERE = 1 << 22  # on a GPU the calls are what costs, and 16 MB the largest temporary


def _batches(rows: list[list[Any]]) -> Iterator[list[list[Any]]]:
    """Cut parallel lists of tensors into lists of a few tensors each, and large tensors into flat pieces."""
    batch: list[list[Any]] = [[] for _ in rows]
    total, device = 0, None
    for tensors in zip(*rows, strict=True):
        first = tensors[0]
        most = PIECE.get(first.device.type, PIECE_ELSEWHERE)
        if batch[0] and (total + first.numel() > most or first.device != device):
            yield batch
            batch, total = [[] for _ in rows], 0
        device, size = first.device, first.numel()
        if size <= most or not all(t is None or t.is_contiguous() for t in tensors):
            for held, tensor in zip(batch, tensors, strict=True):
                held.append(tensor)
            total += size
            continue
        flat = [None if t is None else t.view(-1) for t in tensors]
        for begin in range(0, size, most):
            yield [[None if t is None else t[begin : begin + most]] for t in flat]
    if batch[0]:
        yield batch


def term(iterate: int) -> float:
    """Return what the squared deviation of the iterate of this number (from 1) counts in the second moment.

    The deviation is from the mean that already holds the iterate: `M2 = sum_i term(i) dev_i^2`.

    >>> term(1), term(2), term(5)
    (0.0, 2.0, 1.25)
    """
    return iterate / (iterate - 1) if iterate > 1 else 0.0


CHUNK = 1 << 16  # elements: two float32 chunks stay in a core's own cache


@torch.no_grad()
def second_moment(base: Tensor, columns: Tensor | None, terms: Sequence[float]) -> Tensor:
    """Return `base + sum_c terms_c columns_c^2` for one tensor, in chunks, so that no temporary has its size.

    Args:
        base: (*shape).
        columns: (rank, *shape) deviations of any floating dtype, or None.
        terms: one factor for each of the first columns; those with 0.0 are not read.

    >>> second_moment(torch.ones(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), [0.0, 2.0])
    tensor([19., 33.])
    """
    if columns is None or not any(terms):
        return base.clone()
    total = local(base).clone(memory_format=torch.contiguous_format)
    flat, ring = total.view(-1), local(columns).reshape(len(columns), -1)
    for begin in range(0, flat.numel(), CHUNK):
        chunk = flat[begin : begin + CHUNK]
        for factor, column in zip(terms, ring, strict=False):
            if factor:
                part = column[begin : begin + CHUNK].to(chunk.dtype)
                chunk.addcmul_(part, part, value=factor)
    return like(total, base)
