"""Ask a user's score for a verdict on some weights, safely: what ASWA and the greedy soup share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..weights.named import Score, Weights, clone_of

EachScore = Callable[[Weights], Tensor]  # a value for each validation example, (N,), higher is better


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


def judge_each(score: EachScore, weights: Weights, what: str) -> Tensor:
    """Return the value of each validation example, (N,) in float64 on the CPU; the score gets a copy, as in `judge`.

    Raises:
        RuntimeError: the score raised, or what it returned are no numbers; its own error is the cause.
        ValueError: the values are not of shape (N,) with N of at least 2, or not finite.

    >>> right = torch.tensor([True, False, True])
    >>> judge_each(lambda weights: right, {"w": torch.zeros(1)}, "the running weights")
    tensor([1., 0., 1.], dtype=torch.float64)
    """
    try:
        values = torch.as_tensor(score(clone_of(weights)), device="cpu").detach().to(torch.float64)
    except Exception as error:
        raise RuntimeError(
            f"the score of {what} failed with {type(error).__name__}: {error}; nothing is changed: here a score takes "
            "named tensors and returns one number for each validation example, higher is better"
        ) from error
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(
            f"the score of {what} must be a number for each validation example, (N,) with N of at least 2, got shape "
            f"{list(values.shape)}; nothing is changed: do not average over the examples"
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"the score of {what} is not finite for some example; nothing is changed: clamp the values")
    return values
