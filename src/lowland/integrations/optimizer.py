"""Average after an optimiser's steps, in any loop: the loop itself gets no further line.

    following = follow(average, model, optimizer, start=1000, every=10)

An optimiser of torch calls the hook at the end of `step`: once a step however many batches were accumulated for it, and
not for a step that a gradient scaler left out. Optimisers whose steps have other names are refused, or told of when
nothing has been seen.
"""

from __future__ import annotations

import inspect
import warnings
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..averager.averager import Averager
from .schedule import When, schedule


class Following:
    """What `follow` returns: `remove` ends it, `step` counts, and the count is saved and loaded beside the averager.

    As a context manager it removes itself at the end of the block. Removed before it has seen a step, it warns.
    """

    def __init__(self, averager: Averager, model: nn.Module, optimizer: Optimizer, due: Any) -> None:
        self.step = 0  # of the optimiser, left out ones not counted
        self.averager = averager
        self._model = model
        self._schedule = due
        self._kind = type(optimizer).__name__
        self._seen = self._removed = False
        self._handle = optimizer.register_step_post_hook(self._after)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # Fused optimisers are called for an overflowing step too, and then do nothing: the scaler tells them by this.
        self._seen = True
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None and bool(torch.as_tensor(overflow).any()):
            return
        self.step += 1
        if self._schedule.due(self.step):
            self.averager.update(self._model)

    def remove(self) -> None:
        """Stop averaging; a second call does nothing."""
        self._handle.remove()
        if not (self._seen or self._removed):
            warnings.warn(
                f"follow has seen no call of {self._kind}.step, so nothing was collected: if its steps have other "
                "names, call averager.update(model) after them",
                stacklevel=2,
            )
        self._removed = True

    def state_dict(self) -> dict[str, int]:
        """Return the number of steps seen: save it with the averager's own state."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on counting where a saved run stopped."""
        self.step = int(state["step"])

    def __enter__(self) -> Following:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._removed |= kind is not None  # an error of the block's own is enough to tell
        self.remove()


def follow(
    averager: Averager,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    start: When = 0,
    every: When = 1,
    total: int | None = None,
    per_epoch: int | None = None,
) -> Following:
    """Update `averager` from `model` after steps of `optimizer`, until the handle is removed.

    One averager follows one optimiser: where two move a model in turn, follow the one that steps last, or an iteration
    is counted twice.

    Args:
        optimizer: one of torch, or a wrapper that keeps it as `.optimizer`, as Accelerate's does.
        start: no collection before this many steps: a number, "50step", "3epoch" or "70%".
        every: from one collection to the next, written as `start`.
        total: steps of the whole training, for a start in %.
        per_epoch: steps an epoch, for epochs.

    Raises:
        ValueError: `optimizer` is no optimiser, or its class has no step of its own; or `start` or `every` cannot be
            read, or is a share of something that was not given.

    >>> from lowland import SWA
    >>> model, average = nn.Linear(1, 1), SWA()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with follow(average, model, optimizer, start="50%", every=2, total=10) as following:
    ...     for _ in range(10):
    ...         optimizer.step()
    >>> average.count, following.step
    (3, 10)
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # a wrapper's own hooks are not called
    if not isinstance(inner, Optimizer):
        raise ValueError(f"follow wants a torch optimiser, got {type(optimizer).__name__}")
    # torch wraps a class's step for its hooks, an inherited one too.
    if inspect.unwrap(type(inner).step) is inspect.unwrap(Optimizer.step):
        base = [name for name, value in vars(inner).items() if isinstance(value, Optimizer)]
        advice = f"follow its .{base[0]}" if base else "call averager.update(model) after them"
        raise ValueError(f"{type(inner).__name__} has no step() to follow, its steps have other names: {advice}")
    return Following(averager, model, inner, schedule(start, every, total=total, per_epoch=per_epoch))
