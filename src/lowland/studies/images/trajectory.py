"""A network on its way: SGD that can be put back to where it was, so that methods branch off one run.

Everything random in an epoch follows from the member's seed and the number of the epoch alone: a branch sees the images
in the order and under the transforms of the run that it left, and equals a run of its own up to there bit for bit.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowland import weights_of
from lowland.cycles import Schedule
from lowland.weights import clone_of, floating

from ..grid.cells import Cell
from ..runs.randomness import derived_seed, stream
from .config import ImagesStudy, rates_of
from .names import network_of
from .networks import build
from .sets import Images, augmented, standardised


@dataclass(frozen=True)
class State:
    """Where a run stands: after `epoch` epochs, with copies of network and optimiser."""

    epoch: int
    network: dict[str, Tensor]
    optimiser: dict[str, Any]


class Trajectory:
    """One member's network and its optimiser, after `epoch` epochs.

    Raises:
        ValueError: the network does not fit the images, or there are too few of them.
    """

    def __init__(self, study: ImagesStudy, cell: Cell, images: Images, member: int) -> None:
        self.study, self.cell, self.images = study, cell, images
        self.seed = derived_seed(cell.seed, f"member {member}")
        self.model = network(cell, images, self.seed).to(study.training.device)
        self.rate, _ = rates_of(study, cell.model)
        self.steps_per_epoch = len(parted(torch.arange(len(images.train[1])), study.training.batch_size))
        self.epoch = 0
        self.seconds = 0.0  # of CPU, spent in training steps
        self._optimiser = torch.optim.SGD(
            self.model.parameters(),
            lr=self.rate,
            momentum=study.training.momentum,
            weight_decay=study.training.weight_decay,
        )

    def state(self) -> State:
        """Return a copy of where the run stands."""
        return State(self.epoch, clone_of(self.model.state_dict()), copy.deepcopy(self._optimiser.state_dict()))

    def back_to(self, state: State) -> None:
        """Put the run to where it stood; `state` can be used again."""
        self.model.load_state_dict(state.network)
        # A copy, as the optimiser takes the tensors of the momentum as they are and writes into them.
        self._optimiser.load_state_dict(copy.deepcopy(state.optimiser))
        self.epoch = state.epoch

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of parameters and BatchNorm statistics."""
        return clone_of(weights_of(self.model, floating))

    def walk(
        self,
        until: int,
        schedule: Schedule,
        *,
        since: int = 0,
        factor: float = 1.0,
        after_step: Callable[[int], None] | None = None,
        after_epoch: Callable[[int], None] | None = None,
    ) -> None:
        """Train up to the end of epoch `until`.

        Args:
            schedule: the multiplier of the base rate, by the steps done since the end of epoch `since`.
            factor: of the base rate besides.
            after_step: called after each step, with the number that the schedule was called with.
            after_epoch: called after each epoch, with its number from 1.

        Raises:
            RuntimeError: the loss or a weight is not finite any more.
        """
        while self.epoch < until:
            first = (self.epoch - since) * self.steps_per_epoch
            self._one_epoch(lambda step, first=first: factor * schedule(first + step), after_step, first)  # type: ignore[misc]
            self.epoch += 1
            if after_epoch is not None:
                after_epoch(self.epoch)

    def _one_epoch(self, rate: Callable[[int], float], after_step: Callable[[int], None] | None, first: int) -> None:
        x, y = self.images.train
        order = torch.randperm(len(y), generator=stream(self.seed, f"order {self.epoch}"))
        transforms = stream(self.seed, f"transforms {self.epoch}")
        total = 0.0
        self.model.train()
        with seeded(derived_seed(self.seed, f"dropout {self.epoch}")):
            for step, rows in enumerate(parted(order, self.study.training.batch_size)):
                begun = time.process_time()
                batch = transformed(x[rows], self.images, self.study, transforms)
                for group in self._optimiser.param_groups:
                    group["lr"] = self.rate * rate(step)
                self._optimiser.zero_grad()
                logits = self.model(batch.to(self.study.training.device))
                loss = nn.functional.cross_entropy(logits, y[rows].to(logits.device))
                torch.autograd.backward(loss)
                self._optimiser.step()
                total += loss.item()
                self.seconds += time.process_time() - begun
                if after_step is not None:
                    after_step(first + step)
        if not (math.isfinite(total) and all(bool(p.isfinite().all()) for p in self.model.parameters())):
            raise RuntimeError(
                f"cell {self.cell.name} diverged in epoch {self.epoch + 1} (sum of losses {total}): "
                "lower training.learning_rate"
            )


def network(cell: Cell, images: Images, seed: int) -> nn.Module:
    """Return the cell's network with initial weights that follow from `seed`, the global stream left alone."""
    name, depth, width = network_of(cell.model)
    channels, size = images.train[0].shape[1:3]
    with seeded(seed):
        return build(name, channels=channels, size=size, classes=images.classes, depth=depth, width=width)


def parted(rows: Tensor, most: int) -> tuple[Tensor, ...]:
    """Part rows into the fewest batches of at most `most`, whose sizes differ by at most one.

    No batch is tiny: BatchNorm would find poor statistics in it, and SWA's would count it.

    >>> [len(part) for part in parted(torch.arange(7), 3)]
    [3, 2, 2]
    """
    return rows.tensor_split(-(-len(rows) // most))


def transformed(x: Tensor, images: Images, study: ImagesStudy, generator: torch.Generator) -> Tensor:
    """Return pixels (N, C, H, W) as the network is trained on them: with the transforms of training, standardised."""
    moved = augmented(x, images, generator) if study.training.augmentation == "usual" else x
    return standardised(moved, images)


def statistics_batches(study: ImagesStudy, images: Images, seed: int) -> list[Tensor]:
    """Return the training images once, transformed as in training: what BatchNorm statistics of averages are found on.

    The published codes refresh under the transforms of training. The batches are fixed, so that a score never changes.
    """
    order = torch.randperm(len(images.train[1]), generator=stream(seed, "order of statistics"))
    generator = stream(seed, "transforms of statistics")
    return [
        transformed(images.train[0][rows], images, study, generator).to(study.training.device)
        for rows in parted(order, study.training.batch_size)
    ]


def shared_epochs(one: Schedule, other: Schedule, steps_per_epoch: int, most: int) -> int:
    """Return for how many epochs, `most` at most, two schedules that are constant within an epoch give the same rates.

    >>> from lowland.cycles import swa_linear
    >>> shared_epochs(swa_linear(20, 0.01), swa_linear(15, 0.5), 1, 20)
    8
    """
    same = 0
    while same < most and one(same * steps_per_epoch) == other(same * steps_per_epoch):
        same += 1
    return same


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block under a global random stream of its own, as initialisers and dropout draw from that one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
