"""What WASH and PAPA send, over ranks: payload and wire of a step against the formulas, and the seconds waited.

Measured: 60 steps of WASH and WASH+Opt at p = 0.001 and 20 of PAPA (a push every tenth) on the ResNet-18 for CIFAR,
11,173,962 parameters in 21 layers, over gloo on one machine, for 2 and 3 ranks. The formulas, values a step and member:

    WASH   sum_l p_l d_l = 2,417.06 enter, (1 - 1/N) of them change their owner; twice that with momentum
    PAPA   d / 10 = 1,117,396 are averaged, a ring sends 2 (N - 1) / N of them

Run: python benchmarks/population_bytes.py   Results: benchmarks/results/population_bytes.md and .json
"""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pages import machine, table, versions
from updates import nested

from lowland.population import PAPA, WASH, Population, Rule
from lowland.population.layers import chances
from lowland.weights import weights_of
from population import resnet18

RESULTS = Path(__file__).parent / "results"
RULES: dict[str, tuple[Rule, int]] = {
    "WASH": (WASH(p=0.001), 60),
    "WASH+Opt": (WASH(p=0.001, optimizer_state=True), 60),
    "PAPA": (PAPA(every=10), 20),
}


def work(rank: int, ranks: int, store: str, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    found = {}
    for name, (rule, steps) in RULES.items():
        torch.manual_seed(rank)
        model = nested(resnet18())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for p in model.parameters():
            optimizer.state[p]["momentum_buffer"] = torch.randn_like(p)
        population = Population(model, rule, optimizers=optimizer, group=dist.group.WORLD)
        for _ in range(steps):
            population.step()
        population.settle()
        per_step = population.meter.per_step
        found[name] = torch.tensor([per_step.payload, per_step.wire, per_step.waited, per_step.seconds]).double()
        dist.all_reduce(found[name])
    if rank == 0:
        answers.put({name: (each / ranks).tolist() for name, each in found.items()})
    dist.barrier()
    dist.destroy_process_group()


def formulas(ranks: int) -> dict[str, tuple[float, float]]:
    """Bytes in float32 a step and member: payload and wire."""
    weights = weights_of(nested(resnet18()))
    chance = chances(0.001, weights)
    entering = sum(chance[name] * tensor.numel() for name, tensor in weights.items())
    d = sum(tensor.numel() for tensor in weights.values())
    wash = (4 * entering, 4 * entering * (1 - 1 / ranks))
    return {
        "WASH": wash,
        "WASH+Opt": (2 * wash[0], 2 * wash[1]),
        "PAPA": (4 * d / 10, 4 * d / 10 * 2 * (ranks - 1) / ranks),
    }


def main() -> None:
    rows: list[dict[str, object]] = []
    context = multiprocessing.get_context("fork")
    for ranks in (2, 3):
        with tempfile.TemporaryDirectory() as folder:
            answers = context.Queue()
            arguments = (ranks, f"{folder}/store", answers)
            children = [context.Process(target=work, args=(rank, *arguments)) for rank in range(ranks)]
            for child in children:
                child.start()
            measured = answers.get(timeout=500)
            for child in children:
                child.join(60)
        for name, (payload, wire) in formulas(ranks).items():
            got = measured[name]
            # A binomial count: its standard deviation over the steps, as a share of the mean.
            noise = 1 / math.sqrt(2417.06 * RULES[name][1]) if name != "PAPA" else 0.0
            rows.append(
                {
                    "ranks": ranks,
                    "rule": name,
                    "payload, bytes a step": f"{got[0]:,.1f}",
                    "formula": f"{payload:,.1f}",
                    "ratio": f"{got[0] / payload:.4f}",
                    "wire, bytes a step": f"{got[1]:,.1f}",
                    "formula of it": f"{wire:,.1f}",
                    "ratio of it": f"{got[1] / wire:.4f}",
                    "expected spread of the ratios": f"{noise:.4f}",
                    "ms waited a step": f"{1e3 * got[2]:.2f}",
                    "ms a step": f"{1e3 * got[3]:.2f}",
                }
            )
            print(rows[-1])
    about = machine()
    lines = [
        "# What WASH and PAPA send",
        "",
        f"{date.today().isoformat()}, {about['cpu']}, {about['cores']} cores, gloo over loopback, one thread a rank, "
        f"with other work beside: milliseconds are no measure of a network. torch {torch.__version__}. "
        "Command: `python benchmarks/population_bytes.py`.",
        "ResNet-18 for CIFAR, float32, p = 0.001; PAPA pushes every tenth step. Means over members and steps.",
        "",
        *table(rows),
    ]
    (RESULTS / "population_bytes.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    known = {"date": date.today().isoformat(), "command": "python benchmarks/population_bytes.py", "machine": about}
    result = {**known, "versions": versions(()), "rows": rows}
    (RESULTS / "population_bytes.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
