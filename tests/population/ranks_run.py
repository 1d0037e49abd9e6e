"""What must hold of populations over ranks, run by `test_ranks.py` in a process of its own.

    python -m tests.population.ranks_run RANKS FOLDER [CHECK ...]      forks so many ranks, gloo over loopback

Beside the ranks each computes the whole population in its own process: what it is held against.
"""

from __future__ import annotations

import copy
import faulthandler
import math
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import lowland
from lowland.population import IMWA, PAPA, PAPA2, WASH, DiLoCo, LocalSGD, Population, Rule, load_members, save_members
from lowland.weights import weights_of

from ..conformance import POPULATIONS
from .models import Net, batch, train

TRADES = ("WASH", "WASH without norms", "WASH+Opt", "PAPA-2")  # bit for bit whatever the number of ranks


def whole(rule: Rule, seed: int = 0) -> Any:
    """All members in this process."""
    size = dist.get_world_size()
    models = [Net(0 if getattr(rule, "one_start", False) else place) for place in range(size)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in models]
    batches = [batch(0, 9)[0]]
    return models, optimizers, Population(models, rule, optimizers=optimizers, seed=seed, batches=batches)


def mine(rule: Rule, seed: int = 0, **given: Any) -> Any:
    """This rank's member."""
    model = Net(0 if getattr(rule, "one_start", False) else dist.get_rank())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    given = {"group": dist.group.WORLD, "batches": [batch(0, 9)[0]], **given}
    return [model], [optimizer], Population(model, rule, optimizers=optimizer, seed=seed, **given)


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    found = [tensor.clone() for tensor in model.state_dict().values()]
    return found + [t.clone() for s in optimizer.state_dict()["state"].values() for t in s.values() if t is not None]


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def members_are_those_of_one_process(folder: Path) -> None:
    """Trained: bit for bit wherever values and pairs are traded, and of two ranks everywhere, as a + b is b + a."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for name, rule in POPULATIONS.items():
        if name not in TRADES and size > 2:
            continue
        alone, ranks = whole(rule), mine(rule)
        train(*alone, range(1, 10))
        train(*ranks, range(1, 10), here=[rank])
        assert same(state(alone[0][rank], alone[1][rank]), state(ranks[0][0], ranks[1][0])), name
        for slot, rows in alone[2]._members.slots.items():
            assert same(list(rows[rank].values()), list(ranks[2]._members.slots[slot][0].values())), (name, slot)
        ours, theirs = alone[2].meter.total, ranks[2].meter.total
        sums = torch.tensor([theirs.payload, theirs.wire], dtype=torch.float64)
        dist.all_reduce(sums)
        assert torch.allclose(sums / size, torch.tensor([ours.payload, ours.wire], dtype=torch.float64), rtol=1e-12), (
            name,
            sums / size,
            ours,
        )
        assert (theirs.waited > 0) == (name != "Independent") or name == "Independent"


def means_differ_by_the_rounding_of_a_sum(folder: Path) -> None:
    """Two orders of a sum of N numbers below w differ by 2 (N - 1) roundings of N w, so their means by that of w.

    Division, interpolation and the outer step add a handful more; each step hands on what it was given, as no rule
    stretches differences (DiLoCo's outer steps of 0.7 and momentum 0.9 do, up to tenfold).
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    for name, rule in POPULATIONS.items():
        if name in ("Independent", "PAPA-all with REPAIR", *TRADES):
            continue
        alone, ranks = whole(rule), mine(rule)
        generator = torch.Generator().manual_seed(0)
        for _ in range(7):
            for place, model in enumerate(alone[0]):
                for p, own in zip(weights_of(model).values(), weights_of(ranks[0][0]).values(), strict=True):
                    step = torch.randn(p.shape, generator=generator)
                    p.add_(step)
                    if place == rank:
                        own.add_(step)
            alone[2].step()
            ranks[2].step()
        largest = max(float(p.detach().abs().max()) for model in alone[0] for p in model.parameters())
        bound = 7 * (2 * (size - 1) + 8) * 2**-24 * largest * (10 if isinstance(rule, DiLoCo) else 1)
        for p, own in zip(alone[0][rank].parameters(), ranks[0][0].parameters(), strict=True):
            assert float((p - own).detach().abs().max()) <= bound, (name, float((p - own).detach().abs().max()), bound)
        told: list[Any] = [None] * size
        dist.all_gather_object(told, [t.tolist() for t in state(ranks[0][0], ranks[1][0])[:3]])
        if isinstance(rule, LocalSGD | DiLoCo) and ranks[2].steps % 3 == 0:
            assert all(one == told[0] for one in told), "the ranks hold different means"


def what_is_asked_is_that_of_one_process(folder: Path) -> None:
    rank = dist.get_rank()
    alone, ranks = whole(WASH(p=0.1)), mine(WASH(p=0.1))
    train(*alone, range(1, 4))
    train(*ranks, range(1, 4), here=[rank])
    for one, two in zip(alone[2].members(), ranks[2].members(), strict=True):
        assert list(one) == list(two) and same(list(one.values()), list(two.values()))
    one, two = alone[2].average(), ranks[2].average()
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one) and list(one) == list(two)
    assert math.isclose(alone[2].consensus(), ranks[2].consensus(), rel_tol=1e-6)
    x = batch(77, 0, 32)[0]
    first, second = alone[2].probe(x), ranks[2].probe(x)
    assert first.disagreement == second.disagreement and first.step == second.step
    loader = [batch(step, 0)[0] for step in range(3)]
    fresh = ranks[2].average(refresh=lambda model: lowland.refresh_bn(model, loader, synchronise=False))
    expected = alone[2].average(refresh=lambda model: lowland.refresh_bn(model, loader, synchronise=False))
    assert all(torch.allclose(fresh[name], expected[name], atol=1e-5) for name in expected)


