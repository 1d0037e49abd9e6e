"""Mixtures: METHODS 17.10, stratified draws, densities and moments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lowland import SWA, SWAG, Mixture, Snapshots
from lowland.averager import draws, members_of

from .problems import walk


class Gaussian:
    """A Gaussian of two weights with a diagonal covariance, as a user might bring one."""

    def __init__(self, mean: float, variance: float) -> None:
        self.normal = torch.distributions.MultivariateNormal(torch.full((2,), mean), variance * torch.eye(2))

    def sample(self, samples: int | None = None, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        z = torch.randn(*(() if samples is None else (samples,)), 2, generator=generator)
        return {"w": self.normal.loc + z * self.normal.variance.sqrt()}

    def mean(self) -> dict[str, Tensor]:
        return {"w": self.normal.mean}

    def variance(self) -> dict[str, Tensor]:
        return {"w": self.normal.variance}

    def log_prob(self, weights: dict[str, Tensor]) -> float:
        return float(self.normal.log_prob(weights["w"]))

    def distribution(self) -> torch.distributions.MultivariateNormal:
        return self.normal


def test_17_10_moments() -> None:
    mixture = Mixture([Gaussian(0.0, 1.0), Gaussian(2.0, 2.0)])
    mean, variance = mixture.moments()
    assert mean["w"].tolist() == [1.0, 1.0]
    assert variance["w"].tolist() == [2.5, 2.5]
    assert torch.allclose(mixture.covariance(), torch.tensor([[2.5, 1.0], [1.0, 2.5]]))


def test_log_density_is_the_mean_of_the_densities() -> None:
    one, two = Gaussian(0.0, 1.0), Gaussian(2.0, 2.0)
    point = {"w": torch.tensor([0.5, -1.0])}
    expected = math.log((math.exp(one.log_prob(point)) + math.exp(two.log_prob(point))) / 2)
    assert Mixture([one, two]).log_prob(point) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="a dict is a set of points and has no density"):
        Mixture([one, {"w": torch.zeros(2)}]).log_prob(point)


def points(n: int) -> list[dict[str, Tensor]]:
    return [{"w": torch.tensor([float(i)])} for i in range(n)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_draws_are_shared_out_evenly(n: int) -> None:
    drawn = Mixture(points(3)).sample(n, generator=torch.Generator().manual_seed(n))["w"].flatten()
    counts = torch.bincount(drawn.long(), minlength=3)
    assert counts.sum() == n
    assert counts.max() - counts.min() <= 1


def test_the_remainder_is_random() -> None:
    mixture = Mixture(points(3))
    generator = torch.Generator().manual_seed(0)
    single = torch.stack([mixture.sample(generator=generator)["w"][0] for _ in range(600)])
    # Binomial(600, 1/3): five standard deviations are 58.
    assert all(abs(int((single == i).sum()) - 200) <= 58 for i in range(3))


def test_members() -> None:
    assert [w["w"].item() for w in Mixture(points(3)).members() or []] == [0.0, 1.0, 2.0]
    averages = [SWA(), SWA()]
    for average, seed in zip(averages, (0, 1), strict=True):
        for weights in walk(3, seed):
            average.update(weights)
    found = Mixture(averages).members()
    assert found is not None and len(found) == 2
    gaussian = SWAG(rank=2)
    for weights in walk(3):
        gaussian.update(weights)
    assert Mixture([gaussian, *averages]).members() is None
    with pytest.raises(ValueError, match="infinitely many points: say how many draws with samples="):
        list(draws(Mixture([gaussian]), None))


def test_streamed_draws_equal_the_stacked_ones() -> None:
    swags = []
    for seed in (0, 1):
        swag = SWAG(rank=3)
        for weights in walk(5, seed):
            swag.update(weights)
        swags.append(swag)
    mixture = Mixture(swags)
    stacked = mixture.sample(5, generator=torch.Generator().manual_seed(4))
    streamed = list(draws(mixture, 5, torch.Generator().manual_seed(4)))
    for index, weights in enumerate(streamed):
        assert all(torch.equal(weights[name], stacked[name][index]) for name in weights)


def test_a_finite_component_keeps_its_even_shares() -> None:
    ring = Snapshots(4)
    for weights in points(4):
        ring.update(weights)
    drawn = Mixture([ring]).sample(8, generator=torch.Generator().manual_seed(0))["w"].flatten()
    assert torch.bincount(drawn.long()).tolist() == [2, 2, 2, 2]


def test_making_one_leaves_the_global_stream_alone() -> None:
    wide = SWAG(rank=2)
    for value in (0.0, 1.0, 4.0):
        wide.update({"w": torch.tensor([value, -value])})
    before = torch.get_rng_state()
    Mixture([Mixture([wide.tempered(0.5), wide]), wide.tempered(2.0)])
    assert torch.equal(torch.get_rng_state(), before)


def test_nested_mixtures() -> None:
    inner = Mixture([Gaussian(0.0, 1.0), Gaussian(2.0, 2.0)])
    outer = Mixture([inner, inner])
    assert torch.allclose(outer.covariance(), inner.covariance())
    assert outer.moments()[1]["w"].tolist() == [2.5, 2.5]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="at least one component, got none"):
        Mixture([])
    with pytest.raises(ValueError, match="must name the same tensors.*missing \\['w'\\], unexpected \\['v'\\]"):
        Mixture([{"w": torch.zeros(1)}, {"v": torch.zeros(1)}])
    with pytest.raises(ValueError, match="weights are drawn from a posterior, an averager or a mapping"):
        Mixture([3])  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match="no weights yet"):
        Mixture([SWA()])
    with pytest.raises(ValueError, match="samples must be a whole number of at least 1, got 0"):
        list(draws(points(1)[0], 0))
    assert members_of(points(1)[0]) == points(1)


def test_a_mixture_of_tempered_posteriors_has_moments_covariance_and_density() -> None:
    swags = []
    for seed in (0, 1):
        swag = SWAG(rank=3)
        for weights in walk(6, seed):
            swag.update(weights)
        swags.append(swag)
    scales = (0.5, 2.0)
    tempered = [swag.tempered(scale) for swag, scale in zip(swags, scales, strict=True)]
    mixture, point = Mixture(tempered), walk(1, seed=9)[0]
    dense = [view.distribution() for view in tempered]
    means = torch.stack([gaussian.loc for gaussian in dense])
    between = torch.cov(means.T, correction=0)
    inner = torch.stack([gaussian.covariance_matrix for gaussian in dense]).mean(0)
    assert torch.allclose(mixture.covariance(), inner + between, atol=1e-6)
    mean, variance = mixture.moments()
    names = sorted(mean)
    assert torch.allclose(torch.cat([mean[name].flatten() for name in names]), means.mean(0), atol=1e-6)
    flat = torch.cat([variance[name].flatten() for name in names])
    assert torch.allclose(flat, mixture.covariance().diagonal(), rtol=1e-4)
    each = torch.tensor([view.log_prob(point) for view in tempered], dtype=torch.float64)
    assert mixture.log_prob(point) == pytest.approx(float(each.logsumexp(0)) - math.log(2))
    for swag, scale, view in zip(swags, scales, tempered, strict=True):
        for name, whole in swag.variance().items():
            assert torch.allclose(view.variance()[name], scale * whole, rtol=1e-5)


def test_unequal_components_are_enumerated_with_equal_weight() -> None:
    ring = Snapshots(3)
    for weights in points(3):
        ring.update(weights)
    mixture = Mixture([ring, {"w": torch.tensor([9.0])}, Mixture(points(2))])
    found = [point["w"].item() for point in mixture.members() or []]
    assert sorted(found) == sorted([0.0, 1.0, 2.0] * 2 + [9.0] * 6 + [0.0] * 3 + [1.0] * 3)
    both = Mixture([mixture, {"w": torch.tensor([5.0])}]).members() or []
    assert len(both) == 36 and sum(point["w"].item() == 5.0 for point in both) == 18


def test_draws_of_a_mixture_are_made_in_their_places() -> None:
    class Into(Gaussian):
        calls = 0

        def draws_into(self, rows: dict[str, Tensor], *, generator: torch.Generator | None = None) -> None:
            self.calls += 1
            rows["w"].copy_(self.sample(len(rows["w"]), generator=generator)["w"])

    one = Into(0.0, 1.0)
    drawn = Mixture([one, {"w": torch.full((2,), 7.0)}]).sample(6, generator=torch.Generator().manual_seed(0))["w"]
    assert one.calls == 1 and drawn.shape == (6, 2)
    assert int((drawn == 7).all(1).sum()) == 3


@pytest.mark.parametrize("samples", [0, -1, 2.5, True, "3"])
def test_numbers_of_draws_that_are_none(samples: object) -> None:
    swag = SWAG(rank=2)
    for weights in walk(3):
        swag.update(weights)
    for posterior in (swag, swag.tempered(0.5), Mixture([swag])):
        with pytest.raises(ValueError, match="samples must be a whole number of at least 1, got"):
            posterior.sample(samples)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="samples must be a whole number of at least 1, got"):
            list(posterior.draws(samples))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="generator must be a torch.Generator, got int: pass torch.Generator"):
            posterior.sample(2, generator=5)  # type: ignore[arg-type]
