"""`torch.optim.swa_utils` and lowland: conversion in both directions, and torch's averaging functions as an averager.

`AveragedModel` keeps a copy of the whole module and averages in the dtype of the model; what it has counted and
averaged goes on in an averager, and back. `avg_fn` and `multi_avg_fn` are taken as they are by `Function`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..arithmetic.moments import wide_zeros
from ..averager.averager import Averager, Settings, Slot
from ..ema import EMA
from ..swa import SWA
from ..weights.named import Select, Weights, bare_name, clone_of, copy_to, parameters, weights_of

AvgFn = Callable[[Tensor, Tensor, Tensor | int], Tensor]
MultiAvgFn = Callable[[tuple[Tensor, ...] | list[Tensor], tuple[Tensor, ...] | list[Tensor], Tensor | int], None]
Single = TypeVar("Single", bound=Averager)


class Function(Averager):
    """The average that a function of torch's signature makes, kept in float32 or wider.

    Args:
        avg_fn: `avg_fn(average, weights, count) -> average`, one tensor at a time.
        multi_avg_fn: `multi_avg_fn(averages, weights, count)`, all tensors at once, in place. One of the two is given.
            `count` is the number of updates absorbed before, a tensor as torch gives it.

    A state holds the function's name only: pass the function again when a file is loaded.

    Raises:
        ValueError: both functions are given, or neither.

    >>> from torch.optim.swa_utils import get_ema_avg_fn
    >>> average = Function(avg_fn=get_ema_avg_fn(0.5))
    >>> for w in (0.0, 4.0, 8.0):
    ...     average.update({"w": torch.tensor([w])})
    >>> average.mean()
    {'w': tensor([5.])}
    """

    def __init__(
        self,
        avg_fn: AvgFn | None = None,
        multi_avg_fn: MultiAvgFn | None = None,
        *,
        select: Select = parameters,
        device: torch.device | str | None = None,
        check_finite: bool = True,
    ) -> None:
        super().__init__(select=select, device=device, check_finite=check_finite)
        if (avg_fn is None) == (multi_avg_fn is None) or not callable(avg_fn or multi_avg_fn):
            raise ValueError("give one function, avg_fn or multi_avg_fn; a file holds only its name: pass it again")
        self.avg_fn = avg_fn
        self.multi_avg_fn = multi_avg_fn

    @property
    def settings(self) -> Settings:
        function = self.avg_fn or self.multi_avg_fn
        return {"function": getattr(function, "__qualname__", type(function).__qualname__)}

    @classmethod
    def build(cls, settings: Settings, **given: Any) -> Function:
        """Make one from the arguments that no file can hold; the settings are compared when the state is loaded."""
        return cls(**given)

    def _allocate(self, like: Slot) -> dict[str, Slot]:
        return {"mean": wide_zeros(like)}

    def _absorb(self, weights: Weights) -> None:
        mean = self._slots["mean"]
        fresh = {name: weights[name].to(mean[name].device, mean[name].dtype) for name in mean}
        before = torch.tensor(self.count - 1)
        floats = [name for name, tensor in mean.items() if tensor.is_floating_point()]
        # Into copies: a function of the user's that fails half-way leaves the average as it was.
        result = clone_of(mean) if self.count > 1 else {name: tensor.clone() for name, tensor in fresh.items()}
        if self.count > 1 and self.multi_avg_fn is not None:
            self.multi_avg_fn([result[name] for name in floats], [fresh[name] for name in floats], before)
        elif self.count > 1 and self.avg_fn is not None:
            for name in floats:
                result[name].copy_(self.avg_fn(mean[name], fresh[name], before))
        for name, tensor in mean.items():
            tensor.copy_(result[name] if tensor.is_floating_point() else fresh[name])

    def mean(self) -> dict[str, Tensor]:
        with self._lock:
            self._need()
            return clone_of(self._slots["mean"])


@torch.no_grad()
def from_averaged_model(averaged: AveragedModel | Mapping[str, Tensor], averager: Single) -> Single:
    """Give a fresh averager what an `AveragedModel`, or its state dict, holds; it goes on counting from there.

    Args:
        averaged: for a model, `averager.select` chooses the tensors; of a state dict every floating-point tensor is
            taken, buffers included, so leave out by a regular expression what was not averaged.
        averager: an empty one whose only state is an average: `SWA()`, `EMA(...)` or `Function(...)`.

    Raises:
        ValueError: nothing has been averaged yet, the averager is not empty, or it keeps more than an average.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> theirs = AveragedModel(model)
    >>> theirs.update_parameters(model)
    >>> from_averaged_model(theirs, SWA())
    SWA(select=parameters) after 1 updates
    """
    if averager.count:
        raise ValueError(f"the averager already holds {averager.count} updates: pass an empty one")
    if isinstance(averaged, AveragedModel):
        count, tensors = int(averaged.n_averaged), weights_of(averaged.module, averager.select)
    else:
        if "n_averaged" not in averaged:
            raise ValueError(f"the state lacks n_averaged, it has {sorted(averaged)[:5]}: is it an AveragedModel's?")
        count = int(averaged["n_averaged"])
        # Of a state dict's names only those that the averager would take; it knows no parameter from a buffer.
        named = {bare_name(name): t.detach() for name, t in averaged.items() if name.startswith("module.")}
        choose = averager.select if averager.select is not parameters else lambda name, tensor: True
        tensors = {name: t for name, t in named.items() if t.is_floating_point() and choose(name, t)}
    if count < 1:
        raise ValueError("the AveragedModel has averaged nothing yet: call update_parameters first")
    averager.allocate(tensors)
    state = averager.state_dict()
    if set(state["slots"]) != {"mean"}:
        raise ValueError(f"{type(averager).__name__} keeps {sorted(state['slots'])}, an AveragedModel has a mean only")
    mean = {name: tensor.to(state["slots"]["mean"][name].dtype) for name, tensor in tensors.items()}
    averager.load_state_dict({**state, "count": count, "slots": {"mean": mean}})
    return averager


@torch.no_grad()
def to_averaged_model(averager: Averager, model: nn.Module, **given: Any) -> AveragedModel:
    """Return an `AveragedModel` of `model` that holds the averager's mean and goes on as the averager would.

    Tensors that the averager does not hold are the model's. The mean is rounded to the model's dtype, in which
    torch goes on averaging: with bfloat16 it soon stands still.

    Args:
        given: other arguments of `AveragedModel`; with `avg_fn` or `multi_avg_fn` those are used.

    Raises:
        ValueError: torch has no counterpart of this averager, and neither function is given.
        RuntimeError: there has been no update.

    >>> average = EMA(0.9)
    >>> average.update(nn.Linear(1, 1))
    >>> to_averaged_model(average, nn.Linear(1, 1)).n_averaged
    tensor(1)
    """
    if not {"avg_fn", "multi_avg_fn"} & set(given):
        if isinstance(averager, EMA) and isinstance(averager.decay, float):
            given["multi_avg_fn"] = get_ema_multi_avg_fn(averager.decay)  # type: ignore[no-untyped-call]
        elif isinstance(averager, Function):
            given |= {"avg_fn": averager.avg_fn, "multi_avg_fn": averager.multi_avg_fn}
        elif not isinstance(averager, SWA):
            raise ValueError(f"torch has no counterpart of {averager!r}: say how it goes on with avg_fn=")
    averaged = AveragedModel(model, **given)
    copy_to(averaged.module, averager.mean())
    averaged.n_averaged.fill_(averager.count)
    return averaged
