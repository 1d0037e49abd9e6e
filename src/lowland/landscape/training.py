"""Train a curve between two solutions so that the loss along it is low.

Garipov, Izmailov, Podoprikhin, Vetrov, Wilson 2018, arXiv:1802.10026. The free points of a curve phi minimise

    E over t ~ U(0, 1) of  L(phi(t)) + wd/2 ||phi(t)||^2

by one t for each batch. The norm is squared (the code released with the paper plots another one: the sum of the norms
of the tensors). The optimiser's own weight decay would pull the free points and not the curve: it is refused.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..weights.named import bare_name, check_same, clone_of
from ..weights.running import unwrapped
from .curve import Curve
from .measures import BatchLoss
from .walk import mix, wide

Batch = TypeVar("Batch")


@final
class CurveTraining(Generic[Batch]):
    """Moves the free points of a curve, one step for each batch, in place.

    The model is called with mixed weights and is left untouched: its own parameters get no gradients, and the running
    statistics that BatchNorm gathers on the way are kept aside and belong to no point of the curve, so refresh them
    before you use one. Parameters that the curve does not name, or that take no gradients in the model, do not move.
    The ends never do.

    Args:
        loss: takes the model and a batch and returns a number to be low, or several by name with one named "loss".
        optimizer: makes an optimiser of the free tensors, such as `partial(torch.optim.SGD, lr=0.05, momentum=0.9)`.
        weight_decay: wd above, for the mixed weights.
        schedule: the multiplier of the learning rate at a step, from 0: one of `lowland.cycles`. The paper's is
            `swa_linear(steps, 0.01)`.
        generator: draws t; None for torch's own.

    Raises:
        ValueError: the curve does not fit the model in names, shapes, dtype or device; nothing in it can move; tensors
            that the model ties differ at an end; or the optimiser has a weight decay of its own.

    >>> from functools import partial
    >>> from lowland.landscape.curve import bezier
    >>> model = nn.Linear(1, 1, bias=False)
    >>> curve = bezier({"weight": torch.tensor([[1.0]])}, {"weight": torch.tensor([[3.0]])})
    >>> training = CurveTraining(curve, model, lambda model, x: model(x).mean(), partial(torch.optim.SGD, lr=0.1))
    >>> loss = training.step(torch.ones(1, 1))
    >>> curve.points[1]["weight"] < 2.0, curve.points[2]["weight"]
    (tensor([[True]]), tensor([[3.]]))
    """

    def __init__(
        self,
        curve: Curve,
        model: nn.Module,
        loss: BatchLoss[Batch],
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        *,
        weight_decay: float = 0.0,
        schedule: Callable[[int], float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not (weight_decay >= 0 and math.isfinite(weight_decay)):
            raise ValueError(f"weight_decay must be at least 0, got {weight_decay}")
        model = unwrapped(model)
        self.curve = curve
        self.steps = 0
        self._call = _Call(model, loss)
        self._weight_decay, self._schedule, self._generator = weight_decay, schedule, generator
        places = _places(curve, model)
        self._places = {name: full for name, (full, _) in places.items()}
        self._moving = [name for name, (_, tensor) in places.items() if tensor.requires_grad]
        self._free = [point[name].requires_grad_() for point in curve._points[1:-1] for name in self._moving]
        if not self._free:
            raise ValueError(
                "nothing can move: the curve has no point between its ends, or none of its tensors takes gradients in "
                f"{type(model).__name__}: use bezier(a, b, free=1)"
            )
        self._optimizer = optimizer(self._free)
        self._rates = []
        for group in self._optimizer.param_groups:
            if group.get("weight_decay"):
                raise ValueError(
                    f"the optimiser has a weight decay of {group['weight_decay']}, which pulls the free points and not "
                    "the curve: make it 0 there and pass weight_decay= here"
                )
            self._rates.append(float(group["lr"]))
        # Buffers that the model writes into, and parameters that are not of the curve: aside, without gradients.
        named = {id(tensor) for _, tensor in places.values()}
        self._rest = {n: p.detach() for n, p in model.named_parameters() if id(p) not in named}
        self._buffers = {n: b.detach().clone() for n, b in model.named_buffers() if id(b) not in named}

    def step(self, batch: Batch) -> float:
        """Take one step at a random t, and return the loss there, without the weight decay.

        Raises:
            RuntimeError: the model is in eval mode.
            ValueError: the loss is not finite or not one number; no point has moved then.
        """
        if not self._call.model.training:
            raise RuntimeError("the model is in eval mode, in which a curve is not trained: call model.train() first")
        g = self._generator
        t = float(torch.rand((), generator=g, device="cpu" if g is None else g.device, dtype=torch.float64))
        mixed = mix(self.curve._points, self.curve.coefficients(t))
        tensors = {full: mixed[name] for name, full in self._places.items()} | self._rest | self._buffers
        found = functional_call(self._call, {f"model.{name}": tensor for name, tensor in tensors.items()}, (batch,))
        loss: Tensor = found["loss"] if isinstance(found, Mapping) else found
        if loss.numel() != 1 or not bool(torch.isfinite(loss.detach()).all()):
            raise ValueError(
                f"the loss at t = {t:.3f} is {loss.detach()}, wanted one finite number; no point has moved: lower the "
                "learning rate, or return a mean over the batch"
            )
        total = loss
        if self._weight_decay:
            squares = [mixed[name].to(wide(mixed[name].dtype)).abs().square().sum() for name in self._moving]
            total = loss + self._weight_decay / 2 * torch.stack(squares).sum()
        if self._schedule is not None:
            for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * self._schedule(self.steps)
        self._optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        for tensor in self._free:
            if tensor.grad is None:  # a corner that is not next to t: momentum goes on, as for a gradient of 0
                tensor.grad = torch.zeros_like(tensor)
        self._optimizer.step()
        self.steps += 1
        return float(loss.detach())

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all that training goes on from, the curve among it: plain numbers and tensors."""
        return {
            "steps": self.steps,
            "settings": self._settings(),
            "curve": self.curve.state_dict(),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "buffers": clone_of(self._buffers),
            "generator": None if self._generator is None else self._generator.get_state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken; batches then to come give the same curve, bit for bit.

        Raises:
            ValueError: the state is of other ends, another kind of curve or other settings, or one of the two has a
                generator and the other has none. Nothing is changed then.
        """
        own, kept = self.curve.state_dict(), state["curve"]
        settings, theirs = self._settings(), dict(state["settings"])
        if settings != theirs:
            raise ValueError(f"the state was made with {theirs}, this training has {settings}")
        if own["kind"] != kept["kind"] or len(own["points"]) != len(kept["points"]):
            raise ValueError(
                f"the state is of a {kept['kind']} of {len(kept['points'])} points, this is a {own['kind']} of "
                f"{len(own['points'])}"
            )
        for end in (0, -1):
            check_same(own["points"][end], kept["points"][end], what="an end of the state's curve")
            for name, tensor in own["points"][end].items():
                if not torch.equal(tensor.cpu(), kept["points"][end][name].cpu()):
                    raise ValueError(f"the state is of a curve between other ends: {name} differs")
        if (state["generator"] is None) != (self._generator is None):
            raise ValueError("the state and this training must both have a generator, or neither: pass generator=")
        check_same(self._buffers, state["buffers"], what="the state's buffers")
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        for point, values in zip(self.curve._points[1:-1], kept["points"][1:-1], strict=True):
            for name, tensor in point.items():
                tensor.copy_(values[name])
        for name, buffer in self._buffers.items():
            buffer.copy_(state["buffers"][name])
        if self._generator is not None:
            self._generator.set_state(state["generator"].cpu())
        self.steps = state["steps"]

    def _settings(self) -> dict[str, Any]:
        return {"weight_decay": self._weight_decay, "rates": list(self._rates)}


class _Call(nn.Module, Generic[Batch]):
    """The loss as a module, so that weights can be put in the model's place for one call."""

    def __init__(self, model: nn.Module, loss: BatchLoss[Batch]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        return self.loss(self.model, batch)


def _places(curve: Curve, model: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Full name and tensor in the model for each tensor of the curve; of tied ones the first, which the others share.

    Raises:
        ValueError: the curve does not fit the model.
    """
    named: dict[str, tuple[str, Tensor]] = {}
    for full, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        named.setdefault(bare_name(full), (full, tensor))
    first, *free, last = curve._points
    if unknown := [name for name in first if name not in named]:
        raise ValueError(f"{type(model).__name__} has no tensor named {unknown[:5]}: give a curve of its own weights")
    check_same({name: named[name][1] for name in first}, first, what=f"a curve for {type(model).__name__}")
    places: dict[str, tuple[str, Tensor]] = {}
    names: dict[int, str] = {}
    for name, ours in first.items():
        full, tensor = named[name]
        got, wanted = (ours.dtype, ours.device), (tensor.dtype, tensor.device)
        if got != wanted:
            raise ValueError(f"the curve has {name} in {got}, the model in {wanted}: make them alike")
        other = names.setdefault(id(tensor), name)
        if other == name:
            places[name] = full, tensor
            continue
        if not all(torch.equal(end[name], end[other]) for end in (first, last)):
            raise ValueError(f"the model ties {name} to {other}, and at an end of the curve they differ")
        for point in free:
            point[name] = point[other]
    return places
