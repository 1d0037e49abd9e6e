"""Knowing what one does not know: a set of other questions against those of the training set's kind.

Scores that are high for foreign questions, from probabilities averaged over members and draws:

    entropy = H(mean p)    mutual information = H(mean p) - mean H(p)    disagreement = 1 - share that votes as mean p

Entropies are divided by the logarithm of the question's number of options, as sets differ in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lowland.calibration import entropy

SCORES = ("entropy", "mutual information", "disagreement")


def uncertainty(probs: Tensor, expected_entropy: Tensor, votes: Tensor, options: Sequence[int]) -> dict[str, Tensor]:
    """Return the three scores (N,) of averaged probabilities (N, C).

    Args:
        expected_entropy: (N,) mean over draws of the entropy of each.
        votes: (N, C) share of the draws whose largest probability is there.
        options: how many options each question has.

    >>> p = torch.tensor([[0.5, 0.5]])
    >>> scores = uncertainty(p, torch.tensor([0.0]), p, [2])
    >>> {name: round(score.item(), 3) for name, score in scores.items()}
    {'entropy': 1.0, 'mutual information': 1.0, 'disagreement': 0.5}
    """
    most = torch.tensor([math.log(count) for count in options], dtype=probs.dtype)
    total = entropy(probs)
    agreed = votes.gather(1, probs.argmax(1, keepdim=True)).squeeze(1)
    return {
        "entropy": total / most,
        "mutual information": (total - expected_entropy).clamp_min(0) / most,
        "disagreement": 1 - agreed,
    }


def detection(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """Return how well a score tells foreign questions (`outside`) from the others: AUROC, and AUPR of either class.

    AUROC is the chance that a foreign question has the higher score, ties counting half; AUPR is average precision.

    >>> detection(torch.tensor([0.1, 0.2]), torch.tensor([0.2, 0.9]))
    {'auroc': 0.875, 'aupr_out': 0.8333333333333333, 'aupr_in': 0.8333333333333333}
    """
    scores = torch.cat([inside, outside]).double().numpy()
    foreign = np.concatenate([np.zeros(len(inside), bool), np.ones(len(outside), bool)])
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    _, first, counts = np.unique(scores[order], return_index=True, return_counts=True)
    ranks[order] = np.repeat(first + (counts + 1) / 2, counts)  # ties share their mean rank, from 1
    wins = ranks[foreign].sum() - len(outside) * (len(outside) + 1) / 2
    return {
        "auroc": float(wins / (len(inside) * len(outside))),
        "aupr_out": _average_precision(scores, foreign),
        "aupr_in": _average_precision(-scores, ~foreign),
    }


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Sum over thresholds of (recall gained) * precision; a threshold takes all of equal score."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found, taken = hits[ends], ends + 1
    gained = np.diff(np.concatenate([[0], found])) / hits[-1]
    return float((gained * (found / taken)).sum())
