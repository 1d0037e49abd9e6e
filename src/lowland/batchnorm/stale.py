"""A word where BatchNorm's running statistics belong to other weights than those in use."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..weights.named import Weights, bare_name
from .statistics import measured_layers, statistics_of


@torch.no_grad()
def stale_layer(model: nn.Module, weights: Weights) -> str | None:
    """Name a BatchNorm layer whose statistics in `model` belong to other weights than `weights`; None if there is none.

    Statistics belong if `weights` bring them, if the layer is frozen, or if `weights` are those in the model and the
    layer has seen a batch.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    >>> stale_layer(model, {"0.weight": model[0].weight})
    '1'
    >>> _ = model(torch.randn(8, 1))
    >>> stale_layer(model, {"0.weight": torch.full((1, 1), 7.0)})
    '1'
    >>> stale_layer(model, {"0.weight": model[0].weight}) is None
    True
    """
    measured = set(measured_layers(model).values())
    found = None
    for prefix, layer in model.named_modules():
        if isinstance(layer, _NormBase) and layer in measured:
            key = bare_name(f"{prefix}.running_mean" if prefix else "running_mean")
            if key not in weights:
                found = prefix or type(layer).__name__
                if _untouched(layer):
                    return found
                break
    if found is None:
        return None
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    own = {bare_name(name): tensor for name, tensor in named}
    same = all(name in own and torch.equal(own[name], tensor.to(own[name])) for name, tensor in weights.items())
    return None if same else found


def _untouched(layer: _NormBase) -> bool:
    """Whether the statistics are those of a new layer."""
    mean, var = statistics_of(layer)
    return not bool(mean.any()) and bool((var == 1).all())


def warn(layer: str, what: str) -> None:
    """Warn that the statistics of `layer` are not those of `what`, and say what to do."""
    warnings.warn(
        f"the running statistics of the BatchNorm layer {layer} belong to other weights than {what}: pass bn_batches=, "
        "training batches from which the layers get those that belong (as lowland.refresh_bn does)",
        UserWarning,
        stacklevel=5,
    )
