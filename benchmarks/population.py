"""The cost of one mixing step of a population in one process, beside the memory that it must move and naive code.

Timed is `population.step()` with the models in hand, on tensors of real shapes: 11M x 3 (the ResNet-18 for CIFAR) and
25M x 5 (ResNet-50). The limit is what must move at the triad's speed: PAPA reads all weights and writes them, 2 N
vectors; its check for values that are not finite reads them once more before anything is written, 3 N, and "no check"
leaves that out. WASH at
p = 0.001 moves a few thousand values, so that nothing but its own work limits it: the stream of coordinates and
permutations, the values, a check of those alone. Naive are, tensor by tensor, a mask of torch.rand with one
torch.randperm for each coordinate of it; the same with all permutations of a tensor at once as torch.argsort of
torch.rand; and for PAPA the mean as a torch.stack of all members.
"""

from __future__ import annotations

import math

import torch
from harness import Row, arguments, compare, peak_extra, triad, write
from torch import Tensor, nn
from updates import nested, resnet50, size_of

from lowland.population import PAPA, WASH, Population

P = 0.001


def resnet18() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 3, 3), "bn1.weight": (64,), "bn1.bias": (64,)}
    before = 64
    for stage, now in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            at = f"layer{stage}.{block}"
            for conv, given in ((1, before), (2, now)):
                shapes[f"{at}.conv{conv}.weight"] = (now, given, 3, 3)
                shapes |= {f"{at}.bn{conv}.{kind}": (now,) for kind in ("weight", "bias")}
            if before != now:
                shapes[f"{at}.shortcut.0.weight"] = (now, before, 1, 1)
                shapes |= {f"{at}.shortcut.1.{kind}": (now,) for kind in ("weight", "bias")}
            before = now
    return shapes | {"linear.weight": (10, 512), "linear.bias": (10,)}


@torch.no_grad()
def by_randperm(rows: list[list[Tensor]]) -> None:
    """Each tensor a mask, each coordinate of it a permutation of its own."""
    for place, own in enumerate(zip(*rows, strict=True)):
        p = P * (1 - place / (len(rows[0]) - 1))
        flat = [tensor.view(-1) for tensor in own]
        chosen = torch.nonzero(torch.rand(len(flat[0])) < p).flatten()
        if not len(chosen):
            continue
        order = torch.stack([torch.randperm(len(own)) for _ in range(len(chosen))], 1)
        mixed = torch.stack([tensor[chosen] for tensor in flat]).gather(0, order)
        for tensor, values in zip(flat, mixed, strict=True):
            tensor[chosen] = values


@torch.no_grad()
def by_argsort(rows: list[list[Tensor]]) -> None:
    """All coordinates of a tensor permuted at once, and taken where the mask says so."""
    for place, own in enumerate(zip(*rows, strict=True)):
        p = P * (1 - place / (len(rows[0]) - 1))
        stacked = torch.stack([tensor.view(-1) for tensor in own])
        order = torch.rand(stacked.shape).argsort(0)
        mixed = torch.where(torch.rand(stacked.shape[1]) < p, stacked.gather(0, order), stacked)
        for tensor, values in zip(own, mixed, strict=True):
            tensor.copy_(values.view_as(tensor))


@torch.no_grad()
def by_stack(rows: list[list[Tensor]]) -> None:
    for own in zip(*rows, strict=True):
        mean = torch.stack(list(own)).mean(0)
        for tensor in own:
            tensor.mul_(0.99).add_(mean, alpha=0.01)


def near(row: Row) -> bool:
    return (row.limit or math.inf) <= 2


def models(shapes: dict[str, tuple[int, ...]], members: int) -> list[nn.Module]:
    return [nested(shapes) for _ in range(members)]


def main() -> None:
    options = arguments(__doc__)
    tables, notes, checks = {}, [], []
    for title, shapes, members in (("11M x 3", resnet18(), 3), ("25M x 5", resnet50(), 5)):
        own = models(shapes, members)
        d = size_of(own[0])
        rows = [[p.detach() for p in model.parameters()] for model in own]
        every = {
            "WASH": Population(own, WASH(p=P)),
            "WASH, no check": Population(own, WASH(p=P), check_finite=False),
            "PAPA": Population(own, PAPA(every=1, follow="nothing")),
            "PAPA, no check": Population(own, PAPA(every=1, follow="nothing"), check_finite=False),
        }
        limit = triad(d)
        contenders = {name: population.step for name, population in every.items()}
        contenders |= {
            "naive WASH: torch.randperm": lambda rows=rows: by_randperm(rows),
            "naive WASH: argsort": lambda rows=rows: by_argsort(rows),
            "naive PAPA: stack": lambda rows=rows: by_stack(rows),
        }
        vectors = {name: 2.0 * members for name in contenders if "PAPA" in name} | {"PAPA": 3.0 * members}
        found = compare(
            contenders,
            limit=limit,
            vectors=vectors,
            baseline="naive WASH: torch.randperm",
            rounds=3 if options.quick else 9,
            budget=20 if options.quick else 150,
        )
        tables[title] = found
        row = {each.name: each for each in found}
        slowest = row["naive WASH: torch.randperm"]
        factor = slowest.over(row["WASH"])
        checks += [
            *(
                (f"{name}, {title}, is near the limit", "at most 2x", f"{row[name].limit:.2f}x", near(row[name]))
                for name in ("PAPA", "PAPA, no check")
            ),
            (f"WASH, {title}, against torch.randperm", "at least 10x faster", f"{factor:.0f}x", factor >= 10),
        ]
        extra = {name: peak_extra(call) / 2**20 for name, call in contenders.items()}
        tables[f"{title}: memory that a step adds"] = [
            {"contender": name, "MiB": f"{mib:.1f}", "of one model": f"{mib * 2**20 / (4 * d):.2f}"}
            for name, mib in extra.items()
        ]
        notes.append(f"{title}: {d:,} parameters in {len(shapes)} tensors. {limit!r}")
        del every, contenders
    write("population", "One mixing step of a population in one process", tables, notes, checks)


if __name__ == "__main__":
    main()
