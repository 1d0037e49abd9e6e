"""How good an ensemble is while members are added to it, from the first or from the last.

    p_m(y | x) = 1/m sum of the predictions of m members,  m = 1 ... M

Members of one run are not alike: the first ones of a Snapshot ensemble or of FGE may do more harm than good, and the
last ones may agree too well to help. (Huang, Li, Pleiss, Liu, Hopcroft, Weinberger 2017, arXiv 1704.00109, report both
orders.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..averager.posteriors import Drawable, members_of
from ..averager.shown import one_line, table
from ..calibration.metrics import accuracy, ece, nll
from ..calibration.probabilities import Array
from .predict import predict

Batch = TypeVar("Batch")
Metric = Callable[[Tensor, Array], float]
METRICS: Mapping[str, Metric] = {"accuracy": accuracy, "nll": nll, "ece": ece}


@dataclass(frozen=True, repr=False)
class Accumulation:
    """One row of metrics for every member alone and for every ensemble, by the name of the metric.

    >>> curves = Accumulation(alone=[{"nll": 0.5}], forward=[{"nll": 0.5}], backward=[{"nll": 0.5}])
    >>> curves.size, curves.curve("forward", "nll")
    (1, [0.5])
    """

    alone: list[dict[str, float]]  # of each member, the oldest first
    forward: list[dict[str, float]]  # of the ensemble of the first 1 ... M members
    backward: list[dict[str, float]]  # of the ensemble of the last 1 ... M members

    def __repr__(self) -> str:
        return one_line("Accumulation", self._rows())

    def _repr_html_(self) -> str:
        return table("Accumulation", self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        last = self.forward[-1] if self.forward else {}
        return [("members", str(self.size)), *((f"{name} of all", f"{value:.4g}") for name, value in last.items())]

    @property
    def size(self) -> int:
        """The number of members."""
        return len(self.alone)

    def curve(self, order: str, metric: str) -> list[float]:
        """Return one metric along `alone`, `forward` or `backward`."""
        rows: list[dict[str, float]] = {"alone": self.alone, "forward": self.forward, "backward": self.backward}[order]
        return [row[metric] for row in rows]


@torch.no_grad()
def accumulate(
    model: nn.Module,
    posterior: Drawable,
    batches: Iterable[Batch],
    labels: Array,
    *,
    metrics: Mapping[str, Metric] = METRICS,
    forward: Callable[[nn.Module, Batch], object] | None = None,
    bn_batches: Iterable[Batch] | None = None,
) -> Accumulation:
    """Predict with every member of a finite posterior once, and judge the ensembles of the first and of the last m.

    Members are read one at a time; their probabilities are kept, (N, C) for each. Probabilities are averaged.

    Args:
        posterior: one with `members()`, in the order in which they were collected.
        batches: read once for each member, in the same order: a list, or a loader that does not shuffle.
        labels: (N,), of the examples of the batches in their order.
        metrics: functions of probs (N, C) and labels (N,), by name.
        forward: as in `predict`.
        bn_batches: as in `predict`; leave it out where members bring their own BatchNorm statistics.

    Raises:
        ValueError: the posterior has infinitely many points; and as `predict` and the metrics.
        RuntimeError: the posterior has no members yet.

    >>> model = nn.Linear(1, 2, bias=False)
    >>> class Two:
    ...     def sample(self, samples=None, *, generator=None): ...
    ...     def members(self):
    ...         return [{"weight": torch.tensor([[w], [0.0]])} for w in (-1.0, 3.0)]
    >>> curves = accumulate(model, Two(), [torch.ones(4, 1)], [0] * 4, metrics={"accuracy": accuracy})
    >>> curves.curve("alone", "accuracy"), curves.curve("forward", "accuracy"), curves.curve("backward", "accuracy")
    ([0.0, 1.0], [0.0, 1.0], [1.0, 1.0])
    """
    members = members_of(posterior)
    if members is None:
        raise ValueError("accumulation wants a posterior with members(), got one with infinitely many points")
    kept = [
        predict(model, member, batches, forward=forward, bn_batches=bn_batches).probs.to("cpu", torch.float32)
        for member in members
    ]
    if not kept:
        raise RuntimeError(f"{type(posterior).__name__} has no members yet: call update(model) first")

    def judged(probs: Tensor) -> dict[str, float]:
        return {name: float(metric(probs, labels)) for name, metric in metrics.items()}

    def growing(order: Iterable[Tensor]) -> list[dict[str, float]]:
        total, rows = torch.zeros_like(kept[0], dtype=torch.float64), []
        for m, probs in enumerate(order, start=1):
            total += probs
            rows.append(judged(total / m))
        return rows

    return Accumulation([judged(probs) for probs in kept], growing(kept), growing(reversed(kept)))
