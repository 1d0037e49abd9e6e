"""What is done to BatchNorm's statistics at each place of a landscape: all batches, a few of them, or nothing.

Statistics belong to one set of weights. At another place they are computed anew from the training batches (`exact`),
estimated from a few of these with a control variate (`fast`, see `lowland.batchnorm`), or left as they are (`frozen`),
which measures another network: the one whose normalisation is part of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

from torch import nn

from ..batchnorm.reference import BNReference, bn_reference
from ..batchnorm.refresh import refresh_bn
from ..weights.named import Weights, applied


@final
@dataclass(frozen=True)
class Exact:
    """Runs all batches at each place; `exact` makes one."""

    batches: Iterable[Any]

    def __call__(self, model: nn.Module) -> None:
        """Refresh the model's statistics."""
        refresh_bn(model, self.batches, synchronise=False)

    def __str__(self) -> str:
        return "BatchNorm refreshed at every place"


@final
@dataclass(frozen=True)
class Fast:
    """Runs a few batches at each place and corrects by a reference; `fast` makes one."""

    reference: BNReference[Any]
    few: int

    def __call__(self, model: nn.Module) -> None:
        """Refresh the model's statistics."""
        self.reference.refresh(model, few=self.few, tolerance=None)

    def __str__(self) -> str:
        return f"BatchNorm refreshed at every place from {self.few} batches and a control variate"


@final
@dataclass(frozen=True)
class Frozen:
    """Does nothing; `frozen` makes one."""

    def __call__(self, model: nn.Module) -> None:
        """Leave the model alone."""

    def __str__(self) -> str:
        return "BatchNorm's statistics frozen"


OWN = (Exact, Fast, Frozen)


def exact(batches: Iterable[Any]) -> Exact:
    """Refresh at every place with all training batches; under torch.distributed each rank for itself.

    >>> print(exact([]))
    BatchNorm refreshed at every place
    """
    return Exact(batches)


def fast(model: nn.Module, weights: Weights, batches: Iterable[Any], *, few: int = 2) -> Fast:
    """Refresh at every place with `few` training batches, corrected by weights nearby whose statistics are known.

    Args:
        weights: the reference, such as the middle of what is drawn: it is run over all batches once, here.
        few: batches a place; the more, the nearer to `exact`.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    >>> print(fast(model, {"0.bias": torch.zeros(1)}, [torch.randn(4, 1) for _ in range(3)]))
    BatchNorm refreshed at every place from 2 batches and a control variate
    """
    with applied(model, weights):
        return Fast(bn_reference(model, batches, keep=max(few, 2), synchronise=False), few)


def frozen() -> Frozen:
    """Leave the statistics as they are in the model.

    >>> print(frozen())
    BatchNorm's statistics frozen
    """
    return Frozen()
