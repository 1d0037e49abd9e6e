"""Run a model over batches under many draws of its weights, by a plan that gives the loop's answer.

Plans:
    "copy"     each draw is copied into the model and out again, where the model's tensors cannot be pointed elsewhere.
    "loop"     the model's tensors point at the draw; draws one by one.
    "prefix"   as the loop, and what no draw changes runs once per batch (`prefix.py`).
    "stacked"  several draws in one pass, for few rows (`stacked.py`), with the prefix.

The loop reads all batches under one draw, then under the next, and holds one draw. The others hold as many draws as fit
in `HELD` bytes and read the batches once for all of these. For each batch draws are summed in order 1, 2, ..., S in
every plan (`sums.py`). "copy", "loop" and "prefix" give the same bits. "stacked" multiplies in another order and agrees
with the loop as far as `tolerance` says. The plan follows from the model, the draws and the first batch alone
(`choice.py`), and so do the bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch import nn

from ...weights.named import Weights, applied
from .choice import Choice
from .passes import Passes, Plan
from .places import Held, Places
from .prefix import free_modules
from .stacked import FORMS, shares_most
from .sums import Raw, Sums

HELD = 2**28  # bytes of draws that are held at once
FEW = 24  # forward passes in all, below which the loop is not worth improving


@dataclass
class Runner:
    """The state of one prediction.

    Args:
        take: makes the next draw; what it returned before must not be held.
        wanted: "auto" or "loop".
    """

    model: nn.Module
    batches: Iterable[Any]
    run: Callable[[nn.Module, Any], object]
    sums: Sums[Any]
    take: Callable[[int], Weights]
    wanted: str = "auto"
    places: Places | None = None
    _passes: Passes | None = None
    _plan: Plan | None = None
    _size: int = 1
    _odd: Weights | None = None  # a draw that names other tensors than the first, and waits for its turn
    _known: dict[int, Raw] = field(default_factory=dict)  # what choosing has found for the first batch, by draw

    @property
    def plan(self) -> str:
        """The name of the plan that ran the most draws so far."""
        if self._plan is not None:
            return self._plan.name
        return "copy" if self.places is None or self.places.obstacle else "loop"

    @property
    def total(self) -> int:
        return self.sums.samples

    def everything(self) -> None:
        """Run all draws on all batches."""
        done = 0
        while done < self.total:
            done += self._some(done + 1)

    def _some(self, number: int) -> int:
        """Take one draw, or as many as are held together, and run them; returns their number."""
        weights = self.take(number)
        if self.places is None:
            self.places = Places(self.model, weights)
            self._passes = Passes(self.model, self.run, self.sums, self.places)
            self._size = self._draws_held()
        if self._size == 1 or not self.places.fits(weights):
            self._alone(weights, number)
            return 1
        held = Held(self.places, min(self._size, self.total - number + 1))
        held.add(weights)
        del weights
        self._together(held, number)
        if self._odd is None:
            return len(held)
        odd, self._odd = self._odd, None
        self._alone(odd, number + len(held))
        return len(held) + 1

    def _fill(self, held: Held, number: int, count: int) -> int:
        """Take draws until `count` are held, or one that names other tensors comes; returns how many are held."""
        assert self.places is not None
        while len(held) < min(count, held.capacity) and self._odd is None:
            weights = self.take(number + len(held))
            if self.places.fits(weights):
                held.add(weights)
            else:
                self._odd = weights
            del weights
        return len(held)

    def _draws_held(self) -> int:
        """How many draws to hold: 1 where only the loop can be the plan."""
        places = self.places
        assert places is not None
        if self.wanted == "loop" or places.obstacle or self._count() < FEW:
            return 1
        owners = [m for m in self.model.modules() if any(id(p) in places.ids for p in m._parameters.values())]
        frozen = any(True for m in free_modules(self.model, places.ids) for _ in m.parameters())
        if not frozen and not (shares_most(places) and any(type(m) in FORMS for m in owners)):
            return 1
        return max(1, min(self.total, HELD // max(places.bytes, 1)))

    def _count(self) -> int:
        """Forward passes to make in all, as far as is known."""
        return self.total * (len(self.batches) if isinstance(self.batches, Sized) else 1)

    # One draw after the other.

    def _alone(self, weights: Weights, number: int) -> None:
        places = self.places
        assert places is not None
        if self.plan == "copy" or not places.fits(weights):
            with applied(self.model, weights):
                self._all_batches(number)
            return
        if number == 1:  # a copy, should the model write into its weights: the draw's memory is the posterior's
            weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
        with places.holding(weights):
            before = places.versions() if number == 1 else []
            self._all_batches(number)
            written = number == 1 and before != places.versions()
        if written:
            self._plan = Plan("copy")

    def _all_batches(self, number: int) -> None:
        sums, seen = self.sums, 0
        for batch in self.batches:
            known = self._known.pop(number, None) if seen == 0 and self._known else None
            sums.add(seen, number, sums.raw(self.run(self.model, batch), number, seen) if known is None else known)
            seen += 1
        self._check_count(seen, number)

    def _check_count(self, seen: int, number: int) -> None:
        if seen != self.sums.batches or seen == 0:
            wanted = f"{self.sums.batches} as in the first draw" if self.sums.batches else "at least one"
            raise ValueError(
                f"batches gave {seen} batches in draw {number}, wanted {wanted}: pass a list or a fixed loader"
            )
        self.sums.close()

    # Several draws held.

    def _together(self, held: Held, number: int) -> None:
        assert self._passes is not None
        batches: Iterator[Any] = iter(self.batches)
        first: list[Any] = []
        if self._plan is None:
            first = list(islice(batches, 1))
            if not first:
                self._check_count(0, number)
            choice = Choice(self._passes, held, lambda count: self._fill(held, number, count))
            self._plan = choice.plan(first[0])
            self._known = choice.known
        plan = self._plan
        if not plan.by_batch:
            del batches
            for s in range(len(held)):
                with self._passes.placed(plan, held, s):
                    self._all_batches(number + s)
            self._size = 1
            return
        self._fill(held, number, held.capacity)
        seen = 0
        for batch in _chained(first, batches):
            self._one_batch(plan, held, number, seen, batch)
            seen += 1
        self._check_count(seen, number)

    def _one_batch(self, plan: Plan, held: Held, number: int, index: int, batch: Any) -> None:
        assert self._passes is not None
        if plan.memo is not None and (index > 0 or number > 1):
            plan.memo.forget()
        s = 0
        while s < len(held):
            if index == 0 and number + s in self._known:
                self.sums.add(0, number + s, self._known.pop(number + s))
                s += 1
            elif plan.stack is None:
                self.sums.add(index, number + s, self._passes.single(plan, held, s, batch, number + s, index))
                s += 1
            else:
                s += self._several(plan, held, s, number, index, batch)

    def _several(self, plan: Plan, held: Held, s: int, number: int, index: int, batch: Any) -> int:
        assert plan.stack is not None and self._passes is not None
        count = min(plan.stack.together(batch, len(held)), len(held) - s)
        if count > 1:
            try:
                found = self._passes.stacked(plan, held, s, count, batch)
            except Exception:  # whatever a model raises on rows it was not made for: the loop decides
                found = None
            if found is not None:
                for k in range(count):
                    self.sums.add(index, number + s + k, tuple(part[k] for part in found))
                return count
        raw = self._passes.single(plan.alone or plan, held, s, batch, number + s, index)
        self.sums.add(index, number + s, raw)
        return 1


def _chained(first: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    while first:
        yield first.pop()
    yield from rest
