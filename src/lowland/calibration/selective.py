"""What scores of certainty are good for: leaving doubtful cases to someone else, noticing foreign inputs.

Selective risk after Geifman and El-Yaniv (2017), *Selective Classification for Deep Neural Networks*,
arXiv:1705.08500.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .probabilities import Array, checked, checked_probs, checked_scores, entropy


class SelectiveRisk(NamedTuple):
    """The curve of `selective_risk`, from the most certain cases to all of them."""

    coverage: Tensor  # (U,) share of cases answered, increasing, ends at 1
    risk: Tensor  # (U,) share of the answered cases that are wrong

    @property
    def area(self) -> float:
        """Area under the curve (AURC): the risk averaged over coverage; lower is better."""
        share = self.coverage.diff(prepend=self.coverage.new_zeros(1))
        return float((self.risk * share).sum())


def selective_risk(probs: Array, labels: Array, score: Array | None = None) -> SelectiveRisk:
    """Share of wrong answers among the answered, as one answers more and more cases in order of certainty.

    `score` (N,) is the certainty, larger is more certain; default: the largest probability. Cases with equal
    scores are answered together, so the curve has one point for each distinct score.

    >>> curve = selective_risk([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.45, 0.55]], [0, 1, 1, 1])
    >>> curve.coverage.tolist(), [round(r, 4) for r in curve.risk.tolist()]
    ([0.25, 0.5, 0.75, 1.0], [0.0, 0.5, 0.3333, 0.25])
    >>> round(curve.area, 6)
    0.270833
    """
    _, answered, wrong = _by_certainty(probs, labels, score)
    return SelectiveRisk(answered / answered[-1], wrong / answered)


def risk_threshold(
    probs: Array,
    labels: Array,
    risk: float,
    *,
    score: Array | None = None,
    level: float | None = None,
) -> float:
    """The certainty from which on (`score >= threshold`) at most a share `risk` of the answers is wrong.

    Of all such thresholds it is the one that answers most cases; inf if there is none. Choose it on validation data.
    With `level=None` it is the empirical risk of those very cases, and new cases of the same kind exceed it as often
    as not. With `level=0.95`, say, the risk on new cases stays below `risk` with that probability over the choice of
    the validation set: a binary search over thresholds, each step tested with the exact binomial (Clopper-Pearson)
    upper bound at `(1 - level) / steps` (arXiv:1705.08500, algorithm 2). That answers fewer cases and needs more data.

    Raises ValueError unless 0 <= risk < 1 and 0 < level < 1.

    >>> probs = [[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.45, 0.55]]
    >>> risk_threshold(probs, [0, 0, 1, 0], risk=0.1), risk_threshold(probs, [1, 1, 0, 0], risk=0.1)
    (0.6, inf)
    >>> risk_threshold(probs, [0, 0, 1, 0], risk=0.1, level=0.95)   # four cases prove nothing
    inf
    """
    if not 0 <= risk < 1:
        raise ValueError(f"risk must lie in [0, 1), got {risk}")
    if level is not None and not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    certainty, answered, wrong = _by_certainty(probs, labels, score)
    if level is None:
        good = (wrong / answered <= risk).nonzero()
        return float(certainty[good[-1]]) if len(good) else math.inf
    low, high = 0, len(certainty) - 1
    allowed = (1 - level) / max(1, math.ceil(math.log2(len(certainty) + 1)))
    best = math.inf
    while low <= high:
        middle = (low + high) // 2
        # The upper bound on the risk is at most `risk` exactly when so few errors would be that improbable under it.
        if _binomial_cdf(int(wrong[middle]), int(answered[middle]), risk) <= allowed:
            best, low = float(certainty[middle]), middle + 1
        else:
            high = middle - 1
    return best


def risk_bound(wrong: int, answered: int, level: float = 0.95) -> float:
    """The risk that `wrong` of `answered` cases leave possible: Clopper and Pearson's exact upper bound (1934).

    The share of wrong answers on new cases of the same kind stays below it with probability `level` over the choice of
    the cases, if those had no part in choosing what is answered.

    Raises ValueError unless 0 <= wrong <= answered, answered is at least 1 and 0 < level < 1.

    >>> round(risk_bound(0, 10), 4), round(risk_bound(2, 240), 4)
    (0.2589, 0.026)
    """
    if not 0 <= wrong <= answered or answered < 1:
        raise ValueError(f"wrong must be a part of answered, which is 1 or more, got {wrong} of {answered}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    if wrong == answered:
        return 1.0
    low, high = wrong / answered, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _binomial_cdf(wrong, answered, middle) > 1 - level:
            low = middle
        else:
            high = middle
    return high


def ood_scores(probs: Array, members: Array | None = None) -> dict[str, Tensor]:
    """Scores (N,) by which inputs unlike the training data may be told; larger always means more foreign.

    `max_probability` is one minus the largest of `probs` (N, C), `entropy` its entropy. With the
    probabilities of each member or draw, `members` (M, N, C), also `mutual_information` (entropy of their
    mean minus their mean entropy) and `disagreement` (share of members whose class is not that of their
    mean).

    >>> scores = ood_scores([[0.7, 0.3]], members=[[[0.9, 0.1]], [[0.5, 0.5]]])
    >>> {name: round(float(s), 6) for name, s in scores.items()}
    {'max_probability': 0.3, 'entropy': 0.610864, 'mutual_information': 0.101749, 'disagreement': 0.0}
    """
    p = checked_probs(probs)
    scores = {"max_probability": 1 - p.amax(1), "entropy": entropy(p)}
    if members is not None:
        m = checked_probs(members, "members", axes="MNC")
        if m.shape[1:] != p.shape:
            raise ValueError(
                f"members must have shape (M, {p.shape[0]}, {p.shape[1]}) to fit probs, got {tuple(m.shape)}"
            )
        mean = m.mean(0)  # (N, C)
        scores["mutual_information"] = (entropy(mean) - entropy(m).mean(0)).clamp_min(0.0)
        scores["disagreement"] = (m.argmax(2) != mean.argmax(1)).double().mean(0)
    return scores


def auroc(scores: Array, positive: Array) -> float:
    """Probability that a positive case scores above a negative one, ties counting one half.

    scores: (N,), larger means more positive; positive: (N,) of booleans or 0 and 1, both kinds present.

    >>> auroc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])
    0.875
    """
    positives, negatives = _by_score(scores, positive)
    above = positives.cumsum(0) - positives  # positives at strictly higher scores
    return float((negatives * (above + positives / 2)).sum() / (positives.sum() * negatives.sum()))


def aupr(scores: Array, positive: Array) -> float:
    """Average precision: precision at each distinct threshold, weighted by the recall gained there. No
    interpolation.

    scores: (N,), larger means more positive; positive: (N,) of booleans or 0 and 1, both kinds present.

    >>> round(aupr([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]), 6)
    0.833333
    """
    positives, negatives = _by_score(scores, positive)
    precision = positives.cumsum(0) / (positives + negatives).cumsum(0)
    return float((precision * positives).sum() / positives.sum())


def _by_certainty(probs: Array, labels: Array, score: Array | None) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct scores from the highest down, how many cases reach each, how many of those are wrong: (U,)."""
    p, y = checked(probs, labels)
    certainty = p.amax(1) if score is None else checked_scores(score, len(y))
    wrong = (p.argmax(1) != y).double()
    values, group = torch.unique(certainty, return_inverse=True)  # ascending
    answered = torch.bincount(group, minlength=len(values)).double()
    wrongs = torch.bincount(group, weights=wrong, minlength=len(values))
    return values.flip(0), answered.flip(0).cumsum(0), wrongs.flip(0).cumsum(0)


def _by_score(scores: Array, positive: Array) -> tuple[Tensor, Tensor]:
    """Numbers of positives and of negatives at each distinct score, from the highest down: (U,) each."""
    s = checked_scores(scores)
    is_positive = checked_scores(positive, len(s))
    if not bool(((is_positive == 0) | (is_positive == 1)).all()):
        raise ValueError("positive must hold booleans or 0 and 1 only")
    if not 0 < float(is_positive.sum()) < len(s):
        raise ValueError(f"both kinds must be present, got {int(is_positive.sum())} positive of {len(s)}")
    values, group = torch.unique(s, return_inverse=True)
    positives = torch.bincount(group, weights=is_positive, minlength=len(values)).flip(0)
    return positives, torch.bincount(group, minlength=len(values)).double().flip(0) - positives


def _binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Binomial(n, p), summed in logs."""
    if p == 0 or k >= n:
        return 1.0
    i = torch.arange(k + 1, dtype=torch.float64)
    choose = math.lgamma(n + 1) - torch.lgamma(i + 1) - torch.lgamma(n - i + 1)
    return float(torch.logsumexp(choose + i * math.log(p) + (n - i) * math.log1p(-p), 0).exp())
