"""What members give each other: in one process (`alone`), or over a process group with one member a rank (`ranks`).

Nothing above these files knows which. `rows` hold, for each member of this process, its tensors in one order; what
comes back does too. Neither way keeps the number of ranks or the number of this one: a group may change between steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..arithmetic.moments import wide
from .meter import Traffic

Row = list[Tensor]


class Exchange(Protocol):
    """What both ways can do."""

    traffic: Traffic  # since it was last set to zero

    @property
    def size(self) -> int:
        """How many members there are."""

    @property
    def here(self) -> Sequence[int]:
        """The numbers of those in this process."""

    def means(self, rows: Sequence[Row]) -> Row:
        """Return the mean of each tensor over all members, in float32 or wider: memory of its own."""

    def pull_(self, rows: Sequence[Row], weight: float) -> None:
        """Move every tensor towards its mean by this share of the way; 1 puts the mean in its place."""

    def permute(self, values: Sequence[Tensor], order: Tensor) -> Callable[[], list[Tensor]]:
        """Begin to give member n the i-th value of member order[n, i]; what is returned waits, and gives them."""

    def blend_(self, rows: Sequence[Row], pairs: Sequence[tuple[int, int]]) -> None:
        """Put the mean of two members in the place of each: member n becomes that of pairs[n]."""

    def copy_(self, rows: Sequence[Row], source: int) -> None:
        """Put the tensors of member `source` in the place of all."""

    def told(self, thing: Any) -> list[Any]:
        """Return what the processes say, in their order; small things that can be pickled."""

    def agreed(self, numbers: Sequence[int]) -> bool:
        """Say whether all processes give the same numbers, below 2^62."""

    def gathered(self, rows: Sequence[Row]) -> list[Row]:
        """Return copies of the tensors of all members, in their order."""

    def total(self, values: Sequence[float]) -> float:
        """Return the sum of one number of each member of this process, over all processes."""


def between(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean of two tensors, the same bits whichever is first.

    >>> between(torch.tensor(1.0), torch.tensor(2.0))
    tensor(1.5000)
    """
    return torch.add(a.to(wide(a.dtype)), b.to(wide(b.dtype))).mul_(0.5).to(a.dtype)


def towards_(tensor: Tensor, mean: Tensor, weight: float) -> None:
    """Move a tensor this share of the way to its mean.

    >>> x = torch.tensor(1.0)
    >>> towards_(x, torch.tensor(2.0), 0.5)
    >>> x
    tensor(1.5000)
    """
    if weight == 1:
        tensor.copy_(mean)
    elif tensor.dtype == mean.dtype:
        tensor.lerp_(mean, weight)
    else:
        tensor.copy_(tensor.to(mean.dtype).lerp_(mean, weight))


def ring(members: int) -> float:
    """Return what a rank sends of a bucket that a ring all-reduces.

    >>> ring(4)
    1.5
    """
    return 2 * (members - 1) / members
