"""Snapshots kept as files: an ensemble out of one run that memory does not limit.

    p(w) = 1/m sum of points at the members, one file each

Snapshot Ensembles (Huang, Li, Pleiss, Liu, Hopcroft, Weinberger 2017, arXiv 1704.00109, with
`cycles.cosine_restarts`); fast geometric ensembling (Garipov, Izmailov, Podoprikhin, Vetrov, Wilson 2018, arXiv
1802.10026, with `cycles.triangle`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import torch
from torch import Tensor, nn

from ..arguments import whole
from ..arithmetic.moments import check_numbers, lerp_, wide_zeros
from ..averager.posteriors import shuffled
from ..weights.named import Select, Weights, check_same, floating, selected
from .state import load, save

_NAME = re.compile(r"member-(\d+)\.safetensors")


class SnapshotFiles:
    """A folder of members, one `lowland.save` file each, read one at a time: a finite posterior.

    `update` writes a member; what `predict` and others take from `members()` is read when its turn comes. The folder is
    the state: the same line in a resumed run finds the members of the first. Floating-point buffers are kept by
    default, so that every member predicts with its own BatchNorm statistics, as those who published the methods do.

    Args:
        folder: made at the first update; files of other names in it are left alone.
        k: how many of the latest members are kept; None keeps all. An older one is removed after a new one is written.
        select: which tensors of a model; a mapping given to `update` is taken as it is.

    Raises:
        ValueError: k is not a whole number of at least 1.

    >>> import tempfile
    >>> ensemble = SnapshotFiles(tempfile.mkdtemp(), k=2)
    >>> for step, w in ((10, 1.0), (20, 2.0), (30, 6.0)):
    ...     ensemble.update({"w": torch.tensor([w])}, step)
    >>> ensemble.steps, ensemble.mean()
    ([20, 30], {'w': tensor([4.])})
    >>> [member["w"].item() for member in ensemble.members()]
    [2.0, 6.0]
    """

    def __init__(self, folder: str | os.PathLike[str], k: int | None = None, *, select: Select = floating) -> None:
        if k is not None:
            whole("k", k, 1, hint="None to keep all, or ")
        self.folder, self.k, self.select = Path(folder), k, select

    @torch.no_grad()
    def update(self, model_or_weights: nn.Module | Weights, step: int | None = None) -> None:
        """Write the current weights as a member.

        Args:
            step: names the member; one written again under its step replaces the first, as happens to a run that is
                resumed from before it. By default one more than the latest.

        Raises:
            ValueError: names or shapes differ from the members', a value is not finite, or the step is negative or
                before the latest of `k` members. Nothing is written then.
            OSError: the disk is full; the members are as they were.
        """
        weights = (
            selected(model_or_weights, self.select)
            if isinstance(model_or_weights, nn.Module)
            else dict(model_or_weights)
        )
        steps = self._all()
        if step is None:
            step = steps[-1] + 1 if steps else 0
        step = whole("step", step, 0)
        if not weights:
            raise ValueError("update got no tensors: pass at least one, or another select=")
        check_numbers(weights, f"step {step} is refused, and no file is written", complex_too=True)
        if steps:
            check_same(load(self._path(steps[-1])), weights, what=f"update of {self.folder}")
        kept = sorted({*steps, step})
        if self.k is not None and step not in kept[-self.k :]:
            raise ValueError(
                f"step {step} is before the latest {self.k} members {kept[-self.k :]}: a resumed run writes its steps "
                "again in order; start another ensemble in another folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        save(weights, self._path(step))
        for old in kept[: -self.k] if self.k is not None else []:
            self._path(old).unlink(missing_ok=True)

    @property
    def steps(self) -> list[int]:
        """The steps of the members, in order: the latest k of the files."""
        found = self._all()
        return found if self.k is None else found[-self.k :]

    @property
    def count(self) -> int:
        """How many members there are."""
        return len(self.steps)

    def members(self) -> Sequence[Weights]:
        """Return the members, the oldest first, as a sequence that reads one when it is asked for and keeps none.

        Raises:
            RuntimeError: there is no member.
        """
        return _Members([self._path(step) for step in self._needed()])

    @torch.no_grad()
    def mean(self) -> dict[str, Tensor]:
        """Return the equal average of the members in float32 or wider; other tensors are the latest member's.

        Raises:
            RuntimeError: there is no member.
        """
        mean: dict[str, Tensor] = {}
        for index, member in enumerate(self.members(), start=1):
            mean = mean or wide_zeros(member)
            lerp_(mean.values(), (member[name] for name in mean), 1 / index)
        return mean

    @torch.no_grad()
    def sample(self, samples: int | None = None, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw members uniformly; with `samples` tensors gain a leading axis of so many draws, made as `draws` says.

        Raises:
            RuntimeError: there is no member.
            ValueError: samples is below 1.
        """
        if samples is None:
            return dict(next(self.draws(1, generator=generator)))
        drawn = list(self.draws(samples, generator=generator))
        return {name: torch.stack([weights[name] for weights in drawn]) for name in drawn[0]}

    def draws(self, samples: int, *, generator: torch.Generator | None = None) -> Iterator[Weights]:
        """Return draws to be taken one at a time: shuffled passes over the members, the last one cut short.

        Raises:
            RuntimeError: there is no member.
            ValueError: samples is below 1.
        """
        held = self.members()
        return (held[place] for place in shuffled(len(held), samples, generator))

    def __repr__(self) -> str:
        return f"SnapshotFiles({str(self.folder)!r}, k={self.k}) of {self.count} members"

    def _path(self, step: int) -> Path:
        return self.folder / f"member-{step:09d}.safetensors"

    def _all(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _needed(self) -> list[int]:
        steps = self.steps
        if not steps:
            raise RuntimeError(f"{self.folder} has no members yet: call update(model) first")
        return steps


class _Members(Sequence[Weights]):
    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, place: int) -> Weights: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Weights]: ...

    def __getitem__(self, place: int | slice) -> Weights | Sequence[Weights]:
        if isinstance(place, slice):
            return _Members(self._paths[place])
        weights: Weights = load(self._paths[place])
        return weights
