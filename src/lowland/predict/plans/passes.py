"""One pass of a model under one draw or several, as a plan says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...weights.named import applied
from .places import Held, Places
from .prefix import Memo
from .stacked import Stack, Unstackable
from .sums import Raw, Sums


@dataclass
class Plan:
    """How draws are run, and `alone` the plan for batches with too many rows to stack."""

    name: str
    memo: Memo | None = None
    stack: Stack | None = None
    alone: Plan | None = None

    @property
    def by_batch(self) -> bool:
        """Whether every draw that is held runs on one batch before the next batch is read."""
        return self.stack is not None or (self.memo is not None and bool(self.memo.independent))


@dataclass
class Passes:
    """What a pass needs."""

    model: nn.Module
    run: Callable[[nn.Module, Any], object]
    sums: Sums[Any]
    places: Places

    def single(self, plan: Plan, held: Held, s: int, batch: Any, number: int = 2, index: int = 0) -> Raw:
        """Run draw `s` (from 0) of those held on a batch."""
        with self.placed(plan, held, s), ExitStack() as stack:
            if plan.memo is not None:
                stack.enter_context(plan.memo.replaying())
            return self.sums.raw(self.run(self.model, batch), number, index)

    def stacked(self, plan: Plan, held: Held, s: int, count: int, batch: Any, rows: int | None = None) -> Raw:
        """Run `count` draws from `s` on in one pass; returns (S, B, ...)."""
        assert plan.stack is not None and plan.memo is not None
        rows = plan.stack.rows(batch, rows)
        repeated = plan.stack.repeat(batch, count)
        with plan.memo.replaying(), plan.stack.several(held, s, count, rows):
            raw = self.sums.raw(self.run(self.model, repeated), s + 1, 0)
        self.sums.check(raw, s + 1, 0)  # NaN: the model read a weight past its layer
        if any(len(part) != count * rows for part in raw):
            raise Unstackable(f"the output has {len(raw[0])} rows, not {count} times {rows}")
        return tuple(part.view(count, rows, *part.shape[1:]) for part in raw)

    @contextmanager
    def placed(self, plan: Plan, held: Held, s: int) -> Iterator[None]:
        """Run a block with draw `s` in the model."""
        if plan.name == "copy":
            with applied(self.model, held.draw(s)):
                yield
        else:
            with self.places.holding(held.draw(s)):
                yield


def tolerance(dtype: torch.dtype, size: float) -> float:
    """How far an output may lie from the loop's before a plan is given up.

    `size` is the largest magnitude among the values. In float32 100 units of rounding, in shorter types 8.

    >>> tolerance(torch.float32, 1.0) < 1.3e-5
    True
    """
    eps = torch.finfo(dtype).eps
    return (8 if eps > 1e-4 else 100) * eps * max(size, 1.0)


def identical(one: Raw, other: Raw) -> bool:
    """Say whether two passes gave the same bits."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def refuse_far(sums: Sums[Any], found: Raw, wanted: Raw) -> None:
    """Raise Unstackable if a pass does not give what the loop's gave, as far as rounding goes."""
    dtype = max((part.dtype for part in wanted), key=_eps)
    for got, right in zip(sums.read(found), sums.read(wanted), strict=True):
        if got.shape != right.shape:
            raise Unstackable(f"it gives {tuple(got.shape)} where the loop gives {tuple(right.shape)}")
        size = float(right.abs().max()) if right.numel() else 0.0
        if right.numel() and not float((got - right).abs().max()) <= tolerance(dtype, size):
            raise Unstackable("it gives other results than the loop")


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
