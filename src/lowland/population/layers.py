"""How deep a tensor lies: the layers by which WASH shuffles less and less.

A layer is a module that holds a tensor of two or more dimensions: a convolution, a linear map, an embedding. Its bias
is of the same layer, and so are norms and other modules that hold vectors alone, with the layer before them in the
order in which the model names its modules (before the first layer: with the first).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from ..weights import Weights

Depth = Literal["layer", "tensor", "flat"]


def layers(weights: Weights) -> dict[str, int]:
    """Return the number of the layer of each tensor, from 0.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 1))
    >>> layers(dict(model.named_parameters()))
    {'0.weight': 0, '0.bias': 0, '1.weight': 0, '1.bias': 0, '2.weight': 1, '2.bias': 1}
    """
    makes = _owners(name for name, tensor in weights.items() if tensor.ndim >= 2)
    found: dict[str, int] = {}
    numbers: dict[str, int] = {}
    latest = 0
    for name in weights:
        owner = name.rpartition(".")[0]
        if owner in makes and owner not in numbers:
            latest = numbers[owner] = len(numbers)
        found[name] = numbers.get(owner, latest)
    return found


def norms(weights: Weights) -> set[str]:
    """Return the names of the tensors whose module holds vectors and numbers alone: those of norms.

    >>> import torch
    >>> sorted(norms(dict(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3)).named_parameters())))
    ['1.bias', '1.weight']
    """
    makes = _owners(name for name, tensor in weights.items() if tensor.ndim >= 2)
    return {name for name in weights if name.rpartition(".")[0] not in makes}


def chances(p: float, weights: Weights, depth: Depth = "layer") -> dict[str, float]:
    """Return the probability p_l = p (1 - l / (L - 1)) of each tensor, where l counts layers or tensors.

    >>> import torch
    >>> chances(0.1, {f"{place}.weight": torch.zeros(2, 2) for place in range(3)})
    {'0.weight': 0.1, '1.weight': 0.05, '2.weight': 0.0}
    """
    if depth == "flat":
        return dict.fromkeys(weights, p)
    place = layers(weights) if depth == "layer" else {name: index for index, name in enumerate(weights)}
    last = max(place.values(), default=0)
    return {name: p * (1 - index / last) if last else p for name, index in place.items()}


def _owners(names: Iterable[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names}
