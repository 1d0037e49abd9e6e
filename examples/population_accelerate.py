"""A population under Accelerate, one member a process: everything is prepared but the model.

    accelerate launch --num_processes 2 examples/population_accelerate.py      (or torchrun --nproc-per-node 2)

`prepare` would wrap the model in DistributedDataParallel, which makes one model of all ranks: their gradients.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lowland.population import PAPA, Population

EPOCHS = 3
BATCH = 16


def main() -> None:
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.manual_seed(accelerator.process_index)  # a start of its own
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).to(accelerator.device)
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=BATCH, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(loader))
    loader, optimizer = accelerator.prepare(loader, optimizer)  # each process its share of the batches
    population = Population(model, PAPA(every=2, alpha=0.9), optimizers=optimizer.optimizer, group=dist.group.WORLD)
    accelerator.register_for_checkpointing(population)  # save_state and load_state hold the member of each process
    before = population.consensus()
    for _ in range(EPOCHS):
        for inputs, targets in loader:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.mse_loss(model(inputs), targets))
            optimizer.step()
            schedule.step()
            population.step()  # behind the schedule: the push follows the rate
    after = population.consensus()
    accelerator.print(f"{population}: squared distances {before:.2f} -> {after:.2f}, {population.meter.per_step}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
