"""What is taken from a run while it goes: averages, members and snapshots, as candidates to be judged.

SWA and SWAG: Izmailov et al. 2018, arXiv 1803.05407, and Maddox et al. 2019, arXiv 1902.02476. ASWA: Demir et al. 2024,
arXiv 2406.19092. FGE: Garipov et al. 2018, arXiv 1802.10026. Snapshot ensembles: Huang et al. 2017, arXiv 1704.00109.
LAWA: Kaddour 2022, arXiv 2209.14981.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lowland import ASWA, EMA, SWA, SWAG, Snapshots
from lowland.averager import Averager
from lowland.cycles import cosine_restarts, swa_linear, triangle
from lowland.ema import half_life
from lowland.weights import floating

from ..runs.settings import period
from .config import ImagesStudy, rates_of
from .evaluation import Candidate, Judge, Score
from .trajectory import Trajectory

FINAL = 0.01  # the last rate of SGD, of its base rate


class Clock:
    """CPU seconds spent on each kind of work; an inner kind's are not counted for the outer one.

    >>> clock = Clock()
    >>> with clock("averaging"):
    ...     pass
    >>> list(clock.seconds)
    ['averaging']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        begun, before = time.process_time(), sum(self.seconds.values())
        yield
        inner = sum(self.seconds.values()) - before
        self.seconds[kind] = self.seconds.get(kind, 0.0) + time.process_time() - begun - inner


def sgd_schedule(study: ImagesStudy, steps_per_epoch: int, budgets: float = 1.0) -> swa_linear:
    """Return the schedule of SGD without averaging: constant, a ramp, 1 % of the base rate."""
    return swa_linear(study.budgets(budgets) * steps_per_epoch, FINAL, steps_per_epoch)


def swa_schedule(study: ImagesStudy, model: str, steps_per_epoch: int, factor: float = 1.0) -> swa_linear:
    """Return the schedule of SWA, which says when to collect as well; `factor` multiplies the SWA rate."""
    base, swa = rates_of(study, model)
    every, unit = period(study.averages.every)
    return swa_linear(
        study.budgets(study.averages.start) * steps_per_epoch,
        factor * swa / base,
        steps_per_epoch,
        every * steps_per_epoch if unit == "epoch" else every,
    )


class AlongSGD:
    """EMA, LAWA and the best checkpoint of one SGD run; call `after_step` and `after_epoch` as it goes."""

    def __init__(self, study: ImagesStudy, judge: Judge, run: Trajectory, clock: Clock, ranks: tuple[int, ...]) -> None:
        self.judge, self.run, self.clock = judge, run, clock
        self.ema = EMA(half_life(study.averages.ema_half_life * run.steps_per_epoch))
        self.lawa = {k: Snapshots(k) for k in {study.averages.lawa, *ranks}}
        self._k = study.averages.lawa
        self.best = (float("inf"), 0)  # validation NLL, epoch
        self._weights = run.weights()

    def after_step(self, step: int) -> None:
        with self.clock("averaging"):
            self.ema.update(self.run.model)

    def after_epoch(self, epoch: int) -> None:
        with self.clock("averaging"):
            for lawa in self.lawa.values():
                lawa.update(self.run.model)
        with self.clock("evaluation"):
            weights = self.run.weights()
            found = (self.judge.validation(Candidate(weights, refresh=False), "nll"), epoch)
        if found < self.best:
            self.best, self._weights = found, weights

    def candidates(self) -> dict[str, Candidate]:
        """Return what the run gives once it is done."""
        return {
            "SGD": Candidate(self.run.weights(), refresh=False),
            "best checkpoint": Candidate(self._weights, refresh=False),
            "EMA": Candidate(self.ema.mean(), refresh=True),
            "LAWA": Candidate(self.lawa[self._k].mean(), refresh=True),
        }


@dataclass
class _Watched:
    average: Averager
    collects: Callable[[int], bool]  # after this step, counted from the beginning of the run
    frozen: dict[int, Candidate] = field(default_factory=dict)  # by epoch


