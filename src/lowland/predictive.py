"""What is kept of S draws of a model's weights, batch by batch, and the predictions that come out of it.

    p = 1/S sum_s softmax(f(x; w_s))            probabilities are averaged, never logits
    H[p] = (1/S sum_s H[p_s]) + I               total = expected (aleatoric) entropy + mutual information
    Var[y] = 1/S sum_s v_s + Var_s[m_s]         regression: aleatoric + epistemic variance

(Depeweg et al., 2018, arXiv:1710.07283.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .probabilities import entropy


@dataclass(frozen=True)
class Prediction:
    """Class probabilities of N examples and how sure they are; float64, on the CPU, entropies in nats.

    Outputs with more axes, such as (N, T, C) for tokens, keep them: C is always last.
    """

    probs: Tensor  # (N, C) mean over draws
    expected_entropy: Tensor  # (N,) mean over draws of each draw's entropy: doubt that more training would not remove
    variance: Tensor  # (N, C) population variance over draws of each probability
    samples: int  # draws averaged
    plan: str = "loop"  # how the draws were run; see `lowland.plans`
    bn_error: float = 0.0  # largest estimated error of the draws' BatchNorm statistics; 0 if exact or none

    @property
    def entropy(self) -> Tensor:
        """(N,) entropy of the averaged probabilities: the total."""
        return entropy(self.probs)

    @property
    def mutual_information(self) -> Tensor:
        """(N,) total minus expected entropy, how far the draws disagree; never negative, 0 for a single draw."""
        return (self.entropy - self.expected_entropy).clamp_min(0.0)

    @property
    def label(self) -> Tensor:
        """(N,) the most probable class."""
        return self.probs.argmax(-1)

    @property
    def confidence(self) -> Tensor:
        """(N,) its probability."""
        return self.probs.amax(-1)


@dataclass(frozen=True)
class Regression:
    """Predicted numbers of N examples and where their variance comes from; float64, on the CPU."""

    mean: Tensor  # (N, ...) mean over draws
    aleatoric_variance: (
        Tensor  # (N, ...) mean over draws of the variance that the model predicts; 0 if it predicts none
    )
    epistemic_variance: Tensor  # (N, ...) population variance over draws of the predicted mean
    samples: int  # draws averaged
    plan: str = "loop"  # how the draws were run; see `lowland.plans`
    bn_error: float = 0.0  # largest estimated error of the draws' BatchNorm statistics; 0 if exact or none

    @property
    def variance(self) -> Tensor:
        """(N, ...) total variance, by the law of total variance."""
        return self.aleatoric_variance + self.epistemic_variance


class Sums(ABC):
    """What is kept over draws, for each batch in order."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []
        self.squares: list[Tensor] = []  # sums of squared deviations from the mean (Welford)
        self.others: list[Tensor] = []  # means of what each draw says by itself: its entropy, or its variance

    @property
    def batches(self) -> int:
        return len(self.means)

    def add(self, index: int, number: int, output: object) -> None:
        """Take the output for batch `index` under draw `number`; for each batch the draws come in order, from 1."""
        self.put(index, number, *self.read(output, f"draw {number}, batch {index + 1}"))

    def put(self, index: int, number: int, value: Tensor, other: Tensor) -> None:
        """Take what `read` made of an output."""
        if number == 1:
            if index < self.batches:
                raise ValueError(f"batch {index + 1} of draw 1 was given twice")
            if self.means and value.shape[1:] != self.means[0].shape[1:]:
                raise ValueError(
                    f"outputs must agree beyond the first axis, got {tuple(value.shape)} in batch {index + 1} and "
                    f"{tuple(self.means[0].shape)} in batch 1: pad to one length, or predict each by itself"
                )
            self.means.append(value)
            self.squares.append(torch.zeros_like(value))
            self.others.append(other)
            return
        if index >= self.batches or value.shape != self.means[index].shape:
            wanted = tuple(self.means[index].shape) if index < self.batches else f"only {self.batches} batches"
            raise ValueError(
                f"batches changed between draws: draw {number} gives {tuple(value.shape)} for batch {index + 1}, the "
                f"first gave {wanted}: pass a list or a fixed loader"
            )
        deviation = value - self.means[index]
        self.means[index] += deviation / number
        self.squares[index] += deviation * (value - self.means[index])
        self.others[index] += (other - self.others[index]) / number

    def put_many(self, index: int, number: int, values: Tensor, others: Tensor) -> None:
        """Take what `read` made of outputs under draws from `number` on, stacked: (S, B, ...).

        The draws' own mean and sum of squares are merged into the running ones (Chan, Golub, LeVeque, 1979).
        """
        if number == 1:
            self.put(index, 1, values[0].clone(), others[0].clone())
            number, values, others = 2, values[1:], others[1:]
        if len(values) == 0:
            return
        if index >= self.batches or values.shape[1:] != self.means[index].shape:
            self.put(index, number, values[0], others[0])  # says what is wrong
        before, count = number - 1, len(values)
        total = before + count
        mean = values.mean(0)
        deviation = mean - self.means[index]
        self.squares[index] += (values - mean).square().sum(0) + deviation.square() * (before * count / total)
        self.means[index] += deviation * (count / total)
        self.others[index] += (others.mean(0) - self.others[index]) * (count / total)

    @abstractmethod
    def read(self, output: object, where: str) -> tuple[Tensor, Tensor]:
        """The value to average with its spread, and the value to average alone; fresh float64 CPU tensors."""

    @abstractmethod
    def result(self, samples: int, plan: str = "loop") -> Prediction | Regression: ...


