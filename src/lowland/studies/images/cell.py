"""One cell: every method for one network on one image set with one seed, from as few runs as keep them exact.

    SGD ───────●──────●────●──────○ B               the baseline; EMA, LAWA, best checkpoint on its way
               │      │    └ 0.8 B: FGE ──○ B
               │      └ SGD 1.5 ────────────────○ 1.5 B
               └ SWA's schedule ──────────○ B ──○ 1.25 B ──○ 1.5 B      SWA, SWAG, ASWA
    Snapshot ─────────────────────────────○ B

A branch leaves where its schedule first differs from SGD's, so it is the run that it would have been from the start.
"""

from __future__ import annotations

from typing import Any

from lowland import ASWA, SWA, SWAG, Mixture
from lowland.cycles import swa_linear

from ..grid.cells import Cell
from ..grid.configured import path_of
from ..runs.randomness import one_thread
from .config import ImagesStudy, counts_of, rates_of
from .evaluation import Candidate, Judge, Score
from .kind import KIND
from .landscape import between
from .methods import AlongSGD, AlongSWA, Clock, fge, sgd_schedule, snapshot_ensemble, swa_schedule, watch_all
from .sets import Images, load_images
from .trajectory import State, Trajectory, seeded, shared_epochs

LONGEST = 1.5  # budgets


def images_of(study: ImagesStudy, cell: Cell) -> Images:
    """Read the images of a cell; its seed parts training from validation images.

    Raises:
        ValueError, FileNotFoundError: as `load_images`.
    """
    train, validation, test = counts_of(study, cell.data)
    path = path_of(study.data.paths, cell.data)
    return load_images(cell.data, path=path, train=train, validation=validation, test=test, seed=cell.seed)


def run_cell(study: ImagesStudy, cell: Cell) -> dict[str, Any]:
    """Run one cell on one thread and return its result as plain data; the same cell gives the same numbers again.

    Raises:
        RuntimeError: training diverged.
        ValueError, FileNotFoundError: as `load_images` and the networks.
    """
    with one_thread(), seeded(cell.seed):
        return _Run(study, cell).result()


