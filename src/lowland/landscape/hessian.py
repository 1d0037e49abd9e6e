"""The spectrum of the Hessian of a model's loss: top eigenvalues, trace and density, by products with vectors.

    density    mean over probes z of  sum_k tau_k N(. ; theta_k, sigma^2)       stochastic Lanczos quadrature
    trace      mean over probes z of  z' H z,    z of independent signs         Hutchinson 1990

Ghorbani, Krishnan, Xiao 2019, arXiv:1901.10159. A probe's first Lanczos coefficient times d is its z'Hz, so the trace
comes with the density. Why by hand: the library that does the same, curvlinops 3.0.1, brings backpack, einops, einconv,
linear_operator, opt_einsum, unfoldNd and a torchvision whose build must be that of torch; these are 150 lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..arithmetic.moments import check_numbers
from ..arithmetic.philox import new_key, normals, tensor_ids
from ..weights.named import Weights, applied
from .estimate import Estimate
from .frame import Frame, moves
from .gradients import Differentiated
from .lanczos import Ritz, lanczos
from .measures import BatchLoss
from .walk import wide

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of a symmetric matrix, as its products with vectors tell it.

    Attributes:
        eigenvalues: the Ritz values of the first probe, descending: the outermost are eigenvalues, those inside stand
            for many.
        errors: a bound for each: an eigenvalue lies within so much of it.
        trace: with its interval over probes.
        nodes, weights: (probes, steps), the quadrature of the density; weights of missing steps are 0.
        dimension: how many eigenvalues there are.
        vectors: the eigenvectors of the first ones, by name; empty once read from a file.
        about: what a caption says.

    >>> spectrum = Spectrum(
    ...     torch.tensor([2.0, 1.0]), torch.zeros(2), Estimate.of([3.0]), torch.tensor([[1.0, 2.0]]),
    ...     torch.tensor([[0.5, 0.5]]), 2)
    >>> spectrum.density(torch.tensor([1.0, 1.5, 2.0]), width=0.1).round(decimals=2)
    tensor([1.9900, 0.0000, 1.9900], dtype=torch.float64)
    """

    eigenvalues: Tensor
    errors: Tensor
    trace: Estimate
    nodes: Tensor
    weights: Tensor
    dimension: int
    vectors: tuple[dict[str, Tensor], ...] = ()
    about: dict[str, str] = field(default_factory=dict)

    def density(self, values: Tensor, *, width: float | None = None) -> Tensor:
        """Return the density of eigenvalues at `values`, smoothed by a Gaussian; it integrates to 1.

        Args:
            width: its standard deviation; a hundredth of the spectrum's range by default.
        """
        nodes, weights = self.nodes.double(), self.weights.double()
        if width is None:
            width = float(nodes[weights > 0].max() - nodes[weights > 0].min()) / 100 or 1.0
        if not width > 0:
            raise ValueError(f"width must be above 0, got {width}")
        away = (values.double()[:, None, None] - nodes) / width
        bells = torch.exp(-away.square() / 2) / (width * math.sqrt(2 * math.pi))
        return (bells * weights).sum((1, 2)) / len(nodes)

    def __str__(self) -> str:
        top = ", ".join(f"{v:.4g} ± {e:.1g}" for v, e in zip(self.eigenvalues[:3], self.errors[:3], strict=True))
        return f"top eigenvalues {top}; trace {self.trace}; {self.dimension} weights, {len(self.nodes)} probes"


def spectrum(
    model: nn.Module,
    w: Weights,
    batches: Iterable[Batch],
    loss: BatchLoss[Batch],
    *,
    steps: int = 20,
    probes: int = 5,
    vectors: int = 0,
    refresh: Callable[[nn.Module], object] | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
    about: dict[str, str] | None = None,
) -> Spectrum:
    """Return the spectrum of the Hessian of the mean loss at `w`, over its parameters.

    Run in eval mode: BatchNorm normalises by statistics that do not follow the weights, those of the model or what
    `refresh` made of them at `w`. The model is left as it was. Memory beside it: `steps` + 6 times the weights.

    Args:
        loss: takes the model and a batch and returns a mean over its examples, or several by name, of which "loss" is
            differentiated.
        steps: Lanczos steps a probe, each a product: one pass forward and two backward over the batches.
        probes: random starts.
        vectors: how many of the top eigenvectors to keep.

    Raises:
        ValueError: steps or probes is below 1, there is no batch, or the weights are no parameters of the model.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> w, loss = {"weight": torch.zeros(1, 2)}, lambda model, x: model(x).square().mean()
    >>> found = spectrum(model, w, [x], loss, steps=2, probes=1)
    >>> found.eigenvalues, round(found.trace.mean, 4)
    (tensor([4.0000, 1.0000], dtype=torch.float64), 5.0)
    """
    check_numbers(w, "the weights")
    f = Differentiated(model, batches, loss)
    done = 0
    with applied(model, w):
        if refresh is not None:
            refresh(model)

        def product(v: Weights) -> dict[str, Tensor]:
            nonlocal done
            made = f.product(w, v)
            done += 1
            if progress is not None:
                progress(done, steps * probes)
            return made

        return spectrum_of(product, w, steps=steps, probes=probes, vectors=vectors, generator=generator, about=about)