class Classes(Sums):
    """Probabilities from logits, and their entropies."""

    def read(self, output: object, where: str) -> tuple[Tensor, Tensor]:
        logits = _finite(_main(output), where)
        if logits.ndim < 2 or logits.shape[-1] < 2:
            raise ValueError(
                f"forward must return logits (B, C) with C >= 2, got {tuple(logits.shape)} in {where}; for one logit z "
                'of a binary model return torch.stack([0 * z, z], -1), for numbers pass task="regression"'
            )
        probs = torch.softmax(logits, -1)
        return probs, entropy(probs)

    def result(self, samples: int, plan: str = "loop") -> Prediction:
        probs = torch.cat(self.means)
        return Prediction(probs, torch.cat(self.others), torch.cat(self.squares) / samples, samples, plan)


class Numbers(Sums):
    """Means, and variances where the model predicts them."""

    def read(self, output: object, where: str) -> tuple[Tensor, Tensor]:
        if not isinstance(output, tuple):
            mean = _finite(_main(output), where)
            return mean, torch.zeros_like(mean)
        if len(output) != 2:
            raise ValueError(f"forward must return the mean or (mean, variance), got {len(output)} values in {where}")
        mean, variance = (_finite(part, where) for part in output)
        if mean.shape != variance.shape or bool((variance < 0).any()):
            raise ValueError(
                f"variance must have the shape of the mean and not be negative, got {tuple(variance.shape)} for "
                f"{tuple(mean.shape)}, smallest {float(variance.min()):g}, in {where}"
            )
        return mean, variance

    def result(self, samples: int, plan: str = "loop") -> Regression:
        mean, spread = torch.cat(self.means), torch.cat(self.squares) / samples
        return Regression(mean, torch.cat(self.others), spread, samples, plan)


def _main(output: object) -> object:
    """The tensor in a model's output: itself, its `logits`, or the first of a tuple."""
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if not isinstance(output, Tensor) and hasattr(output, "logits"):
        return output.logits
    if isinstance(output, Sequence) and len(output) > 0:
        return output[0]
    return output


def _finite(output: object, where: str) -> Tensor:
    if not isinstance(output, Tensor):
        raise ValueError(f"forward must return a tensor, got {type(output).__name__} in {where}: pass forward=")
    if output.ndim == 0:
        raise ValueError(f"forward must return one row per example, got a single number in {where}")
    if not bool(torch.isfinite(output).all()):
        row = int((~torch.isfinite(output)).nonzero()[0][0])
        raise ValueError(f"{where}: the output for example {row + 1} of the batch is not finite")
    # A copy also where nothing is to convert: the sums are updated in place.
    return output.detach().to("cpu").to(torch.float64, copy=True)
