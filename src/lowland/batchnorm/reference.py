"""BatchNorm statistics from a few batches, corrected by weights nearby whose statistics are known.

A reference, as a rule the mean of a posterior, is run over all batches once. For other weights s, at each layer,

    mean_s = mean_s(few) - mean_0(few) + mean_0(all)        var_s = var_s(few) var_0(all) / var_0(few)

where 0 is the reference and `few` are the same batches for both: what is peculiar to them is common to s and 0, and
cancels (a control variate: Hammersley, Handscomb, Monte Carlo Methods, 1964, chapter 5). The closer s is to 0, the
more of it cancels.

The error is estimated from two halves of the few batches, every other one. Each half gives a mean and a variance of
its own; half their difference, d, is as far from zero as the halves' average is from the truth. For each layer

    error = sqrt(average over channels of (d mean / sigma)^2 + (d log sigma)^2)        sigma^2 = var + eps

is the root mean square error of the layer's normalised output, whose own standard deviation is 1. It tells what the
choice of batches does. What both halves share, as a bias for weights far from the reference, it cannot see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..arguments import whole
from ..weights.running import call, evaluating, unwrapped
from .statistics import (
    Sums,
    check_arguments,
    distributed,
    gathering,
    measured_layers,
    reduced,
    refresh_all_,
    restore_,
    restoring,
    tell_frozen,
    write_,
    zeros,
)

Batch = TypeVar("Batch")
Layers = dict[str, _NormBase]
Half = dict[str, Sums]

FEW = 2  # batches: one for each half
LARGEST_RATIO = 4.0  # of var_0(all) to var_0(few); beyond it, as at var_0(few) = 0, the difference is added instead


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did.

    Attributes:
        batches: how many this rank has run.
        errors: the estimated error of each layer, by name, in standard deviations of its output; 0 if the statistics
            are those of all batches.

    >>> Refreshed(batches=4, errors={"bn1": 0.125, "bn2": 0.25}).error
    0.25
    """

    batches: int
    errors: dict[str, float]

    @property
    def error(self) -> float:
        """The largest of the layers."""
        return max(self.errors.values(), default=0.0)


@torch.no_grad()
def bn_reference(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    keep: int = 8,
    weighting: Literal["samples", "batches"] = "samples",
    forward: Callable[[nn.Module, Batch], object] | None = None,
    max_batches: int | None = None,
    synchronise: bool = True,
) -> BNReference[Batch]:
    """Refresh a model's BatchNorm statistics over all `batches`, and keep what refreshing other weights quickly needs.

    The model is refreshed as by `refresh_bn`, whose other arguments and errors these are. The first `keep` batches stay
    in memory as they came, so a loader may shuffle and augment, but must not write into a batch it has handed out.

    Args:
        keep: how many batches, at least 2, a refresh may run before it runs all of them; under torch.distributed, of
            each rank.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    >>> batches = [k * torch.arange(4.0)[:, None] for k in (1, 2, 3)]
    >>> reference = bn_reference(model, batches)
    >>> _ = nn.init.constant_(model[0].weight, 3.0)
    >>> reference.refresh(model).batches
    2
    >>> round(model[1].running_var.item(), 2)  # 3^2 times (1 + 4 + 9) / 3 times 5 / 3: exact, as all is linear here
    70.0
    """
    keep = whole("keep", keep, FEW, hint="one batch or more for each half, ")
    check_arguments(weighting, max_batches)
    model = unwrapped(model, compiled=True)
    source = _Source(batches, call if forward is None else forward, weighting, max_batches, synchronise)
    layers = measured_layers(model)
    if not layers:
        tell_frozen(model)
        return BNReference(source, {}, [], 0, 0, keep)
    marks: list[tuple[float, ...]] = []
    sums, parts, seen = source.refresh_all_(model, layers, keep, marks)
    kept = [_Kept(batch, mark, part) for (batch, part), mark in zip(parts, marks, strict=True)]
    return BNReference(source, sums, kept, seen, source.largest(seen), keep)


