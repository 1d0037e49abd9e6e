"""Three networks at once, one on each rank, which shuffle a few weights after every step (WASH).

    torchrun --standalone --nproc-per-node 3 examples/population.py

`train` asks nothing of its launcher but an initialised process group: `docs/population.md` hands it to Ray and Spark.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from lowland import refresh_bn
from lowland.population import WASH, Population

STEPS = 200
BATCH = 32  # images of each member a step
RATE = 0.05  # SGD with momentum 0.9
P = 0.01  # share of the first layer's weights that a step shuffles


def data(examples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four noisy rings, told apart by their radius."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (examples,), generator=generator)
    angle = 6.2832 * torch.rand(examples, generator=generator)
    radius = 1 + y + 0.25 * torch.randn(examples, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), y


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(2, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
    )


def train(config: dict[str, float] | None = None) -> dict[str, float]:
    settings = {"steps": STEPS, "p": P, **(config or {})}
    torch.manual_seed(0)  # one start for all: WASH keeps members in one basin from there
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    population = Population(model, WASH(p=settings["p"]), optimizers=optimizer, seed=0, group=dist.group.WORLD)
    x, y = data(2048, seed=0)
    order = torch.Generator().manual_seed(1 + dist.get_rank())  # an order of its own
    for _ in range(int(settings["steps"])):
        rows = torch.randint(len(y), (BATCH,), generator=order)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        population.step()
    average = population.average(refresh=lambda model: refresh_bn(model, x.split(256), synchronise=False))
    model.load_state_dict(average, strict=False)
    tests, labels = data(1000, seed=9)
    accuracy = float((model.eval()(tests).argmax(1) == labels).double().mean())
    return {"accuracy": accuracy, "bytes a step": population.meter.per_step.wire, "members": population.size}


if __name__ == "__main__":
    dist.init_process_group("gloo" if not torch.cuda.is_available() else "nccl")
    found = train()
    if dist.get_rank() == 0:
        print(
            f"average of {found['members']}: accuracy {found['accuracy']:.3f}, {found['bytes a step']:.0f} bytes a step"
        )
    dist.destroy_process_group()
