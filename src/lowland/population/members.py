"""The members of this process as named tensors: parameters, buffers, and what their optimisers keep beside them."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..arithmetic.moments import first_nonfinite
from ..weights import Select, Weights, check_same, floating, selected
from ..weights.shards import anywhere, is_sharded, local, runs
from .exchange import Exchange, Row
from .passes import PIECE, all_finite

Named = dict[str, Tensor]


class Members:
    """What a rule mixes. Models are read anew at each step: they may have moved since.

    `step` counts the members' optimiser steps, this one included. `slots` are tensors that a rule keeps between steps,
    for each member of this process, by the rule's own names.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        optimizers: Sequence[Optimizer] | None,
        exchange: Exchange,
        select: Select,
        seed: int,
        check_finite: bool,
        batches: Sequence[Iterable[Any]],
    ) -> None:
        self.models, self.optimizers = list(models), None if optimizers is None else list(optimizers)
        self.exchange, self.select, self.seed, self.check_finite = exchange, select, seed, check_finite
        self.step = 0
        self.introduced = ""  # what all ranks must have in common, as text
        self.slots: dict[str, list[Named]] = {}
        self._batches = batches
        self._looking = False
        self._seen: list[dict[str, Tensor]] | None = None
        self._waits: list[Callable[[], None]] = []
        self._first_rates = [_first_rate(optimizer) for optimizer in optimizers or ()]

    @property
    def size(self) -> int:
        """How many members there are, in all processes."""
        return self.exchange.size

    @property
    def here(self) -> Sequence[int]:
        """The numbers of the members of this process."""
        return self.exchange.here

    def parameters(self) -> list[Named]:
        """The selected tensors of each member of this process; of sharded ones the part on this rank."""
        return [{name: local(t.detach()) for name, t in own.items()} for own in self.whole()]

    def whole(self) -> list[dict[str, Tensor]]:
        """The models' own selected tensors."""
        if self._seen is not None:
            return self._seen
        found = [selected(model, self.select) for model in self.models]
        self._seen = found if self._looking else None
        return found

    def first(self) -> dict[str, Tensor]:
        """The first one's own selected tensors: of the names, shapes and placements of all."""
        return self.whole()[0] if self._looking else selected(self.models[0], self.select)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Walk through the models once for all that a block asks, as nothing in it replaces a tensor."""
        self._looking, self._seen = True, None
        try:
            yield
        finally:
            self._looking, self._seen = False, None

    def buffers(self) -> list[Named]:
        """The floating-point buffers of each member, BatchNorm's running statistics among them; counters stay."""
        found = []
        for model in self.models:
            own: dict[str, Tensor] = {}
            if any(True for _ in model.buffers()):
                own = selected(model, lambda name, t: isinstance(t, nn.Parameter) or floating(name, t))
            found.append({n: local(t.detach()) for n, t in own.items() if not isinstance(t, nn.Parameter)})
        return found

    def states(self) -> list[Named]:
        """What each optimiser keeps in the shape of a parameter, as `momentum_buffer/fc.weight`; empty before steps.

        Raises:
            ValueError: one optimiser keeps what another does not.
        """
        found: list[Named] = []
        for optimizer, own in zip(self.optimizers or (), self.whole(), strict=True):
            named: Named = {}
            for name, parameter in own.items():
                for kind, tensor in optimizer.state.get(parameter, {}).items():
                    if isinstance(tensor, Tensor) and tensor.shape == parameter.shape and tensor.is_floating_point():
                        if parameter.ndim or kind != "step":
                            named[f"{kind}/{name}"] = local(tensor.detach())
            found.append(named)
        for named, number in zip(found[1:], self.here[1:], strict=False):
            check_same(found[0], named, what=f"the optimiser of member {number} beside that of member {self.here[0]}")
        return found

    def reset_states(self) -> None:
        """Let every optimiser begin anew, as before its first step."""
        for optimizer in self.optimizers or ():
            for parameter in list(optimizer.state):
                optimizer.state.pop(parameter)

    def rate(self) -> float:
        """Return the learning rate now over the one at the beginning; the members share it.

        Raises:
            ValueError: the members' rates differ, or those of one optimiser's groups.
        """
        ratios = []
        for optimizer, firsts in zip(self.optimizers or (), self._first_rates, strict=True):
            rates = (float(group["lr"]) for group in optimizer.param_groups)
            ratios += [rate / first if first else 0.0 for rate, first in zip(rates, firsts, strict=True)]
        if max(ratios) - min(ratios) > 1e-6 * max(ratios):
            raise ValueError(
                f"the learning rates stand at {sorted(set(ratios))} of their first values: the push follows one rate; "
                'give all members one schedule, or take PAPA(follow="nothing")'
            )
        return ratios[0]

    def ready(self, rows: Sequence[Weights], *numbers: float) -> None:
        """Refuse to mix unless these tensors are finite everywhere, and all ranks are about to do the same.

        Raises:
            ValueError: a member holds a value that is not finite, or ranks differ in rule, seed, step or tensors; on
                every rank alike, and nothing is changed.
        """
        bad = self._nonfinite(rows)
        own = self.first()
        sharded = any(is_sharded(tensor) for tensor in own.values())
        wrong = anywhere(bool(bad), own) if sharded else bool(bad)
        bits = [int.from_bytes(struct.pack(">d", number), "big") >> 2 for number in numbers]
        plan = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in rows[0].items()] if rows else []
        same = self.exchange.agreed(
            [self.step, *(bits or [0]), int(wrong), _digest(self.introduced), _digest(repr(plan))]
        )
        if same and not wrong:
            return
        told = self.exchange.told({"bad": bad, "says": f"{self.introduced}, step {self.step}", "plan": plan})
        self._refuse(told)

    def check(self, rows: Sequence[Weights]) -> None:
        """Refuse values of this process that are not finite.

        Raises:
            ValueError: there is one; the message names member and tensor.
        """
        bad = self._nonfinite(rows)
        if bad:
            self._refuse([{"bad": bad}])

    def _nonfinite(self, rows: Sequence[Weights]) -> str:
        large = bool(rows) and sum(tensor.numel() for tensor in rows[0].values()) > PIECE
        if not self.check_finite or (large and all_finite([list(row.values()) for row in rows])):
            return ""
        for number, row in zip(self.here, rows, strict=False):
            name = first_nonfinite(row)
            if name is not None:
                return f"{name} of member {number} holds a value that is not finite"
        return ""

    def _refuse(self, told: list[dict[str, Any]]) -> None:
        diverged = [one["bad"] for one in told if one["bad"]]
        if diverged:
            raise ValueError(
                f"{diverged[0]} in step {self.step}: nothing was mixed; lower its rate or put it back to a checkpoint"
            )
        for rank, one in enumerate(told):
            if one["says"] != told[0]["says"]:
                raise ValueError(
                    f"rank {rank} is at {one['says']}, rank 0 at {told[0]['says']}: nothing was mixed; start all ranks "
                    "with one rule, one seed and one kind of model and optimiser, from one checkpoint"
                )
        for rank, one in enumerate(told):
            if one["plan"] != told[0]["plan"]:
                odd = sorted(set(one["plan"]) ^ set(told[0]["plan"]))[:3]
                raise ValueError(f"rank {rank} mixes other tensors than rank 0: {odd}; nothing was mixed")
        raise ValueError(
            f"the ranks do not agree on what step {self.step} mixes, such as a learning rate or a shard that is not "
            "finite: nothing was mixed"
        )

    def first_batches(self, place: int, count: int) -> Iterator[Any]:
        """Return the first training batches of a member of this process."""
        return islice(iter(self._batches[place]), count)

    def later(self, finish: Callable[[], None]) -> None:
        """Have this done before the next optimiser step, or when anybody asks for what it writes."""
        self._waits.append(finish)

    def settle(self) -> None:
        """Wait for what is under way, and write it."""
        waits, self._waits = self._waits, []
        for finish in waits:
            finish()

    def sizes(self) -> dict[str, int]:
        """The number of elements of each selected tensor, of sharded ones the whole."""
        return {name: tensor.numel() for name, tensor in self.first().items()}

    def held(self, places: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return those of the places, counted in whole tensors, that this rank holds, counted in its own.

        And which of all places they are; None where tensors are not sharded, as then it is all of them.
        """
        own = self.first()
        if not any(is_sharded(tensor) for tensor in own.values()):
            return dict(places), None
        found, kept = {}, []
        for name, wanted in places.items():
            at = torch.full_like(wanted, -1)
            for start, first, length in runs(own[name]):
                inside = (wanted >= start) & (wanted < start + length)
                at[inside] = wanted[inside] - start + first
            found[name] = at[at >= 0]
            kept.append(at >= 0)
        return found, torch.cat(kept)

    def shared(self, value: float) -> float:
        """Return the sum of a number over the ranks that share one member's shards."""
        total = torch.tensor(value, dtype=torch.float64)
        meshes = dict.fromkeys(t.device_mesh for t in self.first().values() if is_sharded(t))  # type: ignore[attr-defined]
        for mesh in meshes:
            for axis in range(mesh.ndim):
                total = total.to(mesh.device_type)
                torch.distributed.all_reduce(total, group=mesh.get_group(axis))
        return float(total)


def rows_of(named: Sequence[Named]) -> list[Row]:
    """Return tensors of each member in one order.

    >>> rows_of([{"a": torch.zeros(1)}, {"a": torch.ones(1)}])
    [[tensor([0.])], [tensor([1.])]]
    """
    return [list(own.values()) for own in named]


def joined(*parts: Sequence[Named]) -> list[Named]:
    """Return, for each member, the tensors of all parts under their names.

    >>> joined([{"a": torch.zeros(1)}], [{"b": torch.zeros(1)}])
    [{'a': tensor([0.]), 'b': tensor([0.])}]
    """
    return [{name: t for own in each for name, t in own.items()} for each in zip(*parts, strict=True)]


def _first_rate(optimizer: Optimizer) -> list[float]:
    rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    if not all(math.isfinite(rate) for rate in rates):
        raise ValueError(f"an optimiser's learning rate must be finite, got {rates}")
    return rates


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