class BNReference(Generic[Batch]):
    """The statistics of reference weights, over all batches and over each of the first few; made by `bn_reference`.

    Attributes:
        batches: how many this rank has run under the reference weights.
    """

    def __init__(
        self, source: _Source[Batch], sums: Half, kept: list[_Kept[Batch]], seen: int, longest: int, keep: int
    ) -> None:
        self.batches = seen
        self._source = source
        self._sums = sums  # of all batches of all ranks
        self._kept = kept  # of this rank
        self._longest = longest  # batches of the rank that has most
        self._most = min(keep, longest)

    @torch.no_grad()
    def refresh(self, model: nn.Module, *, few: int = FEW, tolerance: float | None = None) -> Refreshed:
        """Replace the running statistics of `model`, which has the same layers and other weights, by estimates.

        Runs `few` of the kept batches. With a `tolerance`, twice as many as long as the estimated error is above it,
        and all batches, as `refresh_bn` does, when those kept are not enough. As there, modes and momenta, and after an
        exception all statistics, are what they were. Under torch.distributed every rank must call this.

        Args:
            few: how many batches, at least 2, of each rank; no more are run than were kept.
            tolerance: the largest `error` that will do, in standard deviations of a layer's output.

        Raises:
            ValueError: the model's BatchNorm layers are not those of the reference, or the few batches do not reach one
                of them; a kept batch was overwritten; statistics come out not finite; all batches are needed and were
                an iterator; or an argument is none of those above. Nothing is changed then.
        """
        few = whole("few", few, FEW, hint="one batch or more for each half, ")
        if tolerance is not None and not tolerance >= 0:
            raise ValueError(f"tolerance must be at least 0, or None for a fixed number of batches, got {tolerance}")
        model = unwrapped(model, compiled=True)
        layers = measured_layers(model)
        self._check(layers)
        with restoring(layers) as saved:
            run, estimates = self._run_few(model, layers, few, tolerance) if layers else (0, {})
            if estimates is not None:
                for name, layer in layers.items():
                    estimates[name].write_(layer, saved[name], self._sums[name].calls, name)
                return Refreshed(run, {name: estimate.error for name, estimate in estimates.items()})
            for name, layer in layers.items():
                restore_(layer, saved[name])  # what no batch reaches keeps these
            if isinstance(self._source.batches, Iterator):
                raise ValueError(
                    f"the error is above the tolerance of {tolerance} after all {run} batches kept, and the others are "
                    "used up: give bn_reference a list or a loader, or a larger keep="
                )
            _, _, more = self._source.refresh_all_(model, layers)
            return Refreshed(run + more, dict.fromkeys(layers, 0.0))

    def _check(self, layers: Layers) -> None:
        got = {name: (layer.num_features, layer.running_mean.device) for name, layer in layers.items()}  # type: ignore[union-attr]
        wanted = {name: (len(sums.mean), sums.mean.device) for name, sums in self._sums.items()}
        for name in [*wanted, *got]:
            if got.get(name) != wanted.get(name):
                raise ValueError(
                    f"the model's BatchNorm layers are not those of the reference: {name} has (channels, device) "
                    f"{got.get(name)}, wanted {wanted.get(name)}"
                )

    def _run_few(
        self, model: nn.Module, layers: Layers, few: int, tolerance: float | None
    ) -> tuple[int, dict[str, _Estimate] | None]:
        """Run kept batches until the error is small enough; None in place of estimates if it does not get there."""
        own, reference = (zeros(layers), zeros(layers)), (zeros(layers), zeros(layers))  # two halves of each
        done, target = 0, min(few, self._most)
        with evaluating(model), gathering(layers, self._source.weighting) as gathered:
            while True:
                for number in range(done, min(target, len(self._kept))):  # another rank may have more
                    kept, half = self._kept[number], number % 2
                    if _mark(kept.batch) != kept.mark:
                        raise ValueError(
                            f"batch {number} was overwritten after bn_reference had run it: make the loader hand out "
                            "new tensors"
                        )
                    gathered.sums = own[half]
                    self._source.run(model, kept.batch)
                    for name, total in reference[half].items():
                        total.add_(kept.sums[name])
                done = target
                estimates = self._estimates(layers, [*own, *reference], done)
                error = max(estimate.error for estimate in estimates.values())
                if tolerance is None or error <= tolerance:
                    return min(done, len(self._kept)), estimates
                if done >= self._most:
                    return min(done, len(self._kept)), None
                target = min(2 * done, self._most)

    def _estimates(self, layers: Layers, parts: list[Half], done: int) -> dict[str, _Estimate]:
        parts = [{name: sums.copy() for name, sums in part.items()} for part in parts]
        if self._source.synchronise and distributed():
            reduced([sums for part in parts for sums in part.values()])
        own, reference = parts[:2], parts[2:]
        result = {}
        for name, layer in layers.items():
            halves = [(own[i][name], reference[i][name]) for i in (0, 1)]
            result[name] = _estimate(halves, self._sums[name], layer.eps, everything=done >= self._longest)
        return result


