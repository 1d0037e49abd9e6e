"""Run a model over batches under many draws of its weights, by the fastest plan that gives the loop's answer.

Plans:
    "copy"     each draw is copied into the model and out again; draws one by one.
    "loop"     the model's tensors point at the draw; draws one by one.
    "prefix"   as the loop, and what no draw changes runs once per batch (`prefix.py`).
    "stacked"  several draws in one pass, for few rows (`stacked.py`), with the prefix.
    "merged"   as the prefix, with low-rank adapters folded into the layers below (`adapters.py`).

The loop reads all batches under one draw, then under the next, and holds one draw. The others hold as many draws as fit
in `HELD` bytes and read the batches once for all of these. For each batch draws are summed in order 1, 2, ..., S in
every plan (`sums.py`). "copy", "loop" and "prefix" give the same bits. "stacked" and "merged" multiply in another order
and agree with the loop as far as `tolerance` says.

`"auto"` measures in the first batch (`choice.py`). Times differ from run to run, and with them the plan: name one where
every bit must come again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch import nn

from ...weights.named import Weights, applied
from .choice import Choice
from .passes import PLANS as PLANS
from .passes import Passes, Plan, PlanError
from .places import Held, Places
from .prefix import free_modules
from .stacked import FORMS
from .sums import Raw, Sums

HELD = 2**28  # bytes of draws that are held at once
FEW = 24  # forward passes below which nothing is measured


@dataclass
class Runner:
    """The state of one prediction.

    Args:
        take: makes the next draw; what it returned before must not be held.
        wanted: one of `PLANS`.
    """

    model: nn.Module
    batches: Iterable[Any]
    run: Callable[[nn.Module, Any], object]
    sums: Sums
    take: Callable[[int], Weights]
    wanted: str = "auto"
    progress: Callable[[int, int], None] | None = None
    places: Places | None = None
    _passes: Passes | None = None
    _plan: Plan | None = None
    _told: int = 0
    _size: int = 1
    _odd: Weights | None = None  # a draw that names other tensors than the first, and waits for its turn
    _known: dict[int, Raw] = field(default_factory=dict)  # what measuring has found for the first batch, by draw

    @property
    def plan(self) -> str:
        """The name of the plan that ran the most draws so far."""
        if self._plan is not None:
            return self._plan.name
        return "copy" if self.wanted == "copy" or self.places is None or self.places.obstacle else "loop"

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
        places = self.places
        assert places is not None
        explicit = self.wanted in ("prefix", "stacked", "merged")
        if explicit and places.obstacle:
            raise PlanError(f'plan="{self.wanted}" cannot run this model: {places.obstacle}; pass plan="auto"')
        if explicit:
            return max(1, min(self.total, HELD // max(places.bytes, 1))) if self.total > 1 else 1
        if self.wanted != "auto" or places.obstacle or self._count() < FEW:
            return 1
        size = min(self.total, HELD // max(places.bytes, 1))
        owners = [m for m in self.model.modules() if any(id(p) in places.ids for p in m._parameters.values())]
        frozen = any(True for m in free_modules(self.model, places.ids) for _ in m.parameters())
        return size if size >= 2 and (frozen or any(type(m) in FORMS for m in owners)) else 1

    def _count(self) -> int:
        """Forward passes to make in all, as far as is known."""
        return self.total * (len(self.batches) if isinstance(self.batches, Sized) else 1)

    # One draw after the other.

    def _alone(self, weights: Weights, number: int) -> None:
        places = self.places
        assert places is not None
        copied = self.plan == "copy" or not places.fits(weights)
        with applied(self.model, weights) if copied else places.holding(weights):
            self._all_batches(number)
        self._tell(number)

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
            fill = lambda count: self._fill(held, number, count)  # noqa: E731
            choice = Choice(self._passes, self.wanted, self._count(), held, fill)
            self._plan = choice.plan(first[0])
            self._known = choice.known
        plan = self._plan
        if plan.holds:
            self._fill(held, number, held.capacity)
        if not plan.by_batch:
            del batches
            for s in range(len(held)):
                with self._passes.placed(plan, held, s):
                    self._all_batches(number + s)
                self._tell(number + s)
            if not plan.holds:
                self._size = 1
            return
        seen, known = 0, len(self.batches) if isinstance(self.batches, Sized) else 0
        for batch in _chained(first, batches):
            self._one_batch(plan, held, number, seen, batch)
            seen += 1
            if known:
                self._tell(number - 1 + len(held) * seen // known)
        self._check_count(seen, number)
        self._tell(number - 1 + len(held))

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
        most = plan.stack.together(batch, len(held))
        count = min(most if self.wanted == "auto" else max(2, most), len(held) - s)
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

    def _tell(self, done: int) -> None:
        while self._told < done:
            self._told += 1
            if self.progress is not None:
                self.progress(self._told, self.total)


def _chained(first: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    while first:
        yield first.pop()
    yield from rest
