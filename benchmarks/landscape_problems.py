"""The small problems of `landscape_mobilenet.py`: data as batches, a network, a loss and its measures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowland.landscape import classification
from lowland.studies.images.networks import build
from lowland.studies.images.sets import augmented, load_images, standardised

Batches = list[tuple[Tensor, Tensor]]


def squares(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """The mean squared error of one batch."""
    return {"loss": nn.functional.mse_loss(model(batch[0])[:, 0], batch[1])}


@dataclass
class Problem:
    """Inputs that a network can take, and what is trained on them.

    `images` are crops' and flips' source, where the inputs are images.
    """

    name: str
    model: nn.Module
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    loss: Any
    batch: int
    epochs: int
    rate: float  # AdamW's first
    images: Any = None

    def epoch(self, number: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of an epoch, in an order and under transforms that follow from seed and number."""
        x, y = self.train
        g = torch.Generator().manual_seed(10_000 * seed + number)
        for rows in torch.randperm(len(y), generator=g).tensor_split(-(-len(y) // self.batch)):
            yield self.ready(augmented(x[rows], self.images, g) if self.images is not None else x[rows]), y[rows]

    def ready(self, x: Tensor) -> Tensor:
        if self.images is None:
            return x
        return standardised(x, self.images).contiguous(memory_format=torch.channels_last)

    def statistics(self) -> list[Tensor]:
        """The training inputs once, under the transforms of training: for BatchNorm."""
        g = torch.Generator().manual_seed(1)
        parts = torch.split(self.train[0], 250)
        return [self.ready(augmented(x, self.images, g) if self.images is not None else x) for x in parts]

    def sets(self, count: int) -> dict[str, Batches]:
        """The first so many examples of each part."""
        parts = {"train": self.train, "test": self.test}
        return {
            name: [(self.ready(a), b) for a, b in zip(x[:count].split(250), y[:count].split(250), strict=True)]
            for name, (x, y) in parts.items()
        }


def pictures(data: str, network: str, path: str, seed: int, *, train: int, test: int, **more: Any) -> Problem:
    """A set of images and a network for it; more: depth and width."""
    images = load_images(data, path=path or None, train=train, validation=500, test=test, seed=seed)
    torch.manual_seed(seed)
    channels, size = images.train[0].shape[1:3]
    model = build(network, channels=channels, size=size, classes=10, **more).to(memory_format=torch.channels_last)
    rate = 5e-3 if network == "mobilenetv2" else 1e-3
    return Problem(
        f"{data} {network}", model, images.train, images.test, classification, 100, 20, rate, images
    )  # fmt: skip


def friedman(which: int, seed: int, *, train: int = 1000, test: int = 2000) -> Problem:
    """Friedman's first or third problem (1991), inputs and answers standardised by the training examples, noise .1."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(train + test, 10 if which == 1 else 4, generator=g, dtype=torch.float64)
    if which == 1:
        y = 10 * torch.sin(math.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    else:
        low, high = torch.tensor([0.0, 40 * math.pi, 0, 1]), torch.tensor([100, 560 * math.pi, 1, 11])
        x = low + (high - low) * x
        y = torch.atan((x[:, 1] * x[:, 2] - 1 / (x[:, 1] * x[:, 3])) / x[:, 0])
    x = ((x - x[:train].mean(0)) / x[:train].std(0)).float()
    y = (y - y[:train].mean()) / y[:train].std()
    y = (y + 0.1 * torch.randn(len(y), generator=g)).float()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    parts = (x[:train], y[:train]), (x[train:], y[train:])
    return Problem(f"friedman{which} mlp", model, *parts, squares, 50, 20, 3e-3)
