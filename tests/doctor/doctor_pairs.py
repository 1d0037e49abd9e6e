"""Ten pairs of small networks whose diagnosis is known, because they were made that way.

Digits of scikit-learn, 64 numbers each, ten classes; multilayer perceptrons trained for a second at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lowland import applied, weights_of
from lowland.weights import clone_of
from lowland.weights.named import floating

Weights = Mapping[str, Tensor]
Build = Callable[[], nn.Module]


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1,200 training and 597 validation images with their labels."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16 - 0.3, torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def made(build: Build, seed: int) -> nn.Module:
    """A network from a seed; the global state of randomness is put back."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = build()
    torch.random.set_rng_state(state)
    return model


def train(
    model: nn.Module, steps: int, *, rate: float = 0.1, seed: int = 0, each: Callable[[int], None] | None = None
) -> None:
    """Train by SGD with momentum on batches of 64."""
    x, y, _, _ = digits()
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    dtype = next(model.parameters()).dtype
    model.train()
    for step in range(steps):
        batch = torch.randint(len(x), (64,), generator=generator)
        optimiser.zero_grad()
        cross_entropy(model(x[batch].to(dtype)).float(), y[batch]).backward()
        optimiser.step()
        if each is not None:
            each(step)
    model.eval()


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of parameters and running statistics."""
    return clone_of(weights_of(model, floating))


def score_with(build: Build) -> Callable[[Weights], Tensor]:
    """Return the score: minus the loss of each validation image."""
    model = build().eval()

    def score(weights: Weights) -> Tensor:
        _, _, x, y = digits()
        with applied(model, weights):
            return -cross_entropy(model(x), y, reduction="none")

    return score


@dataclass(frozen=True)
class Pair:
    """Two ingredients, and what scores them."""

    a: Weights
    b: Weights
    build: Build = plain

    @property
    def ingredients(self) -> dict[str, Weights]:
        return {"a": self.a, "b": self.b}

    @property
    def score(self) -> Callable[[Weights], Tensor]:
        return score_with(self.build)


@cache
def trained(build: Build = plain, seed: int = 0, steps: int = 300) -> dict[str, Tensor]:
    model = made(build, seed)
    train(model, steps, seed=seed)
    return state(model)


def going_on(
    start: Weights,
    steps: int,
    *,
    rate: float = 0.05,
    seed: int = 1,
    build: Build = plain,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    model = made(build, 0)
    model.load_state_dict({**model.state_dict(), **start})
    model.to(dtype or torch.float32)
    train(model, steps, rate=rate, seed=seed)
    return state(model)


def same_run() -> Pair:
    """Two checkpoints of one run at a constant rate, 60 steps apart."""
    return Pair(trained(), going_on(trained(), 60))


def same_basin() -> Pair:
    """Two fine-tuned copies of the same trained weights, from other batches."""
    return Pair(going_on(trained(), 60, seed=1), going_on(trained(), 60, seed=2))


def different_seeds() -> Pair:
    return Pair(trained(seed=0), trained(seed=1))


ORDER = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])


def permuted_head() -> Pair:
    """A fine-tuned copy whose classes are listed in another order."""
    pair = same_run()
    return Pair(pair.a, {**pair.b, "4.weight": pair.b["4.weight"][ORDER], "4.bias": pair.b["4.bias"][ORDER]})


def permuted_units() -> Pair:
    """A fine-tuned copy whose hidden units are listed in another order: the same function."""
    pair = same_run()
    first = torch.randperm(32, generator=torch.Generator().manual_seed(7))
    second = torch.randperm(32, generator=torch.Generator().manual_seed(8))
    turned = {
        **pair.b,
        "0.weight": pair.b["0.weight"][first],
        "0.bias": pair.b["0.bias"][first],
        "2.weight": pair.b["2.weight"][second][:, first],
        "2.bias": pair.b["2.bias"][second],
        "4.weight": pair.b["4.weight"][:, second],
    }
    return Pair(pair.a, turned)


def drifted_norms() -> Pair:
    """Good weights, and statistics that other data made: brighter images with more contrast went through one copy."""
    a = trained(normed)
    b = going_on(a, 40, build=normed)
    model = made(normed, 0)
    model.load_state_dict({**model.state_dict(), **b})
    model.train()
    x, *_ = digits()
    with torch.no_grad():
        for part in x.split(64):
            model(4 * part + 2)
    return Pair(a, state(model), normed)


def stalled() -> Pair:
    """Trained on in bfloat16 at a rate whose steps are mostly below half a spacing."""
    a = {name: tensor.bfloat16() for name, tensor in trained().items()}
    return Pair(a, going_on(a, 60, rate=3e-4, dtype=torch.bfloat16))


def tiny_rate() -> Pair:
    """Trained on at a rate a hundred thousand times too small."""
    return Pair(trained(), going_on(trained(), 60, rate=1e-6))


def wrong_shapes() -> Pair:
    """The other has a head of twelve classes."""
    a = trained()
    return Pair(a, {**a, "4.weight": torch.zeros(12, 32), "4.bias": torch.zeros(12)})


def nan() -> Pair:
    a = trained()
    broken = clone_of(a)
    broken["2.weight"][3, 4] = float("nan")
    return Pair(a, broken)


def identical() -> Pair:
    return Pair(trained(), clone_of(trained()))
