"""The choice of a plan, by the model's structure and the shapes of the first batch.

"prefix"    a module with parameters that no draw changes gets the same inputs under two draws: it runs once per batch
"stacked"   beside that, where at least half of what the draws share must run for each: few rows reach the sampled
            layers (twice as many are at most `ROWS`), the draws share most of the model, and most of what is sampled
            has a batched form. Several draws in one pass then fill what a single one leaves idle
"loop"      everything else

Nothing is timed: the same call makes the same passes, and gives the same bits, in every run. The first two draws run
plainly and count. Extra are one pass that shows what is the same under both, and one of both together where they may be
stacked. A plan whose output is not the loop's is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...weights.named import applied
from .passes import Passes, Plan, identical, refuse_far
from .places import Held, Places
from .prefix import Memo
from .stacked import Stack, Unstackable
from .sums import Raw


class Choice:
    """One choice.

    Args:
        fill: makes draws until as many as it is told are held, or there are no more; returns how many are.

    Attributes:
        known: what the first batch gave, by draw from 1.
    """

    def __init__(self, passes: Passes, held: Held, fill: Callable[[int], int]) -> None:
        self.passes, self.held, self.fill = passes, held, fill
        self.known: dict[int, Raw] = {}

    def plan(self, batch: Any) -> Plan:
        """Choose, with the first batch."""
        loop, memo = Plan("loop"), Memo(self.passes.places)
        watched = any(True for module in memo.modules for _ in module.parameters())
        only = self._first(batch, memo if watched else None)
        if only is not None or self.fill(2) < 2:
            return only or loop
        stack = self._stack_for(memo)
        with nullcontext() if stack is None else stack.measuring():
            self.known[2] = self._second(loop, batch)
        if watched:
            found = self._second(Plan("prefix", memo), batch)
            memo.learn()
        if not watched or not identical(found, self.known[2]):
            memo.independent = set()
        alone = Plan("prefix", memo) if has_prefix(memo) else loop
        if stack is not None and has_few_rows(stack) and not is_mostly_prefix(memo) and self._stacks(stack, batch):
            return Plan("stacked", memo, stack, alone=alone)
        return alone

    def _second(self, plan: Plan, batch: Any) -> Raw:
        return _kept(self.passes.single(plan, self.held, 1, batch))

    def _first(self, batch: Any, memo: Memo | None) -> Plan | None:
        """Run the first draw; a model that only the plain order runs rightly gets its plan here."""
        passes, places = self.passes, self.passes.places
        randomness = _randomness(places)
        with applied(passes.model, self.held.draw(0)), memo.watching() if memo is not None else nullcontext():
            before = places.versions()
            output = passes.run(passes.model, batch)
            written = before != places.versions()
            self.known[1] = _kept(passes.sums.raw(output, 1, 0))
            passes.sums.check(self.known[1], 1, 0)
            stateful = places.buffers_changed()
        random = any(not torch.equal(a, b) for a, b in zip(randomness, _randomness(places), strict=True))
        if not (written or stateful or random):
            return None
        # What a pass leaves behind belongs to its draw: only the plain order gives the plain answer.
        if written or stateful:
            self.known.clear()  # the pass is made again, in its place
        return Plan("copy" if written else "loop")

    def _stack_for(self, memo: Memo) -> Stack | None:
        try:
            return Stack(self.passes.places, memo)
        except Unstackable:
            return None

    def _stacks(self, stack: Stack, batch: Any) -> bool:
        """Whether a pass of two draws gives what two passes gave."""
        plan = Plan("stacked", stack.memo, stack)
        try:
            found = self.passes.stacked(plan, self.held, 0, 2, batch, len(self.known[1][0]))
            for s in (0, 1):
                refuse_far(self.passes.sums, tuple(part[s] for part in found), self.known[s + 1])
        except Exception:  # whatever a model raises on rows it was not made for
            return False
        return True


def has_prefix(memo: Memo) -> bool:
    """Whether a module with parameters is among those whose calls are the same under all draws."""
    return any(True for number, _ in memo.independent or () for _ in memo.modules[number].parameters())


def is_mostly_prefix(memo: Memo) -> bool:
    """Whether the prefix holds more than half of the parameters that draws share; tables of embeddings do no work."""
    model, sampled = memo.places.model, memo.places.ids
    inside = {id(part) for number, _ in memo.independent or () for part in memo.modules[number].modules()}
    shared, prefix = 0, 0
    for module in model.modules():
        if not isinstance(module, nn.Embedding):
            size = sum(p.numel() for p in module._parameters.values() if p is not None and id(p) not in sampled)
            shared, prefix = shared + size, prefix + size * (id(module) in inside)
    return 2 * prefix > shared


def has_few_rows(stack: Stack) -> bool:
    """Whether the first batch's rows are so few, and the layers such, that several draws in a pass are faster."""
    return stack.leading * 2 <= stack.most and stack.promising


def _kept(raw: Raw) -> Raw:
    """Copies, as a model may use the memory of its output again."""
    return tuple(part.clone() for part in raw)


def _randomness(places: Places) -> list[Tensor]:
    """The states of torch's own generators, by which a model that draws random numbers shows itself."""
    devices = {t.device for t in places.tensors.values() if t.device.type == "cuda"}
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in sorted(devices, key=str))]
