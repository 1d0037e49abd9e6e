"""Many models trained at once, mixed by a rule behind their optimisers' steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..arithmetic.moments import check_numbers
from ..weights import Select, applied, check_same, clone_of, floating, parameters, select_name, weights_of
from ..weights.shards import is_sharded, like
from .alone import Alone
from .exchange import Exchange
from .joining import check_members, each, introduction, over
from .members import Members, Named, joined, rows_of
from .meter import Meter, Traffic
from .ranks import Ranks
from .rule import Rule


@dataclass(frozen=True)
class Probe:
    """How far the members are from each other after a step."""

    step: int
    consensus: float  # the sum of their squared distances to the mean
    disagreement: float  # share of a batch on which two members' answers differ, mean over pairs


class Population:
    """Members of one architecture and the rule that mixes them; call `step()` behind their optimisers' steps.

    All members live in this process (a list of models), or each on a rank of a process group (one model and `group`).
    The same seed gives the same numbers in both: bit for bit where values or pairs are traded, to the rounding of an
    all-reduce where a mean of more than two is taken. Over ranks, every rank makes the same calls.

    Args:
        models: two or more modules, or this rank's one.
        rule: such as `WASH(p=0.001)`.
        optimizers: one for each model, of one kind; rules that follow the rate or touch momenta need them.
        seed: of shuffles and pairs, the same on all ranks.
        group: the process group of the members; of a device mesh the axis of the members, where each member is sharded
            by `fully_shard` over another.
        select: which parameters are mixed.
        batches: training batches that can be read again, for a rule that repairs: one iterable, or one for each model.
        check_finite: refuse values that are not finite among what is about to be mixed.

    Raises:
        ValueError: there are fewer than two members, they differ, or the rule lacks what it needs.

    >>> models = [nn.Linear(2, 1) for _ in range(3)]
    >>> optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    >>> from lowland.population import PAPA
    >>> population = Population(models, PAPA(every=1, alpha=0.5), optimizers=optimizers)
    >>> before = population.consensus()
    >>> traffic = population.step()
    >>> round(population.consensus() / before, 4), traffic.payload  # all deviations halve; 3 numbers of 4 bytes
    (0.25, 12.0)
    """

    def __init__(
        self,
        models: nn.Module | Sequence[nn.Module],
        rule: Rule,
        *,
        optimizers: Optimizer | Sequence[Optimizer] | None = None,
        seed: int = 0,
        group: Any = None,
        select: Select = parameters,
        batches: Any = None,
        check_finite: bool = True,
    ) -> None:
        if not isinstance(rule, Rule):
            raise ValueError(f"rule must be one such as WASH(p=0.001), got {rule!r}")
        several = not isinstance(models, nn.Module)
        members = list(models) if isinstance(models, Sequence) else [models]
        steppers = None if optimizers is None else [optimizers] if isinstance(optimizers, Optimizer) else [*optimizers]
        check_members(members, steppers, several, group, rule, batches, select)
        exchange: Exchange = Alone(len(members)) if several else over(group, members[0], select)
        if exchange.size < 2:
            raise ValueError(f"a population needs at least two members, the group has {exchange.size} rank")
        self.rule, self.meter, self.log = rule, Meter(), list[Probe]()
        self._members = Members(members, steppers, exchange, select, seed, check_finite, each(batches, len(members)))
        self._members.slots = rule.slots(self._members)
        self._members.introduced = introduction(rule, self._members)
        for optimizer in steppers or ():
            optimizer.register_step_pre_hook(lambda *_: self.settle())
            optimizer.register_state_dict_pre_hook(lambda *_: self.settle())
            optimizer.register_load_state_dict_pre_hook(lambda *_: self.settle())

    @property
    def size(self) -> int:
        """How many members there are, in all processes."""
        return self._members.size

    @property
    def here(self) -> Sequence[int]:
        """The numbers of the members of this process."""
        return self._members.here

    @property
    def over_ranks(self) -> bool:
        """Whether each member has a rank of its own."""
        return isinstance(self._members.exchange, Ranks)

    @property
    def steps(self) -> int:
        """How many steps have been made."""
        return self._members.step

    def trains(self, member: int) -> bool:
        """Say whether a member is to be trained in the next step; while DART pretrains the first alone is."""
        return member == 0 or self._members.step >= getattr(self.rule, "pretrain", 0)

    @torch.no_grad()
    def step(self) -> Traffic:
        """Count one optimiser step of all members, mix them if the rule is due, and return what was moved.

        Raises:
            ValueError: a member holds a value that is not finite, or ranks differ in rule, seed or step; nothing is
                changed then.
            RuntimeError: a rank was lost.
        """
        own, begun = self._members, time.perf_counter()
        own.settle()
        own.exchange.traffic = Traffic()
        own.step += 1
        try:
            with own.looking():
                if own.step == 1:
                    own.ready([])
                self.rule.mix(own)
        except BaseException:
            own.step -= 1
            raise
        traffic = own.exchange.traffic
        traffic.seconds = time.perf_counter() - begun
        self.meter.take(traffic)
        return traffic

    def settle(self) -> None:
        """Wait for what is under way beside the next forward pass; optimisers, states and checkpoints do it too."""
        with torch.no_grad():
            self._members.settle()

    @torch.no_grad()
    def members(self) -> list[dict[str, Tensor]]:
        """Return copies of the parameters and floating-point buffers of all members, on every rank.

        They are what `lowland.soup.greedy` and `lowland.Mixture` take.
        """
        names, rows, whole = self._rows()
        if not self.over_ranks:
            return [clone_of(dict(zip(names, row, strict=True))) for row in rows]
        gathered = self._members.exchange.gathered(rows)
        return [self._placed(names, row, whole) for row in gathered]

    @torch.no_grad()
    def average(self, refresh: Callable[[nn.Module], object] | None = None) -> dict[str, Tensor]:
        """Return the mean of all members, in float32 or wider: parameters and floating-point buffers.

        Args:
            refresh: what is done to a model that holds the mean before its buffers are read, such as
                `lambda model: lowland.refresh_bn(model, loader)`: averaged running statistics are those of no network.
                Over ranks each calls it.
        """
        names, rows, whole = self._rows()
        mean = self._placed(names, self._members.exchange.means(rows), whole)
        if self._members.check_finite:
            check_numbers(mean, "the average of all members")
        if refresh is not None:
            model = self._members.models[0]
            with applied(model, mean):
                refresh(model)
                found = clone_of(weights_of(model, floating))
            mean |= {name: found[name] for name in self._members.buffers()[0]}
        return mean

    def teacher(self) -> list[dict[str, Tensor]]:
        """Return the EMA teacher of each member of this process: views, where `IMWA(ema=...)` keeps them.

        Raises:
            ValueError: the rule keeps none.
        """
        if "teacher" not in self._members.slots:
            raise ValueError(f"{self.rule} keeps no teacher: give IMWA an ema")
        return [dict(own) for own in self._members.slots["teacher"]]

    @torch.no_grad()
    def consensus(self) -> float:
        """Return the sum over the members of their squared distance to the mean, of the selected parameters.

        A shuffle leaves it as it is, a push of PAPA shrinks it by a_t^2.
        """
        own = self._members
        rows = [list(each.values()) for each in own.parameters()]
        means = own.exchange.means(rows)
        found = []
        whole = list(own.first().values())
        for row in rows:
            each = [float((t - mean).double().square().sum()) for t, mean in zip(row, means, strict=True)]
            alone = math.fsum(value for value, t in zip(each, whole, strict=True) if not is_sharded(t))
            parts = math.fsum(value / _copies(t) for value, t in zip(each, whole, strict=True) if is_sharded(t))
            found.append(alone + (own.shared(parts) if any(map(is_sharded, whole)) else 0.0))
        return own.exchange.total(found)

    @torch.no_grad()
    def probe(self, batch: Any, forward: Callable[[nn.Module, Any], Tensor] | None = None) -> Probe:
        """Measure consensus distance and pairwise disagreement on a batch, and keep it in `log`.

        Args:
            batch: what the models take; the same on all ranks.
            forward: runs a model and returns logits (N, C); by default the model is called with the batch.
        """
        answers = []
        for model in self._members.models:
            modes = {module: module.training for module in model.modules()}
            model.eval()
            try:
                logits = model(batch) if forward is None else forward(model, batch)
                answers.append([logits.argmax(-1).flatten()])
            finally:
                for module, mode in modes.items():
                    module.training = mode
        every = torch.stack([answer for (answer,) in self._members.exchange.gathered(answers)])
        pairs = [(i, j) for i in range(len(every)) for j in range(i)]
        apart = [float((every[i] != every[j]).double().mean()) for i, j in pairs]
        found = Probe(self.steps, self.consensus(), sum(apart) / len(apart))
        self.log.append(found)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain data and tensors: members, optimisers, the rule's slots, step and meter.

        Loaded into a population made in the same way it goes on bit for bit. Over ranks each returns its own member;
        `lowland.population.state` writes and reads them together.
        """
        self.settle()
        own = self._members
        members = {}
        for place, number in enumerate(own.here):
            members[str(number)] = {
                "model": own.models[place].state_dict(),
                "optimizer": own.optimizers[place].state_dict() if own.optimizers else {},
                "slots": {name: dict(rows[place]) for name, rows in own.slots.items()},
            }
        return {**self.settings(), "step": own.step, "meter": self.meter.state(), "members": members}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state; its members may come from ranks or from one process.

        Raises:
            ValueError: it was made under another rule, seed, selection or number of members, or lacks a member; nothing
                is changed.
        """
        own = self._members
        if "rule" not in state or "members" not in state:
            raise ValueError("this is no population's state: it wants what state_dict() returned")
        for key, value in self.settings().items():
            if state[key] != value:
                raise ValueError(f"this state was made under {key}={state[key]!r}, this population has {value!r}")
        missing = [str(number) for number in own.here if str(number) not in state["members"]]
        if missing:
            raise ValueError(f"the state lacks members {missing}: load one that all ranks have written")
        self.settle()
        for place, number in enumerate(own.here):
            found = state["members"][str(number)]
            for name, rows in own.slots.items():
                check_same(rows[place], found["slots"][name], what=f"{name} of member {number}")
        for place, number in enumerate(own.here):
            found = state["members"][str(number)]
            own.models[place].load_state_dict(found["model"])
            if own.optimizers:
                own.optimizers[place].load_state_dict(found["optimizer"])
            for name, rows in own.slots.items():
                for key, tensor in rows[place].items():
                    tensor.copy_(found["slots"][name][key])
        own.step = int(state["step"])
        self.meter.load(state["meter"])

    def settings(self) -> dict[str, Any]:
        """Return what decides the numbers, as plain data: a state made under other settings is refused."""
        given = {each.name: getattr(self.rule, each.name) for each in fields(self.rule)}  # type: ignore[arg-type]
        return {
            "rule": type(self.rule).__name__,
            "rule's settings": given,
            "seed": self._members.seed,
            "size": self.size,
            "select": select_name(self._members.select),
        }

    def __repr__(self) -> str:
        return f"Population of {self.size} under {self.rule} after {self.steps} steps"

    def _rows(self) -> tuple[list[str], list[list[Tensor]], Named]:
        self.settle()
        rows = joined(self._members.parameters(), self._members.buffers())
        return list(rows[0]), rows_of(rows), dict(self._members.first())

    def _placed(self, names: list[str], row: list[Tensor], whole: Named) -> dict[str, Tensor]:
        pairs = zip(names, row, strict=True)
        return {name: like(t, whole[name]) if name in whole and is_sharded(whole[name]) else t for name, t in pairs}


def _copies(tensor: Tensor) -> int:
    """How many ranks hold each element of a sharded tensor."""
    placed = zip(tensor.placements, tensor.device_mesh.shape, strict=True)  # type: ignore[attr-defined]
    return math.prod(size for placement, size in placed if placement.is_replicate())
