"""A population under Transformers' Trainer, one member a process, by a callback.

    torchrun --standalone --nproc-per-node 2 examples/population_trainer.py

The Trainer would make one model of all ranks. So the process group is begun first, and the Trainer is not told of it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from lowland.population import LocalSGD, Population, Rule

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class PopulationCallback(TrainerCallback):
    """Mix the Trainer's model with those of the other ranks after each of its steps."""

    def __init__(self, rule: Rule, seed: int = 0) -> None:
        self.rule, self.seed = rule, seed
        self.population: Population | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **_: Any) -> None:
        stepper = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper or torch's own
        group = dist.group.WORLD
        self.population = Population(model, self.rule, optimizers=stepper, seed=self.seed, group=group)
        saved = self._file(args, state)
        if state.global_step and saved.exists():  # the Trainer resumes from this checkpoint
            self.population.load_state_dict(torch.load(saved, weights_only=True))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.population is not None
        self.population.step()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.population is not None
        torch.save(self.population.state_dict(), self._file(args, state))

    def _file(self, args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "population.pt"


class Line(nn.Module):
    """The smallest model that a Trainer takes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.layer(x)
        return {"loss": nn.functional.mse_loss(y, labels), "logits": y}


class Rows(Dataset[dict[str, torch.Tensor]]):
    """A line and its noise."""

    def __init__(self) -> None:
        self.x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[place], "labels": self.x[place].sum().view(1)}


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for key in LAUNCHER:
        os.environ.pop(key, None)
    callback = PopulationCallback(LocalSGD(every=4))
    resume = len(sys.argv) > 2 and sys.argv[2] == "resume"
    with tempfile.TemporaryDirectory() as scratch:
        folder = f"{sys.argv[1] if len(sys.argv) > 1 else scratch}/member-{rank}"
        arguments = TrainingArguments(
            folder,
            num_train_epochs=2,
            per_device_train_batch_size=4,
            learning_rate=0.05,
            seed=rank,  # an order of its own
            save_steps=12,
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = Trainer(Line(), arguments, train_dataset=Rows(), callbacks=[callback])
        trainer.train(resume_from_checkpoint=resume)
    assert callback.population is not None
    # What is asked of a population every rank asks.
    apart, bias = callback.population.consensus(), float(callback.population.average()["layer.bias"])
    if rank == 0:
        print(f"{callback.population}: squared distances {apart:.2e}, bias {bias!r}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
