"""Ask a user's score for a verdict on some weights, safely: what ASWA and the greedy soup share."""

from __future__ import annotations

import math

from .weights import Score, Weights, clone_of


def judge(score: Score, weights: Weights, what: str) -> float:
    """Return ``score(weights)`` as a number. The score gets a copy of its own, which it may write into.

    `what` names the weights in messages.

    Raises:
        RuntimeError: the score raised, or what it returned is no number; its own error is the cause.
        ValueError: the score is NaN, with which nothing can be compared. Infinities are scores.

    >>> import torch
    >>> judge(lambda weights: -abs(weights["w"].item() - 5), {"w": torch.tensor(4.0)}, "the running weights")
    -1.0
    """
    try:
        value = float(score(clone_of(weights)))
    except Exception as error:
        raise RuntimeError(
            f"the score of {what} failed with {type(error).__name__}: {error}; nothing is changed: "
            "a score takes named tensors and returns one number, higher is better"
        ) from error
    if math.isnan(value):
        raise ValueError(f"the score of {what} is NaN; nothing is changed: return -inf for weights that are of no use")
    return value