@dataclass(frozen=True)
class _Source(Generic[Batch]):
    """The batches and how they are run."""

    batches: Iterable[Batch]
    run: Callable[[nn.Module, Batch], object]
    weighting: str
    max_batches: int | None
    synchronise: bool

    def refresh_all_(
        self, model: nn.Module, layers: Layers, keep: int = 0, marks: list[tuple[float, ...]] | None = None
    ) -> tuple[Half, list[tuple[Batch, Half]], int]:
        def marked() -> Iterator[Batch]:
            for number, batch in enumerate(islice(self.batches, self.max_batches)):
                if marks is not None and number < keep:
                    marks.append(_mark(batch))
                yield batch

        return refresh_all_(model, layers, marked(), self.run, self.weighting, self.synchronise, keep)

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        if not (self.synchronise and distributed()):
            return number
        numbers = [0] * dist.get_world_size()
        dist.all_gather_object(numbers, number)
        return max(numbers)


@dataclass(frozen=True)
class _Kept(Generic[Batch]):
    """A batch that the reference has run, a mark of its content, and what the layers saw of it."""

    batch: Batch
    mark: tuple[float, ...]
    sums: Half


def _mark(batch: object) -> tuple[float, ...]:
    """The sum of each tensor of a batch: differs, all but surely, once a loader has written the next batch into it."""
    if isinstance(batch, Tensor):
        return (float(torch.nan_to_num(batch.sum(dtype=torch.float64))),) if not batch.is_complex() else ()
    if isinstance(batch, Mapping):
        batch = tuple(batch.values())
    return sum((_mark(part) for part in batch), ()) if isinstance(batch, (tuple, list)) else ()


@dataclass(frozen=True)
class _Estimate:
    """Statistics (C,) of one layer, None where no batch has reached it, and their error."""

    statistics: tuple[Tensor, Tensor] | None
    error: float

    def write_(self, layer: _NormBase, saved: list[Tensor], calls: int, name: str) -> None:
        if self.statistics is not None:
            write_(layer, *self.statistics, calls, name)
        elif self.error == 0:
            restore_(layer, saved)
        else:
            raise ValueError(f"the few batches do not reach {name}, or the reference's did not: run more with few=")


def _estimate(halves: list[tuple[Sums, Sums]], everything_0: Sums, eps: float, *, everything: bool) -> _Estimate:
    """From the sums of s and of the reference over each half, and of the reference over all batches."""
    own, reference = halves[0][0].copy(), halves[0][1].copy()
    own.add_(halves[1][0])
    reference.add_(halves[1][1])
    if not own.calls and not everything_0.calls:
        return _Estimate(None, 0.0)  # a layer that is not in use
    if everything and own.calls:
        return _Estimate((own.mean / own.weight, own.var / own.weight), 0.0)
    if not own.calls or not reference.calls:
        return _Estimate(None, math.inf)
    mean, var = _controlled(own, reference, everything_0)
    if not all(sums.calls for half in halves for sums in half):
        return _Estimate((mean, var), math.inf)
    (mean_a, var_a), (mean_b, var_b) = (_controlled(*half, everything_0) for half in halves)
    shift = (mean_a - mean_b).square() / (4 * (var + eps))
    stretch = ((var_a + eps) / (var_b + eps)).log().div(4).square()  # log sigma is half of log var
    return _Estimate((mean, var), math.sqrt(float((shift + stretch).mean())))


def _controlled(own: Sums, reference: Sums, everything: Sums) -> tuple[Tensor, Tensor]:
    """The module's two equations."""
    mean = own.mean / own.weight - reference.mean / reference.weight + everything.mean / everything.weight
    few, few_0, all_0 = (sums.var / sums.weight for sums in (own, reference, everything))
    # A channel all but constant in the few batches has a ratio of any size; the difference is positive there.
    steady = (few_0 > 0) & (all_0 <= LARGEST_RATIO * few_0)
    ratio = all_0 / torch.where(steady, few_0, torch.ones_like(few_0))
    return mean, torch.where(steady, few * ratio, few - few_0 + all_0)
