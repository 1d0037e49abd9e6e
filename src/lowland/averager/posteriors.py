"""What weights can be drawn from: averagers, posteriors, and bare weights, told apart by what they can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch

from ..weights.named import Weights
from .averager import Averager


@runtime_checkable
class Posterior(Protocol):
    """Anything that weights can be drawn from."""

    def sample(self, n: int | None = None, *, generator: torch.Generator | None = None) -> Weights:
        """Draw weights; with `n` every tensor gains a leading axis of `n` draws."""


@runtime_checkable
class Finite(Protocol):
    """A posterior of finitely many, equally likely points."""

    def members(self) -> Sequence[Weights] | None:
        """Return every point once, or None when there are infinitely many."""


@runtime_checkable
class Streamed(Protocol):
    """A posterior that plans several draws together, such as a mixture that gives each member its share."""

    def draws(self, n: int, *, generator: torch.Generator | None = None) -> Iterator[Weights]:
        """Yield `n` draws one at a time."""


@runtime_checkable
class Composite(Protocol):
    """A posterior made of others; with its maker in `COMPOSITES` it can be saved."""

    components: list[Drawable]


Drawable = Posterior | Averager | Weights
COMPOSITES: dict[str, Callable[[list[Drawable]], Composite]] = {}  # makers by class name, for reading state files


def members_of(posterior: Drawable) -> Sequence[Weights] | None:
    """Return the points of a finite posterior, or None for one with infinitely many.

    A plain average is one point, and so are bare weights.

    >>> members_of({"w": torch.zeros(1)})
    [{'w': tensor([0.])}]
    """
    if type(posterior) is dict:  # before the protocols, whose checks take as long as a small model's forward pass
        return [dict(posterior)]
    if isinstance(posterior, Finite):
        return posterior.members()
    if isinstance(posterior, Posterior):
        return None
    if isinstance(posterior, Averager):
        return [posterior.mean()]
    if isinstance(posterior, Mapping):
        return [dict(posterior)]
    raise ValueError(
        f"weights are drawn from a posterior, an averager or a mapping of named tensors, got {type(posterior).__name__}"
    )


def draws(posterior: Drawable, samples: int | None, generator: torch.Generator | None = None) -> Iterator[Weights]:
    """Yield weights one draw at a time, so that memory does not grow with their number.

    A finite posterior with `samples=None` yields each member exactly once. With a number, draws are made.

    Raises:
        ValueError: `samples` is below 1, or is None for a posterior with infinitely many points.

    >>> [w["w"].item() for w in draws({"w": torch.ones(1)}, None)]
    [1.0]
    """
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if isinstance(posterior, Streamed) and samples is not None:
        yield from posterior.draws(samples, generator=generator)
        return
    if isinstance(posterior, Posterior) and samples is not None:
        for _ in range(samples):
            yield posterior.sample(generator=generator)
        return
    members = members_of(posterior)
    if members is None:
        raise ValueError("this posterior has infinitely many points: say how many draws with samples=")
    # A plain average with samples=n is n times the same point: one pass gives the same average.
    yield from members
