"""Sums over draws of what a model gives for each batch, in few operations however small the batches are.

What a pass gives is kept as it is until about `BLOCK` numbers are there: the outputs of consecutive batches under one
draw, and where all batches together give fewer, those of several draws. Each block is then checked, turned into
probabilities and merged into the running mean and sum of squares (Chan, Golub, LeVeque, 1979):

    mean += d m / n,    squares += squares_m + d^2 (n - m) m / n,    d = mean_m - mean    after m more draws, n in all

where a draw that counts several times, as a point of a small component of a mixture does, adds that often to m and n.

The blocks follow from the outputs' shapes alone. So the sums are the same bits in whichever order passes are made, as
long as the draws of each batch come in order.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import isfinite
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ...calibration.probabilities import entropy
from ..prediction import Prediction, Regression

BLOCK = 4096  # numbers in a block, about: the operations on one cost what those on a single row do
PATIENCE = 0.05  # seconds after which an output is checked as it comes

Result = TypeVar("Result", Prediction, Regression)
Raw = tuple[Tensor, ...]  # what one pass gave, as the model gave it: logits, a mean, or a mean and a variance


@dataclass
class _Group:
    """Consecutive batches that are summed together."""

    first: int  # number of the first batch, from 0
    batches: int = 0
    elements: int = 0
    together: int = 0  # draws in a block; 0 while batches may still be added
    waiting: dict[int, list[Raw]] = field(default_factory=dict)  # by draw
    complete: int = 0  # draws of which all batches came
    done: int = 0  # draws summed
    mean: Tensor = field(default_factory=lambda: torch.empty(0))
    squares: Tensor = field(default_factory=lambda: torch.empty(0))
    other: Tensor = field(default_factory=lambda: torch.empty(0))


class Sums(ABC, Generic[Result]):
    """What is kept over draws, for each batch in order.

    Args:
        samples: draws to come in all.
        counts: how often each counts; None for once.

    >>> sums = Classes(2)
    >>> for draw in (1, 2):
    ...     sums.add(0, draw, sums.raw(torch.zeros(3, 2), draw, 0))
    ...     sums.close()
    >>> sums.result("loop").probs[0].tolist()
    [0.5, 0.5]
    """

    def __init__(self, samples: int, counts: Sequence[int] | None = None) -> None:
        self.samples = samples
        self._counts = list(counts or [1] * samples)
        self._before = [0, *accumulate(self._counts)]  # what all draws up to one count
        self._alike = len(set(self._counts)) <= 1
        self._groups: list[_Group] = []
        self._home: list[_Group] = []  # by batch
        self._shapes: list[torch.Size] = []  # of the first draw's values, by batch
        self._looked = time.perf_counter()

    @property
    def batches(self) -> int:
        return len(self._home)

    @abstractmethod
    def raw(self, output: object, number: int, index: int) -> Raw:
        """Return the tensors in a model's output under draw `number` (from 1) for batch `index` (from 0), unchanged."""

    @abstractmethod
    def read(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """Return the value to average with its spread, and the value to average alone; float64 on the CPU."""

    @abstractmethod
    def result(self, plan: str) -> Result: ...

    def add(self, index: int, number: int, raw: Raw) -> None:
        """Take what `raw` found for batch `index` under draw `number`; for each batch the draws come in order."""
        value = raw[0]
        if number == 1:
            self._place(index, value)
        elif index >= len(self._home) or value.shape != self._shapes[index]:
            wanted = tuple(self._shapes[index]) if index < self.batches else f"only {self.batches} batches"
            raise ValueError(
                f"batches changed between draws: draw {number} gives {tuple(value.shape)} for batch {index + 1}, the "
                f"first gave {wanted}: pass a list or a fixed loader"
            )
        group = self._home[index]
        waiting = group.waiting.get(number)
        if waiting is None:
            waiting = group.waiting[number] = []
        # Copies: a model may use the memory of its output again.
        waiting.append((value.clone(),) if len(raw) == 1 else tuple(part.clone() for part in raw))
        now = time.perf_counter()
        if now - self._looked > PATIENCE:
            self._looked = now
            self.check(raw, number, index)
        if number == 1 and group.elements >= BLOCK:
            self._close(group)
        elif group.together and len(waiting) == group.batches:
            group.complete += 1
            self._settle(group)

    def close(self) -> None:
        """All batches have come under one draw."""
        if self._groups and not self._groups[-1].together:
            self._close(self._groups[-1])

    def check(self, raw: Raw, number: int, index: int) -> None:
        """Raise ValueError for an output that is not finite, or not a variance."""
        for part in raw:
            # One infinity or NaN makes the sum one, and a sum is found faster than a mask; a sum may also overflow.
            if not isfinite(float(part.sum())) and not bool(torch.isfinite(part).all()):
                row = int((~torch.isfinite(part)).nonzero()[0][0])
                raise ValueError(f"{where(number, index)}: the output for example {row + 1} of the batch is not finite")
        if len(raw) == 2 and bool((raw[1] < 0).any()):
            raise ValueError(
                f"variance must have the shape of the mean and not be negative, got {tuple(raw[1].shape)} for "
                f"{tuple(raw[0].shape)}, smallest {float(raw[1].min()):g}, in {where(number, index)}"
            )

    def _place(self, index: int, value: Tensor) -> None:
        if index < self.batches:
            raise ValueError(f"batch {index + 1} of draw 1 was given twice")
        if self._home and value.shape[1:] != self._shapes[0][1:]:
            raise ValueError(
                f"outputs must agree beyond the first axis, got {tuple(value.shape)} in batch {index + 1} and "
                f"{tuple(self._shapes[0])} in batch 1: pad to one length, or predict each by itself"
            )
        if not self._groups or self._groups[-1].together:
            self._groups.append(_Group(index))
        group = self._groups[-1]
        group.batches += 1
        group.elements += value.numel()
        self._home.append(group)
        self._shapes.append(value.shape)

    def _close(self, group: _Group) -> None:
        group.together = max(1, BLOCK // max(group.elements, 1))
        group.complete = sum(len(waiting) == group.batches for waiting in group.waiting.values())
        self._settle(group)

    def _settle(self, group: _Group) -> None:
        """Sum the blocks of draws that are complete."""
        while group.done < group.complete:
            count = min(group.together, self.samples - group.done)
            if group.done + count > group.complete:
                return
            numbers = range(group.done + 1, group.done + count + 1)
            parts = [raw for number in numbers for raw in group.waiting.pop(number)]
            self._merge(group, parts, count)

    def _merge(self, group: _Group, parts: list[Raw], count: int) -> None:
        whole = tuple(torch.cat(part) if len(part) > 1 else part[0] for part in zip(*parts, strict=True))
        try:
            self.check(whole, 0, 0)
        except ValueError:
            for place, raw in enumerate(parts):  # says which draw and batch it was
                self.check(raw, group.done + 1 + place // group.batches, group.first + place % group.batches)
            raise
        value, other = (part.view(count, -1, *part.shape[1:]) for part in self.read(whole))
        first, group.done = group.done, group.done + count
        before, done = self._before[first], self._before[group.done]
        counts = None if self._alike else torch.tensor(self._counts[first : group.done], dtype=torch.float64)
        mean, other = _mean(value, counts), _mean(other, counts)
        spread = torch.zeros_like(mean) if count == 1 else _sum((value - mean).square_(), counts)
        if self._alike:  # all count once, as far as sums go
            before, done = first, group.done
        if before == 0:
            group.mean, group.squares, group.other = mean, spread, other
            return
        deviation, share = mean - group.mean, (done - before) / done
        group.mean += deviation * share
        group.squares += spread.addcmul_(deviation, deviation, value=before * (done - before) / done)
        group.other += (other - group.other) * share

    def _all(self) -> tuple[Tensor, Tensor, Tensor]:
        """The mean, the variance over draws, and the mean of the value that has no spread, of all rows."""
        mean, squares, other = ([getattr(g, name) for g in self._groups] for name in ("mean", "squares", "other"))
        return (
            torch.cat(mean),
            torch.cat(squares) / (self.samples if self._alike else self._before[-1]),
            torch.cat(other),
        )


class Classes(Sums[Prediction]):
    """Probabilities from logits, and their entropies."""

    def raw(self, output: object, number: int, index: int) -> Raw:
        logits = _tensor(_main(output), number, index)
        if logits.ndim < 2 or logits.shape[-1] < 2:
            raise ValueError(
                f"forward must return logits (B, C) with C >= 2, got {tuple(logits.shape)} in {where(number, index)}; "
                "for one logit z of a binary model return torch.stack([0 * z, z], -1), for numbers call "
                "predict_regression"
            )
        return (logits,)

    def read(self, raw: Raw) -> tuple[Tensor, Tensor]:
        # By hand, as torch's softmax over few classes takes twice as long; the largest is subtracted there too.
        logits = _wide(raw[0])
        probs = (logits - logits.amax(-1, keepdim=True)).exp_()
        probs /= probs.sum(-1, keepdim=True)
        return probs, entropy(probs)

    def result(self, plan: str) -> Prediction:
        probs, variance, expected = self._all()
        return Prediction(probs, expected, variance, self.samples, plan)


class Numbers(Sums[Regression]):
    """Means, and variances where the model predicts them."""

    def raw(self, output: object, number: int, index: int) -> Raw:
        if not isinstance(output, tuple):
            return (_tensor(_main(output), number, index),)
        if len(output) != 2:
            raise ValueError(
                f"forward must return the mean or (mean, variance), got {len(output)} values in {where(number, index)}"
            )
        mean, variance = (_tensor(part, number, index) for part in output)
        if mean.shape != variance.shape:
            raise ValueError(
                f"variance must have the shape of the mean and not be negative, got {tuple(variance.shape)} for "
                f"{tuple(mean.shape)}, smallest {float(variance.min()):g}, in {where(number, index)}"
            )
        return mean, variance

    def read(self, raw: Raw) -> tuple[Tensor, Tensor]:
        mean = _wide(raw[0])
        return mean, _wide(raw[1]) if len(raw) == 2 else torch.zeros_like(mean)

    def result(self, plan: str) -> Regression:
        mean, spread, variance = self._all()
        return Regression(mean, variance, spread, self.samples, plan)


def where(number: int, index: int) -> str:
    """Name a pass.

    >>> where(2, 0)
    'draw 2, batch 1'
    """
    return f"draw {number}, batch {index + 1}"


def _main(output: object) -> object:
    """The tensor in a model's output: itself, its `logits`, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, Sequence) and len(output) > 0:
        return output[0]
    return output


def _tensor(output: object, number: int, index: int) -> Tensor:
    if not isinstance(output, Tensor):
        raise ValueError(
            f"forward must return a tensor, got {type(output).__name__} in {where(number, index)}: pass forward="
        )
    if output.ndim == 0:
        raise ValueError(f"forward must return one row per example, got a single number in {where(number, index)}")
    return output.detach()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to("cpu").to(torch.float64)


def _mean(values: Tensor, counts: Tensor | None) -> Tensor:
    """The mean over the first axis, exact where all are equal; new memory."""
    first = values[0]
    if len(values) == 1:
        return first.clone()
    return first + ((values - first).mean(0) if counts is None else _sum(values - first, counts) / counts.sum())


def _sum(values: Tensor, counts: Tensor | None) -> Tensor:
    return values.sum(0) if counts is None else torch.tensordot(counts, values, dims=([0], [0]))
