"""Class probabilities `(N, C)` and labels `(N,)`: the checks on the way in, and their entropy."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

Array = Tensor | ArrayLike  # what callers may pass: tensors, numpy arrays, nested lists

# The smallest probability whose logarithm is taken: one hopeless example must not make a mean infinite.
FLOOR = 1e-12


def entropy(probs: Array) -> Tensor:
    """Shannon entropy of the last axis, in nats, with `0 log 0 = 0` and no epsilon.

        H(p) = -sum_c p_c log p_c

    probs: (..., C), a tensor or an array; returns (...), where the tensor is.

    Raises ValueError for numbers that are no probabilities.

    >>> [round(float(h), 6) for h in entropy(torch.tensor([[0.7, 0.3], [1.0, 0.0]]))]
    [0.610864, 0.0]
    """
    if isinstance(probs, Tensor):
        _check_kind(probs, "probs")
    p = probs if isinstance(probs, Tensor) else _tensor(probs, "probs")
    if not p.is_floating_point() or p.ndim == 0:
        raise ValueError(f"probs must be floating point of shape (..., C), got {p.dtype} of shape {tuple(p.shape)}")
    total: Tensor = torch.special.entr(p).sum(-1)  # of a negative number it is -inf, of NaN and infinity not finite
    # Rows of 16-bit numbers sum to a little more than 1; numbers well above 1 are no probabilities.
    if not bool((total.isfinite() & (total > -0.05)).all()):
        raise ValueError("probs must lie between 0 and 1: apply softmax to logits first")
    return total.clamp_min(0.0)


def checked(probs: Array, labels: Array) -> tuple[Tensor, Tensor]:
    """The same probabilities as float64 `(N, C)` and the same labels as int64 `(N,)`, both on the CPU.

    Raises ValueError, in one line, for anything that is not that.

    >>> probs, labels = checked([[0.25, 0.75]], [1])
    >>> probs.dtype, labels.dtype
    (torch.float64, torch.int64)
    """
    p = checked_probs(probs)
    y = _tensor(labels, "labels")
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"labels must be whole numbers (class indices), got dtype {y.dtype}: convert them first")
    if y.shape != p.shape[:1]:
        raise ValueError(
            f"labels must have shape ({p.shape[0]},), one per row of probs, got {tuple(y.shape)}: "
            "give class indices, not one-hot rows"
        )
    y = y.to(torch.int64)
    if int(y.min()) < 0 or int(y.max()) >= p.shape[1]:
        wrong = y[(y < 0) | (y >= p.shape[1])][0]
        raise ValueError(f"labels must lie in 0..{p.shape[1] - 1} (probs have {p.shape[1]} classes), got {int(wrong)}")
    return p, y


def checked_probs(probs: Array, what: str = "probs", axes: str = "NC") -> Tensor:
    """`probs` as a float64 CPU tensor, checked: floating point, not empty, finite, not negative, rows that
    sum to one.

    >>> checked_probs([[0.4, 0.4]])
    Traceback (most recent call last):
    ...
    ValueError: probs must sum to 1 over classes, got 0.8 in row 0: apply softmax to logits first
    """
    given = _tensor(probs, what)
    if not given.is_floating_point():
        raise ValueError(f"{what} must be floating point probabilities, got dtype {given.dtype}")
    if given.ndim != len(axes) or given.shape[-1] < 2:
        hint = "; for a binary P(class 1) stack [1 - p, p]" if given.ndim < len(axes) else ""
        raise ValueError(f"{what} must have shape ({', '.join(axes)}) with C >= 2, got {tuple(given.shape)}{hint}")
    if given.numel() == 0:
        raise ValueError(f"{what} are empty, got shape {tuple(given.shape)}: at least one example is needed")
    p = given.to(torch.float64)
    rows = p.reshape(-1, p.shape[-1])
    if not bool(torch.isfinite(rows).all()):
        row = int((~torch.isfinite(rows)).any(1).nonzero()[0])
        raise ValueError(f"{what} must be finite, got {rows[row].tolist()} in row {row}")
    if float(rows.min()) < 0:
        row = int((rows < 0).any(1).nonzero()[0])
        raise ValueError(
            f"{what} must not be negative, got {float(rows[row].min()):g} in row {row}: apply softmax first"
        )
    # Probabilities are read from text files and from half precision: wide enough for both, far too tight for logits.
    tolerance = 1e-3 if torch.finfo(given.dtype).bits >= 32 else 2e-2
    sums = rows.sum(1)
    if float((sums - 1).abs().max()) > tolerance:
        row = int((sums - 1).abs().argmax())
        raise ValueError(
            f"{what} must sum to 1 over classes, got {float(sums[row]):g} in row {row}: apply softmax to logits first"
        )
    return p


def checked_scores(scores: Array, length: int | None = None) -> Tensor:
    """`scores` as a float64 CPU tensor `(N,)` without NaN; infinite scores are allowed, they still sort.

    >>> checked_scores([0.5, float("nan")])
    Traceback (most recent call last):
    ...
    ValueError: scores must not be NaN, got NaN at position 1
    """
    s = _tensor(scores, "scores")
    if s.ndim != 1 or s.numel() == 0 or s.is_complex() or (length is not None and len(s) != length):
        wanted = "(N,), not empty" if length is None else f"({length},)"
        raise ValueError(f"scores must be real numbers of shape {wanted}, got {s.dtype} {tuple(s.shape)}")
    s = s.to(torch.float64)
    if bool(s.isnan().any()):
        raise ValueError(f"scores must not be NaN, got NaN at position {int(s.isnan().nonzero()[0])}")
    return s


def _tensor(value: Array, what: str) -> Tensor:
    if isinstance(value, Tensor):
        _check_kind(value, what)
        return value.detach().cpu()
    try:
        return torch.as_tensor(np.ascontiguousarray(value))
    except (TypeError, ValueError) as error:  # strings, ragged lists
        raise ValueError(
            f"{what} must be a tensor or an array of numbers, got {type(value).__name__}: {error}"
        ) from None


def _check_kind(tensor: Tensor, what: str) -> None:
    kinds = {
        "nested": tensor.is_nested,
        "on the meta device, without values": tensor.is_meta,
        f"quantised ({tensor.dtype})": tensor.is_quantized,
        "sparse": not tensor.is_nested and tensor.layout != torch.strided,
        f"of {tensor.dtype}, which means nothing without its scales": "float8" in str(tensor.dtype),
    }
    for kind, found in kinds.items():
        if found:
            raise ValueError(f"{what} must be a dense tensor of numbers, got one that is {kind}")
