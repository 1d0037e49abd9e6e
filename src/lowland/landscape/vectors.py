"""Weights as vectors: inner products in float64, sums, and random directions of the unit sphere.

    filter normalisation    d_f  <-  |w_f| d_f / |d_f|    for each row f (axis 0) of a tensor with two axes or more,
                            0                             for every other tensor

Li, Xu, Taylor, Studer, Goldstein 2018, arXiv:1712.09913. A network whose layers are followed by BatchNorm computes the
same whatever the scale of their weights, so a distance in raw weights measures that scale too.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..arithmetic.moments import check_numbers
from ..arithmetic.philox import normals, tensor_ids
from ..weights.named import Weights
from .frame import moves
from .walk import wide

Normalise = Literal["norm", "filter"] | None


@torch.no_grad()
def dot(a: Weights, b: Weights) -> float:
    """Return the inner product over the coordinates of `a`, summed in float64.

    >>> dot({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])})
    11.0
    """
    total = 0.0
    for name, tensor in a.items():
        if moves(name, tensor):
            total += float(torch.dot(tensor.detach().double().reshape(-1), b[name].detach().double().reshape(-1)))
    return total


def norm(weights: Weights) -> float:
    """Return the length of the coordinates of `weights`.

    >>> norm({"w": torch.tensor([3.0, 4.0]), "n": torch.tensor(7)})
    5.0
    """
    return math.sqrt(dot(weights, weights))


@torch.no_grad()
def sum_of(*terms: tuple[float, Weights]) -> dict[str, Tensor]:
    """Return the sum of weights, each times its number, over the coordinates, in float32 or wider.

    >>> sum_of((1.0, {"w": torch.tensor([3.0])}), (-2.0, {"w": torch.tensor([1.0])}))
    {'w': tensor([1.])}
    """
    (first, one), *rest = terms
    result = {}
    for name, tensor in one.items():
        if moves(name, tensor):
            total = tensor.detach().to(wide(tensor.dtype)) * first
            for factor, other in rest:
                total = total.add_(other[name].detach().to(total.dtype), alpha=factor)
            result[name] = total
    return result


@torch.no_grad()
def random_direction(like: Weights, key: int, number: int) -> dict[str, Tensor]:
    """Return direction `number` of a key: uniform on the unit sphere of the coordinates of `like`.

    The same key and number give the same direction whatever the values of `like`.

    >>> round(norm(random_direction({"w": torch.zeros(3, 2), "b": torch.zeros(3)}, 1, 0)), 6)
    1.0
    """
    check_numbers(like, "the weights")
    made = gaussian_noise(like, key, number)
    return sum_of((1 / norm(made), made))


@torch.no_grad()
def gaussian_noise(like: Weights, key: int, number: int) -> dict[str, Tensor]:
    """Return standard normals by name: noise `number` of a key.

    >>> gaussian_noise({"w": torch.zeros(2)}, 1, 0)["w"].shape
    torch.Size([2])
    """
    moving = {name: tensor for name, tensor in like.items() if moves(name, tensor)}
    ids = tensor_ids(moving)
    return {
        name: normals(key, ids[name], range(number, number + 1), 0, tensor.numel(), device=tensor.device)[0]
        .view(tensor.shape)
        .to(wide(tensor.dtype))
        for name, tensor in moving.items()
    }


@torch.no_grad()
def filter_normalised(direction: Weights, weights: Weights) -> dict[str, Tensor]:
    """Return a direction whose rows are as long as the weights' rows; tensors of fewer than two axes are zero.

    A row of the direction that is zero stays zero.

    >>> w, d = torch.tensor([[3.0, 4.0], [0.0, 5.0]]), torch.tensor([[1.0, 0.0], [2.0, 2.0]])
    >>> filter_normalised({"w": d, "b": torch.ones(2)}, {"w": w, "b": torch.ones(2)})
    {'w': tensor([[5.0000, 0.0000],
                  [3.5355, 3.5355]]),
     'b': tensor([0., 0.])}
    """
    for what, one in (("the weights", weights), ("the direction", direction)):
        check_numbers(one, what)
    result = {}
    for name, tensor in weights.items():
        if not moves(name, tensor):
            continue
        d = direction[name].detach().to(wide(tensor.dtype))
        if tensor.ndim < 2:
            result[name] = torch.zeros_like(d)
            continue
        rows, ours = d.flatten(1), tensor.detach().to(d.dtype).flatten(1)
        # Squares of float32 may be beyond its range.
        lengths = rows.norm(dim=1, keepdim=True, dtype=torch.float64)
        wanted = ours.norm(dim=1, keepdim=True, dtype=torch.float64)
        scale = torch.where(lengths > 0, wanted / lengths, torch.zeros_like(lengths))
        result[name] = (rows * scale.to(d.dtype)).view(d.shape)
    check_numbers(result, "the direction, normalised by filters")
    return result


def normalised(direction: Weights, weights: Weights, how: Normalise) -> dict[str, Tensor]:
    """Return a direction in the unit that `how` says: raw, relative to the norm of the weights, or by filters.

    Raises:
        ValueError: `how` is none of these.

    >>> normalised({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([3.0, 4.0])}, "norm")
    {'w': tensor([5., 0.])}
    """
    if how is None:
        return sum_of((1.0, direction))
    if how == "norm":
        return sum_of((norm(weights), direction))
    if how == "filter":
        return filter_normalised(direction, weights)
    raise ValueError(f'normalise must be None, "norm" or "filter", got {how!r}')


def said(how: Normalise, weights: Weights) -> str:
    """Say what a normalisation does to these weights, for captions.

    >>> said("filter", {"w": torch.ones(2, 2), "b": torch.ones(2)})
    'filter-normalised: rows of 1 tensor with two axes or more, 1 other tensor not moved'
    """
    if how == "norm":
        return f"relative to the norm of the weights, {norm(weights):.4g}"
    if how is None:
        return "raw: distances in weights"
    moving = [tensor for name, tensor in weights.items() if moves(name, tensor)]
    rows = sum(tensor.ndim >= 2 for tensor in moving)
    rest = len(moving) - rows
    others = f"{rest} other tensor{'s' * (rest != 1)} not moved"
    return f"filter-normalised: rows of {rows} tensor{'s' * (rows != 1)} with two axes or more, {others}"
