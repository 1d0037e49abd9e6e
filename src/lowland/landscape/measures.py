"""Measures of weights by a model and batches: what lines, planes and rays ask at each place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar, final

import torch
from torch import Tensor, nn

from ..batchnorm.statistics import layers_of
from ..predict.plans.places import Places
from ..weights.named import Weights, applied, clone_of, copy_to
from ..weights.running import evaluating
from .refreshes import OWN
from .together import Stacks, Together, as_numbers, first_of

Batch = TypeVar("Batch")
# Means over the examples of a batch: one number, or several by name, of which the one named "loss" is trained on.
BatchLoss = Callable[[nn.Module, Batch], Tensor | Mapping[str, Tensor]]


class Draws(Protocol):
    """Places to be measured: weights one by one, or several stacked."""

    def __len__(self) -> int: ...

    def one(self, number: int) -> Weights:
        """Return the weights of a place."""

    def several(self, first: int, count: int) -> Mapping[str, Tensor]:
        """Return those of `count` places from `first` on, (count, *shape) by name."""


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
    batches: Iterable[Batch] | Mapping[str, Iterable[Batch]],
    loss: BatchLoss[Batch],
    *,
    refresh: Callable[[nn.Module], object] | None = None,
) -> Measured[Batch]:
    """Return a measure: weights go into `model`, its BatchNorm statistics are refreshed, `batches` are averaged over.

    The measure runs in eval mode without gradients, and leaves the model bit for bit as it was, also after an exception
    or Ctrl-C. Batches count by their number of examples: the length of their first tensor. Where its tensors are plain
    memory the model points at the weights and nothing is copied; several places that are asked together share a pass
    where a batch has few rows (`Measured.many`).

    Args:
        batches: a list or a loader, run anew at each call; or several by name, such as `{"train": a, "test": b}`, whose
            values are then called "train loss", "test loss" and so on. One refresh serves them all.
        loss: takes the model and a batch and returns a mean over its examples, or several by name.
        refresh: what is done to the model before it is measured: one of `exact`, `fast` and `frozen`, or your own, such
            as `lambda model: refresh_bn(model, loader)`.

    Raises:
        ValueError: the batches are an iterator, which one call would use up; later, by the measure: there is no batch,
            or the model has BatchNorm layers, `refresh` is None and the weights bring no statistics.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> measure = measured(model, [torch.tensor([[1.0], [2.0]])], lambda model, x: model(x).mean())
    >>> measure({"weight": torch.tensor([[2.0]])})
    {'loss': 3.0}
    """
    sets = dict(batches) if isinstance(batches, Mapping) else {"": batches}
    if any(isinstance(one, Iterator) for one in sets.values()):
        raise ValueError(
            "batches are run at every place, and an iterator is used up by the first: give a list or loader"
        )
    return Measured(model, sets, loss, refresh)


@final
class Measured(Generic[Batch]):
    """A measure of weights by a model and batches; `measured` makes one.

    Attributes:
        refresh: what is done to the model at each place.
        plan: how the last places were run: "pointed", "copied" or "together".

    >>> measure = measured(nn.Linear(1, 1, bias=False), [torch.ones(1, 1)], lambda model, x: model(x).mean())
    >>> measure({"weight": torch.tensor([[2.0]])}), measure.plan
    ({'loss': 2.0}, 'pointed')
    """

    def __init__(
        self,
        model: nn.Module,
        sets: Mapping[str, Iterable[Batch]],
        loss: BatchLoss[Batch],
        refresh: Callable[[nn.Module], object] | None,
    ) -> None:
        self.model, self._sets, self._loss, self.refresh = model, dict(sets), loss, refresh
        self.plan = ""
        self._failures = 0  # of passes for several places; after a few no more are tried

    @torch.no_grad()
    def __call__(self, weights: Weights) -> dict[str, float]:
        """Return what is measured at these weights, by name."""
        places = Places(self.model, weights)
        with self._kept(places):
            return self._alone(places, weights)

    def many(self, draws: Draws) -> Iterator[dict[str, float]]:
        """Yield what is measured at each place, in order; the model is its own again whenever one is yielded."""
        if not len(draws):
            return
        places = Places(self.model, draws.one(0))
        together: Together | None = None
        number = 0
        while number < len(draws):
            with torch.no_grad(), self._kept(places):
                found: list[dict[str, float]] = []
                if self._may_share(places) and len(draws) - number > 1:
                    together, found = self._shared(places, draws, number, together)
                if not found:
                    found = [self._alone(places, draws.one(number))]
            yield from found
            number += len(found)

    def _alone(self, places: Places, weights: Weights) -> dict[str, float]:
        if self.refresh is None:
            _check_statistics(self.model, weights)
        with applied(self.model, weights) if places.obstacle else places.holding(weights):
            self.plan = "copied" if places.obstacle else "pointed"
            if self.refresh is not None:
                self.refresh(self.model)
            with evaluating(self.model):
                sums = Means()
                for title, batches in self._sets.items():
                    for batch in batches:
                        sums.add(title, examples(batch), as_numbers(self._loss(self.model, batch)))
                    sums.check(title)
                return sums.means()

    def _may_share(self, places: Places) -> bool:
        unknown = self.refresh is not None and not isinstance(self.refresh, OWN)
        return not (places.obstacle or self._failures > 3 or unknown or layers_of(self.model))

    def _shared(
        self, places: Places, draws: Draws, first: int, together: Together | None
    ) -> tuple[Together | None, list[dict[str, float]]]:
        """Measure several places in one pass; none where that does not pay or is not exact."""
        try:
            with evaluating(self.model):
                if together is None:
                    batch = next((first_of(batches) for batches in self._sets.values()), None)
                    together = Together(self.model, self._loss, places, batch, draws.several(first, 2))
                count = min(together.count, len(draws) - first)
                found = self._one_pass(together, Stacks(draws.several(first, count)), count)
                self.plan = "together"
                return together, found
        except ArithmeticError:
            self._failures += 1
        except Exception:  # whatever a model raises on rows that it was not made for: the loop decides
            self._failures = 1 << 16
        return together, []

    def _one_pass(self, pass_: Together, held: Stacks, count: int) -> list[dict[str, float]]:
        sums = [Means() for _ in range(count)]
        for title, batches in self._sets.items():
            for batch in batches:
                size = examples(batch)
                for own, values in zip(sums, pass_.values(held, batch), strict=True):
                    own.add(title, size, values)
            sums[0].check(title)
        found = [own.means() for own in sums]
        if not all(math.isfinite(value) for values in found for value in values.values()):
            raise ArithmeticError("a value is not finite: the loop tells whether it is the place's or the pass's")
        return found

    @contextmanager
    def _kept(self, places: Places) -> Iterator[None]:
        """Run a block, and after an exception put the model back once more: Ctrl-C may come while it is put back."""
        modes = [(module, module.training) for module in self.model.modules()]
        saved = clone_of(places.tensors) if places.obstacle else {}
        try:
            yield
        except BaseException:
            if places.obstacle:
                copy_to(self.model, saved)
            places.back()
            for module, mode in modes:
                module.training = mode
            raise


class Means:
    """Means over examples, by set and name.

    >>> means = Means()
    >>> means.add("test", 1, {"loss": 1.0})
    >>> means.add("test", 3, {"loss": 2.0})
    >>> means.means()
    {'test loss': 1.75}
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], float] = {}
        self._examples: dict[str, int] = {}

    def add(self, title: str, size: int, values: Mapping[str, float]) -> None:
        """Add the means over a batch of `size` examples."""
        self._examples[title] = self._examples.get(title, 0) + size
        for name, value in values.items():
            self._sums[title, name] = self._sums.get((title, name), 0.0) + size * value

    def check(self, title: str) -> None:
        """Refuse a set without examples."""
        if not self._examples.get(title):
            raise ValueError(f"there is no example to measure on: batches {title and repr(title) + ' '}is empty")

    def means(self) -> dict[str, float]:
        """Return them."""
        return {f"{title} {name}".strip(): total / self._examples[title] for (title, name), total in self._sums.items()}


def examples(batch: object) -> int:
    """Return how many examples a batch has: the length of its first tensor.

    >>> examples((torch.zeros(3, 2), torch.zeros(3)))
    3
    """
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
