"""How good class probabilities are: functions of `probs` (N, C) and `labels` (N,) that know no models.

Every function takes tensors or arrays, computes in float64 and returns Python floats. Each raises ValueError, in
one line, for shapes that do not match, labels out of range, and probabilities that are negative, not finite or do not
sum to one.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .probabilities import FLOOR, Array, checked
from .selective import SelectiveRisk as SelectiveRisk
from .selective import aupr as aupr
from .selective import auroc as auroc
from .selective import ood_scores as ood_scores
from .selective import risk_threshold as risk_threshold
from .selective import selective_risk as selective_risk
from .temperature import fit_temperature as fit_temperature
from .temperature import temper as temper


class PrecisionRecallF1(NamedTuple):
    """Macro averages, each from 0 to 1."""

    precision: float
    recall: float
    f1: float


class Reliability(NamedTuple):
    """Bins of confidence `(edges[b], edges[b + 1]]`; the first holds its lower edge too. Empty ones hold NaN."""

    edges: Tensor  # (bins + 1,)
    confidence: Tensor  # (bins,) mean confidence
    accuracy: Tensor  # (bins,) share correct
    count: Tensor  # type: ignore[assignment]  # (bins,) examples; it hides tuple.count


class Interval(NamedTuple):
    """A metric and the ends of its bootstrap interval."""

    value: float  # of the data themselves
    low: float
    high: float


def accuracy(probs: Array, labels: Array) -> float:
    """Share of examples whose most probable class is the label (of equally probable ones, the first).

    >>> accuracy([[0.9, 0.1], [0.4, 0.6]], [0, 0])
    0.5
    """
    p, y = checked(probs, labels)
    return float((p.argmax(1) == y).double().mean())


def macro_precision_recall_f1(probs: Array, labels: Array) -> PrecisionRecallF1:
    """Precision, recall and F1 of each class, averaged over the classes that occur as label or as
    prediction.

    A class that is never predicted has precision 0, one that never occurs has recall 0 (as in scikit-learn
    with `zero_division=0`).

    >>> macro_precision_recall_f1([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]], [0, 1, 1])
    PrecisionRecallF1(precision=0.75, recall=0.75, f1=0.6666666666666666)
    """
    p, y = checked(probs, labels)
    return PrecisionRecallF1(*(float(v) for v in _macro(*_counted(y, p.argmax(1), _once(len(y)), p.shape[1]))))


def nll(probs: Array, labels: Array) -> float:
    """Mean negative log-likelihood in nats: `-1/N sum_n log max(p_n[y_n], 1e-12)`.

    >>> round(nll([[0.9, 0.1], [0.5, 0.5]], [0, 1]), 6)
    0.399254
    """
    return float(_nll(*checked(probs, labels)).mean())


def brier(probs: Array, labels: Array) -> float:
    """Brier score (Brier, 1950): `1/N sum_n sum_c (p_nc - [y_n = c])^2`, from 0 to 2.

    >>> round(brier([[0.9, 0.1], [0.5, 0.5]], [0, 1]), 6)
    0.26
    """
    return float(_brier(*checked(probs, labels)).mean())


def mcc(probs: Array, labels: Array) -> float:
    """Matthews correlation of label and predicted class, for any number of classes (R_K of Gorodkin, 2004).

        R_K = (c s - sum_k p_k t_k) / sqrt((s^2 - sum_k p_k^2) (s^2 - sum_k t_k^2))

    with s examples, c of them correct, p_k predicted and t_k labelled as class k. 0 where it is undefined:
    when all labels or all predictions are of one class.

    >>> round(mcc([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]], [0, 1, 1]), 6)
    0.5
    """
    p, y = checked(probs, labels)
    return float(_mcc(*_counted(y, p.argmax(1), _once(len(y)), p.shape[1])))


def ece(
    probs: Array,
    labels: Array,
    *,
    bins: int = 15,
    binning: Literal["width", "mass"] = "width",
) -> float:
    """Expected calibration error of the most probable class (Guo et al., 2017, arXiv:1706.04599).

        ECE = sum_b n_b / N |accuracy_b - confidence_b|

    Bins are `(lo, hi]`, the first one also holds confidence 0 and the last one confidence 1. `"width"`:
    equal widths of 1/bins. `"mass"`: upper edges at the confidences ranked `ceil(b N / bins)`; equal
    confidences always share a bin, so that the value does not depend on the order of the examples. Name the
    binning and the bins wherever you quote one.

    >>> round(ece([[0.05, 0.95], [0.0, 1.0]], [1, 0], bins=10), 6)
    0.475
    """
    r = reliability(probs, labels, bins=bins, binning=binning)
    gap = (r.count * (r.accuracy - r.confidence)).abs().nansum()
    return float(gap / r.count.sum())


def reliability(
    probs: Array,
    labels: Array,
    *,
    bins: int = 15,
    binning: Literal["width", "mass"] = "width",
) -> Reliability:
    """Confidence against accuracy in bins of confidence: what a reliability diagram shows. Binning as in
    `ece`.

    >>> r = reliability([[0.05, 0.95], [0.0, 1.0]], [1, 0], bins=2)
    >>> r.edges.tolist(), r.count.tolist(), r.accuracy.tolist()
    ([0.0, 0.5, 1.0], [0, 2], [nan, 0.5])
    """
    p, y = checked(probs, labels)
    confidence, predicted = p.max(1)
    edges, which = _binned(confidence, bins, binning)
    count = torch.bincount(which, minlength=bins)

    def mean(values: Tensor) -> Tensor:
        return torch.bincount(which, weights=values, minlength=bins) / count

    return Reliability(edges, mean(confidence), mean((predicted == y).double()), count)


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

    >>> bootstrap(accuracy, [[0.9, 0.1]] * 10, [0] * 10, generator=torch.Generator().manual_seed(0))
    Interval(value=1.0, low=1.0, high=1.0)
    """
    p, y = checked(probs, labels)
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
    def of(cls, p: Tensor, y: Tensor, bins: int) -> "_Parts":
        confidence, predicted = p.max(1)
        which = _binned(confidence, bins, "width")[1]
        gap = (predicted == y).double() - confidence
        return cls(y, predicted, _nll(p, y), _brier(p, y), gap, which, bins, p.shape[1])

    def metrics(self, counts: Tensor) -> dict[str, Tensor]:
        """Every metric (R,) under counts (R, N) of how often each example is taken."""
        n = counts.sum(1)
        hits, predicted, labelled = _counted(self.labels, self.predicted, counts, self.classes)
        precision, recall, f1 = _macro(hits, predicted, labelled)
        gaps = torch.zeros((len(counts), self.bins), dtype=torch.float64).index_add_(1, self.bin, counts * self.gap)
        return {
            "accuracy": hits.sum(1) / n,
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "nll": counts @ self.nll / n,
            "ece": gaps.abs().sum(1) / n,
            "brier": counts @ self.brier / n,
            "mcc": _mcc(hits, predicted, labelled),
        }


