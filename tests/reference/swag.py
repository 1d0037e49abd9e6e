"""SWAG as its paper writes it (arXiv 1902.02476, algorithm 1), naively in float64 on one flat vector."""

from __future__ import annotations

import torch
from torch import Tensor


class ReferenceSWAG:
    """Keeps every iterate; forms mean, variance and deviations anew at each question."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.iterates: list[Tensor] = []

    def update(self, flat: Tensor) -> None:
        self.iterates.append(flat.double())

    def mean(self) -> Tensor:
        return torch.stack(self.iterates).mean(0)

    def diagonal(self) -> Tensor:
        return torch.stack(self.iterates).var(0, correction=0)

    def deviations(self) -> Tensor:
        running = [torch.stack(self.iterates[: i + 1]).mean(0) for i in range(len(self.iterates))]
        return torch.stack([w - m for w, m in zip(self.iterates, running, strict=True)])[-self.rank :]

    def covariance(self, scale: float = 1.0) -> Tensor:
        diagonal = torch.diag(self.diagonal())
        if self.rank == 0:
            return scale * diagonal
        d = self.deviations()
        low_rank = d.T @ d / (len(d) - 1) if len(d) > 1 else torch.zeros_like(diagonal)
        return scale * 0.5 * (diagonal + low_rank)
