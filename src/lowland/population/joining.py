"""Who makes a population: members that fit together, and what ranks tell of themselves before anything is mixed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..weights import Select, check_same, weights_of
from ..weights.kinds import check_kinds, check_writable
from ..weights.shards import local
from .members import Members, Named
from .ranks import Ranks
from .rule import Rule


def check_members(
    members: Sequence[nn.Module],
    optimizers: Sequence[Optimizer] | None,
    several: bool,
    group: Any,
    rule: Rule,
    batches: Any,
    select: Select,
) -> None:
    """Refuse members, optimisers and groups that make no population.

    Raises:
        ValueError: there are fewer than two, they differ or share memory, or the rule lacks what it needs.
    """
    if several and group is not None:
        raise ValueError("over a process group each rank has one model: pass that one, not a list")
    if several and len(members) < 2:
        raise ValueError(f"a population needs at least two members, got {len(members)}")
    if not several and group is None:
        raise ValueError("a single model is one rank's: pass group=, such as torch.distributed.group.WORLD, or a list")
    first = weights_of(members[0], select)
    seen: dict[int, int] = {}
    for number, model in enumerate(members):
        own = weights_of(model, select)
        check_kinds(own, f"member {number}")
        check_same(first, own, what=f"member {number} beside member 0")
        check_writable(own, own, f"member {number}")
        odd = [name for name, tensor in own.items() if tensor.dtype != first[name].dtype]
        if odd:
            raise ValueError(f"{odd[0]} of member {number} is {own[odd[0]].dtype}, of member 0 {first[odd[0]].dtype}")
        for name, tensor in own.items():
            if local(tensor).numel() and seen.setdefault(local(tensor).data_ptr(), number) != number:
                raise ValueError(f"member {number} shares {name} with another: give each member its own model")
    if optimizers is not None and len(optimizers) != len(members):
        raise ValueError(f"there are {len(members)} models and {len(optimizers)} optimisers: pass one for each")
    kinds = {type(optimizer).__name__ for optimizer in optimizers or ()}
    if len(kinds) > 1:
        raise ValueError(f"the optimisers are of different kinds, {sorted(kinds)}: a population has one kind")
    needs = rule.needs()
    if needs == "optimizers" and not optimizers:
        raise ValueError(f"{rule} follows the optimisers: pass optimizers=, one for each member")
    if needs == "batches" and batches is None:
        raise ValueError(f"{rule} measures activations: pass batches=, training batches that can be read again")


def each(batches: Any, members: int) -> list[Iterable[Any]]:
    """Return the batches of each member: its own, or those of all.

    >>> each([[1], [2]], 2), each([1, 2, 3], 2)
    ([[1], [2]], [[1, 2, 3], [1, 2, 3]])
    """
    several = isinstance(batches, Sequence) and len(batches) == members and members > 1
    return list(batches) if several else [batches] * members


def over(group: Any, model: nn.Module, select: Select) -> Ranks:
    """Return the way over a process group, or over an axis of a device mesh."""
    found = group.get_group() if hasattr(group, "get_group") and hasattr(group, "mesh") else group
    return Ranks(found, local(next(iter(weights_of(model, select).values()))).device)


def introduction(rule: Rule, own: Members) -> str:
    """Say what all ranks must have in common: rule, seed, optimiser, tensors, and the start where it matters."""
    kind = type(own.optimizers[0]).__name__ if own.optimizers else "no optimiser"
    first = next(iter(own.first().items()))
    shapes = hashlib.blake2b(repr([(n, tuple(t.shape)) for n, t in own.first().items()]).encode()).hexdigest()
    start = ""
    if getattr(rule, "one_start", False):
        digests = [_digest(each) for each in own.parameters()]
        if len(set(digests)) > 1:
            raise ValueError(f"{type(rule).__name__} wants members of one start: copy one's weights to all")
        start = f", start {digests[0]}"
    where = f"{len(own.sizes())} tensors from {first[0]} (digest {shapes[:8]})"
    return f"{rule}, seed {own.seed}, {kind}, {where}{start}"


def _digest(weights: Named) -> str:
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in weights.items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
