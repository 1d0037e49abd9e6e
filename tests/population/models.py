"""Small members for tests of populations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lowland.population import Population


class Net(nn.Module):
    """Two layers with biases, BatchNorm between them, tied weights and a number."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7)
        self.second = nn.Linear(7, 7)
        self.tied = nn.Linear(7, 7)
        self.tied.weight = self.second.weight
        self.last = nn.Linear(7, 3)
        self.scale = nn.Parameter(torch.ones(()))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.last(torch.tanh(self.tied(self.second(x)))) * self.scale


class Point(nn.Module):
    """One vector, for numbers by hand."""

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(list(values), dtype=torch.float64))


def points(rows: Sequence[Sequence[float]]) -> list[Point]:
    return [Point(row) for row in rows]


def values(models: Sequence[nn.Module]) -> Tensor:
    return torch.stack([model.w.detach().clone() for model in models])  # type: ignore[union-attr, operator]


def sgd(models: Sequence[nn.Module], rate: float = 0.1, **more: float) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(model.parameters(), lr=rate, **more) for model in models]


def batch(step: int, member: int, size: int = 8) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, 5, generator=torch.Generator().manual_seed(1000 * member + step))
    return x, (x[:, :3].cumsum(1)).argmax(1)


def train(
    models: Sequence[nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    population: Population,
    steps: range,
    here: Sequence[int] | None = None,
    after: Callable[[int], None] | None = None,
) -> None:
    """The plain loop: each member its own batches."""
    for step in steps:
        for place, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            member = place if here is None else here[place]
            if not population.trains(member):
                continue
            x, y = batch(step, member)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        population.step()
        if after is not None:
            after(step)
