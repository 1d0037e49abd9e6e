"""Measures of weights by a model and batches: what `line` and `along` ask at each place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..batchnorm.statistics import layers_of
from ..weights.named import Weights, applied
from ..weights.running import evaluating

Batch = TypeVar("Batch")
# Means over the examples of a batch: one number, or several by name, of which the one named "loss" is trained on.
BatchLoss = Callable[[nn.Module, Batch], Tensor | Mapping[str, Tensor]]


def classification(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Return the mean cross-entropy ("loss", in nats) and the share of wrong answers ("error") of one batch.

    The batch is inputs and labels (N,); the model answers with logits (N, C).

    >>> found = classification(nn.Identity(), (torch.tensor([[9.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 1])))
    >>> found["error"].item()
    0.5
    """
    inputs, labels = batch
    logits = model(inputs)
    wrong = logits.detach().argmax(dim=-1) != labels
    return {"loss": nn.functional.cross_entropy(logits, labels), "error": wrong.float().mean()}


def measured(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: BatchLoss[Batch],
    *,
    refresh: Callable[[nn.Module], object] | None = None,
) -> Callable[[Weights], dict[str, float]]:
    """Return a measure: weights go into `model`, its BatchNorm statistics are refreshed, `batches` are averaged over.

    The measure runs in eval mode without gradients, and leaves the model bit for bit as it was. Batches count by their
    number of examples: the length of their first tensor.

    Args:
        batches: a list or a loader, run anew at each call.
        loss: takes the model and a batch and returns a mean over its examples, or several by name.
        refresh: what is done to the model before it is measured, such as `lambda model: refresh_bn(model, loader)`, or
            `refresh` of a `bn_reference` for an estimate from a few batches.

    Raises:
        ValueError: the batches are an iterator, which one call would use up; later, by the measure: there is no batch,
            or the model has BatchNorm layers, `refresh` is None and the weights bring no statistics.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> measure = measured(model, [torch.tensor([[1.0], [2.0]])], lambda model, x: model(x).mean())
    >>> measure({"weight": torch.tensor([[2.0]])})
    {'loss': 3.0}
    """
    if isinstance(batches, Iterator):
        raise ValueError(
            "batches are run at every place, and an iterator is used up by the first: give a list or loader"
        )

    @torch.no_grad()
    def measure(weights: Weights) -> dict[str, float]:
        if refresh is None:
            _check_statistics(model, weights)
        with applied(model, weights):
            if refresh is not None:
                refresh(model)
            with evaluating(model):
                return _mean(model, batches, loss)

    return measure


def _mean(model: nn.Module, batches: Iterable[Batch], loss: BatchLoss[Batch]) -> dict[str, float]:
    sums: dict[str, float] = {}
    examples = 0
    for batch in batches:
        found = loss(model, batch)
        size = _examples(batch)
        examples += size
        for name, value in found.items() if isinstance(found, Mapping) else [("loss", found)]:
            sums[name] = sums.get(name, 0.0) + size * float(value)
    if not examples:
        raise ValueError("there is no example to measure on: batches is empty")
    return {name: total / examples for name, total in sums.items()}


def _examples(batch: object) -> int:
    while not isinstance(batch, Tensor):
        if isinstance(batch, Mapping):
            batch = tuple(batch.values())
        if not isinstance(batch, (tuple, list)) or not batch:
            raise ValueError(f"a batch must be a tensor, or a tuple or mapping of such, got {type(batch).__name__}")
        batch = batch[0]
    return len(batch)


def _check_statistics(model: nn.Module, weights: Weights) -> None:
    for name in layers_of(model):
        if f"{name}.running_mean" not in weights and "running_mean" not in weights:
            raise ValueError(
                f"the running statistics of {name} belong to other weights than those measured: pass "
                "refresh=lambda model: refresh_bn(model, loader), or lambda model: None to take them as they are"
            )
