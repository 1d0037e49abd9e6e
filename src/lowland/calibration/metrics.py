"""How good class probabilities are: functions of `probs` (N, C) and `labels` (N,) that know no models.

Every function takes tensors or arrays, computes in float64 and returns Python floats. Each raises ValueError, in
one line, for shapes that do not match, labels out of range, and probabilities that are negative, not finite or do not
sum to one.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .probabilities import Array, checked
from .selective import SelectiveRisk as SelectiveRisk
from .selective import aupr as aupr
from .selective import auroc as auroc
from .selective import ood_scores as ood_scores
from .selective import risk_threshold as risk_threshold
from .selective import selective_risk as selective_risk
from .sums import binned, brier_of, counted, macro_of, mcc_of, nll_of, once
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
    return PrecisionRecallF1(*(float(v) for v in macro_of(*counted(y, p.argmax(1), once(len(y)), p.shape[1]))))


def nll(probs: Array, labels: Array) -> float:
    """Mean negative log-likelihood in nats: `-1/N sum_n log max(p_n[y_n], 1e-12)`.

    >>> round(nll([[0.9, 0.1], [0.5, 0.5]], [0, 1]), 6)
    0.399254
    """
    return float(nll_of(*checked(probs, labels)).mean())


def brier(probs: Array, labels: Array) -> float:
    """Brier score (Brier, 1950): `1/N sum_n sum_c (p_nc - [y_n = c])^2`, from 0 to 2.

    >>> round(brier([[0.9, 0.1], [0.5, 0.5]], [0, 1]), 6)
    0.26
    """
    return float(brier_of(*checked(probs, labels)).mean())


def mcc(probs: Array, labels: Array) -> float:
    """Matthews correlation of label and predicted class, for any number of classes (R_K of Gorodkin, 2004).

        R_K = (c s - sum_k p_k t_k) / sqrt((s^2 - sum_k p_k^2) (s^2 - sum_k t_k^2))

    with s examples, c of them correct, p_k predicted and t_k labelled as class k. 0 where it is undefined:
    when all labels or all predictions are of one class.

    >>> round(mcc([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]], [0, 1, 1]), 6)
    0.5
    """
    p, y = checked(probs, labels)
    return float(mcc_of(*counted(y, p.argmax(1), once(len(y)), p.shape[1])))


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
    edges, which = binned(confidence, bins, binning)
    count = torch.bincount(which, minlength=bins)

    def mean(values: Tensor) -> Tensor:
        return torch.bincount(which, weights=values, minlength=bins) / count

    return Reliability(edges, mean(confidence), mean((predicted == y).double()), count)