def _models(probs: Array, labels: Array, bins: int) -> list[_Parts]:
    """The parts of one prediction (N, C), or of each of several (M, N, C)."""
    each: list[Array] = list(probs) if isinstance(probs, Tensor | np.ndarray) and probs.ndim == 3 else [probs]
    if not each:
        raise ValueError("probs hold no model: the first of three axes is empty")
    return [_Parts.of(*checked(p, labels), bins=bins) for p in each]


def _mean_of_data(models: list[_Parts]) -> dict[str, float]:
    found = [parts.metrics(_once(len(parts.labels))) for parts in models]
    return {name: sum(float(one[name]) for one in found) / len(found) for name in found[0]}


def _once(n: int) -> Tensor:
    return torch.ones((1, n), dtype=torch.float64)


def _nll(p: Tensor, y: Tensor) -> Tensor:
    return -p.gather(1, y[:, None]).squeeze(1).clamp_min(FLOOR).log()


def _brier(p: Tensor, y: Tensor) -> Tensor:
    return (p.square().sum(1) - 2 * p.gather(1, y[:, None]).squeeze(1) + 1).clamp_min(0.0)


def _binned(confidence: Tensor, bins: int, binning: str) -> tuple[Tensor, Tensor]:
    """Edges (bins + 1,) and the bin of each example (N,)."""
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be a whole number of at least 1, got {bins}")
    if binning == "width":
        edges = torch.arange(bins + 1, dtype=torch.float64) / bins  # correctly rounded, unlike linspace
    elif binning == "mass":
        ranked = confidence.sort().values
        last = -(-torch.arange(1, bins + 1) * len(ranked) // bins) - 1
        edges = torch.cat([ranked[:1], ranked[last]])
    else:
        raise ValueError(f'binning must be "width" or "mass", got {binning!r}')
    # Inner edges only: at or below the first of them is bin 0, above the last of them is the last bin.
    return edges, torch.bucketize(confidence, edges[1:-1].contiguous())


def _counted(y: Tensor, predicted: Tensor, counts: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Right, predicted and labelled examples of each class under counts (R, N): (R, C) each."""

    def by(classes_of: Tensor, weights: Tensor) -> Tensor:
        return torch.zeros((len(counts), classes), dtype=torch.float64).index_add_(1, classes_of, weights)

    return by(y, counts * (predicted == y)), by(predicted, counts), by(y, counts)


def _macro(hits: Tensor, predicted: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    occurs = (predicted + labelled > 0).double()
    classes = occurs.sum(1)
    precision = hits / predicted.clamp_min(1.0)
    recall = hits / labelled.clamp_min(1.0)
    f1 = 2 * hits / (predicted + labelled).clamp_min(1.0)
    return precision.sum(1) / classes, recall.sum(1) / classes, f1.sum(1) / classes


def _mcc(hits: Tensor, predicted: Tensor, labelled: Tensor) -> Tensor:
    s = labelled.sum(1)
    spread = (s * s - predicted.square().sum(1)) * (s * s - labelled.square().sum(1))
    covariance = hits.sum(1) * s - (predicted * labelled).sum(1)
    return torch.where(spread > 0, covariance / spread.clamp_min(1.0).sqrt(), torch.zeros_like(spread))


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
