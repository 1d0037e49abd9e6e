"""Predictions averaged over S draws of a model's weights.

    p = 1/S sum_s softmax(f(x; w_s))            probabilities are averaged, never logits
    H[p] = (1/S sum_s H[p_s]) + I               total = expected (aleatoric) entropy + mutual information
    Var[y] = 1/S sum_s v_s + Var_s[m_s]         regression: aleatoric + epistemic variance

(Depeweg et al., 2018, arXiv:1710.07283.)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..calibration.probabilities import entropy


@dataclass(frozen=True)
class Prediction:
    """Class probabilities of N examples and how sure they are; float64, on the CPU, entropies in nats.

    Outputs with more axes, such as (N, T, C) for tokens, keep them: C is always last.
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


@dataclass(frozen=True)
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
