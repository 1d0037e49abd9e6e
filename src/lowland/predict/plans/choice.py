"""The choice of a plan, by measuring in the first batch.

The first two draws run plainly and count. Extra is one pass with the prefix under the second draw, or two where it may
pay, and in long runs three with folded adapters; stacked passes count where that plan is taken. A plan whose output is
not the loop's is dropped. What cannot gain is not tried: work shorter than `SHORT`, stacking where most rows or most
weights are the draw's own, folding below `LONG` passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ...weights.named import applied
from .adapters import Folded
from .passes import Passes, Plan, PlanError, identical, refuse_far
from .places import Held, Places
from .prefix import Memo
from .stacked import ROWS, Stack, Unstackable
from .sums import Raw

SHORT = 0.1  # seconds of work below which nothing is measured
LONG = 400  # forward passes from which folding adapters is tried, and a prefix that saves a little
GAIN = 0.97  # of the loop's time, that another plan must stay below
CALL = 3e-5  # seconds that calling a module takes, about
TRIED = 2**22  # bytes of draws in the stacked pass that is measured, and at least 8 draws


class Choice:
    """One choice.

    Args:
        wanted: one of `PLANS`, not "copy" or "loop".
        count: forward passes to make in all, as far as is known.
        fill: makes draws until as many as it is told are held, or there are no more; returns how many are.

    Attributes:
        known: what the first batch gave, by draw from 1.
    """

    def __init__(self, passes: Passes, wanted: str, count: int, held: Held, fill: Callable[[int], int]) -> None:
        self.passes, self.wanted, self.count, self.held, self.fill = passes, wanted, count, held, fill
        self.auto = wanted == "auto"
        self.known: dict[int, Raw] = {}
        self.times: dict[str, float] = {}
        self.plans: dict[str, Plan] = {"loop": Plan("loop")}

    def plan(self, batch: Any) -> Plan:
        """Choose, with the first batch.

        Raises:
            PlanError: the plan that was asked for cannot run the model, or does not give the loop's answer.
        """
        memo = Memo(self.passes.places)
        heavy = any(True for module in memo.modules for _ in module.parameters())
        watched = self.wanted == "prefix" or (heavy and self.wanted != "merged")
        obstacle = self._first(batch, memo if watched else None)
        if obstacle is not None:
            return obstacle
        if (self.auto and self.times["loop"] * self.count < SHORT) or self.fill(2) < 2:
            return self.plans["loop"]
        stack = self._stack_for(memo) if self.wanted in ("auto", "stacked") else None
        with stack.measuring() if stack is not None else nullcontext():
            self.times["loop"], self.known[2] = self._timed(lambda: self._second(self.plans["loop"], batch))
        if self.auto and self.times["loop"] * self.count < SHORT:
            return self.plans["loop"]
        if watched:
            self._try_prefix(batch, memo)
        else:
            memo.independent = set()
        if stack is not None:
            self._try_stacked(batch, stack)
        if self.wanted == "merged" or (self.auto and self.count >= LONG):
            self._try_merged(batch)
        if not self.auto:
            if self.wanted not in self.plans:
                raise PlanError(f'plan="{self.wanted}" does not give the loop\'s answer for this model')
            return self.plans[self.wanted]
        best = min(self.times, key=lambda name: self.times[name])
        return self.plans[best if self.times[best] < GAIN * self.times["loop"] else "loop"]

    def _second(self, plan: Plan, batch: Any) -> Raw:
        return _kept(self.passes.single(plan, self.held, 1, batch))

    def _first(self, batch: Any, memo: Memo | None) -> Plan | None:
        """Run the first draw; a model that only the plain order runs rightly gets its plan here."""
        passes, places = self.passes, self.passes.places
        randomness = _randomness(places)
        with applied(passes.model, self.held.draw(0)), memo.watching() if memo is not None else nullcontext():
            before = places.versions()
            begun = time.perf_counter()
            output = passes.run(passes.model, batch)
            written = before != places.versions()
            self.known[1] = _kept(passes.sums.raw(output, 1, 0))
            passes.sums.check(self.known[1], 1, 0)
            self.times["loop"] = time.perf_counter() - begun
            stateful = places.buffers_changed()
        random = any(not torch.equal(a, b) for a, b in zip(randomness, _randomness(places), strict=True))
        if not (written or stateful or random):
            return None
        # What a pass leaves behind belongs to its draw: only the plain order gives the plain answer.
        if not self.auto:
            what = "draws random numbers" if random else "changes its tensors"
            raise PlanError(f'plan="{self.wanted}" cannot run this model: a forward pass {what}')
        if written or stateful:
            self.known.clear()  # the pass is made again, in its place
        return Plan("copy" if written else "loop")

    def _stack_for(self, memo: Memo) -> Stack | None:
        try:
            return Stack(self.passes.places, memo)
        except Unstackable as reason:
            if self.wanted == "stacked":
                raise PlanError(f'plan="stacked" cannot run this model: {reason}') from None
            return None

    def _try_prefix(self, batch: Any, memo: Memo) -> None:
        plan, loop = Plan("prefix", memo), self.times["loop"]
        begun = time.perf_counter()
        found = self._second(plan, batch)
        seconds = time.perf_counter() - begun
        memo.learn()
        # This pass gave what the first had recorded, and looked at the inputs of all that is not in the prefix too.
        useless = self.auto and seconds > (loop if self.count >= LONG else 0.9 * loop)
        if useless or not identical(found, self.known[2]):
            memo.independent = set()
        if memo.independent and self.wanted in ("auto", "prefix"):
            self.times["prefix"], found = self._timed(lambda: self._second(plan, batch))
            if identical(found, self.known[2]):
                self.plans["prefix"] = plan
            else:
                del self.times["prefix"]
                memo.independent = set()
        elif self.wanted == "prefix":
            self.plans["prefix"] = plan

    def _try_stacked(self, batch: Any, stack: Stack) -> None:
        if self.auto and not self._may_stack(stack):
            return
        most = max(2, stack.together(batch, self.held.capacity))
        tried = max(8, TRIED // max(self.passes.places.bytes, 1))
        together = self.fill(min(most, tried) if self.auto else most)
        best = min(self.times, key=lambda name: self.times[name])
        plan = Plan("stacked", stack.memo, stack, alone=self.plans[best])
        rows, known = len(self.known[1][0]), [self.known[1], self.known[2]]
        try:
            # Twice: the first pass, of two draws, learns which outputs of recorded modules follow the rows.
            found = self.passes.stacked(plan, self.held, 0, 2, batch, rows)
            self._refuse_far(found, known)
            seconds, found = self._timed(lambda: _kept(self.passes.stacked(plan, self.held, 0, together, batch, rows)))
            self._refuse_far(found, known)
        except Exception as error:
            if self.wanted == "stacked":
                raise PlanError(f'plan="stacked" cannot run this model: {error}') from error
            return
        seconds /= together
        if self.wanted == "stacked" or seconds < GAIN * min(self.times.values()):
            self.known.update({s + 1: tuple(part[s] for part in found) for s in range(2, together)})
        self.plans["stacked"], self.times["stacked"] = plan, seconds

    def _may_stack(self, stack: Stack) -> bool:
        """Whether there is anything to gain: weights that the draws share, or calls that take long for what they do."""
        if stack.leading * 2 > ROWS or not stack.promising:
            return False
        model, own = self.passes.model, self.passes.places.bytes
        shared = sum(p.numel() * p.element_size() for p in model.parameters()) > 2 * own
        layers = sum(1 for module in model.modules() if next(module.children(), None) is None)
        # The loop reads a draw's own weights from the cache in all batches but the first; a pass must as well.
        cached = own * self.held.capacity <= TRIED
        return shared or (cached and min(self.times.values()) < CALL * layers)

    def _try_merged(self, batch: Any) -> None:
        passes = self.passes
        try:
            folded = Folded(passes.places)
            if folded.places.obstacle:
                raise ValueError(folded.places.obstacle)
            with folded.without_adapters():
                memo = Memo(folded.places)
            plan = Plan("merged", memo, folded=folded)
            with passes.placed(plan, self.held, 0), memo.watching():
                passes.run(passes.model, batch)
            first = self._second(plan, batch)
            memo.learn()
            refuse_far(passes.sums, first, self.known[2])
            seconds, found = self._timed(lambda: self._second(plan, batch))
            refuse_far(passes.sums, found, self.known[2])
        except Exception as error:
            if self.wanted == "merged":
                raise PlanError(f'plan="merged" cannot run this model: {error}') from error
            return
        self.plans["merged"], self.times["merged"] = plan, seconds

    def _refuse_far(self, found: Raw, wanted: list[Raw]) -> None:
        for s, right in enumerate(wanted):
            refuse_far(self.passes.sums, tuple(part[s] for part in found), right)

    def _timed(self, work: Callable[[], Raw]) -> tuple[float, Raw]:
        """The work's shortest time, in seconds, and what it gave; short work is repeated."""
        best, spent = float("inf"), 0.0
        for _ in range(3 if self.auto else 1):
            begun = time.perf_counter()
            found = work()
            for part in found:
                part.to("cpu")  # waits for the device
            seconds = time.perf_counter() - begun
            best, spent = min(best, seconds), spent + seconds
            if spent > SHORT / 20:
                break
        return best, found


def _kept(raw: Raw) -> Raw:
    """Copies, as a model may use the memory of its output again."""
    return tuple(part.clone() for part in raw)


def _randomness(places: Places) -> list[Tensor]:
    """The states of torch's own generators, by which a model that draws random numbers shows itself."""
    devices = {t.device for t in places.tensors.values() if t.device.type == "cuda"}
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in sorted(devices, key=str))]