def refused(call: Callable[[], object], *parts: str) -> None:
    try:
        call()
    except ValueError as error:
        told: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(told, str(error))
        assert all(one == told[0] for one in told), told
        assert all(part in told[0] for part in parts) and "\n" not in told[0], told[0]
    else:
        raise AssertionError(f"not refused: {parts}")


def all_ranks_refuse_alike(folder: Path) -> None:
    rank = dist.get_rank()
    for rule in (WASH(p=0.5), PAPA(every=1), PAPA2(every=1), IMWA(every=1)):
        models, optimizers, population = mine(rule)
        train(models, optimizers, population, range(1, 3), here=[rank])
        kept = models[0].first.weight.detach().clone()
        if rank == 1:
            models[0].first.weight.data.fill_(math.nan)
        before = state(models[0], optimizers[0])
        refused(population.step, "first.weight of member 1 holds a value that is not finite in step 3: nothing was")
        after = state(models[0], optimizers[0])
        assert same([t.nan_to_num(9.0) for t in before], [t.nan_to_num(9.0) for t in after])
        models[0].first.weight.data.copy_(kept)
        population.step()
        assert population.steps == 3
    for given, parts in (
        ({"rule": WASH(p=0.1), "seed": rank}, ("rank 1 is at WASH(p=0.1", "seed 1", "rank 0 at", "seed 0")),
        (
            {"rule": WASH(p=0.1 + rank) if rank < 1 else WASH(p=0.2)},
            ("rank 1 is at WASH(p=0.2", "rank 0 at WASH(p=0.1"),
        ),
        ({"rule": LocalSGD(every=50) if rank else PAPA(every=50)}, ("rank 1 is at LocalSGD(every=50)", "PAPA(")),
    ):
        models, optimizers, population = mine(**given)  # type: ignore[arg-type]
        before = state(models[0], optimizers[0])
        refused(population.step, *parts, "nothing was mixed")
        assert same(before, state(models[0], optimizers[0])) and population.steps == 0
    model = Net()
    optimizer = torch.optim.Adam(model.parameters()) if rank else torch.optim.SGD(model.parameters(), lr=0.1)
    population = Population(model, WASH(p=0.1), optimizers=optimizer, group=dist.group.WORLD)
    refused(population.step, "Adam", "SGD", "one kind of model and optimiser")
    refused(Population(Net(rank), DiLoCo(every=9), group=dist.group.WORLD).step, "start", "nothing was mixed")
    other = nn.Linear(2, 1 + rank)
    refused(Population(other, LocalSGD(every=9), group=dist.group.WORLD).step, "digest", "one kind of model")
    models, optimizers, population = mine(LocalSGD(every=4))
    train(models, optimizers, population, range(1, 4), here=[rank])
    population._members.step += 4 * (rank == 1)
    refused(population.step, "step 8", "step 4", "from one checkpoint")
    models, optimizers, population = mine(PAPA(every=1))
    optimizers[0].param_groups[0]["lr"] *= 0.5 if rank else 1.0
    refused(population.step, "do not agree on what step 1 mixes, such as a learning rate")
    models, optimizers, population = mine(WASH(p=0.5, optimizer_state=True))
    train(models, optimizers, population, range(1, 3), here=[rank])
    if rank == 1:
        optimizers[0].state.clear()
    before = state(models[0], optimizers[0])
    refused(population.step, "rank 1 mixes other tensors than rank 0", "momentum_buffer")
    assert same(before, state(models[0], optimizers[0]))


