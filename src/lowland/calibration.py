"""How good class probabilities are: functions of `probs` (N, C) and `labels` (N,) that know no models.

Every function takes tensors or arrays, computes in float64 and returns Python floats. Each raises ValueError, in
one line, for shapes that do not match, labels out of range, and probabilities that are negative, not finite or do not
sum to one.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

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
    return _macro(*_class_counts(*checked(probs, labels)))


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
    return _mcc(*_class_counts(*checked(probs, labels)))


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
    return _Parts.of(*checked(probs, labels), bins=bins).of_data()


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

    >>> g = torch.Generator().manual_seed(0)
    >>> intervals([[0.9, 0.1]] * 4, [0, 0, 0, 1], generator=g)["accuracy"]
    Interval(value=0.75, low=0.25, high=1.0)
    """
    parts = _Parts.of(*checked(probs, labels), bins=bins)
    (resampled,) = _over_resamples([parts], resamples, generator)
    return {name: _interval(value, resampled[name], level) for name, value in parts.of_data().items()}


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
    leaves out 0 tells them apart even where their own intervals overlap.

    >>> g = torch.Generator().manual_seed(0)
    >>> differences([[0.9, 0.1]] * 4, [[0.8, 0.2]] * 4, [0, 0, 0, 1], generator=g)["accuracy"]
    Interval(value=0.0, low=0.0, high=0.0)
    """
    both = [_Parts.of(*checked(p, labels), bins=bins) for p in (probs, others)]
    if both[0].classes != both[1].classes:
        raise ValueError(f"probs and others must have the same classes, got {both[0].classes} and {both[1].classes}")
    first, second = (parts.of_data() for parts in both)
    one, two = _over_resamples(both, resamples, generator)
    return {name: _interval(first[name] - second[name], one[name] - two[name], level) for name in first}


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

    def of_data(self) -> dict[str, float]:
        return self.metrics(torch.ones(len(self.labels), dtype=torch.float64))

    def metrics(self, counts: Tensor) -> dict[str, float]:
        n = counts.sum()
        hits, predicted, labelled = _counted(self.labels, self.predicted, counts, self.classes)
        macro = _macro(hits, predicted, labelled)
        gaps = torch.bincount(self.bin, weights=counts * self.gap, minlength=self.bins)
        return {
            "accuracy": float(hits.sum() / n),
            "precision": macro.precision,
            "recall": macro.recall,
            "f1": macro.f1,
            "nll": float(counts @ self.nll / n),
            "ece": float(gaps.abs().sum() / n),
            "brier": float(counts @ self.brier / n),
            "mcc": _mcc(hits, predicted, labelled),
        }


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


def _class_counts(p: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _counted(y, p.argmax(1), torch.ones(len(y), dtype=torch.float64), p.shape[1])


def _counted(y: Tensor, predicted: Tensor, counts: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Right, predicted and labelled examples of each class: (C,) each."""
    hits = torch.bincount(y, weights=counts * (predicted == y), minlength=classes)
    return (
        hits,
        torch.bincount(predicted, weights=counts, minlength=classes),
        torch.bincount(y, weights=counts, minlength=classes),
    )


def _macro(hits: Tensor, predicted: Tensor, labelled: Tensor) -> PrecisionRecallF1:
    occurs = predicted + labelled > 0
    hits, predicted, labelled = hits[occurs], predicted[occurs], labelled[occurs]
    precision = hits / predicted.clamp_min(1.0)
    recall = hits / labelled.clamp_min(1.0)
    f1 = 2 * hits / (predicted + labelled)
    return PrecisionRecallF1(float(precision.mean()), float(recall.mean()), float(f1.mean()))


def _mcc(hits: Tensor, predicted: Tensor, labelled: Tensor) -> float:
    s = labelled.sum()
    spread = (s * s - predicted.square().sum()) * (s * s - labelled.square().sum())
    if float(spread) <= 0:
        return 0.0
    return float((hits.sum() * s - (predicted * labelled).sum()) / spread.sqrt())


def _over_resamples(
    several: list[_Parts], resamples: int, generator: torch.Generator | None
) -> list[dict[str, Tensor]]:
    """Every metric (resamples,) of several predictions for the same examples, all on the same resamples."""
    n = len(several[0].labels)
    draws: list[list[dict[str, float]]] = [[] for _ in several]
    for index in _resampled(n, resamples, generator):
        counts = torch.bincount(index, minlength=n).double()
        for parts, values in zip(several, draws, strict=True):
            values.append(parts.metrics(counts))
    return [
        {name: torch.tensor([value[name] for value in values], dtype=torch.float64) for name in values[0]}
        for values in draws
    ]


def _resampled(n: int, resamples: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    device = generator.device if generator is not None else torch.device("cpu")
    for _ in range(resamples):
        yield torch.randint(n, (n,), generator=generator, device=device).cpu()


def _interval(value: float, values: Tensor, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(values, ends).tolist()
    return Interval(value, low, high)
