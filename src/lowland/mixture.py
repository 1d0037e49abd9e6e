"""Mixtures of posteriors: MultiSWAG, MultiSWA and deep ensembles (Wilson, Izmailov 2020, arXiv 2002.08791).

    p(w) = 1/M sum_m p_m(w)

A mixture of SWAGs trained from different seeds is MultiSWAG; of SWAs, MultiSWA; of bare weights, a deep ensemble
(Lakshminarayanan, Pritzel, Blundell 2017, arXiv 1612.01474). There is no mean to use as a model: across basins the
average of weights means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .arithmetic.moments import check_numbers
from .averager.posteriors import COMPOSITES, Drawable, Posterior, check_draws, draws, members_of
from .weights.kinds import check_same_kinds
from .weights.named import Weights, check_same, clone_of
from .weights.shards import like, local


@runtime_checkable
class DrawsInto(Protocol):
    """A posterior that writes draws where it is told, so that a mixture's draws are made in their places."""

    def draws_into(self, rows: Weights, *, generator: torch.Generator | None = None) -> None:
        """Write one draw into each row of tensors (samples, *shape), by name."""


class Mixture:
    """The equal mixture of posteriors, plain averages or weights of one architecture.

    Draws are shared out evenly over the components (stratified): of n each of M gets n // M, and the remainder goes to
    components chosen at random. So predictions of a mixture of points with as many draws as components use each once.

    A finite mixture is enumerated: `members` has every point of every component, so often that each component weighs
    1 / M whatever its number of points. `predict` runs each point once, with that weight.

    Raises:
        ValueError: there is no component, one cannot be drawn from, or two name different tensors.

    >>> mixture = Mixture([{"w": torch.tensor([0.0])}, {"w": torch.tensor([2.0])}])
    >>> mixture.sample(4, generator=torch.Generator().manual_seed(0))["w"].sum()
    tensor(4.)
    >>> len(mixture.members())
    2
    """

    def __init__(self, components: Sequence[Drawable]) -> None:
        if not components:
            raise ValueError("a mixture needs at least one component, got none")
        self.components: list[Drawable] = list(components)
        for place, component in enumerate(self.components):
            if isinstance(component, Mapping):
                check_numbers(component, f"component {place}", complex_too=True)
        first = _point(self.components[0])
        dtypes = {name: tensor.dtype for name, tensor in first.items()}
        for component in self.components[1:]:
            point = _point(component)
            check_same(first, point, what="a mixture's components must name the same tensors")
            check_same_kinds(first, point, "a mixture's components")
            dtypes = {name: torch.promote_types(kept, point[name].dtype) for name, kept in dtypes.items()}
        self._forms = {name: _form(tensor, dtypes[name]) for name, tensor in first.items()}

    def members(self) -> Sequence[Weights] | None:
        """Return equally likely points, or None unless all components are finite.

        Components with equally many points give each once; else those with few repeat theirs, the very same objects one
        after the other, up to the least common multiple.
        """
        finite = [members_of(component) for component in self.components]
        if any(points is None for points in finite):
            return None
        if not all(finite):
            return []
        each = math.lcm(*(len(points or ()) for points in finite))
        return [point for points in finite for point in points or () for _ in range(each // len(points or ()))]

    @torch.no_grad()
    def sample(self, samples: int | None = None, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw weights, components in order; with `samples` tensors gain a leading axis of so many stratified draws.

        Raises:
            ValueError: samples is below 1.
        """
        if samples is None:
            return clone_of(next(iter(self.draws(1, generator=generator))))
        shares = self._shares(samples, generator)
        result = {name: _rows(form, samples) for name, form in self._forms.items()}
        first = 0
        for component, share in zip(self.components, shares, strict=True):
            if share and isinstance(component, DrawsInto):
                rows = {name: local(tensor)[first : first + share] for name, tensor in result.items()}
                component.draws_into(rows, generator=generator)
            else:
                for place, weights in enumerate(_draws(component, share, generator), start=first):
                    for name, tensor in result.items():
                        local(tensor)[place].copy_(local(weights[name]))
            first += share
        return result

    def draws(self, samples: int, *, generator: torch.Generator | None = None) -> Iterator[Weights]:
        """Yield the draws of `sample(samples)` one at a time.

        Raises:
            ValueError: samples is below 1.
        """
        for component, share in zip(self.components, self._shares(samples, generator), strict=True):
            yield from _draws(component, share, generator)

    def _shares(self, samples: int, generator: torch.Generator | None) -> list[int]:
        """How many draws each component gives: the even share, and the remainder at random."""
        check_draws(samples, generator)
        shares = [samples // len(self.components)] * len(self.components)
        device = torch.device("cpu") if generator is None else generator.device
        order = torch.randperm(len(shares), generator=generator, device=device)
        for index in order[: samples % len(shares)].tolist():
            shares[index] += 1
        return shares

    def log_prob(self, weights: Weights) -> float:
        """Return the log-density of `weights` in nats.

        Raises:
            ValueError: a component is a set of points and has no density.
        """
        logs = []
        for component in self.components:
            log_prob = _verb(component, "log_prob")
            if log_prob is None:
                raise ValueError(f"a {type(component).__name__} is a set of points and has no density")
            logs.append(log_prob(weights))
        return float(torch.logsumexp(torch.tensor(logs, dtype=torch.float64), 0)) - math.log(len(logs))

    @torch.no_grad()
    def moments(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the mean and the marginal variance of each weight: numbers about the mixture, not a model to use.

        The variance is the average of the components' plus the variance of their means.
        """
        means, variances = zip(*(_moments(component) for component in self.components), strict=True)
        mean = {name: torch.stack([m[name] for m in means]).mean(0) for name in means[0]}
        variance = {
            name: torch.stack([v[name] for v in variances]).mean(0)
            + torch.stack([m[name] for m in means]).var(0, correction=0)
            for name in mean
        }
        return mean, variance

    @torch.no_grad()
    def covariance(self) -> Tensor:
        """Return the dense (d, d) covariance over the flat weights, tensors in the order of their sorted names.

        For small models: it holds d^2 numbers.
        """
        flat, inner = [], []
        for component in self.components:
            mean, _ = _moments(component)
            flat.append(torch.cat([mean[name].flatten() for name in sorted(mean)]))
            inner.append(_covariance(component))
        return torch.stack(inner).mean(0) + torch.cov(torch.stack(flat).T, correction=0).reshape(inner[0].shape)

    def __repr__(self) -> str:
        return f"Mixture of {len(self.components)}: {[type(component).__name__ for component in self.components]}"


COMPOSITES[Mixture.__name__] = Mixture


def _draws(component: Drawable, share: int, generator: torch.Generator | None) -> Iterator[Weights]:
    if share and isinstance(component, Posterior):
        yield from draws(component, share, generator)
    else:
        yield from (_point(component) for _ in range(share))


def _verb(component: Drawable, name: str) -> Callable[..., Any] | None:
    """A method that posteriors may have; user's own ones have some of them."""
    found = getattr(component, name, None)
    return found if callable(found) else None


def _form(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of this shape, device and placement, in the memory of one number."""
    own = local(tensor)
    return like(torch.empty((), dtype=dtype, device=own.device).expand(own.shape), tensor)


def _rows(form: Tensor, samples: int) -> Tensor:
    own = local(form)
    return like(torch.empty((samples, *own.shape), dtype=own.dtype, device=own.device), form, leading=(samples,))


def _point(component: Drawable) -> Weights:
    """One point of the component, for its names and shapes; the only point of a plain average."""
    if isinstance(component, Mixture):
        return component._forms
    mean = _verb(component, "mean")
    if mean is not None:
        point: Weights = mean()
        return point
    points = members_of(component)
    if points is not None:
        return points[0]
    assert isinstance(component, Posterior)  # as members_of has seen
    cards = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(cards):  # its shapes are wanted, not its place in the global stream
        return component.sample()


def _moments(component: Drawable) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    if isinstance(component, Mixture):
        return component.moments()
    mean, variance = _verb(component, "mean"), _verb(component, "variance")
    if mean is not None and variance is not None:
        return mean(), variance()
    points = members_of(component)
    if points is None:
        raise ValueError(f"a {type(component).__name__} states neither its moments nor its points")
    stacked = {name: torch.stack([point[name].float() for point in points]) for name in points[0]}
    return (
        {name: values.mean(0) for name, values in stacked.items()},
        {name: values.var(0, correction=0) for name, values in stacked.items()},
    )


def _covariance(component: Drawable) -> Tensor:
    if isinstance(component, Mixture):
        return component.covariance()
    distribution = _verb(component, "distribution")
    if distribution is not None:
        covariance: Tensor = distribution().covariance_matrix
        return covariance
    points = members_of(component)
    if points is None:
        raise ValueError(f"a {type(component).__name__} states neither its covariance nor its points")
    flat = torch.stack([torch.cat([point[name].float().flatten() for name in sorted(point)]) for point in points])
    return torch.cov(flat.T, correction=0).reshape(flat.shape[1], flat.shape[1])
