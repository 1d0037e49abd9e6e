"""Isotropic noise on what adapters add, after training: the posterior of Training-Free Bayesianization (Shi, Wang, Han,
Zhang, Wang 2024, arXiv 2412.05723).

    B = U diag(d) V^T,   A' = A + sqrt(variance) V diag(1/d) E,   E_ij ~ N(0, 1),   so   B A' = B A + sqrt(variance) U E

An adapter adds scaling * B A to a weight of shape (out, in). The noise of that product has the same variance in every
direction that B can reach, whatever pair of factors it was written as; noise on the factors themselves has not. B, the
layers in modules_to_save and biases stay as they are. `lowland.calibration.largest_scale` finds the variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ...averager.posteriors import check_draws
from ...weights.named import Weights

SMALLEST = 1e-6  # of B's largest singular value: what is smaller is no direction that B reaches


class IsotropicAdapters:
    """A Gaussian around LoRA adapters, isotropic in their products.

    Args:
        weights: of an adapter, by PEFT's names; each `lora_A` (rank, in) has its `lora_B` (out, rank).
        variance: of each element of U^T B A.

    Raises:
        ValueError: no name is a factor's, a factor lacks its partner or does not fit it, or the variance is negative.

    >>> weights = {"q.lora_A.default.weight": torch.ones(1, 2), "q.lora_B.default.weight": torch.tensor([[2.0], [0.0]])}
    >>> draw = IsotropicAdapters(weights, variance=0.0).sample()
    >>> draw["q.lora_B.default.weight"] @ draw["q.lora_A.default.weight"]
    tensor([[2., 2.],
            [0., 0.]])
    """

    def __init__(self, weights: Weights, variance: float = 1.0) -> None:
        if isinstance(variance, bool) or not (0 <= variance < math.inf):
            raise ValueError(f"variance must be a number of at least 0, got {variance!r}: raise it")
        self.variance = float(variance)
        self._mean = {name: tensor.detach().clone() for name, tensor in weights.items()}
        self._whitened = {name: _whitening(_partner(name, weights)) for name in weights if ".lora_A." in name}
        if not self._whitened:
            raise ValueError(f"no tensor of {sorted(weights)[:3]} is a factor lora_A of an adapter: give an adapter's")

    def tempered(self, scale: float) -> IsotropicAdapters:
        """Return the same Gaussian with its variance multiplied by `scale`."""
        other = object.__new__(IsotropicAdapters)
        other.__dict__.update(self.__dict__)
        if isinstance(scale, bool) or not (0 <= scale < math.inf):
            raise ValueError(f"scale must be a number of at least 0, got {scale!r}: raise it")
        other.variance = self.variance * float(scale)
        return other

    def mean(self) -> dict[str, Tensor]:
        """Return a copy of the adapter that the noise is around."""
        return {name: tensor.clone() for name, tensor in self._mean.items()}

    def sample(self, samples: int | None = None, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw adapters; with `samples` every tensor gains a leading axis of so many draws."""
        made = list(self.draws(1 if samples is None else samples, generator=generator))
        return made[0] if samples is None else {name: torch.stack([one[name] for one in made]) for name in made[0]}

    def draws(self, samples: int, *, generator: torch.Generator | None = None) -> Iterator[dict[str, Tensor]]:
        """Yield draws one at a time."""
        check_draws(samples, generator)
        return (self._draw(generator) for _ in range(samples))

    @torch.no_grad()
    def _draw(self, generator: torch.Generator | None) -> dict[str, Tensor]:
        made = self.mean()
        for name, whitened in self._whitened.items():
            factor = made[name]
            device = factor.device if generator is None else generator.device
            noise = torch.randn(whitened.shape[1], factor.shape[1], generator=generator, device=device)
            moved = whitened @ noise.to(whitened)
            made[name] = (factor.to(moved) + math.sqrt(self.variance) * moved).to(factor.dtype)
        return made


def _partner(name: str, weights: Weights) -> Tensor:
    partner = name.replace(".lora_A.", ".lora_B.")
    if partner not in weights:
        raise ValueError(f"{name} has no partner {partner}: give both factors")
    a, b = weights[name], weights[partner]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ValueError(
            f"{name} {tuple(a.shape)} and {partner} {tuple(b.shape)} are no A (rank, in) and B (out, rank)"
        )
    return b


def _whitening(b: Tensor) -> Tensor:
    """V diag(1/d), (rank, directions that B reaches), in float32 or wider."""
    wide = b.detach().to(torch.promote_types(b.dtype, torch.float32))
    _, d, v = torch.linalg.svd(wide, full_matrices=False)
    kept = d > SMALLEST * d.max()  # none of them where B is zero
    whitening: Tensor = v.mT[:, kept] / d[kept]
    return whitening
