"""A few directions through weight space from one place: what planes and rays are made of.

    w(c) = origin + sum_k c_k d_k

Origin and directions each lie in one block of memory a dtype, so a place is one matrix-vector product, and several
places are one matrix product. Tensors of whole numbers and BatchNorm's running statistics are no coordinates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from ..arithmetic.moments import check_numbers
from ..weights.named import Weights, check_same
from .walk import wide

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def moves(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a coordinate: of floating point, and no running statistic of BatchNorm.

    >>> moves("norm.running_var", torch.ones(1)), moves("norm.weight", torch.ones(1))
    (False, True)
    """
    return tensor.is_floating_point() and name.rsplit(".", 1)[-1] not in STATISTICS


@final
class Frame:
    """An origin and directions, copied in float32 or wider.

    Args:
        origin: the weights at coordinates 0.
        directions: at least one, with the origin's names and shapes.

    Raises:
        ValueError: names or shapes differ, a tensor is complex or not finite, or nothing is a coordinate.

    >>> frame = Frame({"w": torch.tensor([1.0, 2.0])}, [{"w": torch.tensor([1.0, 0.0])}])
    >>> frame.at([3.0])
    {'w': tensor([4., 2.])}
    """

    def __init__(self, origin: Weights, directions: Sequence[Weights]) -> None:
        if not directions:
            raise ValueError("a frame wants at least one direction, got none")
        for place, weights in enumerate((origin, *directions)):
            check_numbers(weights, f"direction {place}" if place else "the origin")
        self.like = {name: tensor.detach() for name, tensor in origin.items() if moves(name, tensor)}
        if not self.like:
            raise ValueError(f"no tensor of {list(origin)[:5]} is a coordinate: give floating-point weights")
        for place, weights in enumerate((origin, *directions)):
            moving = {name: tensor for name, tensor in weights.items() if name in self.like}
            check_same(self.like, moving, what="a direction" if place else "the origin")
        self._blocks: dict[tuple[torch.dtype, torch.device], _Block] = {}
        groups: dict[tuple[torch.dtype, torch.device], list[str]] = {}
        for name, tensor in self.like.items():
            groups.setdefault((wide(tensor.dtype), tensor.device), []).append(name)
        for key, names in groups.items():
            self._blocks[key] = _Block(names, origin, directions, key[0])
        self._fixed = {n: t.detach().clone() for n, t in origin.items() if n not in self.like and not _statistic(n)}
        # Only names, shapes and dtypes are asked of it from here on: the caller's memory is free to change.
        self.like = {name: torch.empty_like(tensor, device="meta") for name, tensor in self.like.items()}

    @property
    def directions(self) -> int:
        """How many there are."""
        return len(next(iter(self._blocks.values())).basis)

    @property
    def dimension(self) -> int:
        """How many numbers the weights are."""
        return sum(block.origin.numel() for block in self._blocks.values())

    @torch.no_grad()
    def at(self, coordinates: Sequence[float]) -> dict[str, Tensor]:
        """Return the weights at a place in new tensors of the origin's dtypes, in the order of its names.

        Tensors of whole numbers are the origin's; running statistics are left out.
        """
        several = self.several([coordinates])
        return {name: tensor[0] for name, tensor in several.items()} | {n: t.clone() for n, t in self._fixed.items()}

    @torch.no_grad()
    def several(self, coordinates: Sequence[Sequence[float]]) -> dict[str, Tensor]:
        """Return the moving weights at several places, stacked: every tensor has a leading axis."""
        made: dict[str, Tensor] = {}
        for (dtype, device), block in self._blocks.items():
            c = torch.tensor([list(map(float, row)) for row in coordinates], dtype=dtype, device=device)
            if len(c) == 1:  # one pass over the memory
                flat = torch.addmv(block.origin, block.basis.T, c[0])[None]
            else:
                flat = torch.addmm(block.origin, c, block.basis)
            for name, start, stop in block.parts:
                like = self.like[name]
                made[name] = flat[:, start:stop].view(len(c), *like.shape).to(like.dtype)
        return {name: made[name] for name in self.like}

    @torch.no_grad()
    def direction(self, number: int) -> dict[str, Tensor]:
        """Return a direction by name, in float32 or wider: a copy."""
        return self._read(lambda block: block.basis[number])

    @torch.no_grad()
    def origin(self) -> dict[str, Tensor]:
        """Return the moving weights at the origin, in float32 or wider: a copy."""
        return self._read(lambda block: block.origin)

    @torch.no_grad()
    def products(self, weights: Weights) -> list[float]:
        """Return the inner product of `weights` less the origin with each direction, and with itself."""
        check_same(self.like, {n: t for n, t in weights.items() if n in self.like}, what="a place to project")
        sums = [0.0] * (self.directions + 1)
        for block in self._blocks.values():
            away = _flat(weights, block.parts, block.origin.dtype) - block.origin
            for number, row in enumerate((*block.basis, away)):
                sums[number] += _dot(row, away)
        return sums

    def digest(self) -> str:
        """Return a fingerprint of origin and directions."""
        found = hashlib.sha256()
        for block in self._blocks.values():
            for row in (block.origin, *block.basis):
                found.update(row.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]

    def _read(self, pick: Callable[[_Block], Tensor]) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for block in self._blocks.values():
            flat = pick(block)
            for name, start, stop in block.parts:
                made[name] = flat[start:stop].view(self.like[name].shape).clone()
        return {name: made[name] for name in self.like}


class _Block:
    """The tensors of one dtype, one after the other."""

    def __init__(self, names: list[str], origin: Weights, directions: Sequence[Weights], dtype: torch.dtype) -> None:
        self.parts: list[tuple[str, int, int]] = []
        start = 0
        for name in names:
            stop = start + origin[name].numel()
            self.parts.append((name, start, stop))
            start = stop
        self.origin = _flat(origin, self.parts, dtype)
        self.basis = torch.stack([_flat(direction, self.parts, dtype) for direction in directions])  # (k, d)


def _flat(weights: Mapping[str, Tensor], parts: list[tuple[str, int, int]], dtype: torch.dtype) -> Tensor:
    return torch.cat([weights[name].detach().to(dtype).reshape(-1) for name, _, _ in parts])


def _statistic(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in STATISTICS


def _dot(a: Tensor, b: Tensor) -> float:
    """Sums in float64, a megabyte at a time."""
    step = 1 << 17
    starts = range(0, a.numel(), step)
    return sum(float(torch.dot(a[i : i + step].double(), b[i : i + step].double())) for i in starts)
