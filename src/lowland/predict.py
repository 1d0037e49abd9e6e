"""Predictions averaged over weights: Bayesian model averaging for any posterior, ensemble or single average.

    p(y | x) = 1/S sum_s p(y | x, w_s),    w_1 ... w_S drawn from the posterior, or its members

(Wilson, Izmailov, 2020, arXiv:2002.08791.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar, overload

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from .averager import Drawable, Posterior, draws, members_of
from .batches import call, evaluating, unwrapped
from .batchnorm import refresh_bn
from .moments import first_nonfinite
from .plans.runner import PLANS, Runner
from .predictive import Classes, Numbers
from .predictive import Prediction as Prediction
from .predictive import Regression as Regression
from .weights import Weights, applied, bare_name

Batch = TypeVar("Batch")
Progress = Callable[[int, int], None]
Plan = Literal["auto", "copy", "loop", "prefix", "stacked", "merged"]

SAMPLES = 30  # draws from a posterior with infinitely many points, as in the SWAG and MultiSWAG papers


@overload
def predict(
    model: nn.Module,
    posterior: Drawable,
    batches: Iterable[Batch],
    *,
    samples: int | None = None,
    forward: Callable[[nn.Module, Batch], object] | None = None,
    task: Literal["classification"] = "classification",
    bn_batches: Iterable[Batch] | None = None,
    plan: Plan = "auto",
    progress: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Prediction: ...


@overload
def predict(
    model: nn.Module,
    posterior: Drawable,
    batches: Iterable[Batch],
    *,
    samples: int | None = None,
    forward: Callable[[nn.Module, Batch], object] | None = None,
    task: Literal["regression"],
    bn_batches: Iterable[Batch] | None = None,
    plan: Plan = "auto",
    progress: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Regression: ...


@torch.no_grad()
def predict(
    model: nn.Module,
    posterior: Drawable,
    batches: Iterable[Batch],
    *,
    samples: int | None = None,
    forward: Callable[[nn.Module, Batch], object] | None = None,
    task: Literal["classification", "regression"] = "classification",
    bn_batches: Iterable[Batch] | None = None,
    plan: Plan = "auto",
    progress: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Prediction | Regression:
    """Average the model's predictions on `batches` over draws of its weights.

    Sums over draws are all that is kept, and the draws that are held at once take at most 256 MB (or are one): memory
    does not grow with `samples`. The model runs in eval mode and is put back bit for bit: weights, buffers and modes,
    also after an exception.

    Draws may read `batches` again, in the same order: pass a list, or a loader that does not shuffle.

    A model with BatchNorm wants `bn_batches`, training batches with which `refresh_bn` runs after every draw. Without
    them each draw is used with the running statistics in the model (or in the draw, where buffers were averaged too),
    which suit it only if the draws are close to the weights that made the statistics.

    Args:
        posterior: a posterior, a plain average (one point) or named weights. Of a finite posterior every member is used
            exactly once, unless `samples` says how many to draw; from others 30 are drawn.
        forward: returns logits (B, C) for a batch; for regression the mean, or a tuple of mean and variance. By default
            the model is called with a tensor batch, with the first of a tuple, or with a mapping's entries as keyword
            arguments, and the answer is its output or the output's `logits`.
        plan: how the draws are run; `lowland.plans` says what there is. By default the fastest is found by measuring in
            the first batch; `Prediction.plan` tells which it was. The answer is that of the plain loop: the same bits
            under "copy", "loop" and "prefix", within rounding of the model's dtype under "stacked" and "merged".
        progress: called for every draw with the number done and the number to do; where draws run together, as their
            share of the work is done.

    Raises:
        ValueError: `samples` is below 1; `batches` are empty, shuffled, used up or change between draws; a draw or an
            output is not finite, by number; an output has the wrong shape.
        RuntimeError: the posterior has no weights yet.

    >>> model = nn.Linear(1, 2, bias=False)
    >>> half = {"weight": torch.tensor([[0.0], [0.0]])}
    >>> p = predict(model, half, [torch.ones(3, 1)])
    >>> p.probs[0].tolist(), p.samples, p.mutual_information.tolist()
    ([0.5, 0.5], 1, [0.0, 0.0, 0.0])
    """
    points, total = _points(posterior, samples, generator)
    _check_batches(batches, "batches", total)
    if bn_batches is not None:
        _check_batches(bn_batches, "bn_batches", total, ordered=False)
    if task not in ("classification", "regression"):
        raise ValueError(f'task must be "classification" or "regression", got {task!r}')
    if plan not in PLANS:
        raise ValueError(f"plan must be one of {', '.join(PLANS)}, got {plan!r}")
    model = unwrapped(model)
    run = call if forward is None else forward

    def take(number: int) -> Weights:
        # Nothing here holds a draw when the next is made.
        return _draw(next(points), number, model, bn_batches, run)

    sums: Classes | Numbers = Classes() if task == "classification" else Numbers()
    runner = Runner(model, batches, run, sums, take, total, plan, progress)
    with evaluating(model):
        runner.everything()
    return sums.result(total, runner.plan)


def _points(
    posterior: Drawable, samples: int | None, generator: torch.Generator | None
) -> tuple[Iterator[Weights], int]:
    """The draws, made one by one as they are asked for, and how many there are."""
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise ValueError(f"samples must be a whole number of at least 1, got {samples}")
    members = None if samples is not None and isinstance(posterior, Posterior) else members_of(posterior)
    if members is None:
        total = SAMPLES if samples is None else samples
        return draws(posterior, total, generator), total
    if not members:
        raise RuntimeError(f"{type(posterior).__name__} has no weights yet: call update(model) first")
    return iter(members), len(members)


def _check_batches(batches: object, what: str, total: int, *, ordered: bool = True) -> None:
    if total > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"{what} can be read only once, got a {type(batches).__name__}, and each of {total} draws reads them: pass "
            "a list or a loader"
        )
    random = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
    if ordered and isinstance(batches, DataLoader) and isinstance(batches.sampler, random):
        raise ValueError(f"{what} are shuffled, so that rows of different draws would not match: pass shuffle=False")


def _draw(
    weights: Weights,
    number: int,
    model: nn.Module,
    bn_batches: Iterable[Batch] | None,
    run: Callable[[nn.Module, Batch], object],
) -> Weights:
    """A draw that is fit for use: finite, and with the BatchNorm statistics that belong to it."""
    name = first_nonfinite(weights)
    if name is not None:
        raise ValueError(f"draw {number} has a value in {name} that is not finite: look at the posterior's updates")
    return weights if bn_batches is None else _with_statistics(weights, model, bn_batches, run)


def _with_statistics(
    weights: Weights, model: nn.Module, bn_batches: Iterable[Batch], run: Callable[[nn.Module, Batch], object]
) -> Weights:
    """The draw with running statistics found on `bn_batches` under its weights."""
    with applied(model, weights):
        refresh_bn(model, bn_batches, forward=run)
        statistics = {
            bare_name(f"{prefix}.{key}" if prefix else key): buffer.detach().clone()
            for prefix, layer in model.named_modules()
            if isinstance(layer, _BatchNorm)
            for key, buffer in layer.named_buffers(recurse=False)
            if buffer.is_floating_point()
        }
    return {**weights, **statistics}
