"""Gradients and products with the Hessian of a model's mean loss, as functions of named weights.

    H v = d/dw <grad f(w), v>

by a second backward pass through the first (Pearlmutter 1994), batch by batch, summed over examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..weights.named import Weights, bare_name, check_same
from ..weights.running import evaluating, unwrapped
from .frame import moves
from .measures import BatchLoss, examples

Batch = TypeVar("Batch")


@final
class Differentiated(Generic[Batch]):
    """The mean loss over batches, its gradient and its Hessian, as functions of weights; the model is not changed.

    Raises:
        ValueError: the batches are an iterator, which one call would use up.

    >>> f = Differentiated(nn.Linear(1, 1, bias=False), [torch.tensor([[3.0]])], lambda m, x: m(x).square().mean())
    >>> f.product({"weight": torch.zeros(1, 1)}, {"weight": torch.ones(1, 1)})
    {'weight': tensor([[18.]])}
    """

    def __init__(self, model: nn.Module, batches: Iterable[Batch], loss: BatchLoss[Batch]) -> None:
        if isinstance(batches, Iterator):
            raise ValueError("batches are run at every call, and an iterator is used up by the first: give a list")
        self.model, self._batches = unwrapped(model, compiled=True), batches
        self._call = _Call(self.model, loss)

    def __call__(self, w: Weights) -> tuple[float, dict[str, Tensor]]:
        """Return the loss and its gradient by name."""
        names, total, value, count = list(self._free(w)), None, 0.0, 0
        with self._running():
            for batch in self._batches:
                size = examples(batch)
                loss, free = self._loss(w, batch)
                grads = torch.autograd.grad(loss, [free[name] for name in names], materialize_grads=True)
                value, count = value + size * float(loss.detach()), count + size
                total = _added(total, grads, size)
        self._some(count)
        assert total is not None
        return value / count, {name: one / count for name, one in zip(names, total, strict=True)}

    def product(self, w: Weights, v: Weights) -> dict[str, Tensor]:
        """Return the Hessian's product with `v`, over the coordinates of `w`."""
        names, total, count = list(self._free(w)), None, 0
        with self._running(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            for batch in self._batches:
                size = examples(batch)
                loss, free = self._loss(w, batch)
                inputs = [free[name] for name in names]
                grads = torch.autograd.grad(loss, inputs, create_graph=True, materialize_grads=True)
                along = sum((g * v[name].to(g.dtype)).sum() for g, name in zip(grads, names, strict=True))
                assert isinstance(along, Tensor)
                if along.requires_grad:  # else the loss is linear in the weights
                    seconds = torch.autograd.grad(along, inputs, materialize_grads=True)
                    total = _added(total, seconds, size)
                count += size
        self._some(count)
        if total is None:
            return {name: torch.zeros_like(w[name]) for name in names}
        return {name: one / count for name, one in zip(names, total, strict=True)}

    def _free(self, w: Weights) -> dict[str, Tensor]:
        """The parameters among the weights: whose gradients are taken."""
        own = {bare_name(name): (name, p) for name, p in self.model.named_parameters(remove_duplicate=False)}
        moving = {name: tensor for name, tensor in w.items() if moves(name, tensor)}
        if unknown := [name for name in moving if name not in own]:
            raise ValueError(f"{type(self.model).__name__} has no parameter named {unknown[:5]}: give its own weights")
        check_same({name: own[name][1] for name in moving}, moving, what=f"weights for {type(self.model).__name__}")
        return moving

    def _loss(self, w: Weights, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        own = {bare_name(name): (name, p) for name, p in self.model.named_parameters()}
        first = {id(p): name for name, p in own.values()}
        alias = dict(self.model.named_parameters(remove_duplicate=False))
        full = {bare_name(name): first[id(p)] for name, p in alias.items()}
        free = {name: tensor.detach().clone().requires_grad_() for name, tensor in self._free(w).items()}
        swapped = {f"model.{full[name]}": tensor for name, tensor in free.items()}
        found: Any = functional_call(self._call, swapped, (batch,), tie_weights=True)
        loss = found["loss"] if isinstance(found, Mapping) else found
        if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
            raise ValueError(
                f"the loss must be a tensor of one number that depends on the weights, got {loss!r}: return the mean "
                'over the batch, or several by name of which "loss" is differentiated'
            )
        return loss, free

    @contextmanager
    def _running(self) -> Iterator[None]:
        with torch.enable_grad(), evaluating(self.model):
            yield

    def _some(self, count: int) -> None:
        if not count:
            raise ValueError("there is no example to differentiate on: batches is empty")


class _Call(nn.Module, Generic[Batch]):
    """The loss as a module, so that weights can be put in the model's place for one call."""

    def __init__(self, model: nn.Module, loss: BatchLoss[Batch]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        return self.loss(self.model, batch)


def _added(total: list[Tensor] | None, more: tuple[Tensor, ...], size: int) -> list[Tensor]:
    more_wide = [one.detach() * size for one in more]
    return more_wide if total is None else [a.add_(b) for a, b in zip(total, more_wide, strict=True)]
