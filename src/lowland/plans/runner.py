"""Run a model over batches under many draws of its weights, by the fastest plan that gives the loop's answer.

Plans:
    "copy"     each draw is copied into the model and out again; draws one by one.
    "loop"     the model's tensors point at the draw; draws one by one.
    "prefix"   as the loop, and what no draw changes runs once per batch (`prefix.py`).
    "stacked"  several draws in one pass, for few rows (`stacked.py`), with the prefix.
    "merged"   as the prefix, with low-rank adapters folded into the layers below (`adapters.py`).

The loop reads all batches under one draw, then under the next, and holds one draw. The others hold as many draws as fit
in `HELD` bytes and read the batches once for all of these. For each batch draws are summed in order 1, 2, ..., S in
every plan but "stacked", which sums those of a pass first. "copy", "loop" and "prefix" give the same bits. "stacked"
and "merged" multiply in another order and agree with the loop as far as `tolerance` says.

`"auto"` measures in the first batch, and drops a plan whose output is not the loop's. The first two draws run plainly
and count. Extra are two passes with the prefix under the second draw and, where there is much work, three with folded
adapters; stacked passes count where that plan is taken. Work too short to gain from it goes through the loop
unmeasured. Times differ from run to run, and with them the plan: name one where every bit must come again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..predictive import Sums
from ..weights import Weights, applied
from .adapters import Folded
from .places import Held, Places
from .prefix import Memo, free_modules
from .stacked import FORMS, ROWS, Stack, Unstackable

PLANS = ("auto", "copy", "loop", "prefix", "stacked", "merged")
HELD = 2**28  # bytes of draws that are held at once
FEW = 24  # forward passes below which nothing is measured
SHORT = 0.1  # and seconds of work
LONG = 400  # forward passes from which folding adapters is tried
GAIN = 0.97  # of the loop's time, that another plan must stay below

Read = tuple[Tensor, Tensor]


def tolerance(dtype: torch.dtype, size: float) -> float:
    """How far an output may lie from the loop's before a plan is given up.

    `size` is the largest magnitude among the values. In float32 100 units of rounding, in shorter types 8.

    >>> tolerance(torch.float32, 1.0) < 1.3e-5
    True
    """
    eps = torch.finfo(dtype).eps
    return (8 if eps > 1e-4 else 100) * eps * max(size, 1.0)


class PlanError(ValueError):
    """The plan that was asked for cannot run this model."""


@dataclass
class _Plan:
    name: str
    memo: Memo | None = None
    stack: Stack | None = None
    folded: Folded | None = None
    alone: _Plan | None = None  # under "stacked": the plan for batches with too many rows to stack

    @property
    def by_batch(self) -> bool:
        """Whether every draw that is held runs on one batch before the next batch is read."""
        return self.stack is not None or (self.memo is not None and bool(self.memo.independent))


@dataclass
class Runner:
    """The state of one prediction.

    Args:
        take: makes the next draw; what it returned before must not be held.
        wanted: one of `PLANS`.

    Attributes:
        plan: the name of the plan that ran the most draws so far.
    """

    model: nn.Module
    batches: Iterable[Any]
    run: Callable[[nn.Module, Any], object]
    sums: Sums
    take: Callable[[int], Weights]
    total: int
    wanted: str = "auto"
    progress: Callable[[int, int], None] | None = None
    places: Places | None = None
    _plan: _Plan | None = None
    _told: int = 0
    _size: int = 1
    _dtype: torch.dtype = torch.float32
    _known: dict[int, Read] = field(default_factory=dict)  # what measuring has found for the first batch, by draw

    @property
    def plan(self) -> str:
        if self._plan is not None:
            return self._plan.name
        return "copy" if self.wanted == "copy" or self.places is None or self.places.obstacle else "loop"

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
            self._size = self._draws_held()
        if self._size == 1 or not self.places.fits(weights):
            self._alone(weights, number)
            return 1
        held = Held(self.places, min(self._size, self.total - number + 1))
        held.add(weights)
        while len(held) < held.capacity:
            del weights
            weights = self.take(number + len(held))
            if not self.places.fits(weights):
                break
            held.add(weights)
        odd = None if self.places.fits(weights) else weights
        del weights
        self._together(held, number)
        if odd is not None:
            self._alone(odd, number + len(held))
        return len(held) + (odd is not None)

    def _draws_held(self) -> int:
        places = self.places
        assert places is not None
        explicit = self.wanted in ("prefix", "stacked", "merged")
        if explicit and places.obstacle:
            raise PlanError(f'plan="{self.wanted}" cannot run this model: {places.obstacle}; pass plan="auto"')
        if explicit:
            return max(1, min(self.total, HELD // max(places.bytes, 1))) if self.total > 1 else 1
        if self.wanted != "auto" or places.obstacle or self._passes() < FEW:
            return 1
        size = min(self.total, HELD // max(places.bytes, 1))
        owners = [m for m in self.model.modules() if any(id(p) in places.ids for p in m._parameters.values())]
        frozen = any(True for m in free_modules(self.model, places.ids) for _ in m.parameters())
        return size if size >= 2 and (frozen or any(type(m) in FORMS for m in owners)) else 1

    def _passes(self) -> int:
        """Forward passes to make in all, as far as is known."""
        return self.total * (len(self.batches) if isinstance(self.batches, Sized) else 1)

    # One draw after the other.

    def _alone(self, weights: Weights, number: int) -> None:
        places = self.places
        assert places is not None
        copied = self.wanted == "copy" or places.obstacle or not places.fits(weights)
        with applied(self.model, weights) if copied else places.holding(weights):
            self._all_batches(number)
        self._tell(number)

    def _all_batches(self, number: int) -> None:
        seen = 0
        for batch in self.batches:
            if seen == 0 and number in self._known:
                self.sums.put(0, number, *self._known.pop(number))
            else:
                self.sums.add(seen, number, self.run(self.model, batch))
            seen += 1
        self._check_count(seen, number)

    def _check_count(self, seen: int, number: int) -> None:
        if seen != self.sums.batches or seen == 0:
            wanted = f"{self.sums.batches} as in the first draw" if self.sums.batches else "at least one"
            raise ValueError(
                f"batches gave {seen} batches in draw {number}, wanted {wanted}: pass a list or a fixed loader"
            )

    # Several draws held.

    def _together(self, held: Held, number: int) -> None:
        places = self.places
        assert places is not None
        batches: Iterator[Any] = iter(self.batches)
        first: list[Any] = []
        if self._plan is None:
            first = list(islice(batches, 1))
            if not first:
                self._check_count(0, number)
            self._plan = self._choose(held, first[0])
        plan = self._plan
        if not plan.by_batch:
            del batches
            for s in range(len(held)):
                with self._placed(plan, held, s):
                    self._all_batches(number + s)
                self._tell(number + s)
            if plan.name in ("loop", "copy"):
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

    def _one_batch(self, plan: _Plan, held: Held, number: int, index: int, batch: Any) -> None:
        if plan.memo is not None and (index > 0 or number > 1):
            plan.memo.forget()
        s = 0
        while s < len(held):
            if index == 0 and number + s in self._known:
                self.sums.put(0, number + s, *self._known.pop(number + s))
                s += 1
            elif plan.stack is None:
                self.sums.put(index, number + s, *self._single(plan, held, s, number, index, batch))
                s += 1
            else:
                s += self._several(plan, held, s, number, index, batch)

    def _several(self, plan: _Plan, held: Held, s: int, number: int, index: int, batch: Any) -> int:
        assert plan.stack is not None
        most = plan.stack.together(batch, len(held))
        count = min(most if self.wanted == "auto" else max(2, most), len(held) - s)
        if count > 1:
            try:
                found = self._stacked(plan, held, s, count, batch)
            except Exception:  # whatever a model raises on rows it was not made for: the loop decides
                found = None
            if found is not None:
                self.sums.put_many(index, number + s, *found)
                return count
        self.sums.put(index, number + s, *self._single(plan.alone or plan, held, s, number, index, batch))
        return 1

    def _stacked(self, plan: _Plan, held: Held, s: int, count: int, batch: Any, rows: int | None = None) -> Read:
        """Outputs of several draws, (S, B, ...)."""
        assert plan.stack is not None and plan.memo is not None
        rows = plan.stack.rows(batch, rows)
        repeated = plan.stack.repeat(batch, count)
        with plan.memo.replaying(), plan.stack.several(held, s, count, rows):
            value, other = self.sums.read(self.run(self.model, repeated), "a stacked pass")
        if len(value) != count * rows:
            raise Unstackable(f"the output has {len(value)} rows, not {count} times {rows}")
        return value.view(count, rows, *value.shape[1:]), other.view(count, rows, *other.shape[1:])

    def _single(self, plan: _Plan, held: Held, s: int, number: int, index: int, batch: Any) -> Read:
        """Output of one draw; the first rows of a batch under "stacked" are found this way."""
        with self._placed(plan, held, s), ExitStack() as stack:
            if plan.memo is not None:
                stack.enter_context(plan.memo.replaying())
            return self.sums.read(self.run(self.model, batch), f"draw {number + s}, batch {index + 1}")

    @contextmanager
    def _placed(self, plan: _Plan, held: Held, s: int) -> Iterator[None]:
        places = self.places
        assert places is not None
        if plan.name == "copy":
            with applied(self.model, held.draw(s)):
                yield
        elif plan.folded is not None:
            with plan.folded.without_adapters(), plan.folded.places.holding(plan.folded.fold(held.draw(s))):
                yield
        else:
            with places.holding(held.draw(s)):
                yield

    def _tell(self, done: int) -> None:
        while self._told < done:
            self._told += 1
            if self.progress is not None:
                self.progress(self._told, self.total)

    # Choosing.

    def _choose(self, held: Held, batch: Any) -> _Plan:
        places = self.places
        assert places is not None
        auto = self.wanted == "auto"
        versions: list[int] = []

        def observed(model: nn.Module, batch: Any) -> object:
            before = places.versions()
            output = self.run(model, batch)
            versions[:] = [a != b for a, b in zip(before, places.versions(), strict=True)]
            self._dtype = _dtype_of(output)
            return output

        memo, randomness = Memo(places), _randomness(places)
        heavy = any(True for module in memo.modules for _ in module.parameters())
        watched = self.wanted == "prefix" or (heavy and self.wanted != "merged")
        with applied(self.model, held.draw(0)), memo.watching() if watched else nullcontext():
            self._known[1] = self.sums.read(observed(self.model, batch), "draw 1, batch 1")
            stateful = places.buffers_changed()
        random = any(not torch.equal(a, b) for a, b in zip(randomness, _randomness(places), strict=True))
        if any(versions) or stateful or random:
            # What a pass leaves behind belongs to its draw: only the plain order gives the plain answer.
            if not auto:
                what = "draws random numbers" if random else "changes its tensors"
                raise PlanError(f'plan="{self.wanted}" cannot run this model: a forward pass {what}')
            if any(versions) or stateful:
                self._known.clear()  # the pass is made again, in its place
            return _Plan("copy" if any(versions) else "loop")
        loop = _Plan("loop")
        stack = self._stack_for(memo) if self.wanted in ("auto", "stacked") else None
        times: dict[str, float] = {}
        plans: dict[str, _Plan] = {"loop": loop}
        with ExitStack() as noting:
            if stack is not None:
                noting.enter_context(stack.measuring())
            times["loop"], self._known[2] = self._timed(lambda: self._single(loop, held, 1, 1, 0, batch))
        passes = self._passes()
        if auto and times["loop"] * passes < SHORT:
            return loop
        if watched:
            self._try_prefix(held, batch, memo, times, plans)
        else:
            memo.independent = set()
        if stack is not None:
            self._try_stacked(held, batch, stack, times, plans)
        if self.wanted == "merged" or (auto and passes >= LONG):
            self._try_merged(held, batch, times, plans)
        if not auto:
            if self.wanted not in plans:
                raise PlanError(f'plan="{self.wanted}" does not give the loop\'s answer for this model')
            return plans[self.wanted]
        best = min(times, key=lambda name: times[name])
        return plans[best] if times[best] < GAIN * times["loop"] else loop

    def _stack_for(self, memo: Memo) -> Stack | None:
        assert self.places is not None
        try:
            return Stack(self.places, memo)
        except Unstackable as reason:
            if self.wanted == "stacked":
                raise PlanError(f'plan="stacked" cannot run this model: {reason}') from None
            return None

    def _try_prefix(self, held: Held, batch: Any, memo: Memo, times: dict[str, float], plans: dict[str, _Plan]) -> None:
        plan = _Plan("prefix", memo)
        begun = time.perf_counter()
        found = self._single(plan, held, 1, 1, 0, batch)
        memo.learn()
        useless = self.wanted == "auto" and time.perf_counter() - begun > times["loop"]
        if useless or not _identical(found, self._known[2]):
            memo.independent = set()
        if memo.independent and self.wanted in ("auto", "prefix"):
            times["prefix"], found = self._timed(lambda: self._single(plan, held, 1, 1, 0, batch))
            if _identical(found, self._known[2]):
                plans["prefix"] = plan
            else:
                del times["prefix"]
                memo.independent = set()
        elif self.wanted == "prefix":
            plans["prefix"] = plan

    def _try_stacked(
        self, held: Held, batch: Any, stack: Stack, times: dict[str, float], plans: dict[str, _Plan]
    ) -> None:
        if self.wanted == "auto" and (stack.leading * 2 > ROWS or not stack.promising):
            return
        together = max(2, stack.together(batch, len(held)))
        best = min(times, key=lambda name: times[name])
        plan = _Plan("stacked", stack.memo, stack, alone=plans[best])
        rows = len(self._known[1][0])
        try:
            # Twice: the first pass, of two draws, learns which outputs of recorded modules follow the rows.
            found = self._stacked(plan, held, 0, 2, batch, rows)
            self._refuse_far(found, [self._known[1], self._known[2]])
            seconds, found = self._timed(lambda: self._stacked(plan, held, 0, together, batch, rows))
            self._refuse_far(found, [self._known[1], self._known[2]])
        except Exception as error:
            if self.wanted == "stacked":
                raise PlanError(f'plan="stacked" cannot run this model: {error}') from error
            return
        plans["stacked"], times["stacked"] = plan, seconds / together
        if len(found[0]) > 2 and (self.wanted == "stacked" or times["stacked"] < GAIN * min(times.values())):
            self._known.update({s + 1: (found[0][s], found[1][s]) for s in range(2, together)})

    def _try_merged(self, held: Held, batch: Any, times: dict[str, float], plans: dict[str, _Plan]) -> None:
        assert self.places is not None
        try:
            folded = Folded(self.places)
            if folded.places.obstacle:
                raise ValueError(folded.places.obstacle)
            with folded.without_adapters():
                memo = Memo(folded.places)
            plan = _Plan("merged", memo, folded=folded)
            with self._placed(plan, held, 0), memo.watching():
                self.sums.read(self.run(self.model, batch), "draw 1, batch 1")
            first = self._single(plan, held, 1, 1, 0, batch)
            memo.learn()
            self._refuse_far((first[0][None], first[1][None]), [self._known[2]])
            seconds, found = self._timed(lambda: self._single(plan, held, 1, 1, 0, batch))
            self._refuse_far((found[0][None], found[1][None]), [self._known[2]])
        except Exception as error:
            if self.wanted == "merged":
                raise PlanError(f'plan="merged" cannot run this model: {error}') from error
            return
        plans["merged"], times["merged"] = plan, seconds

    def _refuse_far(self, found: Read, wanted: list[Read]) -> None:
        for s, read in enumerate(wanted):
            for got, right in zip((found[0][s], found[1][s]), read, strict=True):
                if got.shape != right.shape:
                    raise Unstackable(f"it gives {tuple(got.shape)} where the loop gives {tuple(right.shape)}")
                size = float(right.abs().max()) if right.numel() else 0.0
                if right.numel() and float((got - right).abs().max()) > tolerance(self._dtype, size):
                    raise Unstackable("it gives other results than the loop")

    def _timed(self, work: Callable[[], Read]) -> tuple[float, Read]:
        """The work's shortest time, in seconds, and what it gave; short work is repeated."""
        best, spent = float("inf"), 0.0
        for _ in range(3 if self.wanted == "auto" else 1):
            begun = time.perf_counter()
            found = work()  # waits for the device: it copies to the CPU
            seconds = time.perf_counter() - begun
            best, spent = min(best, seconds), spent + seconds
            if spent > SHORT / 20:
                break
        return best, found


def _dtype_of(output: Any) -> torch.dtype:
    found = [t for t in (output if isinstance(output, tuple | list) else [getattr(output, "logits", output)])]
    dtypes = [t.dtype for t in found if isinstance(t, Tensor) and t.is_floating_point()]
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps) if dtypes else torch.float32


def _identical(one: Read, other: Read) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def _chained(first: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    while first:
        yield first.pop()
    yield from rest


def _randomness(places: Places) -> list[Tensor]:
    """The states of torch's own generators, by which a model that draws random numbers shows itself."""
    devices = {t.device for t in places.tensors.values() if t.device.type == "cuda"}
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in sorted(devices, key=str))]
