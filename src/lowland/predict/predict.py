"""Predictions averaged over weights: Bayesian model averaging for any posterior, ensemble or single average.

    p(y | x) = 1/S sum_s p(y | x, w_s),    w_1 ... w_S drawn from the posterior, or its members

(Wilson, Izmailov, 2020, arXiv:2002.08791.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from math import isfinite
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from ..arithmetic.moments import first_nonfinite
from ..averager.posteriors import Drawable, Posterior, check_draws, draws, members_of
from ..batchnorm.draws import DrawRefresher, FastRefresh
from ..batchnorm.refresh import refresh_bn
from ..batchnorm.stale import stale_layer, warn
from ..batchnorm.statistics import layers_of
from ..weights.kinds import FLOATS
from ..weights.named import Weights, applied, bare_name
from ..weights.running import call, caller, evaluating, unwrapped
from .plans.runner import Runner
from .plans.sums import Classes, Numbers, Sums
from .prediction import Prediction as Prediction
from .prediction import Regression as Regression

Batch = TypeVar("Batch")
Result = TypeVar("Result", Prediction, Regression)
Refresh = Callable[[nn.Module, Weights], float]

_one_by_one: ContextVar[bool] = ContextVar("_one_by_one", default=False)

SAMPLES = 30  # draws from a posterior with infinitely many points, as in the SWAG and MultiSWAG papers


@torch.no_grad()
def predict(
    model: nn.Module,
    posterior: Drawable,
    batches: Iterable[Batch],
    *,
    samples: int | None = None,
    forward: Callable[[nn.Module, Batch], object] | None = None,
    bn_batches: Iterable[Batch] | FastRefresh[Batch] | None = None,
    generator: torch.Generator | None = None,
) -> Prediction:
    """Average the model's predicted probabilities on `batches` over draws of its weights.

    Sums over draws are all that is kept, and the draws that are held at once take at most 256 MB (or are one): memory
    does not grow with `samples`. The model runs in eval mode and is put back bit for bit: weights, buffers and modes,
    also after an exception. The same call gives the same bits in every run.

    Draws may read `batches` again, in the same order: pass a list, or a loader that does not shuffle.

    How draws are run follows from the model's structure and the batches' shapes: in fewer passes where there are such
    (`lowland.predict.plans`). `Prediction.plan` tells how. The answer is that of the plain loop: the same bits, or
    within rounding of the model's dtype where the plan is "stacked". In a block of `one_by_one` it is that loop.

    A model with BatchNorm wants `bn_batches`, training batches with which `refresh_bn` runs after every draw. Without
    them each draw is used with the running statistics in the model (or in the draw, where buffers were averaged too),
    which suit it only if the draws are close to the weights that made the statistics: a warning names the layer.
    Layers that are frozen keep their statistics (`lowland.batchnorm`).

    With 30 draws that is 30 passes over `bn_batches`. `bn_batches=FastRefresh(batches)` makes one, under the
    posterior's mean (under each component's in a `Mixture`), and corrects it for every draw by the first two batches;
    points, such as `Snapshots`, are refreshed exactly all the same. `bn_error` of the result is the largest estimated
    error; above its `tolerance` a draw is given more batches, in the end all.

    Args:
        posterior: a posterior, a plain average (one point) or named weights. Of a finite posterior every member is used
            exactly once, unless `samples` says how many to draw; from others 30 are drawn.
        forward: returns logits (B, C) for a batch. By default the model is called with a tensor batch, with the first
            of a tuple, or with a mapping's entries as keyword arguments, and the answer is its output or the output's
            `logits`. It is also where to count what is done: rows come once for each draw, and up to three times more
            in the first batch, unless draws run `one_by_one`.

    Raises:
        ValueError: `samples` is below 1; `batches` are empty, shuffled, used up, no batches but one, or change between
            draws; a draw or an output is not finite, by number; an output has the wrong shape.
        RuntimeError: the posterior has no weights yet.

    >>> model = nn.Linear(1, 2, bias=False)
    >>> half = {"weight": torch.tensor([[0.0], [0.0]])}
    >>> p = predict(model, half, [torch.ones(3, 1)])
    >>> p.probs[0].tolist(), p.samples, p.mutual_information.tolist()
    ([0.5, 0.5], 1, [0.0, 0.0, 0.0])
    """
    return _averaged(Classes, model, posterior, batches, samples, forward, bn_batches, generator)


@torch.no_grad()
def predict_regression(
    model: nn.Module,
    posterior: Drawable,
    batches: Iterable[Batch],
    *,
    samples: int | None = None,
    forward: Callable[[nn.Module, Batch], object] | None = None,
    bn_batches: Iterable[Batch] | FastRefresh[Batch] | None = None,
    generator: torch.Generator | None = None,
) -> Regression:
    """Average the numbers that the model predicts on `batches` over draws of its weights.

    As `predict`, but `forward` returns the mean, (B, ...), or a tuple of mean and variance.

    Raises:
        ValueError, RuntimeError: as `predict`, or a variance is negative or of another shape than its mean.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> p = predict_regression(model, {"weight": torch.tensor([[2.0]])}, [torch.ones(3, 1)])
    >>> p.mean[0].item(), p.variance[0].item()
    (2.0, 0.0)
    """
    return _averaged(Numbers, model, posterior, batches, samples, forward, bn_batches, generator)


@contextmanager
def one_by_one() -> Iterator[None]:
    """Run a block in which `predict` passes every batch once for every draw, and shares nothing between draws.

    To count passes, or to hold a plan against the plain loop. It counts for this thread, or this task.

    >>> model = nn.Linear(1, 2)
    >>> with one_by_one():
    ...     predict(model, dict(model.named_parameters()), [torch.ones(3, 1)]).plan
    'loop'
    """
    token = _one_by_one.set(True)
    try:
        yield
    finally:
        _one_by_one.reset(token)


def _averaged(
    kind: Callable[[int, list[int]], Sums[Result]],
    model: nn.Module,
    posterior: Drawable,
    batches: Iterable[Batch],
    samples: int | None,
    forward: Callable[[nn.Module, Batch], object] | None,
    bn_batches: Iterable[Batch] | FastRefresh[Batch] | None,
    generator: torch.Generator | None,
) -> Result:
    check_draws(samples, generator)
    points, counts = _points(posterior, samples, generator)
    _check_batches(batches, "batches", len(counts))
    model = unwrapped(model)
    run = caller(model) if forward is None else forward
    refresh = _refresh_by(posterior, bn_batches, len(counts), call if forward is None else forward)
    modes = [(module, module.training) for module in model.modules()]  # say which BatchNorm layers are frozen
    errors: list[float] = []
    told = refresh is not None or not layers_of(model)

    def take(number: int) -> Weights:
        # Nothing here holds a draw when the next is made.
        nonlocal told
        weights = next(points)
        _check_finite(weights, number)
        if refresh is None:
            if not told:
                with _in(modes):
                    told = _tell_stale(model, weights)
            return weights
        with _in(modes), applied(model, weights):
            errors.append(refresh(model, weights))
            return {**weights, **_statistics(model)}

    sums = kind(len(counts), counts)
    runner = Runner(model, batches, run, sums, take, "loop" if _one_by_one.get() else "auto")
    with evaluating(model):
        runner.everything()
    return replace(sums.result(runner.plan), bn_error=max(errors, default=0.0))


def _points(
    posterior: Drawable, samples: int | None, generator: torch.Generator | None
) -> tuple[Iterator[Weights], list[int]]:
    """The draws, made one by one as they are asked for, and how often each counts."""
    members = None if samples is not None and isinstance(posterior, Posterior) else members_of(posterior)
    if members is None:
        total = SAMPLES if samples is None else samples
        return draws(posterior, total, generator), [1] * total
    if not members:
        raise RuntimeError(f"{type(posterior).__name__} has no weights yet: call update(model) first")
    if type(members) is not list:  # they may be read as they are asked for
        return iter(members), [1] * len(members)
    points, counts = members[:1], [1]
    for point in members[1:]:
        if point is points[-1]:  # a finite mixture repeats the points of its smaller components
            counts[-1] += 1
        else:
            points.append(point)
            counts.append(1)
    return iter(points), counts


def _check_batches(batches: object, what: str, total: int, *, ordered: bool = True) -> None:
    iterable = hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")
    if not iterable or isinstance(batches, Tensor | Mapping | str):
        one = isinstance(batches, Tensor | Mapping)
        do = "pass [batch]" if one else "pass a list of batches or a loader"
        raise ValueError(f"{what} must be several batches, got {'one ' if one else ''}{type(batches).__name__}: {do}")
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
    bn_batches: Iterable[Batch] | FastRefresh[Batch] | None,
    total: int,
    run: Callable[[nn.Module, Batch], object],
) -> Refresh | None:
    """What refreshes the statistics of a model that holds a draw, and tells the error."""
    if bn_batches is None:
        return None
    batches = bn_batches.batches if isinstance(bn_batches, FastRefresh) else bn_batches
    _check_batches(batches, "bn_batches", total, ordered=False)
    if isinstance(bn_batches, FastRefresh):
        refresher = DrawRefresher(posterior, batches, forward=run, tolerance=bn_batches.tolerance)
        return lambda model, weights: refresher.refresh(model, weights).error

    def exact(model: nn.Module, weights: Weights) -> float:
        refresh_bn(model, batches, forward=run)
        return 0.0

    return exact


@contextmanager
def _in(modes: list[tuple[nn.Module, bool]]) -> Iterator[None]:
    """Run a block in the user's modes, in the middle of an evaluation."""
    try:
        for module, mode in modes:
            module.training = mode
        yield
    finally:
        for module, _ in modes:
            module.training = False


