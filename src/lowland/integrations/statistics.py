"""BatchNorm under an average, as the callbacks see it: which layers a run keeps still, and which ones are stale."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn

from ..batchnorm.statistics import layers_of
from ..weights.named import Weights, bare_name
from ..weights.running import unwrapped


def kept_still(model: nn.Module) -> frozenset[str]:
    """Return the BatchNorm layers that stand in eval mode while the model trains: their statistics are the user's.

    >>> model = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1)).train()
    >>> _ = model[0].eval()
    >>> kept_still(model)
    frozenset({'0'})
    """
    if not model.training:
        return frozenset()
    return frozenset(name for name, layer in layers_of(unwrapped(model, compiled=True)).items() if not layer.training)


def stale_layers(model: nn.Module, weights: Weights, still: Collection[str] = ()) -> list[str]:
    """Return the BatchNorm layers whose running statistics belong to other weights than `weights`.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    >>> stale_layers(model, {"0.weight": model[0].weight})
    ['1']
    """
    layers = layers_of(unwrapped(model, compiled=True))
    return [
        name
        for name in layers
        if name not in still and bare_name(f"{name}.running_mean") not in weights and "running_mean" not in weights
    ]


@contextmanager
def left_alone(model: nn.Module, still: Collection[str]) -> Iterator[None]:
    """Run a block in which `refresh_bn` takes the named layers for fixed ones and leaves their statistics.

    >>> from lowland import refresh_bn
    >>> model = nn.BatchNorm1d(1)
    >>> with left_alone(model, ["BatchNorm1d"]):
    ...     refresh_bn(model, [])
    """
    layers = [layer for name, layer in layers_of(unwrapped(model, compiled=True)).items() if name in still]
    for layer in layers:
        layer.track_running_stats = False  # in eval mode the layer computes as before
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def warn_of_stale(model: nn.Module, weights: Weights, still: Collection[str] = ()) -> None:
    """Warn, by name, of layers that an average is measured with although their statistics are not its own."""
    names = stale_layers(model, weights, still)
    if names:
        shown = names if len(names) <= 3 else [*names[:3], f"and {len(names) - 3} more"]
        warnings.warn(
            f"the BatchNorm layers {shown} keep the running statistics of the weights in training, which are not those "
            "of the average: pass bn_batches=, training batches to measure them with, or select=floating to average "
            "the statistics too",
            stacklevel=3,
        )