def spectrum_of(
    product: Callable[[Weights], Weights],
    like: Weights,
    *,
    steps: int = 20,
    probes: int = 5,
    vectors: int = 0,
    generator: torch.Generator | None = None,
    about: dict[str, str] | None = None,
) -> Spectrum:
    """Return the spectrum of a symmetric matrix over the coordinates of `like`, given its products.

    >>> diagonal = torch.tensor([1.0, 4.0, 9.0])
    >>> found = spectrum_of(lambda v: {"w": diagonal * v["w"]}, {"w": torch.zeros(3)}, steps=3, probes=2)
    >>> round(found.trace.mean, 4), round(found.trace.high, 4)
    (14.0, 14.0)
    """
    if steps < 1 or probes < 1:
        raise ValueError(f"wanted at least 1 step and 1 probe, got {steps} and {probes}")
    moving = {name: tensor.detach() for name, tensor in like.items() if moves(name, tensor)}
    vector = _Vector(moving)
    key = new_key(generator)
    found: list[tuple[Tensor, Tensor]] = []
    quadratic: list[float] = []
    first: Ritz | None = None
    for number in range(probes):
        ritz = lanczos(lambda flat: vector.flat(product(vector.named(flat))), signs(moving, key, number), steps)
        quadratic.append(float(ritz.alpha[0]) * vector.size)
        found.append((ritz.values, ritz.weights))
        if first is None:
            first = ritz
        del ritz
    assert first is not None
    nodes, weights = torch.zeros(2, probes, steps, dtype=torch.float64)
    for number, (values, shares) in enumerate(found):
        nodes[number, : len(values)], weights[number, : len(shares)] = values, shares
    kept = tuple(vector.named(first.vector(len(first.values) - 1 - k)) for k in range(min(vectors, len(first.values))))
    return Spectrum(
        eigenvalues=first.values.flip(0),
        errors=first.errors.flip(0),
        trace=Estimate.of(quadratic),
        nodes=nodes,
        weights=weights,
        dimension=vector.size,
        vectors=kept,
        about=about or {},
    )


def signs(like: Weights, key: int, number: int) -> Tensor:
    """Return independent signs, +1 or -1 with equal chance, as one vector.

    >>> signs({"w": torch.zeros(3)}, 1, 0).abs()
    tensor([1., 1., 1.])
    """
    ids = tensor_ids(like)
    parts = [
        normals(key, ids[name], range(number, number + 1), 0, t.numel(), device=t.device)[0].signbit().to(wide(t.dtype))
        for name, t in like.items()
    ]
    return 1 - 2 * torch.cat(parts)


class _Vector:
    """Named tensors as one vector, in the widest of their dtypes, and back."""

    def __init__(self, like: Weights) -> None:
        self._like = like
        self.size = sum(tensor.numel() for tensor in like.values())

    def flat(self, weights: Weights) -> Tensor:
        return torch.cat([weights[name].to(wide(like.dtype)).reshape(-1) for name, like in self._like.items()])

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([tensor.numel() for tensor in self._like.values()])  # type: ignore[no-untyped-call]
        return {name: part.view(t.shape) for (name, t), part in zip(self._like.items(), parts, strict=True)}


def curvature(product: Callable[[Weights], Weights], direction: Weights) -> float:
    """Return d'Hd / d'd, the second derivative along a direction.

    >>> round(curvature(lambda v: {"w": torch.tensor([1.0, 3.0]) * v["w"]}, {"w": torch.ones(2)}), 6)
    2.0
    """
    frame = Frame({name: torch.zeros_like(tensor) for name, tensor in direction.items()}, [direction])
    along, length = frame.products(product(direction))[0], frame.products(direction)[0]
    return along / length
