"""Noise that is isotropic in an adapter's products."""

import re

import pytest
import torch

from lowland.integrations.peft import IsotropicAdapters

A, B = "q.lora_A.default.weight", "q.lora_B.default.weight"


def factors(rank: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        A: torch.randn(rank, 4, generator=generator),
        B: torch.randn(6, rank, generator=generator) * torch.tensor([10.0, 1.0, 0.1])[:rank],
        "head.weight": torch.ones(2, 2),
    }


def products(draws: dict[str, torch.Tensor]) -> torch.Tensor:
    return draws[B].double() @ draws[A].double()


def test_the_product_varies_alike_in_every_direction_that_b_reaches_and_in_no_other() -> None:
    weights, n = factors(), 20_000
    draws = IsotropicAdapters(weights, variance=0.25).sample(n, generator=torch.Generator().manual_seed(1))
    moved = products(draws) - products(weights)  # (n, 6, 4)
    u, _, _ = torch.linalg.svd(weights[B].double(), full_matrices=True)
    inside = (u[:, :3].T @ moved).reshape(n, -1)
    covariance = inside.T @ inside / n
    # The variance of an estimated variance is 2 v^2 / n, of a covariance v^2 / n: five standard errors.
    assert torch.allclose(covariance, 0.25 * torch.eye(12, dtype=torch.float64), atol=5 * 0.25 * (2 / n) ** 0.5)
    assert (u[:, 3:].T @ moved).abs().max() < 1e-5
    assert torch.equal(draws[B], weights[B].expand(n, -1, -1)) and bool((draws["head.weight"] == 1).all())


def test_another_pair_of_factors_of_the_same_product_has_the_same_noise() -> None:
    weights = factors()
    mixed = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 4.0]])
    other = {**weights, A: torch.linalg.solve(mixed, weights[A]), B: weights[B] @ mixed}
    spreads = [
        (products(IsotropicAdapters(each).sample(4000, generator=torch.Generator().manual_seed(2)))).var(0)
        for each in (weights, other)
    ]
    assert torch.allclose(spreads[0], spreads[1], rtol=0.2)


def test_tempering_multiplies_the_variance_and_leaves_the_mean() -> None:
    posterior = IsotropicAdapters(factors(), variance=2.0)
    wide = posterior.tempered(4.0)
    assert (posterior.variance, wide.variance) == (2.0, 8.0)
    one, two = (p.sample(generator=torch.Generator().manual_seed(0)) for p in (posterior, wide))
    mean = posterior.mean()
    assert torch.allclose(two[A] - mean[A], 2 * (one[A] - mean[A]), atol=1e-5)
    assert all(torch.equal(tensor, mean[name]) for name, tensor in posterior.tempered(0.0).sample().items())
    mean[A].zero_()
    assert bool(posterior.mean()[A].any()), "the mean that was handed out is a copy"


def test_directions_that_b_does_not_reach_get_no_noise() -> None:
    weights = factors()
    weights[B][:, 1] = weights[B][:, 0]
    draw = IsotropicAdapters(weights, variance=1.0).sample(generator=torch.Generator().manual_seed(0))
    assert (draw[A] - weights[A]).abs().max() < 100, "noise over a vanishing singular value"
    weights[B].zero_()
    assert torch.equal(IsotropicAdapters(weights).sample()[A], weights[A])


def test_what_is_no_adapter_is_refused() -> None:
    weights = factors()
    with pytest.raises(ValueError, match=re.escape("no tensor of ['head.weight'] is a factor lora_A")):
        IsotropicAdapters({"head.weight": weights["head.weight"]})
    with pytest.raises(ValueError, match=f"{re.escape(A)} has no partner {re.escape(B)}: give both factors"):
        IsotropicAdapters({A: weights[A]})
    with pytest.raises(ValueError, match="are no A .* and B"):
        IsotropicAdapters({A: weights[A], B: weights[B].T})
    with pytest.raises(ValueError, match="variance must be a number of at least 0, got -1: raise it"):
        IsotropicAdapters(weights, variance=-1)
    with pytest.raises(ValueError, match="scale must be a number"):
        IsotropicAdapters(weights).tempered(-1.0)