def _check_finite(weights: Weights, number: int) -> None:
    scaled = [name for name, tensor in weights.items() if tensor.is_floating_point() and tensor.dtype not in FLOATS]
    if scaled:
        raise ValueError(
            f"draw {number}: {scaled[0]} is of {weights[scaled[0]].dtype}, which means nothing without scales"
        )
    name = None if _surely_finite(weights) else first_nonfinite(weights)
    if name is not None:
        raise ValueError(f"draw {number} has a value in {name} that is not finite: look at the posterior's updates")


def _surely_finite(weights: Weights) -> bool:
    """Whether all tensors lie on the CPU and have finite sums: an infinity or NaN would show, and so may overflow."""
    return all(
        type(tensor) in (Tensor, nn.Parameter) and tensor.is_cpu and isfinite(float(tensor.detach().sum()))
        for tensor in weights.values()
        if tensor.is_floating_point()
    )


def _tell_stale(model: nn.Module, weights: Weights) -> bool:
    layer = stale_layer(model, weights)
    if layer is not None:
        warn(layer, "the draws that predict")
    return layer is not None


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the running statistics that stand in the model, by name."""
    return {
        bare_name(f"{prefix}.{key}" if prefix else key): buffer.detach().clone()
        for prefix, layer in model.named_modules()
        if isinstance(layer, _NormBase)
        for key, buffer in layer.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }
