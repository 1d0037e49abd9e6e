"""One pass over all ingredients, tensor by tensor: what all checks of weights alone are computed from.

For each tensor of the ingredients w_0 ... w_{n-1} the Gram matrix of (w_0, w_1 - w_0, ..., w_{n-1} - w_0) is kept, in
float64: norms, distances, cosines and autocovariances follow, and distances far below the size of the weights keep
their digits.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arithmetic.moments import first_nonfinite
from ..weights.kinds import unfit
from ..weights.named import Weights

Matrix = np.ndarray[Any, np.dtype[np.float64]]
STATISTICS = ("running_mean", "running_var")
_STRETCH = 1 << 20  # elements at a time


@dataclass(frozen=True)
class Signature:
    """Shapes and dtypes of one ingredient's tensors, and the names of those that hold a NaN or an infinity."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    broken: tuple[str, ...]
    unfit: Mapping[str, str] = field(default_factory=dict)  # why tensors have no average


def signature(weights: Weights) -> Signature:
    """Read an ingredient once.

    >>> signature({"w": torch.tensor([1.0, float("nan")])}).broken
    ('w',)
    """
    shapes, dtypes, broken, strange = {}, {}, [], {}
    for name in weights:
        tensor = weights[name]  # a file reads it now
        kind = unfit(tensor)
        if kind is not None:
            strange[name] = kind
            shapes[name], dtypes[name] = _shape(tensor), getattr(tensor, "dtype", torch.float32)
            continue
        shapes[name], dtypes[name] = tuple(tensor.shape), tensor.dtype
        if tensor.is_floating_point() and first_nonfinite({name: _plain(tensor)}) is not None:
            broken.append(name)
    return Signature(shapes, dtypes, tuple(broken), strange)


def _shape(tensor: object) -> tuple[int, ...]:
    return tuple(tensor.shape) if isinstance(tensor, Tensor) and not tensor.is_nested else ()


def usual(signatures: Sequence[Signature]) -> int:
    """Return the place of the first ingredient whose names and shapes most ingredients share."""
    kinds = [tuple(sorted(one.shapes.items())) for one in signatures]
    return kinds.index(Counter(kinds).most_common(1)[0][0])


@dataclass
class Surveyed:
    """What is known of one floating-point tensor over n ingredients.

    Args:
        gram: (n, n), as the module says. digests: equal where ingredients are, bit for bit.
        grid: the low-precision dtype that every value lies on, or None. unchanged, small: of this tensor's elements,
            how many are the same, and how many moved by two spacings of the grid at most, from each ingredient to the
            next. finer: by how many powers of two the spacing is finer where elements moved than where they did not,
            on average over elements that were not zero; 0 where all moved or none.
    """

    name: str
    shape: tuple[int, ...]
    gram: Matrix
    digests: list[bytes]
    grid: torch.dtype | None
    unchanged: list[int] = field(default_factory=list)
    small: list[int] = field(default_factory=list)
    finer: list[float] = field(default_factory=list)

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_statistic(self) -> bool:
        """Return whether this is a running statistic of a normalisation layer."""
        return self.name.rsplit(".", 1)[-1] in STATISTICS


