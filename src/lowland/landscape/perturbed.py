"""The loss around a solution: its mean under noise, and the worst in a ball.

    E f(w + s z),  z ~ N(0, I), or with each row of z as long as the row of w (filter-scaled)
    max over |d| <= r of f(w + d)

The worst is looked for by d <- r g(w + d) / |g(w + d)|: the first step is that of SAM (Foret, Kleiner, Mobahi,
Neyshabur 2021, arXiv:2010.01412); where f is convex every step goes up (a linear function below f is maximised), and
for a quadratic at its minimum the steps are power iteration. What is found proves that the worst is at least so bad;
nothing is proven from above.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..arguments import whole
from ..arithmetic.moments import check_numbers
from ..arithmetic.philox import new_key
from ..weights.named import Weights
from .bundle import Bundle
from .estimate import Estimate
from .gradients import Differentiated
from .measures import BatchLoss
from .vectors import Normalise, norm, random_direction, sum_of
from .walk import Measure
from .working import HERE, Work, asking

Batch = TypeVar("Batch")
LossAndGradient = Callable[[Weights], tuple[float, Weights]]


def perturbed(
    w: Weights,
    measure: Measure,
    *,
    std: float,
    draws: int = 30,
    normalise: Normalise = None,
    generator: torch.Generator | None = None,
    work: Work = HERE,
) -> dict[str, Estimate]:
    """Return the mean of each value under Gaussian noise, with its interval over the draws.

    Args:
        measure: takes weights and returns a number that is better when lower, or several by name.
        std: of each weight; with `normalise="filter"` the length of the noise in each row over that of the row, with
            `"norm"` in norms of `w`.
        generator: the same state gives the same noise: differences between solutions are paired (`Estimate.minus`).

    Raises:
        ValueError: std is not above 0 or draws is below 1.

    >>> g = torch.Generator().manual_seed(0)
    >>> found = perturbed({"w": torch.zeros(1)}, lambda w: w["w"].square().item(), std=0.1, draws=50, generator=g)
    >>> found["loss"].low < 0.01 < found["loss"].high
    True
    """
    if not std > 0:
        raise ValueError(f"std must be above 0, got {std}")
    draws = whole("draws", draws, 1)
    bundle = Bundle(w, new_key(generator), normalise, unit=normalise == "norm")
    with asking(measure, bundle, work) as ask:
        found = ask([(float(number), float(std)) for number in range(draws)])
    return {name: Estimate.of([one[name] for one in found]) for name in found[0]}


@dataclass(frozen=True)
class Worst:
    """The worst that ascent found in a ball.

    Attributes:
        value: there.
        weights: the place.
        bound: how far the worst case is above the centre at least: what the place found proves.
        steps: gradients that were computed.
    """

    value: float
    weights: Weights
    bound: float
    steps: int


def worst(
    w: Weights,
    loss_and_gradient: LossAndGradient,
    *,
    radius: float,
    steps: int = 100,
    tolerance: float = 1e-12,
    generator: torch.Generator | None = None,
) -> Worst:
    """Look for the worst loss within `radius` of `w` by ascent on the sphere.

    Args:
        loss_and_gradient: takes weights and returns the loss and its gradient by name; `differentiated` makes one.
        steps: the most gradients; with 1 the worst is that after SAM's step.
        tolerance: stop when a step gains less than this share.
        generator: of the direction that is begun with where the gradient is 0.

    Raises:
        ValueError: the radius is not above 0, or the loss or gradient at `w` is not finite.

    >>> f = lambda weights: (weights["w"].square().sum().item(), {"w": 2 * weights["w"]})
    >>> found = worst({"w": torch.tensor([3.0, 4.0])}, f, radius=1.0)
    >>> found.value, found.bound
    (36.0, 11.0)
    """
    if not radius > 0 or steps < 1:
        raise ValueError(f"wanted a radius above 0 and at least 1 step, got {radius} and {steps}")
    check_numbers(w, "the centre")
    centre, gradient = loss_and_gradient(w)
    length = norm(gradient)
    if not (math.isfinite(centre) and math.isfinite(length)):
        raise ValueError(f"the loss at the centre is {centre} and its gradient's norm {length}: give finite weights")
    if length <= 1e-12 * (1 + abs(centre)):
        gradient, length = random_direction(w, new_key(generator), 0), 1.0
    best, place, taken = centre, dict(w), 0
    while taken < steps:
        taken += 1
        there = _moved(w, gradient, radius / length)
        value, gradient = loss_and_gradient(there)
        length = norm(gradient)
        gained = value - best
        if gained > 0 or taken == 1:
            best, place = value, there
        if not (math.isfinite(value) and length > 0) or (taken > 1 and gained <= tolerance * (abs(best) + 1e-300)):
            break
    if best < centre:
        best, place = centre, dict(w)
    return Worst(best, place, best - centre, taken)


def differentiated(model: nn.Module, batches: Iterable[Batch], loss: BatchLoss[Batch]) -> LossAndGradient:
    """Return the mean loss over batches and its gradient as a function of weights, in eval mode.

    BatchNorm normalises by the statistics that the model has. The model is left as it was.

    Raises:
        ValueError: the batches are an iterator; later: there is none, or the model has no such weights.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> f = differentiated(model, [torch.tensor([[3.0]])], lambda model, x: model(x).square().mean())
    >>> f({"weight": torch.tensor([[2.0]])})
    (36.0, {'weight': tensor([[36.]])})
    """
    return Differentiated(model, batches, loss)


def _moved(w: Weights, direction: Weights, step: float) -> dict[str, Tensor]:
    made = sum_of((1.0, w), (step, direction))
    return {name: made[name].to(tensor.dtype) if name in made else tensor for name, tensor in w.items()}