def checkpoints_go_on_exactly(folder: Path) -> None:
    rank = dist.get_rank()
    for name in ("WASH+Opt", "IMWA with teachers", "DiLoCo"):
        ranks = mine(POPULATIONS[name])
        train(*ranks, range(1, 6), here=[rank])
        save_members(ranks[2], folder / f"{name}-{dist.get_world_size()}")
        train(*ranks, range(6, 10), here=[rank])
        again = mine(POPULATIONS[name])
        load_members(again[2], folder / f"{name}-{dist.get_world_size()}")
        assert again[2].steps == 5
        train(*again, range(6, 10), here=[rank])
        assert same(state(ranks[0][0], ranks[1][0]), state(again[0][0], again[1][0])), name
    other = mine(POPULATIONS["WASH"])
    before = state(other[0][0], other[1][0])
    try:
        load_members(other[2], folder / f"DiLoCo-{dist.get_world_size()}")
    except ValueError as error:
        assert "rule='DiLoCo', this population has 'WASH'" in str(error)
    else:
        raise AssertionError("another rule's checkpoint was loaded")
    assert same(before, state(other[0][0], other[1][0]))


def momenta_travel_beside_the_next_forward(folder: Path) -> None:
    rank = dist.get_rank()
    models, optimizers, population = mine(WASH(p=1.0, depth="flat", optimizer_state=True))
    train(models, optimizers, population, range(1, 2), here=[rank])
    x, y = batch(2, rank)
    nn.functional.cross_entropy(models[0](x), y).backward()
    assert population._members._waits, "nothing is under way"
    optimizers[0].step()
    assert not population._members._waits, "the optimiser has not waited"


def sharded_members(folder: Path) -> None:
    """Two members, each on two ranks under fully_shard: the numbers are those of one process."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("member", "shard"))
    number = mesh["member"].get_local_rank()
    for name in ("WASH", "WASH+Opt", "PAPA", "PAPA-2", "IMWA with teachers", "DiLoCo", "DART from one model"):
        rule = POPULATIONS[name]
        models = [Net(0 if getattr(rule, "one_start", False) else place) for place in range(2)]
        for model in models:
            model.scale = nn.Parameter(model.scale.detach()[None])  # fully_shard takes no single numbers
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in models]
        alone = Population(models, rule, optimizers=optimizers, seed=3)
        own = copy.deepcopy(models[number])
        fully_shard(own, mesh=mesh["shard"])
        optimizer = torch.optim.SGD(own.parameters(), lr=0.05, momentum=0.9)
        ranks = Population(own, rule, optimizers=optimizer, seed=3, group=mesh["member"])
        for step in range(1, 8):
            for place, (model, stepper) in enumerate(zip(models, optimizers, strict=True)):
                if alone.trains(place):
                    for p in model.parameters():
                        p.grad = torch.full_like(p, math.sin(step + place)) * p.detach()
                    stepper.step()
            if ranks.trains(number):
                for p in own.parameters():
                    p.grad = p.detach() * math.sin(step + number)
                optimizer.step()
            alone.step()
            ranks.step()
        ranks.settle()
        for key, p in dict(own.named_parameters()).items():
            expected = dict(models[number].named_parameters())[key].detach()
            assert torch.equal(p.full_tensor().detach(), expected), (name, key)  # type: ignore[attr-defined]
        assert math.isclose(alone.consensus(), ranks.consensus(), rel_tol=1e-5, abs_tol=1e-9), name
        mean = {key: t.full_tensor() if hasattr(t, "full_tensor") else t for key, t in ranks.average().items()}
        assert all(torch.allclose(t, alone.average()[key], atol=1e-6) for key, t in mean.items())
    with torch.no_grad():
        if dist.get_rank() == 3:
            own.first.weight.to_local().fill_(math.nan)  # type: ignore[attr-defined]
    population = Population(own, LocalSGD(every=1), group=mesh["member"])
    try:
        population.step()
    except ValueError as error:
        assert "first.weight of member 1 holds" in str(error) or "a shard that is not finite" in str(error)
    else:
        raise AssertionError("a shard that is not finite was mixed")


CHECKS: dict[str, Callable[[Path], None]] = {
    check.__name__: check
    for check in (
        members_are_those_of_one_process,
        means_differ_by_the_rounding_of_a_sum,
        what_is_asked_is_that_of_one_process,
        all_ranks_refuse_alike,
        checkpoints_go_on_exactly,
        momenta_travel_beside_the_next_forward,
        sharded_members,
    )
}


def work(rank: int, ranks: int, folder: Path, names: list[str]) -> None:
    warnings.simplefilter("ignore")  # torch's own, about gloo and its checkpoints
    faulthandler.dump_traceback_later(200, exit=True)
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{ranks}-{'-'.join(names)}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    for name in names:
        begin = time.perf_counter()
        CHECKS[name](folder)
        if rank == 0:
            print(f"{name} on {ranks}: {time.perf_counter() - begin:.2f} s", flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    ranks, folder, names = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    context = multiprocessing.get_context("fork")  # before any thread is started: one import serves all
    children = [context.Process(target=work, args=(rank, ranks, folder, names), daemon=True) for rank in range(ranks)]
    for child in children:
        child.start()
    for child in children:
        child.join(220)
    codes = [child.exitcode for child in children]
    for child in children:
        if child.is_alive():
            child.kill()
    sys.exit(0 if codes == [0] * ranks else f"exit codes {codes}")


if __name__ == "__main__":
    main()