def survey(ingredients: Sequence[Weights], names: Sequence[str]) -> list[Surveyed]:
    """Survey the floating-point tensors among `names`, which all ingredients hold in equal shapes, finite.

    >>> one, = survey([{"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 5.0])}], ["w"])
    >>> norms(one.gram), distance(one.gram, 0, 1), round(cosine(one.gram, 0, 1), 4)
    (array([5. , 5.83095189]), 1.0, 0.9947)
    """
    found = []
    for name in names:
        tensors = [_plain(weights[name]) for weights in ingredients]
        if not tensors[0].is_floating_point():
            continue
        shape, flat = tuple(tensors[0].shape), [t.contiguous().flatten() for t in tensors]
        gram = np.zeros((len(flat), len(flat)))
        for start in range(0, flat[0].numel(), _STRETCH):
            rows = torch.stack([t[start : start + _STRETCH].double() for t in flat])
            rows[1:] -= rows[0].clone()
            gram += (rows @ rows.T).numpy()
        digests = [hashlib.blake2b(t.view(torch.uint8).numpy().data, digest_size=16).digest() for t in flat]
        one = Surveyed(name, shape, gram, digests, _grid(flat))
        if one.grid is not None:
            for before, after in zip(flat, flat[1:], strict=False):
                step, spacing = (after.float() - before.float()).abs(), _spacing(before.float(), one.grid)
                stayed, was = step == 0, before != 0
                one.unchanged.append(int(stayed.sum()))
                one.small.append(int((~stayed & (step <= 2 * spacing)).sum()))
                parts = [spacing[mask & was].double().log2() for mask in (stayed, ~stayed)]
                one.finer.append(float(parts[0].mean() - parts[1].mean()) if all(p.numel() for p in parts) else 0.0)
        found.append(one)
    return found


def total(surveyed: Sequence[Surveyed]) -> Matrix:
    """Return the Gram matrix of all weights together; running statistics are no weights."""
    return np.asarray(sum(one.gram for one in surveyed if not one.is_statistic), dtype=np.float64)


def norms(gram: Matrix) -> Matrix:
    """Return the norm of each ingredient."""
    inner = _inner(gram)
    return np.asarray(np.sqrt(np.maximum(np.diag(inner), 0.0)))


def distance(gram: Matrix, i: int, j: int) -> float:
    """Return the distance between two ingredients."""
    moves = _moves(gram)
    return float(np.sqrt(max(moves[i, i] + moves[j, j] - 2 * moves[i, j], 0.0)))


def cosine(gram: Matrix, i: int, j: int) -> float:
    """Return the cosine between two ingredients; 1 where both are zero, 0 where one is."""
    inner = _inner(gram)
    size = np.sqrt(inner[i, i] * inner[j, j])
    if size == 0:
        return 1.0 if inner[i, i] == inner[j, j] else 0.0
    return float(np.clip(inner[i, j] / size, -1.0, 1.0))


def centred(gram: Matrix) -> Matrix:
    """Return the Gram matrix of w_i - mean."""
    moves = _moves(gram)
    n = len(moves)
    centre = np.eye(n) - np.full((n, n), 1 / n)
    return np.asarray(centre @ moves @ centre)


def _moves(gram: Matrix) -> Matrix:
    moves = gram.copy()
    moves[0, :] = moves[:, 0] = 0.0
    return moves


def _inner(gram: Matrix) -> Matrix:
    to_first = gram[0].copy()
    to_first[0] = 0.0
    return np.asarray(gram[0, 0] + to_first[:, None] + to_first[None, :] + _moves(gram))


def _plain(tensor: Tensor) -> Tensor:
    plain = tensor.detach().cpu()
    # Arithmetic on float8 is not written for every operation.
    return plain.float() if plain.is_floating_point() and plain.dtype.itemsize == 1 else plain


def _grid(flat: Sequence[Tensor]) -> torch.dtype | None:
    """The low-precision dtype whose values all these are: their own, or one that a float32 copy was made from."""
    dtype = flat[0].dtype
    if dtype in (torch.bfloat16, torch.float16):
        return dtype if all(t.dtype == dtype for t in flat) else None
    if any(t.dtype != torch.float32 for t in flat) or not any(bool(t.any()) for t in flat):
        return None
    # Ones and zeros, as normalisation layers begin with, lie on every grid.
    for grid in (torch.bfloat16, torch.float16):
        if all(torch.equal(t, t.to(grid).float()) for t in flat) and any(len(set(t[:4096].tolist())) > 4 for t in flat):
            return grid
    return None


def _spacing(values: Tensor, grid: torch.dtype) -> Tensor:
    """The distance from each value to the next one of the dtype."""
    exponent = torch.frexp(values.abs().clamp_min(torch.finfo(grid).tiny)).exponent - 1
    return torch.ldexp(torch.full_like(values, torch.finfo(grid).eps), exponent)
