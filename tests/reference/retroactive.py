"""Averages after training, the long way: every step's weights are at hand, and integrals are sums over a fine grid."""

import numpy as np


def average(path: np.ndarray, shares: list[float]) -> np.ndarray:
    """The sum of the path's rows times their shares."""
    total = np.zeros(path.shape[1])
    for share, row in zip(shares, path, strict=True):
        total = total + share * row
    return total


def power_product(gamma_a: float, t_a: float, gamma_b: float, t_b: float) -> float:
    """Inner product over time of two power profiles, in closed form (Karras et al. 2024, appendix C)."""
    ratio, exponent = t_a / t_b, gamma_b if t_a < t_b else -gamma_a
    return (gamma_a + 1) * (gamma_b + 1) * ratio**exponent / ((gamma_a + gamma_b + 1) * max(t_a, t_b))


def power_product_by_integration(
    gamma_a: float, t_a: float, gamma_b: float, t_b: float, points: int = 200_000
) -> float:
    """The same, by the midpoint rule over what the two have in common."""
    width = min(t_a, t_b) / points
    t = (np.arange(points) + 0.5) * width
    first = (gamma_a + 1) * t**gamma_a / t_a ** (gamma_a + 1)
    second = (gamma_b + 1) * t**gamma_b / t_b ** (gamma_b + 1)
    return float((first * second).sum() * width)


def karras_coefficients(basis: list[tuple[float, float]], target: tuple[float, float]) -> np.ndarray:
    """Their algorithm 3: normal equations from closed-form products, sums not constrained."""
    left = np.array([[power_product(*a, *b) for b in basis] for a in basis])
    right = np.array([power_product(*a, *target) for a in basis])
    return np.linalg.solve(left, right)


def constrained_coefficients(basis: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares with sum 1 by the normal equations with a multiplier; basis (n, steps), target (steps,)."""
    n = len(basis)
    left = np.block([[basis @ basis.T, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    return np.linalg.solve(left, np.concatenate([basis @ target, [1.0]]))[:n]
