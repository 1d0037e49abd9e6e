"""Temperature scaling: one scalar that makes probabilities softer or sharper (Guo et al., 2017, arXiv:1706.04599).

    p_T = softmax(log p / T)

The baseline that every other way to calibrate has to beat: it changes no decision, only the confidence.
"""

import math

import torch
from torch import Tensor

from .probabilities import FLOOR, Array, checked, checked_probs

FLAT = 1e-6  # nats between a row's largest and smallest: less is rounding, and every temperature gives the same


def fit_temperature(probs: Array, labels: Array) -> float:
    """The T > 0 that minimises `nll(temper(probs, T), labels)`; fit it on validation data.

    The loss is convex in 1/T, so its derivative is followed to its only zero by Newton steps, bisected where
    a step leaves the bracket, to float64 precision. T is kept within [0.01, 100]: the ends are returned when
    every prediction is right (the sharper the better) or when the probabilities are no better than chance. Uniform
    probabilities, which no temperature changes, give 1.

    >>> probs = torch.tensor([[0.9, 0.1]] * 3)                       # says 90 %, is right 2 times of 3
    >>> round(fit_temperature(probs, [0, 0, 1]), 6)                  # log 9 / log 2
    3.169925
    """
    p, y = checked(probs, labels)
    z = p.clamp_min(FLOOR).log()
    if bool((z.amax(1) - z.amin(1) <= FLAT).all()):
        return 1.0
    target = z.gather(1, y[:, None]).mean()
    low, high = 0.01, 100.0  # of 1/T

    def slope(inverse: float) -> tuple[float, float]:
        q = torch.softmax(z * inverse, 1)
        mean = (q * z).sum(1, keepdim=True)
        return float(mean.mean() - target), float((q * (z - mean) ** 2).sum(1).mean())

    if slope(low)[0] >= 0:
        return 1 / low
    if slope(high)[0] <= 0:
        return 1 / high
    inverse = 1.0
    for _ in range(200):  # a guard; about ten are needed
        value, curvature = slope(inverse)
        low, high = (inverse, high) if value < 0 else (low, inverse)
        step = inverse - value / curvature if curvature > 0 else low
        proposal = step if low < step < high else math.sqrt(low * high)
        if abs(proposal - inverse) <= 1e-15 * inverse:
            break
        inverse = proposal
    return 1 / inverse


def temper(probs: Array, temperature: float) -> Tensor:
    """Probabilities at another temperature, `softmax(log max(p, 1e-12) / T)`; T > 1 softens, T < 1 sharpens.

    probs: (N, C); returns (N, C) in float64. Raises ValueError unless the temperature is positive and finite.

    >>> temper([[0.9, 0.1]], 2.0)
    tensor([[0.7500, 0.2500]], dtype=torch.float64)
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    return torch.softmax(checked_probs(probs).clamp_min(FLOOR).log() / temperature, 1)
