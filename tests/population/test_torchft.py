"""Populations over the process groups of torchft, where it is installed: equal to its own local SGD, and resized."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import TCPStore

from lowland.population import LocalSGD, Population

torchft = pytest.importorskip("torchft", exc_type=ImportError)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
EVERY, STEPS = 3, 7


def parts(number: int) -> tuple[nn.Module, torch.optim.Optimizer, torch.Generator]:
    """A member of one start, its optimiser, and the randomness of its batches."""
    model = nn.Linear(4, 3)
    with torch.no_grad():
        for place, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter) / 10 - place)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), torch.Generator().manual_seed(number)


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, random: torch.Generator) -> None:
    x, y = torch.randn(8, 4, generator=random), torch.randint(3, (8,), generator=random)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def together(member: Callable[[int], Any], count: int) -> list[Any]:
    """Members in threads of this process, as torchft's own tests run theirs."""
    with ThreadPoolExecutor(count) as pool:
        return [done.result(timeout=60) for done in [pool.submit(member, number) for number in range(count)]]


def store() -> TCPStore:
    return TCPStore("localhost", 0, is_master=True, wait_for_workers=False)


def group(address: str, number: int, count: int) -> Any:
    made = torchft.ProcessGroupGloo(timeout=timedelta(seconds=20))
    made.configure(address, str(number), number, count)
    return made


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_local_sgd_is_that_of_torchft() -> None:
    from torchft.coordination import LighthouseServer
    from torchft.local_sgd import LocalSGD as Theirs

    meeting, own_stores = store(), [store(), store()]
    lighthouse = LighthouseServer(bind="127.0.0.1:0", min_replicas=2, join_timeout_ms=2000)

    def ours(number: int) -> list[Tensor]:
        model, optimizer, random = parts(number)
        over = group(f"localhost:{meeting.port}/ours", number, 2)
        population = Population(model, LocalSGD(every=EVERY), optimizers=optimizer, group=over)
        for _ in range(STEPS):
            trained(model, optimizer, random)
            population.step()
        assert population.size == 2 and list(population.here) == [number]
        return weights(model)

    def theirs(number: int) -> list[Tensor]:
        model, optimizer, random = parts(number)
        manager = torchft.Manager(
            pg=torchft.ProcessGroupGloo(timeout=timedelta(seconds=20)),
            load_state_dict=model.load_state_dict,
            state_dict=model.state_dict,
            min_replica_size=2,
            use_async_quorum=False,
            init_sync=False,
            rank=0,
            world_size=1,
            store_addr="localhost",
            store_port=own_stores[number].port,
            lighthouse_addr=lighthouse.address(),
            replica_id=str(number),
            hostname="localhost",
            timeout=timedelta(seconds=20),
        )
        try:
            with Theirs(manager, model, optimizer, sync_every=EVERY):
                for _ in range(STEPS):
                    trained(model, optimizer, random)
            return weights(model)
        finally:
            manager.shutdown(wait=False)

    try:
        found, wanted = together(ours, 2), together(theirs, 2)
    finally:
        lighthouse.shutdown()
    for one, other in zip(found, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(found[0][0], found[1][0]), "the last step was not averaged"


def test_a_group_shrinks_between_steps() -> None:
    meeting = store()

    def member(number: int) -> tuple[int, list[Tensor]]:
        model, optimizer, random = parts(number)
        over = group(f"localhost:{meeting.port}/three", number, 3)
        population = Population(model, LocalSGD(every=1), optimizers=optimizer, group=over)
        trained(model, optimizer, random)
        population.step()
        if number < 2:  # the third is gone
            over.configure(f"localhost:{meeting.port}/two", str(number), number, 2)
            trained(model, optimizer, random)
            population.step()
        return population.size, weights(model)

    (two, first), (_, second), (three, third) = together(member, 3)
    assert (two, three) == (2, 3)
    assert torch.equal(first[0], second[0]) and not torch.equal(first[0], third[0])
