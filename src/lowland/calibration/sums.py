"""The sums that metrics are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import whole
from .probabilities import FLOOR


def once(n: int) -> Tensor:
    """Return the counts (1, N) of the data themselves: each example once."""
    return torch.ones((1, n), dtype=torch.float64)


def nll_of(p: Tensor, y: Tensor) -> Tensor:
    """Return the negative log-likelihood of each label in nats (N,)."""
    return -p.gather(1, y[:, None]).squeeze(1).clamp_min(FLOOR).log()


def brier_of(p: Tensor, y: Tensor) -> Tensor:
    """Return the Brier score of each example (N,)."""
    return (p.square().sum(1) - 2 * p.gather(1, y[:, None]).squeeze(1) + 1).clamp_min(0.0)


def binned(confidence: Tensor, bins: int, binning: str) -> tuple[Tensor, Tensor]:
    """Edges (bins + 1,) and the bin of each example (N,)."""
    whole("bins", bins, 1)
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


def counted(y: Tensor, predicted: Tensor, counts: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Right, predicted and labelled examples of each class under counts (R, N): (R, C) each."""

    def by(classes_of: Tensor, weights: Tensor) -> Tensor:
        return torch.zeros((len(counts), classes), dtype=torch.float64).index_add_(1, classes_of, weights)

    return by(y, counts * (predicted == y)), by(predicted, counts), by(y, counts)


def macro_of(hits: Tensor, predicted: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return precision, recall and F1 (R,), averaged over the classes that occur."""
    occurs = (predicted + labelled > 0).double()
    classes = occurs.sum(1)
    precision = hits / predicted.clamp_min(1.0)
    recall = hits / labelled.clamp_min(1.0)
    f1 = 2 * hits / (predicted + labelled).clamp_min(1.0)
    return precision.sum(1) / classes, recall.sum(1) / classes, f1.sum(1) / classes


def mcc_of(hits: Tensor, predicted: Tensor, labelled: Tensor) -> Tensor:
    """Return the Matthews correlation (R,), 0 where it is undefined."""
    s = labelled.sum(1)
    spread = (s * s - predicted.square().sum(1)) * (s * s - labelled.square().sum(1))
    covariance = hits.sum(1) * s - (predicted * labelled).sum(1)
    return torch.where(spread > 0, covariance / spread.clamp_min(1.0).sqrt(), torch.zeros_like(spread))
