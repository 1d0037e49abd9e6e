"""A bowl whose every number is known: f(w) = .25 + (w - m)' diag(1, 4, 9) (w - m) / 2 with m = (1, 0, -1)."""

from __future__ import annotations

import torch
from torch import Tensor

M = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
H = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
OFF = torch.tensor([1.1, 0.1, -1.0], dtype=torch.float64)


def split(flat: Tensor) -> dict[str, Tensor]:
    """Over two tensors."""
    return {"a": flat[:1].clone(), "b": flat[1:].clone()}


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights["a"], weights["b"]])


def f(weights: dict[str, Tensor]) -> float:
    away = flat(weights) - M
    return float(0.25 + (away * H * away).sum() / 2)


def f_and_gradient(weights: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    return f(weights), split(H * (flat(weights) - M))


def product(v: dict[str, Tensor]) -> dict[str, Tensor]:
    return split(H * flat(v))
