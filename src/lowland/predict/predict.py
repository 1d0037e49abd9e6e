"""Predictions averaged over weights: Bayesian model averaging for any posterior, ensemble or single average.

    p(y | x) = 1/S sum_s p(y | x, w_s),    w_1 ... w_S drawn from the posterior, or its members

(Wilson, Izmailov, 2020, arXiv:2002.08791.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import isfinite
from typing import Literal, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from ..arithmetic.moments import first_nonfinite
from ..averager.posteriors import Drawable, Posterior, draws, members_of
from ..batchnorm.draws import DrawRefresher
from ..batchnorm.refresh import refresh_bn
from ..weights.named import Weights, applied, bare_name
from ..weights.running import call, caller, evaluating, unwrapped
from .plans.runner import PLANS, Runner
from .plans.sums import Classes, Numbers
from .prediction import Prediction as Prediction
from .prediction import Regression as Regression

Batch = TypeVar("Batch")
Progress = Callable[[int, int], None]
Refresh = Callable[[nn.Module, Weights], float]
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
    bn: Literal["exact", "fast"] = "exact",
    bn_tolerance: float | None = None,
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
    bn: Literal["exact", "fast"] = "exact",
    bn_tolerance: float | None = None,
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
    bn: Literal["exact", "fast"] = "exact",
    bn_tolerance: float | None = None,
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

    With 30 draws that is 30 passes over `bn_batches`. `bn="fast"` makes one, under the posterior's mean (under each
    component's in a `Mixture`), and corrects it for every draw by the first two batches (`lowland.batchnorm`);
    points, such as `Snapshots`, are refreshed exactly all the same. `bn_error` of the result is the largest estimated
    error; above `bn_tolerance` a draw is given more batches, in the end all.

    Args:
        posterior: a posterior, a plain average (one point) or named weights. Of a finite posterior every member is used
            exactly once, unless `samples` says how many to draw; from others 30 are drawn.
        forward: returns logits (B, C) for a batch; for regression the mean, or a tuple of mean and variance. By default
            the model is called with a tensor batch, with the first of a tuple, or with a mapping's entries as keyword
            arguments, and the answer is its output or the output's `logits`.
        plan: how the draws are run; `lowland.predict.plans` says what there is. By default the fastest is found by
            measuring in the first batch; `Prediction.plan` tells which it was. The answer is that of the
            plain loop: the same bits under "copy", "loop" and "prefix",
            within rounding of the model's dtype under "stacked" and "merged".
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
    refresh = _refresh_by(posterior, bn_batches, bn, bn_tolerance, call if forward is None else forward)
    errors: list[float] = []
    if task not in ("classification", "regression"):
        raise ValueError(f'task must be "classification" or "regression", got {task!r}')
    if plan not in PLANS:
        raise ValueError(f"plan must be one of {', '.join(PLANS)}, got {plan!r}")
    model = unwrapped(model)
    run = caller(model) if forward is None else forward

    def take(number: int) -> Weights:
        # Nothing here holds a draw when the next is made.
        return _draw(next(points), number, model, refresh, errors)

    sums: Classes | Numbers = Classes(total) if task == "classification" else Numbers(total)
    runner = Runner(model, batches, run, sums, take, plan, progress)
    with evaluating(model):
        runner.everything()
    return replace(sums.result(runner.plan), bn_error=max(errors, default=0.0))


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


def _refresh_by(
    posterior: Drawable,
    bn_batches: Iterable[Batch] | None,
    bn: str,
    tolerance: float | None,
    run: Callable[[nn.Module, Batch], object],
) -> Refresh | None:
    """What refreshes the statistics of a model that holds a draw, and tells the error."""
    if bn not in ("exact", "fast"):
        raise ValueError(f'bn must be "exact" or "fast", got {bn!r}')
    if bn == "fast" and bn_batches is None:
        raise ValueError('bn="fast" refreshes BatchNorm from training batches: pass bn_batches=')
    if tolerance is not None and bn != "fast":
        raise ValueError(f'bn_tolerance={tolerance} is for bn="fast": the exact refresh has no error')
    if bn_batches is None:
        return None
    if bn == "fast":
        refresher = DrawRefresher(posterior, bn_batches, forward=run, tolerance=tolerance)
        return lambda model, weights: refresher.refresh(model, weights).error

    def exact(model: nn.Module, weights: Weights) -> float:
        refresh_bn(model, bn_batches, forward=run)
        return 0.0

    return exact


def _draw(weights: Weights, number: int, model: nn.Module, refresh: Refresh | None, errors: list[float]) -> Weights:
    """A draw that is fit for use: finite, and with the BatchNorm statistics that belong to it."""
    name = None if _surely_finite(weights) else first_nonfinite(weights)
    if name is not None:
        raise ValueError(f"draw {number} has a value in {name} that is not finite: look at the posterior's updates")
    return weights if refresh is None else _with_statistics(weights, model, refresh, errors)


def _surely_finite(weights: Weights) -> bool:
    """Whether all tensors lie on the CPU and have finite sums: an infinity or NaN would show, and so may overflow."""
    return all(
        type(tensor) in (Tensor, nn.Parameter) and tensor.is_cpu and isfinite(float(tensor.detach().sum()))
        for tensor in weights.values()
        if tensor.is_floating_point()
    )


def _with_statistics(weights: Weights, model: nn.Module, refresh: Refresh, errors: list[float]) -> Weights:
    """The draw with running statistics found under its weights."""
    with applied(model, weights):
        errors.append(refresh(model, weights))
        statistics = {
            bare_name(f"{prefix}.{key}" if prefix else key): buffer.detach().clone()
            for prefix, layer in model.named_modules()
            if isinstance(layer, _BatchNorm)
            for key, buffer in layer.named_buffers(recurse=False)
            if buffer.is_floating_point()
        }
    return {**weights, **statistics}
