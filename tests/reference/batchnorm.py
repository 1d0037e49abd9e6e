"""BatchNorm refresh as the papers' code does it: momenta b / (n + b) and one pass in training mode, dropout on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def naive_refresh(model: nn.Module, batches: Iterable[Tensor]) -> None:
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.running_mean.zero_()
        layer.running_var.fill_(1.0)
    model.train()
    n = 0
    for batch in batches:
        b = len(batch)
        for layer in layers:
            layer.momentum = b / (n + b)
        model(batch)
        n += b
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
