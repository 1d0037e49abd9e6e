"""The last k weights: their mean (LAWA) and the ensemble of them (Snapshot Ensembles, FGE).

    mean = 1/m sum of the latest m = min(k, n) iterates          p(w) = 1/m sum of points at the same iterates

Kaddour 2022, arXiv 2209.14981 (LAWA); Huang, Li, Pleiss, Liu, Hopcroft, Weinberger 2017, arXiv 1704.00109
(Snapshot Ensembles, with `cycles.cosine_restarts`); Garipov, Izmailov, Podoprikhin, Vetrov, Wilson 2018,
arXiv 1802.10026 (FGE, with `cycles.triangle`): there the schedule is the method.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .arguments import whole
from .arithmetic.moments import lerp_, wide_zeros
from .averager.averager import Averager, Settings, Slot
from .averager.posteriors import shuffled
from .weights.named import Select, Weights, clone_of, parameters

MOST = 10_000  # members of one state; `SnapshotFiles` keeps more, one file each


class Snapshots(Averager):
    """A ring of the latest `k` weights it is shown, in their own dtype: an averager and a finite posterior.

    Memory is that of `k` models from the first update on.

    Args:
        select: which tensors of a model are taken; a mapping given to `update` is taken as it is.
        device: where averages are kept; None: beside the weights.
        check_finite: refuse an iterate with a NaN or an infinity, by the name of its tensor.

    Raises:
        ValueError: k is not a whole number of at least 1.

    >>> snapshots = Snapshots(k=2)
    >>> for w in (1.0, 2.0, 6.0):
    ...     snapshots.update({"w": torch.tensor([w])})
    >>> snapshots.mean()
    {'w': tensor([4.])}
    >>> snapshots.members()
    [{'w': tensor([2.])}, {'w': tensor([6.])}]
    >>> snapshots.sample(4, generator=torch.Generator().manual_seed(0))["w"].sum()
    tensor(16.)
    """

    def __init__(
        self,
        k: int,
        *,
        select: Select = parameters,
        device: torch.device | str | None = None,
        check_finite: bool = True,
    ) -> None:
        super().__init__(select=select, device=device, check_finite=check_finite)
        self.k = whole("k", k, 1, MOST)

    @property
    def settings(self) -> Settings:
        return {"k": self.k}

    def _allocate(self, like: Slot) -> dict[str, Slot]:
        return {str(place): {name: torch.zeros_like(t) for name, t in like.items()} for place in range(self.k)}

    def _slot_count(self) -> int:
        return self.k

    def _absorb(self, weights: Weights) -> None:
        for name, tensor in self._slots[str((self.count - 1) % self.k)].items():
            tensor.copy_(weights[name])

    @torch.no_grad()
    def mean(self) -> dict[str, Tensor]:
        """Return the equal average of the weights held, in float32 or wider; other tensors are the latest ones.

        Raises:
            RuntimeError: there has been no update.
        """
        with self._lock:
            held = self._by_age()
            mean = wide_zeros(held[0])
            for index, member in enumerate(held, start=1):
                lerp_(mean.values(), (member[name] for name in mean), 1 / index)
            return mean

    def members(self) -> list[Weights]:
        """Return copies of the weights held, the oldest first.

        Raises:
            RuntimeError: there has been no update.
        """
        with self._lock:
            return [clone_of(member) for member in self._by_age()]

    @torch.no_grad()
    def sample(self, samples: int | None = None, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw members uniformly; with `samples` tensors gain a leading axis of so many draws, made as `draws` says.

        Raises:
            RuntimeError: there has been no update.
            ValueError: samples is below 1.
        """
        if samples is None:
            return dict(next(self.draws(1, generator=generator)))
        drawn = list(self.draws(samples, generator=generator))
        return {name: torch.stack([weights[name] for weights in drawn]) for name in drawn[0]}

    def draws(self, samples: int, *, generator: torch.Generator | None = None) -> Iterator[Weights]:
        """Return draws to be taken one at a time: shuffled passes over the members, the last one cut short.

        So every member comes samples / m times, rounded down or up, and each single draw is uniform over the m
        members.

        Raises:
            RuntimeError: there has been no update.
            ValueError: samples is below 1.
        """
        held = self._by_age()
        return (clone_of(held[place]) for place in shuffled(len(held), samples, generator))

    def _by_age(self) -> list[Slot]:
        self._need()
        first = max(0, self.count - self.k)
        return [self._slots[str(update % self.k)] for update in range(first, self.count)]
