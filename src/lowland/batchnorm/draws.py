"""BatchNorm for the draws of a posterior: each by the control variate of the mean that is nearest to it.

`predict(..., bn_batches=FastRefresh(batches))` uses this. For single weights, such as the points of a plane,
`bn_reference` at any anchor and its `refresh` do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from ..averager.posteriors import Drawable, members_of
from ..weights.named import Weights, applied
from .reference import BNReference, Refreshed, bn_reference
from .statistics import measured_layers

Batch = TypeVar("Batch")


@runtime_checkable
class _HasComponents(Protocol):
    components: Sequence[Drawable]


@runtime_checkable
class _HasMean(Protocol):
    def mean(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class FastRefresh(Generic[Batch]):
    """How `predict` shall refresh BatchNorm for many draws: once over all batches, and by two of them for each draw.

    Args:
        batches: training batches.
        tolerance: above this estimated error (`BNReference.refresh`) a draw is given more batches, in the end all; None
            for two batches, whatever the error.

    Raises:
        ValueError: the tolerance is negative.

    >>> FastRefresh([torch.ones(4, 1)], tolerance=0.1).tolerance
    0.1
    """

    batches: Iterable[Batch]
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ValueError(f"tolerance must be at least 0, or None for two batches, got {self.tolerance}")


class DrawRefresher(Generic[Batch]):
    """Refreshes BatchNorm under draws of one posterior.

    A reference is made at the posterior's mean, for a `Mixture` at each component's own, when a draw near it first
    comes. A draw uses the reference at the least squared distance. Points, such as the members of `Snapshots`, are
    refreshed exactly: there is nothing nearer than themselves.

    Args:
        tolerance: as of `BNReference.refresh`; None for two batches, whatever the error.

    Raises:
        ValueError: the posterior has no mean.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    >>> refresher = DrawRefresher({"0.weight": torch.ones(1, 1)}, [torch.arange(4.0)[:, None]] * 4)
    >>> refresher.refresh(model, {"0.weight": torch.ones(1, 1)})  # a point: all batches
    Refreshed(batches=4, errors={'1': 0.0})
    """

    def __init__(
        self,
        posterior: Drawable,
        batches: Iterable[Batch],
        *,
        forward: Callable[[nn.Module, Batch], object] | None = None,
        tolerance: float | None = None,
    ) -> None:
        self._batches, self._forward, self._tolerance = batches, forward, tolerance
        self._anchors = _anchors(posterior)
        self._references: dict[int, BNReference[Batch]] = {}

    @torch.no_grad()
    def refresh(self, model: nn.Module, weights: Weights) -> Refreshed:
        """Refresh `model`, which holds the draw `weights`."""
        nearest, distance = self._nearest(weights)
        if distance == 0:  # a point, or a draw from a posterior without spread
            batches = bn_reference(model, self._batches, forward=self._forward).batches
            return Refreshed(batches, dict.fromkeys(measured_layers(model), 0.0))
        if nearest not in self._references:
            with applied(model, self._anchors[nearest]):
                self._references[nearest] = bn_reference(model, self._batches, forward=self._forward)
        return self._references[nearest].refresh(model, tolerance=self._tolerance)

    def _nearest(self, weights: Weights) -> tuple[int, float]:
        distances = [_squared_distance(anchor, weights) for anchor in self._anchors]
        nearest = min(range(len(distances)), key=distances.__getitem__)
        return nearest, distances[nearest]


def _squared_distance(anchor: Weights, weights: Weights) -> float:
    parts = [(tensor - weights[name].to(tensor)).square().sum() for name, tensor in anchor.items()]
    return float(torch.stack([part.double().cpu() for part in parts]).sum())


def _anchors(posterior: Drawable) -> list[Weights]:
    if isinstance(posterior, _HasComponents):
        return [anchor for component in posterior.components for anchor in _anchors(component)]
    points = members_of(posterior)
    if points is not None:
        return list(points)
    if isinstance(posterior, _HasMean):
        return [posterior.mean()]
    raise ValueError(f"{type(posterior).__name__} has no mean() to refresh BatchNorm from: pass bn_batches=batches")