class _Run:
    """What is shared by the methods of a cell."""

    def __init__(self, study: ImagesStudy, cell: Cell) -> None:
        self.study, self.cell = study, cell
        self.images = images_of(study, cell)
        self.judge = Judge(study, cell, self.images)
        self.clock = Clock()
        self.marks = tuple(study.budgets(share) for share in (1, 1.25, LONGEST))
        self.trained = 0.0
        self.candidates: dict[str, Candidate] = {}
        self.varied: dict[str, list[tuple[float, str, Candidate]]] = {}
        asked = cell.seed in study.sensitivity.seeds
        self.asked = study.sensitivity if asked else type(study.sensitivity)((), (), (), (), ())

    def result(self) -> dict[str, Any]:
        along, sgd = self._first_member()
        members = [self.candidates["SGD"]]
        gaussians = [along.swag("SWAG")]
        for member in range(1, self.study.training.members):
            end, gaussian = self._further_member(member)
            members.append(end)
            gaussians.append(gaussian)
        scale, samples = self.study.averages.scale, self.study.evaluation.samples
        self.candidates |= {
            "SWAG 1.5": Candidate(gaussians[0].tempered(scale), True, samples),
            "deep ensemble": Candidate(Mixture([end.posterior for end in members]), False),
            "MultiSWA 1.5": Candidate(Mixture([gaussian.mean() for gaussian in gaussians]), True),
            "MultiSWAG 1.5": Candidate(
                Mixture([gaussian.tempered(scale) for gaussian in gaussians]), True, samples * len(gaussians)
            ),
        }
        with self.clock("evaluation"):
            methods = {name: self.judge.metrics(name, self.candidates[name]) for name in KIND.methods}
            sensitivity = {
                what: [{"value": value, "method": name, **self.judge.main(name, found)} for value, name, found in rows]
                for what, rows in self.varied.items()
            }
            landscape = between(self.study, self.judge, self.candidates["SWA 1.5"], self.candidates["SGD"])
        base, swa = rates_of(self.study, self.cell.model)
        return {
            "methods": methods,
            "curves": along.curves,
            "trace": along.trace("ASWA"),
            "sensitivity": sensitivity,
            "landscape": landscape,
            "chosen": {
                "best epoch": sgd.best[1],
                "rate": base,
                "SWA rate": swa,
                "epochs of a budget": self.study.training.epochs,
                "SWA from epoch": self.study.budgets(self.study.averages.start),
                "averaged by ASWA": {name: along.trace(name)[-1]["averaged"] for name in ("ASWA", "ASWA from epoch 1")},
                "parameters": sum(p.numel() for p in self.judge.model.parameters()),
            },
            "seconds": {
                "training": self.trained,
                "averaging": self.clock.seconds.get("averaging", 0.0),
                "evaluation": self.clock.seconds.get("evaluation", 0.0),
            },
        }

    def _first_member(self) -> tuple[AlongSWA, AlongSGD]:
        study, run = self.study, Trajectory(self.study, self.cell, self.images, 0)
        budget, _, longest = self.marks
        plain = sgd_schedule(study, run.steps_per_epoch)
        long = sgd_schedule(study, run.steps_per_epoch, LONGEST)
        averaged = swa_schedule(study, self.cell.model, run.steps_per_epoch)
        others = {p: swa_schedule(study, self.cell.model, run.steps_per_epoch, p / 100) for p in self.asked.rate}
        leave: dict[str | int, int] = {
            **{p: shared_epochs(plain, other, run.steps_per_epoch, budget) for p, other in others.items()},
            "SWA": shared_epochs(plain, averaged, run.steps_per_epoch, budget),
            "SGD 1.5": shared_epochs(plain, long, run.steps_per_epoch, budget),
            "FGE": study.budgets(study.ensembles.fge_start),
        }
        sgd = AlongSGD(study, self.judge, run, self.clock, self.asked.rank)
        along = AlongSWA(study, run, self.clock, self.marks, self.judge)
        score = Score(self.judge, study.averages.score)
        watch_all(along, score)
        self._vary(along, score)
        states: dict[int, State] = {}

        def stepped(step: int) -> None:
            sgd.after_step(step)
            if run.epoch < leave["SWA"]:
                along.after_step(step)

        def done(epoch: int) -> None:
            sgd.after_epoch(epoch)
            if epoch <= leave["SWA"]:
                along.after_epoch(epoch)
            if epoch in leave.values():
                states[epoch] = run.state()

        run.walk(budget, plain, after_step=stepped, after_epoch=done)
        self.candidates |= sgd.candidates()
        run.back_to(states[leave["SWA"]])
        run.walk(longest, averaged, after_step=along.after_step, after_epoch=along.after_epoch)
        self._take(along, run, sgd)
        run.back_to(states[leave["SGD 1.5"]])
        run.walk(longest, long)
        self.candidates["SGD 1.5"] = Candidate(run.weights(), refresh=False)
        run.back_to(states[leave["FGE"]])
        self.candidates["FGE"] = Candidate(fge(study, run, budget), refresh=False)
        for per_cent in self.asked.rate:
            run.back_to(states[leave[per_cent]])
            self._other_rate(run, others[per_cent], per_cent / 100)
        self.trained += run.seconds
        fresh = Trajectory(study, self.cell, self.images, 0)
        self.candidates["Snapshot"] = Candidate(snapshot_ensemble(study, fresh), refresh=False)
        self.trained += fresh.seconds
        return along, sgd

    def _further_member(self, member: int) -> tuple[Candidate, SWAG]:
        study, run = self.study, Trajectory(self.study, self.cell, self.images, member)
        budget, _, longest = self.marks
        plain = sgd_schedule(study, run.steps_per_epoch)
        along = AlongSWA(study, run, self.clock, self.marks)
        along.add("SWAG", SWAG(study.averages.rank))
        leave = shared_epochs(plain, along.schedule, run.steps_per_epoch, budget)
        run.walk(leave, plain, after_step=along.after_step)
        state = run.state()
        run.walk(budget, plain)
        end = Candidate(run.weights(), refresh=False)
        run.back_to(state)
        run.walk(longest, along.schedule, after_step=along.after_step)
        self.trained += run.seconds
        return end, along.swag("SWAG")

    def _vary(self, along: AlongSWA, score: Score) -> None:
        """Follow the run of SWA with averages that start, collect or remember otherwise."""
        for per_cent in self.asked.start:
            first = along.study.budgets(per_cent / 100)
            along.add(f"start {per_cent} SWA", SWA(), along.epochs(first))
            along.add(f"start {per_cent} ASWA", ASWA(score), along.epochs(first))
        first = along.study.budgets(along.study.averages.start)
        for every in self.asked.every:
            along.add(f"every {every} SWA", SWA(), along.epochs(first, every))
            along.add(f"every {every} ASWA", ASWA(score), along.epochs(first, every))
        for rank in self.asked.rank:
            along.add(f"rank {rank} SWAG", SWAG(rank))

    def _take(self, along: AlongSWA, run: Trajectory, sgd: AlongSGD) -> None:
        """Take the candidates of the run of SWA once it is done."""
        budget, longer, longest = self.marks
        self.candidates |= {
            "SWA": along.at("SWA", budget),
            "SWA 1.25": along.at("SWA", longer),
            "SWA 1.5": along.at("SWA", longest),
            "SWA from epoch 1": along.at("SWA from epoch 1", budget),
            "ASWA": along.at("ASWA", budget),
            "ASWA 1.5": along.at("ASWA", longest),
            "ASWA from epoch 1": along.at("ASWA from epoch 1", budget),
        }
        scale, samples = self.study.averages.scale, self.study.evaluation.samples
        _, rate = rates_of(self.study, self.cell.model)
        for what in ("start", "every"):
            for value in getattr(self.asked, what):
                for name in ("SWA", "ASWA"):
                    found = along.at(f"{what} {value} {name}", longest)
                    self._varied(what, value / 100 if what == "start" else value, name, found)
        for rank in self.asked.rank:
            gaussian = along.swag(f"rank {rank} SWAG").tempered(scale)
            self._varied("rank", rank, "SWAG", Candidate(gaussian, True, samples))
            self._varied("rank", rank, "LAWA", Candidate(sgd.lawa[rank].mean(), refresh=True))
        if self.asked.rate:
            self._varied("rate", rate, "SWA", along.at("SWA", longest))
            self._varied("rate", rate, "last iterate", Candidate(run.weights(), refresh=False))

    def _other_rate(self, run: Trajectory, schedule: swa_linear, factor: float) -> None:
        """Run SWA's schedule to another SWA rate, from where the run has been put."""
        longest = self.marks[-1]
        along = AlongSWA(self.study, run, self.clock, (longest,))
        along.add("SWA", SWA(), schedule.collect_at)
        run.walk(longest, schedule, after_step=along.after_step, after_epoch=along.after_epoch)
        _, rate = rates_of(self.study, self.cell.model)
        self._varied("rate", factor * rate, "SWA", along.at("SWA", longest))
        self._varied("rate", factor * rate, "last iterate", Candidate(run.weights(), refresh=False))

    def _varied(self, what: str, value: float, name: str, candidate: Candidate) -> None:
        self.varied.setdefault(what, []).append((value, name, candidate))
