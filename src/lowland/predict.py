"""Predictions averaged over weights: Bayesian model averaging for any posterior, ensemble or single average.

    p(y | x) = 1/S sum_s p(y | x, w_s),    w_1 ... w_S drawn from the posterior, or its members

(Wilson, Izmailov, 2020, arXiv:2002.08791.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar, overload

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from .averager import Drawable, Posterior, draws, members_of
from .batches import call, evaluating, unwrapped
from .batchnorm import refresh_bn
from .moments import first_nonfinite
from .predictive import Classes, Numbers, Sums
from .predictive import Prediction as Prediction
from .predictive import Regression as Regression
from .weights import Weights, applied

Batch = TypeVar("Batch")
Progress = Callable[[int, int], None]

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
    progress: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Prediction | Regression:
    """Average the model's predictions on `batches` over draws of its weights.

    One draw is in memory at a time, and sums over draws are all that is kept: memory does not grow with `samples`. The
    model runs in eval mode and is put back bit for bit: weights, buffers and modes, also after an exception.

    Every draw reads `batches` again, in the same order: pass a list, or a loader that does not shuffle.

    A model with BatchNorm wants `bn_batches`, training batches with which `refresh_bn` runs after every draw. Without
    them each draw is used with the running statistics in the model (or in the draw, where buffers were averaged too),
    which suit it only if the draws are close to the weights that made the statistics.

    Args:
        posterior: a posterior, a plain average (one point) or named weights. Of a finite posterior every member is used
            exactly once, unless `samples` says how many to draw; from others 30 are drawn.
        forward: returns logits (B, C) for a batch; for regression the mean, or a tuple of mean and variance. By default
            the model is called with a tensor batch, with the first of a tuple, or with a mapping's entries as keyword
            arguments, and the answer is its output or the output's `logits`.
        progress: called after every draw with the number done and the number to do.

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
    model = unwrapped(model)
    run = call if forward is None else forward
    sums: Classes | Numbers = Classes() if task == "classification" else Numbers()
    with evaluating(model):
        for done in range(1, total + 1):
            _absorb(next(points), done, sums, model, batches, run, bn_batches)
            if progress is not None:
                progress(done, total)
    return sums.result(total)


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


def _absorb(
    weights: Weights,
    number: int,
    sums: Sums,
    model: nn.Module,
    batches: Iterable[Batch],
    run: Callable[[nn.Module, Batch], object],
    bn_batches: Iterable[Batch] | None,
) -> None:
    """Run all batches under one draw. A function of its own, so that nothing holds the draw when the next is made."""
    name = first_nonfinite(weights)
    if name is not None:
        raise ValueError(f"draw {number} has a value in {name} that is not finite: look at the posterior's updates")
    with applied(model, weights):
        if bn_batches is not None:
            refresh_bn(model, bn_batches, forward=run)
        seen = 0
        for batch in batches:
            sums.add(seen, number, run(model, batch))
            seen += 1
    if seen != sums.batches or seen == 0:
        wanted = f"{sums.batches} as in the first draw" if sums.batches else "at least one"
        raise ValueError(
            f"batches gave {seen} batches in draw {number}, wanted {wanted}: pass a list or a fixed loader"
        )
