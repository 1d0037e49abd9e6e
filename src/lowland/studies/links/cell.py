"""One cell of a study of links: a scorer trained on a graph once, and the averages that were kept along the way.

Last iterate, best checkpoint, SWA, EMA and ASWA come from one and the same run. Validation triples choose the best
checkpoint and what ASWA takes in, by filtered MRR; test triples and queries choose nothing. Where a model has
BatchNorm, its statistics are computed anew over the training pairs for every set of weights that is judged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowland import ASWA, EMA, SWA, Snapshots, weights_of
from lowland.weights import Weights

from ..grid.cells import Cell
from ..grid.configured import path_of
from ..grid.kinds import Kind, Metric
from ..runs.randomness import derived_seed, own_randomness, stream
from .config import LinksStudy, rate_of
from .graphs import Tails, load_graph
from .judging import PARTS, Judge
from .queries import KINDS
from .scorers import Scorer
from .training import epochs

KIND = Kind(
    name="links",
    things="links",
    metrics=(
        Metric("mrr", "MRR", higher=True),
        Metric("hits@1", "Hits@1", higher=True),
        Metric("hits@3", "Hits@3", higher=True),
        Metric("hits@10", "Hits@10", higher=True),
    ),
    baseline="last iterate",
    methods=("last iterate", "best checkpoint", "EMA", "SWA", "SWA from epoch 1", "ASWA"),
    claims=(
        ("SWA", "last iterate"),
        ("ASWA", "last iterate"),
        ("ASWA", "SWA"),
        ("ASWA", "SWA from epoch 1"),
        ("ASWA", "best checkpoint"),
    ),
    parts={"test": "test"} | {kind: f"queries {kind}" for kind in KINDS},
    meanings={
        "last iterate": "the weights after the last epoch",
        "best checkpoint": "the weights of the epoch with the best validation MRR",
        "EMA": "an exponential moving average, updated once an epoch",
        "SWA": "the mean of the weights at the ends of epochs, from a share of the epochs on",
        "SWA from epoch 1": "the mean of the weights at the ends of all epochs",
        "ASWA": "from epoch 1 on, an average that validation MRR replaces, extends or leaves alone",
    },
    wants="pykeen",
)


class _Kept(NamedTuple):
    """An average along the run, and when it is updated."""

    average: SWA | EMA | ASWA | Snapshots
    start: int = 1  # epoch
    every: int = 1  # epochs


def run_cell(study: LinksStudy, cell: Cell) -> dict[str, Any]:
    """Train one scorer on one graph and judge the averages along its run; plain data for a file.

    The same study and cell give the same numbers on one thread, but for `seconds`. The global random state stays.

    Raises:
        ImportError: PyKEEN is not installed.
        ValueError: the graph or the model is not there.
        RuntimeError: the run diverged.

    >>> from lowland.studies.links.config import Data, Model, Queries, Sensitivity, Training
    >>> study = LinksStudy(
    ...     Data(("nations",)), Model(("distmult",), dimension=8), Training((0,), epochs=2), queries=Queries(number=0),
    ...     sensitivity=Sensitivity(seeds=()),
    ... )
    >>> result = run_cell(study, Cell("nations", "distmult", 0))
    >>> sorted(result["methods"]["SWA"])
    ['test', 'train', 'validation']
    """
    with own_randomness():
        return _Cell(study, cell).result()


class _Cell:
    """What the runs of a cell share: the main one, and those at other rates."""

    def __init__(self, study: LinksStudy, cell: Cell) -> None:
        self.study, self.cell = study, cell
        self.graph = load_graph(cell.data, path=path_of(study.data.paths, cell.data))
        self.tails = Tails(self.graph.both_ways)
        self.judge = Judge(study, self.graph, self.tails)
        self.seconds = {"training": 0.0, "averaging": 0.0, "evaluation": 0.0}

    def result(self) -> dict[str, Any]:
        rate = rate_of(self.study, self.cell.model)
        run = _Run(self, rate)
        asked = self.cell.seed in self.study.sensitivity.seeds
        varied = run.vary() if asked else {}
        run.walk(curves=True)
        weights = run.weights()
        with self.clock("evaluation"):
            methods = {name: self.judge.everything(run.scorer, weights[name]) for name in KIND.methods}
            rows = {
                axis: [self._row(run, value, name, kept.average.mean()) for value, name, kept in found]
                for axis, found in varied.items()
            }
        if asked:
            rows["rate"] = self._other_rates(rate, methods)
        return {
            "methods": methods,
            "curves": run.curves,
            "trace": [
                {"action": d.action, "running": d.running, "ahead": d.ahead, "averaged": d.averaged}
                for d in run.aswa.trace
            ],
            "sensitivity": rows,
            "chosen": {
                "best epoch": run.best_epoch,
                "rate": rate,
                "epochs": self.study.training.epochs,
                "SWA from epoch": run.kept["SWA"].start,
                "averaged by ASWA": run.aswa.averaged,
                "parameters": sum(p.numel() for p in run.scorer.parameters()),
                "queries": len(self.judge.queries),
            },
            "seconds": self.seconds,
        }

    def _row(self, run: _Run, value: float, name: str, weights: Weights) -> dict[str, Any]:
        found = self.judge.links(run.scorer, weights, ("validation", "test"))
        return {"value": value, "method": name} | {part: found[part][KIND.main.key] for part in found}

    def _other_rates(
        self, rate: float, methods: Mapping[str, Mapping[str, Mapping[str, float]]]
    ) -> list[dict[str, Any]]:
        key, shown = KIND.main.key, ("last iterate", "SWA", "ASWA")
        rows: list[dict[str, Any]] = [
            {"value": rate, "method": name} | {part: methods[name][part][key] for part in ("validation", "test")}
            for name in shown
        ]
        for per_cent in self.study.sensitivity.rate:
            run = _Run(self, rate * per_cent / 100)
            run.walk(curves=False)
            weights = run.weights()
            with self.clock("evaluation"):
                rows += [self._row(run, run.rate, name, weights[name]) for name in shown]
        return sorted(rows, key=lambda row: (row["value"], shown.index(row["method"])))

    @contextmanager
    def clock(self, what: str) -> Iterator[None]:
        """Add the time of a block."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - begun


