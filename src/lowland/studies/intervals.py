"""Bootstrap intervals of a method's metrics and of the differences between methods, on shared resamples.

A resample of N texts is a vector of counts. Every metric is a function of sums over the texts weighted by those counts,
so that all resamples are a few matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..calibration import summary
from ..probabilities import FLOOR

METRICS = ("accuracy", "precision", "recall", "f1", "nll", "ece", "brier", "mcc")
Values = dict[str, NDArray[np.float64]]  # each metric in every resample


def counts_of_resamples(texts: int, resamples: int, generator: torch.Generator) -> Tensor:
    """Return how often each text is in each resample: (R, N) in float64."""
    rows = torch.randint(texts, (resamples, texts), generator=generator)
    return torch.zeros((resamples, texts), dtype=torch.float64).scatter_add_(
        1, rows, torch.ones(1, dtype=torch.float64).expand_as(rows)
    )


def resampled(members: Sequence[Tensor], labels: Tensor, counts: Tensor, bins: int) -> Values:
    """Return every metric in every resample, averaged over `members`, each of probabilities (N, C).

    >>> probs, labels = torch.tensor([[0.9, 0.1], [0.4, 0.6]]).double(), torch.tensor([0, 0])
    >>> once = resampled([probs], labels, torch.ones(1, 2).double(), 20)
    >>> {name: round(float(value[0] - summary(probs, labels, bins=20)[name]), 9) for name, value in once.items()}["ece"]
    0.0
    """
    each = [_metrics(probs, labels, counts, bins) for probs in members]
    return {name: np.mean([values[name] for values in each], axis=0) for name in METRICS}


def mean_summary(
    members: Sequence[Tensor], labels: Tensor, bins: int
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Return each metric's mean over members, and the members' own."""
    each = [{name: float(value) for name, value in summary(probs, labels, bins=bins).items()} for probs in members]
    return {name: float(np.mean([one[name] for one in each])) for name in METRICS}, each


def interval(value: float, values: NDArray[np.float64], level: float) -> dict[str, float]:
    """Return a value with the quantiles of its resamples (Efron 1979)."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return {"value": value, "low": float(low), "high": float(high)}


def paired(ours: Values, theirs: Values, points: Mapping[str, float], level: float) -> dict[str, dict[str, float]]:
    """Return the differences ours minus theirs with their intervals; both saw the same resamples."""
    return {name: interval(points[name], ours[name] - theirs[name], level) for name in METRICS}


def _metrics(probs: Tensor, labels: Tensor, counts: Tensor, bins: int) -> Values:
    n, classes = probs.shape
    confidence, predicted = probs.max(1)
    right = (predicted == labels).double()
    chosen = probs.gather(1, labels[:, None]).squeeze(1)
    target = torch.nn.functional.one_hot(labels, classes).double()
    edges = torch.arange(bins + 1, dtype=torch.float64) / bins
    which = torch.bucketize(confidence, edges[1:-1].contiguous())
    gaps = torch.zeros((n, bins), dtype=torch.float64)
    gaps[torch.arange(n), which] = right - confidence
    per_text = torch.stack([right, -chosen.clamp_min(FLOOR).log(), (probs - target).square().sum(1)], 1)  # (N, 3)
    accuracy, nll, brier = ((counts @ per_text) / n).T
    hits = counts @ (target * right[:, None])  # (R, C)
    said = counts @ torch.nn.functional.one_hot(predicted, classes).double()
    true = counts @ target
    present = ((said + true) > 0).double()
    macro = present.sum(1)
    precision = (hits / said.clamp_min(1)).sum(1) / macro
    recall = (hits / true.clamp_min(1)).sum(1) / macro
    f1 = (2 * hits / (said + true).clamp_min(1)).sum(1) / macro
    spread = ((n * n - said.square().sum(1)) * (n * n - true.square().sum(1))).sqrt()
    covariance = hits.sum(1) * n - (said * true).sum(1)
    mcc = torch.where(spread > 0, covariance / spread.clamp_min(1e-300), torch.zeros_like(spread))
    values = (accuracy, precision, recall, f1, nll, (counts @ gaps).abs().sum(1) / n, brier, mcc)
    return {name: value.numpy() for name, value in zip(METRICS, values, strict=True)}
