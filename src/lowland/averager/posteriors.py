"""What weights can be drawn from: averagers, posteriors, and bare weights, told apart by what they can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch

from ..arguments import check_generator, whole
from ..weights.kinds import check_tensors
from ..weights.named import Weights
from .averager import Averager
from .kinds import Kinds


@runtime_checkable
class Posterior(Protocol):
    """Anything that weights can be drawn from."""

    def sample(self, samples: int | None = None, *, generator: torch.Generator | None = None) -> Weights:
        """Draw weights; with `samples` every tensor gains a leading axis of so many draws."""


@runtime_checkable
class Finite(Protocol):
    """A posterior of finitely many, equally likely points."""

    def members(self) -> Sequence[Weights] | None:
        """Return every point once, or None when there are infinitely many."""


@runtime_checkable
class Streamed(Protocol):
    """A posterior that plans several draws together, such as a mixture that gives each member its share."""

    def draws(self, samples: int, *, generator: torch.Generator | None = None) -> Iterator[Weights]:
        """Yield so many draws one at a time."""


@runtime_checkable
class Composite(Protocol):
    """A posterior made of others; with its maker in `COMPOSITES` it can be saved."""

    components: list[Drawable]


Drawable = Posterior | Averager | Weights
COMPOSITES: Kinds[Callable[[list[Drawable]], Composite]] = Kinds()  # makers by class name, for reading state files


def members_of(posterior: Drawable) -> Sequence[Weights] | None:
    """Return the points of a finite posterior, or None for one with infinitely many.

    A plain average is one point, and so are bare weights.

    >>> members_of({"w": torch.zeros(1)})
    [{'w': tensor([0.])}]
    """
    if type(posterior) is dict:  # before the protocols, whose checks take as long as a small model's forward pass
        check_tensors(posterior, "the weights")
        return [dict(posterior)]
    if isinstance(posterior, Finite):
        return posterior.members()
    if isinstance(posterior, Posterior):
        return None
    if isinstance(posterior, Averager):
        return [posterior.mean()]
    if isinstance(posterior, Mapping):
        check_tensors(posterior, "the weights")
        return [dict(posterior)]
    raise ValueError(
        f"weights are drawn from a posterior, an averager or a mapping of named tensors, got {type(posterior).__name__}"
    )


def check_draws(samples: object, generator: object) -> None:
    """Refuse what is no number of draws (or None), and what is no generator of torch (or None).

    Raises:
        ValueError: as said.

    >>> check_draws(0, None)
    Traceback (most recent call last):
    ...
    ValueError: samples must be a whole number of at least 1, got 0
    """
    if samples is not None:
        whole("samples", samples, 1)
    check_generator(generator)


def shuffled(count: int, samples: int, generator: torch.Generator | None) -> list[int]:
    """Return `samples` of `count` places: shuffled passes over all of them, the last one cut short.

    So every place comes samples / count times, rounded down or up, and each single draw is uniform.

    Raises:
        ValueError: `samples` is no number of draws.

    >>> sorted(shuffled(2, 4, torch.Generator().manual_seed(0)))
    [0, 0, 1, 1]
    """
    check_draws(samples, generator)
    device = "cpu" if generator is None else generator.device
    passes = [torch.randperm(count, generator=generator, device=device) for _ in range(-(-samples // count))]
    places: list[int] = torch.cat(passes)[:samples].tolist()
    return places


def draws(posterior: Drawable, samples: int | None, generator: torch.Generator | None = None) -> Iterator[Weights]:
    """Yield weights one draw at a time, so that memory does not grow with their number.

    A finite posterior with `samples=None` yields each member exactly once. With a number, draws are made.

    Raises:
        ValueError: `samples` is below 1, or is None for a posterior with infinitely many points.

    >>> [w["w"].item() for w in draws({"w": torch.ones(1)}, None)]
    [1.0]
    """
    check_draws(samples, generator)
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