class _Run:
    """One training run and the averages along it."""

    def __init__(self, cell: _Cell, rate: float) -> None:
        self.cell, self.study, self.rate = cell, cell.study, rate
        torch.manual_seed(derived_seed(cell.cell.seed, "weights"))  # inside own_randomness
        model = self.study.model
        self.scorer = Scorer(cell.cell.model, cell.graph, dimension=model.dimension, spread=model.spread)
        averages = self.study.averages
        self.aswa = ASWA(self.score)
        self.kept: dict[str, _Kept] = {
            "EMA": _Kept(EMA(averages.ema_decay)),
            "SWA": _Kept(SWA(), self.study.epoch(averages.start), averages.every),
            "SWA from epoch 1": _Kept(SWA()),
            "ASWA": _Kept(self.aswa),
        }
        self.best_epoch, self._best_score = 0, -math.inf
        self._best: dict[str, Tensor] = {}
        self.curves: dict[str, dict[str, list[float]]] = {}

    def score(self, weights: Weights) -> float:
        """The filtered MRR of weights on the validation triples."""
        return self.cell.judge.links(self.scorer, weights, ("validation",))["validation"][KIND.main.key]

    def vary(self) -> dict[str, list[tuple[float, str, _Kept]]]:
        """Follow the run with averages that start, collect or remember otherwise; return them by what is varied."""
        asked, first = self.study.sensitivity, self.study.epoch(self.study.averages.start)
        found: dict[str, list[tuple[float, str, _Kept]]] = {
            "start": [
                (per_cent, name, _Kept(average, self.study.epoch(per_cent / 100)))
                for per_cent in asked.start
                for name, average in (("SWA", SWA()), ("ASWA", ASWA(self.score)))
            ],
            "every": [
                (every, name, _Kept(average, first, every))
                for every in asked.every
                for name, average in (("SWA", SWA()), ("ASWA", ASWA(self.score)))
            ],
            "rank": [(k, "LAWA", _Kept(Snapshots(k))) for k in asked.rank],
        }
        for axis, rows in found.items():
            self.kept |= {f"{axis} {value} {name}": kept for value, name, kept in rows}
        return found

    def walk(self, *, curves: bool) -> None:
        """Train, and keep what is to be kept.

        Raises:
            RuntimeError: the run diverged.
        """
        given, cell = self.study.training, self.cell
        steps = epochs(
            self.scorer,
            cell.tails,
            learning_rate=self.rate,
            batch_size=given.batch_size,
            weight_decay=given.weight_decay,
            smoothing=given.smoothing,
            generator=stream(cell.cell.seed, "order"),
        )
        every = self.study.evaluation.curve_every
        for epoch in range(1, given.epochs + 1):
            with cell.clock("training"):
                loss = next(steps)
            if not (math.isfinite(loss) and all(bool(p.isfinite().all()) for p in self.scorer.parameters())):
                raise RuntimeError(
                    f"cell {cell.cell.name} diverged in epoch {epoch} (loss {loss}): lower training.learning_rate "
                    f"from {self.rate}"
                )
            with cell.clock("averaging"):
                self._keep(epoch)
            if curves and (epoch in (1, given.epochs) or epoch % every == 0):
                with cell.clock("evaluation"):
                    self._draw(epoch)

    def _keep(self, epoch: int) -> None:
        for kept in self.kept.values():
            if epoch >= kept.start and (epoch - kept.start) % kept.every == 0:
                kept.average.update(self.scorer)
        running = self.aswa.trace[-1].running  # ASWA has scored the weights of this epoch
        if running > self._best_score:
            self.best_epoch, self._best_score = epoch, running
            self._best = {name: tensor.clone() for name, tensor in weights_of(self.scorer).items()}

    def _draw(self, epoch: int) -> None:
        weights = self.weights()
        for name in KIND.methods:
            if name == "best checkpoint" or (name in self.kept and epoch < self.kept[name].start):
                continue
            found = self.cell.judge.links(self.scorer, weights[name])
            curve = self.curves.setdefault(name, {key: [] for key in ("epoch", *PARTS)})
            curve["epoch"].append(epoch)
            for part in PARTS:
                curve[part].append(found[part][KIND.main.key])

    def weights(self) -> dict[str, Weights]:
        """Return the weights of every method that has some."""
        found: dict[str, Weights] = {
            name: self.kept[name].average.mean()
            for name in KIND.methods
            if name in self.kept and self.kept[name].average.count
        }
        return found | {"last iterate": weights_of(self.scorer), "best checkpoint": self._best}
