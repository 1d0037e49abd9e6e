"""WASH: members trade single weights (Fournier, Nabli, Aminbeidokhti, Pedersoli, Belilovsky, Oyallon 2024, arXiv
2405.17517).

    after every step, for each coordinate i of layer l with probability p_l = p (1 - l / (L - 1)):
        w_n[i] <- w_{pi(n)}[i]  for all n,   pi a permutation of the members, uniform and drawn anew for each i

The mean of the members and their total distance to it stay; each member changes. The first layer is shuffled most, the
last never. Which coordinates and how follows from seed, step and the tensor's name (`lowland.population.streams`), so
that no index travels: of the sum_l p_l d_l values of a step those (1 - 1/N) that change their owner do. A layer is a
module with a matrix or a filter; its bias and the norms behind it share its probability (`lowland.population.layers`).

`optimizer_state` is WASH+Opt: momenta go with their weights, while the next forward pass runs already, as none reads
them. Running statistics and counters stay where they are: an average wants its BatchNorm refreshed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import whole
from .layers import Depth, chances, norms
from .members import Members, Named
from .rule import share
from .streams import shuffle


@dataclass(frozen=True)
class WASH:
    """Shuffle a few weights between the members after every step.

    Raises:
        ValueError: p lies outside [0, 1], or an argument is none of those below.

    >>> WASH(p=0.001).on_optimizer, WASH(p=0.001, optimizer_state=True).on_optimizer
    ('kept', 'shuffled with the weights')
    """

    p: float  # of the first layer; 0.001 for CIFAR, 0.05 for ImageNet
    every: int = 1  # steps
    depth: Depth = "layer"  # or "tensor": each tensor a layer, a bias one beside its weight; or "flat": p for all
    norms: bool = True  # whether scales and shifts of norms are shuffled too
    optimizer_state: bool = False

    on_buffers = "kept"

    def __post_init__(self) -> None:
        share(self.p, "p")
        whole("every", self.every, 1)
        if self.depth not in ("layer", "tensor", "flat"):
            raise ValueError(f'depth must be "layer", "tensor" or "flat", got {self.depth!r}')

    @property
    def on_optimizer(self) -> str:
        return "shuffled with the weights" if self.optimizer_state else "kept"

    def needs(self) -> str:
        return "optimizers" if self.optimizer_state else ""

    def slots(self, members: Members) -> dict[str, list[Named]]:
        return {}

    def mix(self, members: Members) -> None:
        if members.step % self.every or not self.p:
            return
        own = members.parameters()
        chance = chances(self.p, members.first(), self.depth)
        if not self.norms:
            chance |= dict.fromkeys(norms(own[0]), 0.0)
        plan = shuffle(members.seed, members.step, members.sizes(), chance, members.size)
        places, held = members.held(plan.places)
        order = plan.order if held is None else plan.order[:, held]
        device = next(iter(own[0].values())).device
        at = {name: place.to(device) for name, place in places.items() if len(place)}
        orders = dict(zip(places, torch.split(order, [len(place) for place in places.values()], 1), strict=True))
        taken = [{name: row[name].take(place) for name, place in at.items()} for row in own]
        states = members.states() if self.optimizer_state else []
        beside = [{key: t.take(at[name]) for key, t in s.items() if (name := _name(key)) in at} for s in states]
        members.ready([weights | state for weights, state in zip(taken, beside or [{}] * len(taken), strict=True)])
        _move(members, own, taken, at, orders)()
        if beside and beside[0]:
            members.later(_move(members, states, beside, at, orders))


def _move(
    members: Members, targets: list[Named], taken: list[Named], at: Named, orders: dict[str, Tensor]
) -> Callable[[], None]:
    """Begin to shuffle the values taken, one bucket a dtype; what is returned waits and writes them."""
    dtypes: dict[torch.dtype, list[str]] = {}
    for key, values in taken[0].items():
        dtypes.setdefault(values.dtype, []).append(key)
    under_way = []
    for keys in dtypes.values():
        order = torch.cat([orders[_name(key)] for key in keys], 1)
        buckets = [torch.cat([row[key] for key in keys]) for row in taken]
        under_way.append((keys, members.exchange.permute(buckets, order)))

    def finish() -> None:
        for keys, mixed in under_way:
            sizes = [len(taken[0][key]) for key in keys]
            for target, bucket in zip(targets, mixed(), strict=True):
                for key, values in zip(keys, torch.split(bucket, sizes), strict=True):
                    target[key].put_(at[_name(key)], values)

    return finish


def _name(key: str) -> str:
    """The tensor's name of a key such as momentum_buffer/fc.weight."""
    return key.rpartition("/")[2]
