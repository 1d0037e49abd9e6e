"""Bootstrap intervals of metrics, and of their differences between two predictions of the same examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .probabilities import Array, _tensor, checked
from .sums import binned, brier_of, counted, macro_of, mcc_of, nll_of, once


class Interval(NamedTuple):
    """A metric and the ends of its bootstrap interval."""

    value: float  # of the data themselves
    low: float
    high: float


def summary(probs: Array, labels: Array, *, bins: int = 20) -> dict[str, float]:
    """All scalar metrics at once: accuracy, macro precision, recall and F1, nll, ece (equal width), brier,
    mcc.

    >>> list(summary([[0.9, 0.1], [0.4, 0.6]], [0, 1]))
    ['accuracy', 'precision', 'recall', 'f1', 'nll', 'ece', 'brier', 'mcc']
    """
    return _mean_of_data([_Parts.of(*checked(probs, labels), bins=bins)])


def bootstrap(
    metric: Callable[[Tensor, Tensor], float],
    probs: Array,
    labels: Array,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> Interval:
    """Percentile bootstrap interval of any metric: its quantiles over resamples of the examples (Efron, 1979).

    Takes the test set as a sample of possible test sets; it says nothing of other training runs. `intervals`
    does the same for all metrics of `summary` in the time of one.

    >>> from lowland.calibration import accuracy
    >>> bootstrap(accuracy, [[0.9, 0.1]] * 10, [0] * 10, generator=torch.Generator().manual_seed(0))
    Interval(value=1.0, low=1.0, high=1.0)
    """
    p, y = checked(probs, labels)
    p = p.to(_tensor(probs, "probs").dtype)  # what rows of 16-bit numbers may sum to is told by their type
    values = [metric(p[i], y[i]) for i in _resampled(len(y), resamples, generator)]
    return _interval(metric(p, y), torch.tensor(values, dtype=torch.float64), level)


def intervals(
    probs: Array,
    labels: Array,
    *,
    bins: int = 20,
    resamples: int = 1000,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> dict[str, Interval]:
    """`bootstrap` of every metric of `summary`, all on the same resamples.

    probs: (N, C), or a tensor or array (M, N, C) of M models for the mean over them of each metric.

    The interval of ece is moved down by the bias that the resamples show: noise in a bin only ever adds to the gap
    between confidence and accuracy, and a resample adds it once more.

    >>> g = torch.Generator().manual_seed(0)
    >>> intervals([[0.9, 0.1]] * 4, [0, 0, 0, 1], generator=g)["accuracy"]
    Interval(value=0.75, low=0.25, high=1.0)
    """
    models = _models(probs, labels, bins)
    (found,) = _over_resamples([models], resamples, generator)
    return {
        name: _interval(value, found[name], level, biased=name == "ece", floor=0.0)
        for name, value in _mean_of_data(models).items()
    }


def differences(
    probs: Array,
    others: Array,
    labels: Array,
    *,
    bins: int = 20,
    resamples: int = 1000,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> dict[str, Interval]:
    """Every metric of `summary` for `probs` minus the same for `others`, with intervals over shared resamples.

    Two methods on one test set stumble over the same hard examples. Paired, that common part cancels: an interval that
    leaves out 0 tells them apart even where their own intervals overlap. Shapes as in `intervals`.

    >>> g = torch.Generator().manual_seed(0)
    >>> differences([[0.9, 0.1]] * 4, [[0.8, 0.2]] * 4, [0, 0, 0, 1], generator=g)["accuracy"]
    Interval(value=0.0, low=0.0, high=0.0)
    """
    both = [_models(p, labels, bins) for p in (probs, others)]
    classes = [models[0].classes for models in both]
    if classes[0] != classes[1]:
        raise ValueError(f"probs and others must have the same classes, got {classes[0]} and {classes[1]}")
    first, second = (_mean_of_data(models) for models in both)
    one, two = _over_resamples(both, resamples, generator)
    return {
        name: _interval(first[name] - second[name], one[name] - two[name], level, biased=name == "ece")
        for name in first
    }


class _Parts(NamedTuple):
    """What each example contributes, (N,) each. Metrics are functions of sums of these: a resample is N counts."""

    labels: Tensor
    predicted: Tensor
    nll: Tensor
    brier: Tensor
    gap: Tensor  # correct - confidence
    bin: Tensor
    bins: int
    classes: int

    @classmethod
    def of(cls, p: Tensor, y: Tensor, bins: int) -> _Parts:
        confidence, predicted = p.max(1)
        which = binned(confidence, bins, "width")[1]
        gap = (predicted == y).double() - confidence
        return cls(y, predicted, nll_of(p, y), brier_of(p, y), gap, which, bins, p.shape[1])

    def metrics(self, counts: Tensor) -> dict[str, Tensor]:
        """Every metric (R,) under counts (R, N) of how often each example is taken."""
        n = counts.sum(1)
        hits, predicted, labelled = counted(self.labels, self.predicted, counts, self.classes)
        precision, recall, f1 = macro_of(hits, predicted, labelled)
        gaps = torch.zeros((len(counts), self.bins), dtype=torch.float64).index_add_(1, self.bin, counts * self.gap)
        return {
            "accuracy": hits.sum(1) / n,
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "nll": counts @ self.nll / n,
            "ece": gaps.abs().sum(1) / n,
            "brier": counts @ self.brier / n,
            "mcc": mcc_of(hits, predicted, labelled),
        }


def _models(probs: Array, labels: Array, bins: int) -> list[_Parts]:
    """The parts of one prediction (N, C), or of each of several (M, N, C)."""
    each: list[Array] = list(probs) if isinstance(probs, Tensor | np.ndarray) and probs.ndim == 3 else [probs]
    if not each:
        raise ValueError("probs hold no model: the first of three axes is empty")
    return [_Parts.of(*checked(p, labels), bins=bins) for p in each]


def _mean_of_data(models: list[_Parts]) -> dict[str, float]:
    found = [parts.metrics(once(len(parts.labels))) for parts in models]
    return {name: sum(float(one[name]) for one in found) / len(found) for name in found[0]}


def _over_resamples(
    several: list[list[_Parts]], resamples: int, generator: torch.Generator | None
) -> list[dict[str, Tensor]]:
    """Every metric (resamples,) of several predictions for the same examples, all on the same resamples."""
    n = len(several[0][0].labels)
    draws: list[list[dict[str, Tensor]]] = [[] for _ in several]
    indices = _resampled(n, resamples, generator)
    at_once = max(1, _AT_ONCE // n)
    while chunk := list(islice(indices, at_once)):
        counts = torch.stack([torch.bincount(index, minlength=n).double() for index in chunk])  # (R, N)
        for models, values in zip(several, draws, strict=True):
            found = [parts.metrics(counts) for parts in models]
            values.append({name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]})
    return [{name: torch.cat([value[name] for value in values]) for name in values[0]} for values in draws]


_AT_ONCE = 1 << 20  # counts held at a time: 8 MB


def _resampled(n: int, resamples: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    device = generator.device if generator is not None else torch.device("cpu")
    for _ in range(resamples):
        yield torch.randint(n, (n,), generator=generator, device=device).cpu()


def _interval(
    value: float, values: Tensor, level: float, *, biased: bool = False, floor: float | None = None
) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    if biased:
        values = values - (values.mean() - value)
        if floor is not None:
            values = values.clamp_min(floor)
    low, high = torch.quantile(values, ends).tolist()
    return Interval(value, low, high)
