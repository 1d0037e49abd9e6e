"""Predictions averaged over S draws of a model's weights.

    p = 1/S sum_s softmax(f(x; w_s))            probabilities are averaged, never logits
    H[p] = (1/S sum_s H[p_s]) + I               total = expected (aleatoric) entropy + mutual information
    Var[y] = 1/S sum_s v_s + Var_s[m_s]         regression: aleatoric + epistemic variance

(Depeweg et al., 2018, arXiv:1710.07283.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..averager.shown import one_line, table
from ..calibration.probabilities import entropy


@dataclass(frozen=True, repr=False)
class Prediction:
    """Class probabilities of N examples and how sure they are; float64, on the CPU, entropies in nats.

    Outputs with more axes, such as (N, T, C) for tokens, keep them: C is always last.

    >>> import torch
    >>> half = torch.full((900, 2), 0.5, dtype=torch.float64)
    >>> Prediction(half, torch.zeros(900), torch.zeros(900, 2), samples=30)  # doctest: +NORMALIZE_WHITESPACE
    Prediction(examples 900, classes 2, draws 30, plan loop, mean confidence 0.5000, mean entropy 0.6931 nats,
    mean mutual information 0.6931 nats)
    """

    probs: Tensor  # (N, C) mean over draws
    expected_entropy: Tensor  # (N,) mean over draws of each draw's entropy: doubt that more training would not remove
    variance: Tensor  # (N, C) population variance over draws of each probability
    samples: int  # draws averaged
    plan: str = "loop"  # how the draws were run; see `lowland.predict`
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

    def __repr__(self) -> str:
        return one_line("Prediction", self._rows())

    def _repr_html_(self) -> str:
        return table("Prediction", self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("examples", _shape(self.probs.shape[:-1])), ("classes", str(self.probs.shape[-1]))]
        rows += _how(self.samples, self.plan, self.bn_error)
        if self.probs.numel():
            rows += [("mean confidence", f"{float(self.confidence.mean()):.4f}")]
            rows += [("mean entropy", f"{float(self.entropy.mean()):.4f} nats")]
            rows += [("mean mutual information", f"{float(self.mutual_information.mean()):.4f} nats")]
        return rows


@dataclass(frozen=True, repr=False)
class Regression:
    """Predicted numbers of N examples and where their variance comes from; float64, on the CPU."""

    mean: Tensor  # (N, ...) mean over draws
    aleatoric_variance: (
        Tensor  # (N, ...) mean over draws of the variance that the model predicts; 0 if it predicts none
    )
    epistemic_variance: Tensor  # (N, ...) population variance over draws of the predicted mean
    samples: int  # draws averaged
    plan: str = "loop"  # how the draws were run; see `lowland.predict`
    bn_error: float = 0.0  # largest estimated error of the draws' BatchNorm statistics; 0 if exact or none

    @property
    def variance(self) -> Tensor:
        """(N, ...) total variance, by the law of total variance."""
        return self.aleatoric_variance + self.epistemic_variance

    def __repr__(self) -> str:
        return one_line("Regression", self._rows())

    def _repr_html_(self) -> str:
        return table("Regression", self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("examples", _shape(self.mean.shape)), *_how(self.samples, self.plan, self.bn_error)]
        if self.mean.numel():
            rows += [("mean aleatoric variance", f"{float(self.aleatoric_variance.mean()):.4g}")]
            rows += [("mean epistemic variance", f"{float(self.epistemic_variance.mean()):.4g}")]
        return rows


def _shape(shape: Sequence[int]) -> str:
    """Sizes as they are said.

    >>> _shape((900,)), _shape((30, 7))
    ('900', '30 x 7')
    """
    return " x ".join(str(size) for size in shape)


def _how(samples: int, plan: str, bn_error: float) -> list[tuple[str, str]]:
    rows = [("draws", str(samples)), ("plan", plan)]
    return rows + ([("bn_error", f"{bn_error:.3g}")] if bn_error else [])