class AlongSWA:
    """SWA, SWAG and ASWA along one run with the schedule of SWA; call `after_step` and `after_epoch` as it goes.

    `averages` are frozen after the epochs `marks`, and followed by curves where a judge is given.
    """

    def __init__(
        self, study: ImagesStudy, run: Trajectory, clock: Clock, marks: tuple[int, ...], judge: Judge | None = None
    ) -> None:
        self.study, self.run, self.clock, self.marks, self.judge = study, run, clock, marks, judge
        self.schedule = swa_schedule(study, run.cell.model, run.steps_per_epoch)
        self.watched: dict[str, _Watched] = {}
        self.curves: dict[str, dict[str, list[float]]] = {}
        self._curved: tuple[str, ...] = ()

    def add(self, name: str, average: Averager, collects: Callable[[int], bool] | None = None) -> None:
        """Follow the run with an average; by default it collects where the schedule says."""
        self.watched[name] = _Watched(average, self.schedule.collect_at if collects is None else collects)

    def epochs(self, start: int, every: int = 1) -> Callable[[int], bool]:
        """Collect after epoch `start`, counted from 1, and after each `every`-th from there."""
        size = self.run.steps_per_epoch
        return swa_linear(start * size, 1.0, size, every * size).collect_at

    def curve(self, *names: str) -> None:
        """Follow the last iterate and these averages by their accuracies."""
        self._curved = names

    def after_step(self, step: int) -> None:
        with self.clock("averaging"):
            for watched in self.watched.values():
                if watched.collects(step):
                    watched.average.update(self.run.model)

    def after_epoch(self, epoch: int) -> None:
        for watched in self.watched.values():
            if epoch in self.marks and watched.average.count:
                watched.frozen[epoch] = Candidate(watched.average.mean(), refresh=True)
        if self.judge is None or (epoch % self.study.evaluation.curve_every and epoch not in self.marks):
            return
        with self.clock("evaluation"):
            self._point("last iterate", epoch, Candidate(self.run.weights(), refresh=False))
            for name in self._curved:
                average = self.watched[name].average
                if average.count:
                    self._point(name, epoch, Candidate(average.mean(), refresh=True))

    def _point(self, name: str, epoch: int, candidate: Candidate) -> None:
        assert self.judge is not None
        curve = self.curves.setdefault(name, {key: [] for key in ("epoch", "train", "validation", "test")})
        curve["epoch"].append(epoch)
        for part, value in self.judge.shown(candidate).items():
            curve[part].append(value)

    def at(self, name: str, epoch: int) -> Candidate:
        """Return the average as it was after an epoch of `marks`."""
        return self.watched[name].frozen[epoch]

    def swag(self, name: str) -> SWAG:
        """Return the Gaussian of this name."""
        found = self.watched[name].average
        assert isinstance(found, SWAG)
        return found

    def trace(self, name: str) -> list[dict[str, Any]]:
        """Return the decisions of an ASWA as plain data."""
        found = self.watched[name].average
        assert isinstance(found, ASWA)
        return [
            {"action": d.action, "running": d.running, "ahead": d.ahead, "averaged": d.averaged} for d in found.trace
        ]


def watch_all(along: AlongSWA, score: Score) -> None:
    """Follow a run with SWA, SWAG and ASWA as configured, and with SWA and ASWA from the first epoch."""
    settings = along.study.averages
    start = along.study.budgets(settings.start)
    along.add("SWA", SWA())
    along.add("SWA from epoch 1", SWA(), along.epochs(1))
    along.add("ASWA", ASWA(score), along.epochs(start))
    along.add("ASWA from epoch 1", ASWA(score), along.epochs(1))
    along.add("SWAG", SWAG(settings.rank))
    along.curve("SWA", "ASWA", "SWA from epoch 1", "ASWA from epoch 1")


def fge(study: ImagesStudy, run: Trajectory, until: int) -> Snapshots:
    """Train on from where the run stands in cycles, up to epoch `until`; return the members, one a valley.

    Members keep the BatchNorm statistics that they were trained with, as in the published code.
    """
    settings, since = study.ensembles, run.epoch
    cycle = 2 * max(1, round(settings.fge_cycle * run.steps_per_epoch / 2))
    schedule = triangle(cycle, settings.fge_low / settings.fge_high)
    steps = (until - since) * run.steps_per_epoch
    number = sum(map(schedule.collect_at, range(steps)))
    if not number:
        raise ValueError(
            f"ensembles.fge_cycle = {settings.fge_cycle} has no valley within {until - since} epochs: lower it"
        )
    members = Snapshots(number, select=floating)

    def collect(step: int) -> None:
        if schedule.collect_at(step):
            members.update(run.model)

    run.walk(until, schedule, since=since, factor=settings.fge_high, after_step=collect)
    return members


def snapshot_ensemble(study: ImagesStudy, run: Trajectory) -> Snapshots:
    """Train a new run for one budget in cycles of half a cosine; return the members, one a cycle, as `fge` does."""
    settings, epochs = study.ensembles, study.training.epochs
    schedule = cosine_restarts(epochs * run.steps_per_epoch, settings.snapshots, run.steps_per_epoch)
    members = Snapshots(settings.snapshots, select=floating)

    def collect(step: int) -> None:
        if schedule.collect_at(step):
            members.update(run.model)

    run.walk(epochs, schedule, factor=settings.snapshot_rate, after_step=collect)
    return members
