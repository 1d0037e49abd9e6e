"""Problems with known answers, shared by the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# METHODS 17.1 and 17.9: four iterates of two weights.
FOUR = ([1.0, 2.0], [3.0, 1.0], [2.0, 5.0], [6.0, 0.0])


def four_iterates() -> list[dict[str, Tensor]]:
    """The four iterates as one tensor `w`."""
    return [{"w": torch.tensor(w)} for w in FOUR]


def four_iterates_apart() -> list[dict[str, Tensor]]:
    """The same with each weight a tensor of its own."""
    return [{"a": torch.tensor([x]), "b": torch.tensor([y])} for x, y in FOUR]


class Small(nn.Module):
    """A model with a parameter beside a child, tied weights, BatchNorm and an integer buffer."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        self.token = nn.Parameter(torch.randn(4))
        self.embed = nn.Linear(4, 4, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.embed.weight
        torch.random.set_rng_state(state)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(x + self.token)))


def walk(steps: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    """A random walk of three differently shaped tensors."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"first.weight": (3, 2), "first.bias": (3,), "scale": ()}
    position = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    path = []
    for _ in range(steps):
        position = {name: w + 0.1 * torch.randn(w.shape, generator=generator) for name, w in position.items()}
        path.append({name: w.to(dtype) for name, w in position.items()})
    return path
